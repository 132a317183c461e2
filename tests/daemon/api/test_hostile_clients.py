"""Clients of the API that do not read, that reset and that flood, byte by byte on the wire."""

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue

from beds.hosts.api_host import ApiHost, People, Person
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.api import call as call_module
from bentpipe.daemon.api import grpc_connection as connection_module
from bentpipe.daemon.api.call import Call, Method
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.proto import limits
from bentpipe.proto.frames import FrameType, frame

PREFIX = "/api.public.test.Test/"
E = TypeVar("E", bound=h2.events.Event)
BIG = BytesValue(value=bytes(32 << 10))


class Work:
    """Methods that send for ever, and that wait for ever."""

    def __init__(self) -> None:
        self.running = 0
        self.sent = 0

    async def flood(self, call: Call) -> None:
        self.running += 1
        try:
            while True:
                await call.send(BIG)
                self.sent += 1
        finally:
            self.running -= 1

    async def swallow(self, call: Call) -> None:
        self.running += 1
        try:
            await trio.sleep_forever()
        finally:
            self.running -= 1

    @property
    def methods(self) -> dict[str, Method]:
        return {PREFIX + "Flood": Method(self.flood), PREFIX + "Swallow": Method(self.swallow)}


class Wire:
    """A client's connection, by the h2 library."""

    def __init__(self, stream: trio.SocketStream, **initial: int) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        settings = {h2.settings.SettingCodes[name]: value for name, value in initial.items()}
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        self.h2.initiate_connection()

    async def begin(self, method: str, token: str = "anna") -> int:
        stream_id = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", PREFIX + method),
            (":authority", "edge"),
            ("content-type", "application/grpc"),
            ("authorization", f"Bearer {token}"),
        ]
        self.h2.send_headers(stream_id, headers)
        await self.send()
        return stream_id

    async def send(self, more: bytes = b"") -> None:
        await self.stream.send_all(self.h2.data_to_send() + more)

    async def events(self) -> list[h2.events.Event]:
        """What the server says next. The windows are not opened again."""
        data = await self.stream.receive_some()
        assert data, "the server has ended the connection"
        events = self.h2.receive_data(data)
        await self.send()
        return events

    async def find(self, kind: type[E]) -> E:
        """Read until there is an event of a kind."""
        with trio.fail_after(20):
            while True:
                for event in await self.events():
                    if isinstance(event, kind):
                        return event


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def host(work: Work, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiHost]:
    monkeypatch.setattr(call_module, "STALLED_S", 0.5)
    made = ApiHost(work.methods, People({"anna": Person("anna", {("acme", "*"): frozenset({Scope.USE})})}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
async def stream(host: ApiHost) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_tcp_stream(*host.address) as made:
        yield made


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


async def test_a_call_whose_client_opens_no_window_is_reset_and_no_other(stream: trio.SocketStream, work: Work) -> None:
    wire = Wire(stream, INITIAL_WINDOW_SIZE=0)
    flooded = await wire.begin("Flood")
    waiting = await wire.begin("Swallow")
    assert (await wire.find(h2.events.StreamReset)).stream_id == flooded
    assert waiting in wire.h2.streams
    assert work.running == 1
    assert work.sent * len(BIG.value) <= call_module.UNSENT_BYTES + 2 * len(BIG.value), "what is kept for it is bounded"


async def test_a_client_that_reads_nothing_is_let_go(
    host: ApiHost, stream: trio.SocketStream, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "SEND_DEADLINE_S", 0.5)
    wire = Wire(stream, INITIAL_WINDOW_SIZE=2**31 - 1)
    wire.h2.increment_flow_control_window(2**30)
    await wire.begin("Flood")
    await until(lambda: bool(host.outcomes))
    assert host.outcomes == [Outcome.BROKEN]
    assert work.sent * len(BIG.value) < 16 << 20, "no more than the kernel's buffers and OUTBOX_BYTES"
    assert (work.running, host.quotas.total) == (0, 0)


async def test_rapid_resets_end_the_connection(host: ApiHost, stream: trio.SocketStream, work: Work) -> None:
    wire = Wire(stream)
    for _ in range(limits.API_RESETS + 50):
        stream_id = await wire.begin("Swallow")
        wire.h2.reset_stream(stream_id)
    await wire.send()
    ended = await wire.find(h2.events.ConnectionTerminated)
    assert ended.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
    await until(lambda: host.outcomes == [Outcome.MALFORMED])
    assert host.counters.malformed["API_RESETS_PER_S"] == 1
    assert work.running == 0


async def test_a_flood_of_pings_is_answered_at_a_pace(host: ApiHost, stream: trio.SocketStream) -> None:
    wire = Wire(stream)
    await wire.begin("Swallow")
    pings = limits.API_FRAMES + int(limits.API_FRAMES_PER_S)
    answers = 0
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.send, frame(FrameType.PING, 0, 0, bytes(8)) * pings)
        with trio.fail_after(30):
            while answers < pings:
                events = wire.h2.receive_data(await stream.receive_some())  # without a word: the PINGs are on their way
                answers += sum(isinstance(event, h2.events.PingAckReceived) for event in events)
    assert trio.current_time() - began > 0.5
    assert host.quotas.total == 1


async def test_streams_of_a_caller_that_proves_nothing_keep_nothing(host: ApiHost, stream: trio.SocketStream) -> None:
    wire = Wire(stream)
    for _ in range(20):
        stream_id = await wire.begin("Swallow", "nobody")
        response = await wire.find(h2.events.ResponseReceived)
        assert ("grpc-status", "16") in [(str(name), str(value)) for name, value in response.headers]
        # A client that does not wait for the answer has sent some of its request by then.
        await wire.send(frame(FrameType.DATA, 0, stream_id, bytes(1_000)))
    assert host.quotas.strangers == 1
    assert host.quotas.stranger_bytes < 128 << 10
