"""The load generator and the upstream: right answers, every kind of wrong one noticed, latency from the intended time."""

import dataclasses
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hdrh.histogram import HdrHistogram

from beds.ports import free_port
from bench.lab import Lab
from bench.load import Load, LoadReport, LoadSpec, Phase, PhaseReport, UnaryCall, encode, histogram_of, merge


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def tls_port(lab: Lab) -> int:
    port = free_port()
    lab.start("tls-upstream", lab.upstream_command(port, "--tls", str(lab.identity)), port)
    return port


def run(lab: Lab, spec: LoadSpec, port: int | None = None, tls: bool = False) -> LoadReport:
    with Load(port or lab.upstream_port, str(lab.ca) if tls else None, "token", spec) as load:
        return load.run()


class Relay:
    """A TCP relay that can stall or damage what comes back."""

    def __init__(self, upstream_port: int) -> None:
        self.port = free_port()
        self.stalled_until = 0.0
        self.damage_from_byte: int | None = None
        self.cut_from_byte: int | None = None
        self._upstream_port = upstream_port
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self._upstream_port))
            for source, target, back in ((client, upstream, False), (upstream, client, True)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._copy, args=(source, target, back), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, back: bool) -> None:
        copied = 0
        with source, target:
            while True:
                try:
                    data = bytearray(source.recv(65536))
                    if not data:
                        target.shutdown(socket.SHUT_WR)
                        return
                    if back:
                        time.sleep(max(0.0, self.stalled_until - time.monotonic()))
                        if self.damage_from_byte is not None and copied >= self.damage_from_byte:
                            # The last byte but the trailers' frame is the answer's own.
                            data[-34] ^= 1
                        if self.cut_from_byte is not None and copied >= self.cut_from_byte:
                            target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                            return
                    copied += len(data)
                    target.sendall(data)
                except OSError:
                    return

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def relay(lab: Lab) -> Iterator[Relay]:
    relay = Relay(lab.upstream_port)
    yield relay
    relay.close()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        LoadSpec("rate", (Phase(500, 0.2), Phase(1000, 0.2)), connections=3),
        LoadSpec("rate", (Phase(200, 0.2),), echo_bytes=20_000),
        LoadSpec("closed", (Phase(0, 0.2),), connections=4, streams=300),
        LoadSpec("closed", (Phase(0, 0.2),), task="download", messages=50),
        LoadSpec("closed", (Phase(0, 0.2),), task="upload", messages=50),
        LoadSpec("connect", (Phase(0, 0.2),), connections=4, resume=True),
        LoadSpec("connect", (Phase(200, 0.2),), connections=50, wait_settings=False),
        LoadSpec("connect", (Phase(0, 5),), connections=40, count=40),
    ],
    ids=lambda spec: f"{spec.mode}-{spec.task}-{spec.phases[0].rate}-{spec.echo_bytes}",
)
def test_every_answer_is_right(lab: Lab, tls_port: int, spec: LoadSpec, tls: bool) -> None:
    report = run(lab, spec, tls_port if tls else None, tls)
    assert report.failed == 0
    assert report.answered > 0
    assert sum(phase.latency.get_total_count() for phase in report.phases) == report.answered
    if spec.count:
        assert report.answered == spec.count == len(report.answers_ns)
        assert report.first_answer_ns == min(report.answers_ns)
        assert report.last_answer_ns == max(report.answers_ns)
    if spec.task != "echo":
        assert report.moved_bytes == report.answered * spec.messages * (spec.message_bytes + 5)
    if spec.resume and tls:
        assert report.resumed > 0


def test_a_call_of_another_service_has_one_right_answer(lab: Lab) -> None:
    """The upstream answers this message with itself. A session is longer than any token here: 600 bytes of metadata."""
    said = (b"E" + bytes(8) + b"words").hex()
    for answer, outcome in ((said, "answered"), (said[:-2] + "00", "wrong_bytes"), (said + "00", "wrong_bytes")):
        spec = LoadSpec("rate", (Phase(100, 0.3),), task="call", call=UnaryCall("/a.B/C", said, answer))
        with Load(lab.upstream_port, None, "t" * 600, spec) as load:
            phase = load.run().phases[0]
        assert phase.sent > 0
        assert phase.outcomes[outcome] == phase.sent


def test_a_damaged_byte_is_noticed(lab: Lab, relay: Relay) -> None:
    spec = LoadSpec("rate", (Phase(50, 0.5),), drain_s=0.5)
    relay.damage_from_byte = 400
    report = run(lab, spec, relay.port)
    outcomes = report.phases[0].outcomes
    assert outcomes["wrong_bytes"] > 0


def test_a_cut_connection_is_noticed_and_replaced(lab: Lab, relay: Relay) -> None:
    relay.cut_from_byte = 2000
    report = run(lab, LoadSpec("rate", (Phase(100, 0.6),), drain_s=0.5), relay.port)
    outcomes = report.phases[0].outcomes
    assert outcomes["connection_lost"] > 0
    assert outcomes["answered"] > 10


def test_a_stall_is_charged_to_every_request_that_it_delayed(lab: Lab, relay: Relay) -> None:
    with Load(relay.port, None, "token", LoadSpec("rate", (Phase(200, 1.0),), connections=1)) as load:
        relay.stalled_until = time.monotonic() + 0.5
        report = load.run()
    phase = report.phases[0]
    assert report.failed == 0
    # Half of the requests were meant for the stall: their median wait is half of it. A closed loop would show one.
    slow = sum(
        item.count_at_value_iterated_to
        for item in phase.latency.get_recorded_iterator()
        if item.value_iterated_to > 1e8
    )
    # (How many more there are is the machine's affair.)
    assert slow > 40
    assert phase.quantile_us(0.99) > 400_000


def test_a_quantile_needs_answers_beyond_it() -> None:
    phase = PhaseReport(1.0, 1.0, 600, {"answered": 600}, histogram_of([(1_000_000, 600)]))
    assert set(phase.quantiles_us()) == {"p50_us", "p99_us"}
    assert set(dataclasses.replace(phase, outcomes={"answered": 499}).quantiles_us()) == {"p50_us"}
    assert set(dataclasses.replace(phase, outcomes={"answered": 5000}).quantiles_us()) == {
        "p50_us",
        "p99_us",
        "p99.9_us",
    }


def test_histograms_travel_and_add_up() -> None:
    one, two = HdrHistogram(1, 10**9, 3), HdrHistogram(1, 10**9, 3)
    one.record_value(1000, 3)
    two.record_value(2000, 5)
    assert merge([one, two]).get_total_count() == 8
    kept = HdrHistogram.decode(encode(histogram_of([(1_234_567, 3)])))
    assert kept.get_total_count() == 3
    assert kept.get_value_at_percentile(50) == pytest.approx(1_234_567, rel=0.01)
