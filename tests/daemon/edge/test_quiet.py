"""Spliced connections on which nothing happens: their satellite sleeps, and they are ended; those in use keep it awake."""

import contextlib
import hashlib
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import hpack
import pytest
import trio
import trustme

from beds.http2 import EMPTY_SETTINGS
from beds.peers.responder_status import status
from beds.peers.scripted_responder import scripted_responder
from bentpipe.config.model import Config
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.edge.handoff import HandOff, Splice
from bentpipe.daemon.fleet import fleet
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.traffic import QUIET_BYTES_PER_WINDOW
from bentpipe.daemon.model import Address, Resume, SatelliteKey, SatelliteState
from bentpipe.daemon.records.book import Book
from bentpipe.daemon.records.record import Record
from bentpipe.daemon.service.serve import Daemon, serve
from bentpipe.native.engine import Ended, EndReason, Engine, EngineOptions, SpliceCounters, SpliceId
from bentpipe.proto.frames import END_HEADERS, END_STREAM, PREFACE, FrameType, frame

TOKEN = "bp_quiet"
KEY = SatelliteKey("acme", "s")
SLEEP_AFTER_S = 1.0
IN_USE_SLEEP_AFTER_S = 5.0
"""Far longer than a busy machine makes this process stand still: while it does, nobody uses the connection."""
DEADLINE_S = 30.0
PLAIN, TLS = 0, 1
MESSAGE_BYTES = 8 << 10


def headers() -> bytes:
    return hpack.Encoder().encode(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/bentpipe.demo.Satellite/Echo"),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("satellite_name", KEY.name),
            ("satellite_org", KEY.org),
            ("satellite_token", TOKEN),
        ]
    )


def call(stream_id: int) -> bytes:
    """A whole unary call, in frames."""
    message = b"\0" + MESSAGE_BYTES.to_bytes(4) + bytes(MESSAGE_BYTES)
    return frame(FrameType.HEADERS, END_HEADERS, stream_id, headers()) + frame(
        FrameType.DATA, END_STREAM, stream_id, message
    )


@pytest.fixture(autouse=True)
def _short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "QUIET_WINDOW_S", SLEEP_AFTER_S)


@contextlib.asynccontextmanager
async def running(
    folder: Path, authority: trustme.CA, sleep_after_s: float = SLEEP_AFTER_S, responder: int | None = None
) -> AsyncIterator[Daemon]:
    """`responder` is the port of the satellite's responder, if it has one."""
    certificate = authority.issue_cert("localhost")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    (folder / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    tls = {"certificate": folder / "cert.pem", "key": folder / "key.pem"}
    config = Config.model_validate(
        {
            "listener": [{"address": "127.0.0.1:0"}, {"address": "127.0.0.1:0", "tls": tls}],
            "token": [
                {"name": "t", "hash": f"sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}", "grants": ["acme/*"]}
            ],
            "satellite": [
                {
                    "org": KEY.org,
                    "name": KEY.name,
                    "quiet_connections": "end",
                    "responder": None if responder is None else {"port": responder, "interval": 1},
                    "sleep_after": sleep_after_s,
                    "min_awake": 0,
                    "process": {
                        "command": [sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}"],
                        "stop_grace": "3s",
                    },
                }
            ],
        }
    )
    async with trio.open_nursery() as nursery:
        daemon = await nursery.start(serve, config)
        yield daemon
        daemon.handoff.abort_all()
        daemon.drain.set()


async def connect(daemon: Daemon, port: int, authority: trustme.CA) -> trio.abc.Stream:
    """Open a connection and make a call on it; returns once it is spliced."""
    wanted = daemon.handoff.live + 1
    stream: trio.abc.Stream = await trio.open_tcp_stream(*daemon.addresses[port])
    if port == TLS:
        context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
        context.set_alpn_protocols(["h2"])
        stream = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)
    await stream.send_all(PREFACE + EMPTY_SETTINGS + call(1))
    with trio.fail_after(DEADLINE_S):
        while daemon.handoff.live < wanted:
            await trio.sleep(0.01)
    return stream


async def read_to_end(stream: trio.abc.Stream) -> str:
    """Read until the connection ends. Says how it did."""
    with trio.fail_after(DEADLINE_S):
        try:
            while await stream.receive_some(1 << 16):
                pass
        except trio.BrokenResourceError:
            return "reset"
    return "closed"


