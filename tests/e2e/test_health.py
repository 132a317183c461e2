"""grpc.health.v1 by a real client: of the daemon, of satellites, and nobody is woken by it."""

import queue
from collections.abc import Iterator

import grpc
import pytest
import trio

from beds.hosts.in_process import PLAIN, PREFACE, TOKEN, counted, exchange, frames_of
from beds.http2 import EMPTY_SETTINGS
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.service.serve import Daemon

SAT = SatelliteKey("acme", "sat")
TOKEN_ONLY = (("satellite_token", TOKEN),)
FOR_SAT = (*TOKEN_ONLY, ("satellite_org", "acme"), ("satellite_name", "sat"))
UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = 0, 1, 2, 3


def request(service: str) -> bytes:
    return b"\x0a" + bytes((len(service),)) + service.encode() if service else b""


def status(response: bytes) -> int:
    return response[1] if response else UNKNOWN


@pytest.fixture
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{daemon.addresses[PLAIN][1]}", options=options) as opened:
        yield opened


async def check(channel: grpc.Channel, service: str, metadata: tuple[tuple[str, str], ...] = ()) -> int | str:
    call = channel.unary_unary("/grpc.health.v1.Health/Check")

    def run() -> int | str:
        try:
            return status(call(request(service), metadata=metadata, timeout=15))
        except grpc.RpcError as exc:
            return str(exc.code().name)

    return await trio.to_thread.run_sync(run)


async def test_check(daemon: Daemon, channel: grpc.Channel) -> None:
    assert await check(channel, "") == SERVING
    assert await check(channel, "acme/sat", TOKEN_ONLY) == SERVING
    assert await check(channel, "", FOR_SAT) == SERVING
    assert await check(channel, "acme/sat") == "UNAUTHENTICATED"
    assert await check(channel, "acme/sat", (("satellite_token", "wrong"),)) == "UNAUTHENTICATED"
    for service in ("acme/nowhere", "other/sat", "moby.buildkit.v1.Control"):
        assert await check(channel, service, TOKEN_ONLY) == "NOT_FOUND"
    assert await check(channel, "acme/other", FOR_SAT) == "INVALID_ARGUMENT"
    assert daemon.fleet.get(SAT).state is SatelliteState.SLEEP
    assert daemon.counters.answers["Check SERVING"] == 3
    assert daemon.counters.refusals == {}


async def test_other_methods_are_unimplemented(channel: grpc.Channel) -> None:
    for path in ("/grpc.health.v1.Health/List", "/x/y"):
        await check(channel, "")
        code = await trio.to_thread.run_sync(failure, channel, path)
        assert code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED)
    assert await trio.to_thread.run_sync(failure, channel, "/grpc.health.v1.Health/List") is (
        grpc.StatusCode.UNIMPLEMENTED
    )


def failure(channel: grpc.Channel, path: str) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(path)(b"", timeout=15)
    return error.value.code()


class Watch:
    """A Watch call, read in a thread."""

    def __init__(self, channel: grpc.Channel, service: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.call = channel.unary_stream("/grpc.health.v1.Health/Watch")(
            request(service), metadata=metadata, timeout=20
        )
        self.seen: queue.SimpleQueue[int | str] = queue.SimpleQueue()

    async def run(self) -> None:
        def read() -> None:
            try:
                for response in self.call:
                    self.seen.put(status(response))
            except grpc.RpcError as exc:
                self.seen.put(exc.code().name)

        await trio.to_thread.run_sync(read)

    async def next(self) -> int | str:
        return await trio.to_thread.run_sync(self.seen.get, True, 15)


async def test_watch_of_the_unknown_waits(channel: grpc.Channel) -> None:
    watches = [Watch(channel, service, TOKEN_ONLY) for service in ("acme/nowhere", "some.Service")]
    async with trio.open_nursery() as nursery:
        for watch in watches:
            nursery.start_soon(watch.run)
            assert await watch.next() == SERVICE_UNKNOWN
            watch.call.cancel()


async def test_watch_says_what_changes_and_nothing_else(daemon: Daemon, channel: grpc.Channel) -> None:
    """A wake changes nothing for a client that watches: the satellite was always there. A drain does."""
    watches = [Watch(channel, ""), Watch(channel, "acme/sat", TOKEN_ONLY)]
    async with trio.open_nursery() as nursery:
        for watch in watches:
            nursery.start_soon(watch.run)
            assert await watch.next() == SERVING
        async with daemon.fleet.get(SAT).lease():
            assert daemon.fleet.get(SAT).state is SatelliteState.OPERATIONAL
        daemon.drain.set()
        for watch in watches:
            assert await watch.next() == NOT_SERVING
            assert await watch.next() == "UNAVAILABLE"
    await counted(daemon, Outcome.ANSWERED)


async def test_get_is_told_what_this_is(daemon: Daemon) -> None:
    get = b"\x82\x86\x44\x1c/grpc.health.v1.Health/Check" + b"\x41\x01x"
    sent = PREFACE + EMPTY_SETTINGS + len(get).to_bytes(3) + b"\x01\x05\x00\x00\x00\x01" + get
    answer = await exchange(daemon, PLAIN, sent, close=True)
    assert any(kind == 0 and b"grpc.health.v1" in payload for kind, _, _, payload in frames_of(answer))
    await counted(daemon, Outcome.ANSWERED)
