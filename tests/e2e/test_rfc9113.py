"""What breaks RFC 9113 before the splice reaches the client as GOAWAY with the right code, asked for nothing or held."""

from collections.abc import AsyncIterator
from pathlib import Path

import hpack
import pytest
import trio
import trustme

from beds.hosts.form import serve_file
from beds.hosts.in_process import DEADLINE_S, PLAIN, TOKEN, counted, exchange, frames_of, write_config
from beds.peers.rfc9113 import CASES, OPENING, headers
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.serve import Daemon
from bentpipe.proto.errors import ErrorCode
from bentpipe.proto.frames import FrameType

FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/bentpipe.demo.Satellite/Echo"),
    (":authority", "edge"),
    ("satellite_org", "acme"),
    ("satellite_name", "sat"),
    ("satellite_token", TOKEN),
]
HELD = OPENING + headers(1, hpack.Encoder().encode(FIELDS))
ASLEEP = SatelliteKey("acme", "sat")
ONE_SEND_BYTES = 16 << 10
"""What loopback delivers in one piece. Some cases hold a request that asks for no satellite: if it came alone, it would be
refused before the rest is there."""
BOOT_S = 600
"""Longer than any test: a client that asks for the satellite is held."""


@pytest.fixture
async def waking(tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA) -> AsyncIterator[Daemon]:
    """A daemon whose satellite takes longer to boot than anybody waits."""
    limits = f'greeting_deadline = "{2 * DEADLINE_S}s"'
    path = write_config(tmp_path, authority, client_authority, limits=limits, boot_s=BOOT_S)
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve_file, path)
        yield running
        running.drain.set()


def goaway_code(answer: bytes) -> ErrorCode:
    """The code of the GOAWAY that ends an answer."""
    kind, _, stream, payload = frames_of(answer)[-1]
    assert (kind, stream) == (FrameType.GOAWAY, 0)
    return ErrorCode(int.from_bytes(payload[4:8]))


async def send_held(daemon: Daemon, sent: bytes) -> bytes:
    """Send a request, and the rest once it is held. Returns all that came until the end."""
    satellite = daemon.fleet.get(ASLEEP)
    received = b""
    with trio.fail_after(DEADLINE_S):
        async with await trio.open_tcp_stream(*daemon.addresses[PLAIN]) as stream:
            await stream.send_all(HELD)
            while not satellite.waiting:
                await trio.sleep(0.001)
            await stream.send_all(sent)
            async for chunk in stream:
                received += chunk
        while satellite.waiting:
            await trio.sleep(0.001)
    return received


async def test_goaway_in_the_opening(waking: Daemon) -> None:
    wrong = [case for case in CASES if case.opening is not None and len(case.sent) <= ONE_SEND_BYTES]
    got = {str(case): goaway_code(await exchange(waking, PLAIN, OPENING + case.sent)) for case in wrong}
    assert got == {str(case): case.opening for case in wrong}
    await counted(waking, Outcome.MALFORMED, len(wrong))


async def test_goaway_while_held(waking: Daemon) -> None:
    wrong = [case for case in CASES if case.held is not None]
    got = {str(case): goaway_code(await send_held(waking, case.sent)) for case in wrong}
    assert got == {str(case): case.held for case in wrong}
    await counted(waking, Outcome.MALFORMED, len(wrong))