@pytest.mark.parametrize(("port", "ends"), [(PLAIN, "closed"), (TLS, "reset")], ids=["plain", "tls"])
async def test_a_quiet_connection_ends_and_its_satellite_sleeps(
    port: int, ends: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    authority = trustme.CA()
    async with running(tmp_path, authority) as daemon:
        stream = await connect(daemon, port, authority)
        assert await read_to_end(stream) == ends
        satellite = daemon.fleet.get(KEY)
        with trio.fail_after(DEADLINE_S):
            while satellite.state is not SatelliteState.SLEEP:
                await trio.sleep(0.01)
        assert (daemon.handoff.live, satellite.leases) == (0, 0)
        reason = EndReason.GIVEN_BACK if port == PLAIN else EndReason.ABORTED
        assert daemon.handoff.ended == {reason: 1}
        fields = [getattr(record, "fields", {}) for record in caplog.records]
        assert [each["end"] for each in fields if "up_bytes" in each] == ["quiet"]
        assert any(record.message == "quiet connections ended" for record in caplog.records)
        await stream.aclose()


async def test_a_quiet_connection_stays_while_a_build_runs_and_ends_after_it(tmp_path: Path) -> None:
    authority = trustme.CA()
    builds = 1
    with scripted_responder(lambda: status(running=builds)) as port:
        async with running(tmp_path, authority, responder=port) as daemon:
            satellite = daemon.fleet.get(KEY)
            stream = await connect(daemon, PLAIN, authority)
            with trio.fail_after(DEADLINE_S):
                while satellite.reader.last is None:
                    await trio.sleep(0.01)
            await trio.sleep(4 * SLEEP_AFTER_S)
            assert (satellite.state, satellite.leases) == (SatelliteState.OPERATIONAL, 1)
            builds = 0
            assert await read_to_end(stream) == "closed"
            with trio.fail_after(DEADLINE_S):
                while satellite.state is not SatelliteState.SLEEP:
                    await trio.sleep(0.01)
            await stream.aclose()


async def test_a_connection_in_use_keeps_its_satellite_awake(tmp_path: Path) -> None:
    authority = trustme.CA()
    async with running(tmp_path, authority, IN_USE_SLEEP_AFTER_S) as daemon:
        stream = await connect(daemon, PLAIN, authority)
        satellite = daemon.fleet.get(KEY)
        with trio.fail_after(DEADLINE_S):
            for number in range(1, 40):
                await stream.send_all(call(2 * number + 1))
                await trio.sleep(IN_USE_SLEEP_AFTER_S / 30)
                assert satellite.state is SatelliteState.OPERATIONAL
        assert 40 * MESSAGE_BYTES > QUIET_BYTES_PER_WINDOW
        assert satellite.leases == 1
        await stream.aclose()


async def test_a_resume_is_proved_by_what_the_satellite_says_of_itself(tmp_path: Path) -> None:
    authority = trustme.CA()
    async with running(tmp_path, authority) as daemon:
        satellite = daemon.fleet.get(KEY)
        for found in (Resume.COLD, Resume.RESUMED):
            stream = await connect(daemon, PLAIN, authority)
            with trio.fail_after(DEADLINE_S):
                while not satellite.resumes[found]:
                    await trio.sleep(0.01)
            await read_to_end(stream)
            await stream.aclose()
            with trio.fail_after(DEADLINE_S):
                while satellite.state is not SatelliteState.SLEEP:
                    await trio.sleep(0.01)
        assert satellite.resumes == {Resume.COLD: 1, Resume.RESUMED: 1}
        assert not satellite.sleep_problems


@pytest.mark.parametrize("cut", [False, True])
async def test_a_connection_that_has_just_ended_by_itself_need_not_be_ended(cut: bool) -> None:
    engine = Engine(EngineOptions(threads=1))
    try:
        HandOff(engine).end_quiet(SpliceId(1), cut=cut)
    finally:
        engine.close()


@pytest.mark.parametrize("reason", EndReason)
async def test_a_satellite_that_resets_or_times_out_is_looked_at(reason: EndReason) -> None:
    suspected: list[str] = []
    lease = Lease(
        Address("192.0.2.1", 1), lambda lease: None, lambda lease: None, suspect=lambda: suspected.append("looked at")
    )
    limits = QuotaLimits(strangers=10, strangers_bytes=1 << 30, per_prefix=10, admitted=10)
    place = Quotas(limits, lambda: 0.0).open("192.0.2.9")
    engine = Engine(EngineOptions(threads=1))
    try:
        handoff = HandOff(engine)
        closed: list[Record] = []
        record = Book({"test": closed.append}, clock=lambda: 0.0).open("192.0.2.9:1")
        handoff._live[SpliceId(1)] = Splice(KEY, "somebody", "192.0.2.9", lease, place, record)
        # As a data plane of its own tells it: without the time of the last byte.
        handoff.take_end(Ended(SpliceId(1), reason, SpliceCounters(7, 9, 0, 0.0), 0))
    finally:
        engine.close()
    gone = reason in (EndReason.SATELLITE_RESET, EndReason.SATELLITE_TIMEOUT)
    assert suspected == (["looked at"] if gone else [])
    assert [(each.end.code, each.is_open) for each in closed] == [(reason.name.lower(), False)]
    assert "last_byte_s" not in closed[0].fields()
