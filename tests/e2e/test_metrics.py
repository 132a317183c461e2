"""The metrics, scraped as Prometheus does and read by its client's own parser."""

import dataclasses
import http.client
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trustme
from prometheus_client.parser import text_string_to_metric_families

from beds.hosts.form import serve_file
from beds.hosts.in_process import PLAIN, TOKEN, counted, exchange, write_config
from beds.http2 import EMPTY_SETTINGS
from beds.metrics import samples_of
from beds.peers.crowd import PREFACE, call
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.service.metrics_server import CONNECTIONS, HEAD_BYTES
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.service.statistics import statistics_fields

Samples = dict[tuple[str, str], float]


@pytest.fixture
async def daemon(tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA) -> AsyncIterator[Daemon]:
    sections = f'[metrics]\naddress = "127.0.0.1:0"\n[store]\npath = "{tmp_path / "ledger"}"'
    path = write_config(
        tmp_path, authority, client_authority, limits='greeting_deadline = "5s"', boot_s=0.1, sections=sections
    )
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve_file, path)
        yield running
        running.handoff.abort_all()
        running.drain.set()


def request(daemon: Daemon, method: str = "GET", path: str = "/metrics") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(*daemon.metrics_addresses[0], timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.headers["content-type"], answer.read().decode()


async def scrape(daemon: Daemon) -> Samples:
    """Every sample by its name and its one label's value."""
    status, kind, text = await trio.to_thread.run_sync(request, daemon)
    assert status == 200
    assert kind.startswith("text/plain; version=0.0.4")
    return samples_of(text)


async def test_what_happens_is_counted(daemon: Daemon) -> None:
    before = await scrape(daemon)
    await exchange(daemon, PLAIN, call("sat", "bp_wrong"))
    await exchange(daemon, PLAIN, PREFACE + EMPTY_SETTINGS + b"\0\0\1\0\0\0\0\0\1x")
    await exchange(daemon, PLAIN, b"GET / HTTP/1.1\r\n\r\n")
    await exchange(daemon, PLAIN, call("sat", TOKEN), close=True)
    held = await trio.open_tcp_stream(*daemon.addresses[PLAIN])
    async with held:
        await held.send_all(call("sat", TOKEN))
        await counted(daemon, Outcome.SPLICED)
        with trio.fail_after(10):
            while daemon.recorder is None or daemon.recorder.statistics().recorded < 3:
                await trio.sleep(0.01)
        after = await scrape(daemon)
        assert after["bentpipe_splices", ""] == 1
        assert after["bentpipe_leases", ""] == 1
    grown = {key: after[key] - before.get(key, 0) for key in after}
    expected = {
        ("bentpipe_connections_accepted_total", ""): 5,
        ("bentpipe_connections_ended_total", "refused"): 1,
        ("bentpipe_connections_ended_total", "malformed"): 1,
        ("bentpipe_connections_ended_total", "http1"): 1,
        ("bentpipe_connections_ended_total", "spliced"): 1,
        ("bentpipe_connections_ended_total", "client-gone"): 1,
        ("bentpipe_refusals_total", "UNAUTHENTICATED"): 1,
        ("bentpipe_malformed_total", "PROTOCOL_ERROR"): 1,
        ("bentpipe_connections", ""): 1,
        ("bentpipe_wakes_total", ""): 1,
        ("bentpipe_satellite_transitions_total", "operational"): 1,
        ("bentpipe_waiters", ""): 0,
        ("bentpipe_held_bytes", ""): 0,
    }
    assert {key: grown[key] for key in expected} == expected
    assert after["bentpipe_satellites", "operational"] == 1
    assert after["bentpipe_satellites", "sleep"] == 2
    assert after["bentpipe_ledger_recorded_total", ""] >= 3
    assert after["process_resident_memory_bytes", ""] > 1 << 20
    assert after["bentpipe_turns_total", ""] > before["bentpipe_turns_total", ""]
    assert {("bentpipe_engine_bytes_total", "copy"), ("bentpipe_engine_cpu_seconds_total", "0")} <= set(after)


async def test_a_series_is_there_before_anything_happened(daemon: Daemon) -> None:
    """A rate over a series that begins at 1 misses the first."""
    samples = await scrape(daemon)
    assert {("bentpipe_connections_ended_total", outcome.value) for outcome in Outcome} <= set(samples)
    assert ("bentpipe_splices_ended_total", "closed") in samples


async def test_names_are_as_prometheus_wants_them_and_documented(daemon: Daemon) -> None:
    _, _, text = await trio.to_thread.run_sync(request, daemon)
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for family in text_string_to_metric_families(text):
        assert family.documentation
        if family.name.startswith("bentpipe_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            assert re.search(rf"`{name}[`{{]", documented), f"{name} is not in docs/metrics.md"


async def test_the_statistics_line_says_the_same(daemon: Daemon) -> None:
    """Dashboards know its fields: those that have stood there since the first release stay."""
    await exchange(daemon, PLAIN, call("sat", "bp_wrong"))
    await counted(daemon, Outcome.REFUSED)
    await scrape(daemon)  # a data plane of its own then tells what it has counted
    line = statistics_fields(daemon)
    assert (line["accepted"], line["accept_errors"], line["spliced"], line["cut_by_operator"]) == (1, 0, 0, 0)
    assert (line["outcomes"], line["refusals"]) == ({"refused": 1}, {"UNAUTHENTICATED": 1})
    assert (line["malformed"], line["answers"], line["splice_ends"], line["limits_reached"]) == ({}, {}, {}, {})
    assert (line["held_bytes"], line["strangers"], line["provider_calls"]) == (0, 0, {})
    assert line["engine"] == dataclasses.asdict(daemon.engines.statistics())
    assert line["fleet"] == dataclasses.asdict(daemon.fleet.statistics())
    assert daemon.recorder is not None
    assert line["ledger"] == dataclasses.asdict(daemon.recorder.statistics())
    turns, cpu, trio_turns, log = (line[field] for field in ("engine_turns", "engine_cpu_s", "turns", "log"))
    assert isinstance(turns, list)
    assert isinstance(cpu, list)
    names = daemon.engines.threads()
    threads = sum(name.isdigit() for name in names)
    fields = {"turns", "long_turns", "longest_s", "running_s"}
    assert [set(each) for each in turns] == [fields] * threads
    assert len(cpu) == threads
    others = {name for name in names if not name.isdigit()}
    plane_turns, plane_cpu = line.get("plane_turns", {}), line.get("plane_cpu_s", {})
    assert isinstance(plane_turns, dict)
    assert isinstance(plane_cpu, dict)
    assert {name for name, each in plane_turns.items() if set(each) == fields} == others
    assert plane_cpu.keys() == others
    assert bool(others) is (daemon.planes is not None)
    assert isinstance(trio_turns, dict)
    assert isinstance(log, dict)
    assert set(trio_turns) == {"turns", "busy_s", "long_turns", "longest_s", "longest_cpu_s"}
    assert set(log) == {"written", "dropped", "withheld", "queued"}
    samples = await scrape(daemon)
    assert samples["bentpipe_connections_ended_total", "refused"] == 1


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("POST", "/metrics", 405), ("GET", "/metrics?x=1", 200)]
)
async def test_other_requests(daemon: Daemon, method: str, path: str, status: int) -> None:
    assert (await trio.to_thread.run_sync(request, daemon, method, path))[0] == status


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"GET /metrics HTTP/1.1\r\nx: " + b"y" * HEAD_BYTES, PREFACE])
async def test_no_http(daemon: Daemon, sent: bytes) -> None:
    stream = await trio.open_tcp_stream(*daemon.metrics_addresses[0])
    async with stream:
        await stream.send_all(sent)
        await stream.send_eof()
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 400 ")


async def test_silent_connections_are_bounded_in_number(daemon: Daemon) -> None:
    silent = [socket.create_connection(daemon.metrics_addresses[0]) for _ in range(CONNECTIONS)]
    try:
        stream = await trio.open_tcp_stream(*daemon.metrics_addresses[0])
        async with stream:
            with trio.fail_after(10):
                assert await stream.receive_some() == b""
    finally:
        for sock in silent:
            sock.close()
    with trio.fail_after(10):
        while True:
            try:
                await scrape(daemon)
                break
            except (OSError, http.client.HTTPException):
                await trio.sleep(0.01)


async def test_off_by_default(tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA) -> None:
    path = write_config(tmp_path, authority, client_authority, limits="")
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve_file, path)
        assert running.metrics_addresses == ()
        running.drain.set()
