"""The API's gRPC over HTTP/2, against real clients: statuses, streams, deadlines, cancellation, limits, ends."""

from collections.abc import AsyncIterator, Callable, Iterator

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
import trio
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from beds.hosts.api_host import ApiHost, People, Person
from beds.quoted import without_id
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.api import account
from bentpipe.daemon.api.call import Call, Method, unary
from bentpipe.daemon.errors import BentpipeError, Draining, LimitReached, WakeFailed
from bentpipe.proto import limits

PREFIX = "/api.public.test.Test/"
TOKEN = [("authorization", "Bearer anna")]
FAILURES: dict[str, BentpipeError] = {
    "wake": WakeFailed("for the log", peer_hint="50 % of nothing: ünïcode, \n and a line"),
    "limit": LimitReached("too much"),
    "drain": Draining("we go"),
}


class Work:
    """What the test's methods have seen."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.running = 0
        self.go_on = trio.Event()

    def echo(self, call: Call, request: StringValue) -> StringValue:
        return StringValue(value=f"{call.access.name}: {request.value}")

    def size(self, call: Call, request: StringValue) -> StringValue:
        return StringValue(value=str(len(request.value)))

    async def fail(self, call: Call) -> None:
        raise FAILURES[(await call.only(StringValue)).value]

    async def bug(self, call: Call) -> None:
        await call.only(StringValue)
        raise ZeroDivisionError

    async def count(self, call: Call) -> None:
        for number in range(int((await call.only(StringValue)).value)):
            await call.send(StringValue(value=str(number)))

    async def chat(self, call: Call) -> None:
        while (message := await call.receive()) is not None:
            await call.send(BytesValue.FromString(message))

    async def hang(self, call: Call) -> None:
        await call.only(StringValue)
        self.running += 1
        try:
            await self.go_on.wait()
            await call.send(StringValue(value="at last"))
        except trio.Cancelled:
            self.cancelled.append(call.path)
            raise
        finally:
            self.running -= 1

    async def flood(self, call: Call) -> None:
        await call.only(StringValue)
        while True:
            await call.send(BytesValue(value=bytes(16 << 10)))

    @property
    def methods(self) -> dict[str, Method]:
        return {
            PREFIX + "Echo": unary(StringValue, self.echo),
            PREFIX + "Size": unary(StringValue, self.size),
            PREFIX + "Fail": Method(self.fail),
            PREFIX + "FailAtOnce": Method(self.fail, ends_at_once=True),
            PREFIX + "Bug": Method(self.bug),
            PREFIX + "Count": Method(self.count),
            PREFIX + "Chat": Method(self.chat),
            PREFIX + "Hang": Method(self.hang),
            PREFIX + "Flood": Method(self.flood),
        }


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def people() -> People:
    return People({"anna": Person("anna", {("acme", "*"): frozenset({Scope.USE})})})


@pytest.fixture
async def host(work: Work, people: People) -> AsyncIterator[ApiHost]:
    made = ApiHost(work.methods, people)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
def channel(host: ApiHost) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel("{}:{}".format(*host.address)) as made:
        yield made


def unary_call(channel: grpc.Channel, method: str) -> Callable[..., StringValue]:
    made: Callable[..., StringValue] = channel.unary_unary(
        PREFIX + method, request_serializer=StringValue.SerializeToString, response_deserializer=StringValue.FromString
    )
    return made


async def ask(channel: grpc.Channel, method: str, value: str, **options: object) -> StringValue:
    call = unary_call(channel, method)
    return await trio.to_thread.run_sync(lambda: call(StringValue(value=value), **{"metadata": TOKEN, **options}))


async def refusal(channel: grpc.Channel, method: str, value: str = "", **options: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        await ask(channel, method, value, **options)
    return error.value


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


async def test_one_call_after_the_other_on_one_connection(host: ApiHost, channel: grpc.Channel) -> None:
    for number in range(50):
        assert (await ask(channel, "Echo", str(number))).value == f"anna: {number}"
    assert host.counters.answers["Echo OK"] == 50
    assert host.quotas.total == host.quotas.admitted == 1


async def test_statuses_and_their_words(channel: grpc.Channel, host: ApiHost) -> None:
    error = await refusal(channel, "Fail", "wake")
    assert (error.code(), without_id(error.details())) == (grpc.StatusCode.UNAVAILABLE, FAILURES["wake"].peer_hint)
    error = await refusal(channel, "FailAtOnce", "wake")
    assert (error.code(), without_id(error.details())) == (grpc.StatusCode.ABORTED, FAILURES["wake"].peer_hint)
    assert (await refusal(channel, "FailAtOnce", "limit")).code() is grpc.StatusCode.ABORTED
    assert (await refusal(channel, "FailAtOnce", "drain")).code() is grpc.StatusCode.UNAVAILABLE
    error = await refusal(channel, "Nothing")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "/api.public.test.Test/Nothing" in error.details()
    error = await refusal(channel, "Nothing" + "x" * 5_000)
    assert len(error.details()) < 300, "what a client chooses costs little to say back"
    assert host.counters.answers["other UNIMPLEMENTED"] == 2


async def test_a_bug_of_a_method_ends_its_call_alone(channel: grpc.Channel) -> None:
    assert (await refusal(channel, "Bug")).code() is grpc.StatusCode.UNKNOWN
    assert (await ask(channel, "Echo", "x")).value == "anna: x"


@pytest.mark.parametrize("metadata", [[], [("authorization", "Bearer eve")], [("authorization", "Basic anna")]])
async def test_who_is_not_known(host: ApiHost, channel: grpc.Channel, metadata: list[tuple[str, str]]) -> None:
    assert (await refusal(channel, "Echo", metadata=metadata)).code() is grpc.StatusCode.UNAUTHENTICATED
    assert host.quotas.strangers == 1
    assert (await ask(channel, "Echo", "x")).value == "anna: x", "the connection goes on"


async def test_streams_either_way(channel: grpc.Channel) -> None:
    count = channel.unary_stream(
        PREFIX + "Count", request_serializer=StringValue.SerializeToString, response_deserializer=StringValue.FromString
    )
    call = count(StringValue(value="1000"), metadata=TOKEN)
    got = await trio.to_thread.run_sync(lambda: [each.value for each in call])
    assert got == list(map(str, range(1000)))
    chat = channel.stream_stream(
        PREFIX + "Chat", request_serializer=BytesValue.SerializeToString, response_deserializer=BytesValue.FromString
    )
    sent = [bytes([n]) * (n * 4_000) for n in range(40)]
    conversation = chat((BytesValue(value=each) for each in sent), metadata=TOKEN)
    heard = await trio.to_thread.run_sync(lambda: [each.value for each in conversation])
    assert heard == sent


async def test_a_message_of_the_largest_size_and_one_more(channel: grpc.Channel) -> None:
    largest = "x" * (limits.API_MESSAGE_BYTES - 5)
    assert (await ask(channel, "Size", largest)).value == str(len(largest))
    error = await refusal(channel, "Size", largest + "y")
    assert (error.code(), without_id(error.details())) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "over the limit API_MESSAGE_BYTES",
    )
    error = await refusal(channel, "FailAtOnce", "x" * (limits.API_MESSAGE_BYTES + 1))
    assert error.code() is grpc.StatusCode.ABORTED, "the connection's own refusals are told at once too"


async def test_a_request_of_no_message_of_two_and_of_another_kind(channel: grpc.Channel) -> None:
    call = channel.stream_unary(PREFIX + "Echo", request_serializer=bytes, response_deserializer=bytes)

    def send(messages: list[bytes]) -> None:
        call(iter(messages), metadata=TOKEN)

    for messages in ([], [b"", b""], [b"\xff"]):
        with pytest.raises(grpc.RpcError) as error:
            await trio.to_thread.run_sync(send, messages)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_compression_is_refused(channel: grpc.Channel) -> None:
    error = await refusal(channel, "Echo", "x" * 1000, compression=grpc.Compression.Gzip)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_deadline_of_the_client_ends_the_method(channel: grpc.Channel, work: Work) -> None:
    assert (await refusal(channel, "Hang", timeout=0.3)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: work.running == 0)
    assert work.cancelled == [PREFIX + "Hang"]


async def test_a_call_that_is_cancelled_ends_its_method_and_no_other(channel: grpc.Channel, work: Work) -> None:
    call = unary_call(channel, "Hang")
    futures = [call.future(StringValue(), metadata=TOKEN) for _ in range(2)]  # type: ignore[attr-defined]
    await until(lambda: work.running == 2)
    futures[0].cancel()
    await until(lambda: work.running == 1)
    work.go_on.set()
    assert (await trio.to_thread.run_sync(futures[1].result)).value == "at last"


async def test_a_connection_that_ends_ends_its_calls(host: ApiHost, work: Work) -> None:
    channel = grpc.insecure_channel("{}:{}".format(*host.address))
    futures = [unary_call(channel, "Hang").future(StringValue(), metadata=TOKEN) for _ in range(3)]  # type: ignore[attr-defined]
    await until(lambda: work.running == 3)
    await trio.to_thread.run_sync(channel.close)
    await until(lambda: work.running == 0 and host.quotas.total == 0)
    assert len(futures) == 3


async def test_draining_lets_calls_end_and_takes_no_more(host: ApiHost, channel: grpc.Channel, work: Work) -> None:
    call = unary_call(channel, "Hang").future(StringValue(), metadata=TOKEN)  # type: ignore[attr-defined]
    await until(lambda: work.running == 1)
    host.api.drain()
    await trio.sleep(0.1)
    work.go_on.set()
    assert (await trio.to_thread.run_sync(call.result)).value == "at last"
    await until(lambda: host.quotas.total == 0)
    assert (await refusal(channel, "Echo", "x")).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stranger_is_sent_away_when_it_is_old(work: Work, people: People) -> None:
    async with trio.open_nursery() as nursery:
        host = ApiHost(work.methods, people, stranger_age_s=0.3)
        nursery.start_soon(host.run)
        with grpc.insecure_channel("{}:{}".format(*host.address)) as channel:
            await refusal(channel, "Nothing")
            await until(lambda: len(host.outcomes) == 1)
            assert (await ask(channel, "Echo", "x")).value == "anna: x", "it comes again"
            await trio.sleep(0.6)
            assert len(host.outcomes) == 1, "who has proved something stays"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("body_bytes", "status"), [(account.BODY_BYTES, "200"), (account.BODY_BYTES + 1, "413")])
async def test_a_page_is_answered_when_its_request_is_complete_or_too_long(
    host: ApiHost, body_bytes: int, status: str
) -> None:
    """curl fails if its stream ends before it has sent the whole body, unless it knows from the status."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    fields = [(":method", "POST"), (":scheme", "http"), (":path", "/api/v0/account/login"), (":authority", "edge")]
    client.send_headers(1, [*fields, ("authorization", "token anna")])
    client.send_data(1, bytes(account.BODY_BYTES - 1))
    statuses: list[str] = []
    async with await trio.open_tcp_stream(*host.address) as stream:

        async def turn() -> None:
            await stream.send_all(client.data_to_send())
            for event in client.receive_data(await stream.receive_some()):
                if isinstance(event, h2.events.ResponseReceived):
                    statuses.extend(str(value) for name, value in event.headers or () if str(name) == ":status")

        with trio.fail_after(20):
            for number in range(3):  # each answer to a PING follows what was made of the bytes before it
                client.ping(number.to_bytes(8))
                await turn()
            assert statuses == []
            client.send_data(1, bytes(body_bytes - account.BODY_BYTES + 1), end_stream=body_bytes == account.BODY_BYTES)
            while not statuses:
                await turn()
    assert statuses == [status]


