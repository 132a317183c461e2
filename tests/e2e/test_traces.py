"""Traces by OTLP, as a collector gets them; and that a daemon without a working one does not notice."""

import gzip
import queue
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hpack
import pytest
import trio
import trustme
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from beds.hosts.form import serve_file
from beds.hosts.in_process import PLAIN, TOKEN, counted, exchange, write_config
from beds.http2 import EMPTY_SETTINGS
from beds.peers.crowd import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, call, frame
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.service.serve import Daemon

DEADLINE_S = 20.0
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes OTLP over HTTP, as a collector does. `spans` has what came; `status` is what it answers."""

    def __init__(self) -> None:
        self.spans: queue.Queue[Span] = queue.Queue()
        self.status = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                if collector.status == 200:
                    told = ExportTraceServiceRequest.FromString(body)
                    for resource in told.resource_spans:
                        for scope in resource.scope_spans:
                            for span in scope.spans:
                                collector.spans.put(span)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    async def take(self, count: int) -> dict[str, Span]:
        """So many spans, by their names."""
        found = {}
        for _ in range(count):
            span = await trio.to_thread.run_sync(lambda: self.spans.get(timeout=DEADLINE_S))
            found[span.name] = span
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def endpoint(collector: Collector) -> str:
    return collector.url


@pytest.fixture
async def daemon(
    tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA, endpoint: str
) -> AsyncIterator[Daemon]:
    sections = f'[traces]\nendpoint = "{endpoint}"\n'
    path = write_config(
        tmp_path, authority, client_authority, limits='greeting_deadline = "5s"', boot_s=0.3, sections=sections
    )
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve_file, path)
        yield running
        running.handoff.abort_all()
        running.drain.set()


def traced(satellite: str, flags: str) -> bytes:
    """A call that belongs to a trace."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/bentpipe.demo.Satellite/Echo"),
        (":authority", "edge"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("traceparent", f"00-{TRACE}-{PARENT}-{flags}"),
        ("satellite_name", satellite),
        ("satellite_org", "acme"),
        ("satellite_token", TOKEN),
    ]
    block = hpack.Encoder().encode(fields)
    return PREFACE + EMPTY_SETTINGS + frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, bytes(5))


def texts(span: Span) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


async def test_the_phases_are_spans_of_the_clients_trace(daemon: Daemon, collector: Collector) -> None:
    async with await trio.open_tcp_stream(*daemon.addresses[PLAIN]) as stream:
        await stream.send_all(traced("sat", "01"))
        await counted(daemon, Outcome.SPLICED)
        await stream.receive_some()
    spans = await collector.take(7)
    assert set(spans) == {"connection", "greeting", "admission", "hold", "dial", "replay", "splice"}
    whole = spans.pop("connection")
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE, PARENT)
    assert {span.parent_span_id for span in spans.values()} == {whole.span_id}
    assert {span.trace_id for span in spans.values()} == {whole.trace_id}
    for span in spans.values():
        assert whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano
    hold = spans["hold"]
    assert hold.end_time_unix_nano - hold.start_time_unix_nano > 200_000_000, "the satellite took that long to boot"
    told = texts(whole)
    assert (told["bentpipe.satellite"], told["bentpipe.principal"]) == ("acme/sat", "test")
    assert {event.name for event in whole.events} >= {"last_byte"}
    assert TOKEN not in str(whole) + str(spans)


async def test_a_client_that_is_not_sampled_is_not_traced(daemon: Daemon, collector: Collector) -> None:
    await exchange(daemon, PLAIN, traced("sat", "00"), close=True)
    await exchange(daemon, PLAIN, call("sat", "bp_wrong"))
    spans = await collector.take(2)
    assert set(spans) == {"connection", "greeting"}
    assert spans["connection"].trace_id.hex() != TRACE
    assert spans["connection"].status.code == 2, "a refusal is an error"
    assert collector.spans.empty()


async def test_a_collector_that_refuses_costs_traces_with_a_count_and_no_connection(
    daemon: Daemon, collector: Collector
) -> None:
    collector.status = 400
    for _ in range(5):
        await exchange(daemon, PLAIN, call("sat", "bp_wrong"))
    tracer = daemon.records.connections.tracer
    assert tracer is not None
    with trio.fail_after(DEADLINE_S):
        while tracer.statistics().lost < 5:
            await trio.sleep(0.05)
    await counted(daemon, Outcome.REFUSED, 5)
    collector.status = 200
    await exchange(daemon, PLAIN, call("sat", "bp_wrong"))
    assert "connection" in await collector.take(2)


class TestDeadCollector:
    """Nobody answers there at all."""

    @pytest.fixture
    def endpoint(self) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
            yield f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"

    async def test_connections_and_the_end_do_not_wait_for_it(self, daemon: Daemon) -> None:
        for _ in range(20):
            await exchange(daemon, PLAIN, call("sat", "bp_wrong"))
        await counted(daemon, Outcome.REFUSED, 20)
        began = trio.current_time()
        await daemon.records.connections.aclose()
        assert trio.current_time() - began < DEADLINE_S
