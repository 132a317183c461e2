"""The API's connection against six gRPC libraries: calls side by side, streams either way, a cancelled call."""

import hashlib
from collections.abc import AsyncIterator, Callable

import pytest
import trio
from google.protobuf.message import Message

from beds.hosts.api_host import ApiHost, People, Person
from beds.peers.clients import SERVICE, CallError, Client
from beds.peers.kinds import CLIENT_KINDS, CLIENTS, or_skip
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.api.call import Call, Method
from bentpipe.daemon.errors import NotPermitted
from bentpipe.proto import compute_pb2 as pb

METADATA = (("authorization", "Bearer anna"),)


def raw(data: bytes) -> Message:
    """A message that is these bytes on the wire: field 1 of a request, whatever it has been called."""
    return pb.UpdateSatelliteResponse.FromString(data)


class Work:
    """The methods that those clients know, on protobuf messages of unknown fields: their bytes go back as they came."""

    def __init__(self) -> None:
        self.running = 0

    async def echo(self, call: Call) -> None:
        while (message := await call.receive()) is not None:
            await call.send(raw(message))

    async def upload(self, call: Call) -> None:
        digest = hashlib.sha256()
        while (message := await call.receive()) is not None:
            digest.update(message)
        await call.send(pb.RegisterSatelliteResponse(registration_token=digest.hexdigest()))

    async def sleep(self, call: Call) -> None:
        self.running += 1
        try:
            await trio.sleep_forever()
        finally:
            self.running -= 1

    async def fail(self, call: Call) -> None:
        raise NotPermitted("for the log", peer_hint="as asked for: ünïcode %")

    @property
    def methods(self) -> dict[str, Method]:
        served = {"Echo": self.echo, "Chat": self.echo, "Upload": self.upload, "Sleep": self.sleep, "Fail": self.fail}
        return {f"/{SERVICE}/{name}": Method(serve) for name, serve in served.items()}


@pytest.fixture
async def host() -> AsyncIterator[tuple[ApiHost, Work]]:
    work = Work()
    made = ApiHost(work.methods, People({"anna": Person("anna", {("acme", "*"): frozenset({Scope.USE})})}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made, work
        nursery.cancel_scope.cancel()


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field, so that any bytes are a message in protobuf."""
    head, size = bytes((number << 3 | 2,)), len(data)
    while size > 0x7F:
        head, size = head + bytes((size & 0x7F | 0x80,)), size >> 7
    return head + bytes((size,)) + data


async def run(client: Client, work: Callable[[], None]) -> None:
    try:
        with trio.fail_after(60):
            await trio.to_thread.run_sync(work)
    finally:
        await trio.to_thread.run_sync(client.close)


@pytest.mark.parametrize("kind", CLIENT_KINDS)
async def test_calls_of_every_kind(host: tuple[ApiHost, Work], kind: str) -> None:
    served, work = host
    client = await trio.to_thread.run_sync(lambda: or_skip(CLIENTS[kind], served.address[1], None, METADATA))

    def check() -> None:
        messages = [field(9, bytes([number]) * number * 10) for number in range(64)]
        assert sorted(client.concurrent("Echo", messages)) == sorted(messages)
        large = [field(9, bytes([number]) * 100_000) for number in range(8)]
        assert client.chat(large) == large
        digest = hashlib.sha256(b"".join(large)).hexdigest().encode()
        assert client.upload(large) == field(1, digest)
        with pytest.raises(CallError) as error:
            client.unary("Fail", b"")
        assert (error.value.code, error.value.details) == (7, "as asked for: ünïcode %")
        with pytest.raises(CallError) as error:
            client.unary("Nothing", b"")
        assert error.value.code == 12
        with pytest.raises(CallError) as error:
            client.unary("Sleep", b"", timeout_s=0.3)
        assert error.value.code in (1, 4)
        client.cancelled("Sleep", b"", 0.3)
        assert client.unary("Echo", messages[5]) == messages[5], "the connection goes on"

    await run(client, check)
    with trio.fail_after(10):
        while served.quotas.total or work.running:
            await trio.sleep(0.01)