@pytest.mark.parametrize(
    ("method", "path", "authorization", "status"),
    [
        ("POST", "/api/v0/account/login", "token anna", 200),
        ("POST", "/api/v0/account/exchange", "Bearer id.anna", 200),
        ("GET", "/api/v0/account/ping?x=y", "Bearer anna", 200),
        ("GET", "/api/v0/account/ping", "Bearer eve", 401),
        ("GET", "/api/v0/account/login", "token anna", 405),
        ("HEAD", "/api/v0/nothing", "", 404),
        ("GET", "/api/v1/nothing", "", 404),
    ],
)
async def test_pages_over_http2(host: ApiHost, method: str, path: str, authorization: str, status: int) -> None:
    """curl prefers HTTP/2 where the server offers it."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    headers = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "edge")]
    client.send_headers(1, [*headers, *([("authorization", authorization)] if authorization else [])], end_stream=True)
    found, body, ended = {}, b"", False
    async with await trio.open_tcp_stream(*host.address) as stream:
        with trio.fail_after(10):
            while not ended:
                await stream.send_all(client.data_to_send())
                for event in client.receive_data(await stream.receive_some()):
                    if isinstance(event, h2.events.ResponseReceived):
                        found = {str(name): str(value) for name, value in event.headers or ()}
                    elif isinstance(event, h2.events.DataReceived):
                        body += event.data or b""
                    ended = ended or isinstance(event, h2.events.StreamEnded)
    assert (found[":status"], found["content-type"]) == (str(status), "application/json")
    assert len(body) == int(found["content-length"])
    assert (b"message" in body) is (status != 200 and method != "HEAD")
