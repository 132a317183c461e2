"""Two real gRPC clients behind one small face: every case runs on grpcio (C-core) and on grpclib (h2, asyncio)."""

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import grpc
from grpclib.client import Channel, StreamStreamMethod, StreamUnaryMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.config import Configuration
from grpclib.exceptions import GRPCError, StreamTerminatedError

from beds.peers.grpclib_codec import BytesCodec
from beds.quoted import split_id

SERVICE = "bentpipe.demo.Satellite"
TIMEOUT_S = 30.0

Metadata = Sequence[tuple[str, str]]
Answer = TypeVar("Answer")


class CallError(Exception):
    """A call ended with a status other than OK: its words, and the id of the connection if bentpipe refused it."""

    def __init__(self, code: int, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details, self.connection_id = split_id(details)


class Client(Protocol):
    """What the cases need of a client; all of it blocks, all of it raises CallError."""

    def unary(self, method: str, message: bytes, *, timeout_s: float = TIMEOUT_S) -> bytes: ...
    def concurrent(self, method: str, messages: Sequence[bytes]) -> list[bytes]: ...
    def upload(self, chunks: Sequence[bytes]) -> bytes: ...
    def download(self, size_bytes: int) -> int: ...
    def chat(self, messages: Sequence[bytes]) -> list[bytes]: ...
    def bulk(self, size_bytes: int, chunk_bytes: int) -> tuple[bytes, bytes]: ...
    def cancelled(self, method: str, message: bytes, after_s: float) -> None: ...
    def close(self) -> None: ...


class MakesClient(Protocol):
    """A client of a connection of its own. Raises builds.Missing if it is not available here."""

    def __call__(self, port: int, ca_pem: bytes | None, metadata: Metadata, keepalive_s: float = 0) -> Client: ...


def _chunks(size_bytes: int, chunk_bytes: int, digest: "hashlib._Hash") -> Iterator[bytes]:
    """Bytes of different values, in messages; each is hashed when it is taken."""
    pattern = bytes((i * 31 >> 3) & 0xFF for i in range(chunk_bytes))
    for at in range(0, size_bytes, chunk_bytes):
        message = pattern[: size_bytes - at]
        digest.update(message)
        yield message


class GrpcioClient:
    """grpcio: the C-core stack that Python, Ruby, PHP and C++ clients share."""

    def __init__(self, port: int, ca_pem: bytes | None, metadata: Metadata, keepalive_s: float = 0) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_metadata_size", 1 << 16)]
        if keepalive_s:
            options += [
                ("grpc.keepalive_time_ms", int(keepalive_s * 1000)),
                ("grpc.keepalive_timeout_ms", 2000),
                ("grpc.http2.max_pings_without_data", 0),
            ]
        target = f"localhost:{port}" if ca_pem else f"127.0.0.1:{port}"
        self._channel = (
            grpc.secure_channel(target, grpc.ssl_channel_credentials(ca_pem), options=options)
            if ca_pem
            else grpc.insecure_channel(target, options=options)
        )
        self._metadata = tuple(metadata)

    def unary(self, method: str, message: bytes, *, timeout_s: float = TIMEOUT_S) -> bytes:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")
        return self._run(lambda: bytes(call(message, metadata=self._metadata, timeout=timeout_s)))

    def concurrent(self, method: str, messages: Sequence[bytes]) -> list[bytes]:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")
        futures = [call.future(message, metadata=self._metadata, timeout=TIMEOUT_S) for message in messages]
        for future in futures:
            future.exception()  # all of them end first: a channel that was closed over pending calls once hung for ever
        return self._run(lambda: [future.result() for future in futures])

    def upload(self, chunks: Sequence[bytes]) -> bytes:
        call = self._channel.stream_unary(f"/{SERVICE}/Upload")
        return self._run(lambda: bytes(call(iter(chunks), metadata=self._metadata, timeout=TIMEOUT_S)))

    def download(self, size_bytes: int) -> int:
        call = self._channel.unary_stream(f"/{SERVICE}/Download")
        return self._run(lambda: sum(map(len, call(b"%d" % size_bytes, metadata=self._metadata, timeout=TIMEOUT_S))))

    def chat(self, messages: Sequence[bytes]) -> list[bytes]:
        call = self._channel.stream_stream(f"/{SERVICE}/Chat")
        return self._run(lambda: list(call(iter(messages), metadata=self._metadata, timeout=TIMEOUT_S)))

    def bulk(self, size_bytes: int, chunk_bytes: int) -> tuple[bytes, bytes]:
        sent, came = hashlib.sha256(), hashlib.sha256()

        def run() -> None:
            call = self._channel.stream_stream(f"/{SERVICE}/Chat")
            for message in call(_chunks(size_bytes, chunk_bytes, sent), metadata=self._metadata, timeout=4 * TIMEOUT_S):
                came.update(message)

        self._run(run)
        return sent.digest(), came.digest()

    def cancelled(self, method: str, message: bytes, after_s: float) -> None:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}").future(message, metadata=self._metadata)
        try:
            call.result(timeout=after_s)
        except grpc.FutureTimeoutError:
            call.cancel()
        else:
            raise AssertionError("the call ended before it was cancelled")

    def close(self) -> None:
        self._channel.close()

    @staticmethod
    def _run(call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except grpc.RpcError as exc:
            raise CallError(exc.code().value[0], exc.details()) from exc


class GrpclibClient:
    """grpclib: pure Python on the h2 library, in an event loop of its own."""

    def __init__(self, port: int, ca_pem: bytes | None, metadata: Metadata, keepalive_s: float = 0) -> None:
        config = Configuration(_keepalive_time=keepalive_s) if keepalive_s else None
        context = None
        if ca_pem:
            context = ssl.create_default_context(cadata=ca_pem.decode())
            context.set_alpn_protocols(["h2"])
        self._loop = asyncio.new_event_loop()
        self._metadata = list(metadata)
        self._where = ("localhost" if ca_pem else "127.0.0.1", port, context, config)
        self._channel: Channel | None = None

    def _run(self, call: Callable[[Channel], Awaitable[Answer]]) -> Answer:
        async def run() -> Answer:
            if self._channel is None:
                host, port, context, config = self._where
                self._channel = Channel(host, port, ssl=context, codec=BytesCodec(), config=config)
            return await call(self._channel)

        try:
            return self._loop.run_until_complete(run())
        except GRPCError as exc:
            raise CallError(exc.status.value, exc.message or "") from exc
        except TimeoutError as exc:
            raise CallError(grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "deadline") from exc
        except (StreamTerminatedError, ConnectionError) as exc:
            raise CallError(grpc.StatusCode.UNAVAILABLE.value[0], str(exc)) from exc

    def _unary(self, channel: Channel, method: str, message: bytes, timeout_s: float) -> Awaitable[bytes]:
        call = UnaryUnaryMethod(channel, f"/{SERVICE}/{method}", bytes, bytes)
        return call(message, timeout=timeout_s, metadata=self._metadata)

    def unary(self, method: str, message: bytes, *, timeout_s: float = TIMEOUT_S) -> bytes:
        return self._run(lambda channel: self._unary(channel, method, message, timeout_s))

    def concurrent(self, method: str, messages: Sequence[bytes]) -> list[bytes]:
        async def gather(channel: Channel) -> list[bytes]:
            return list(await asyncio.gather(*(self._unary(channel, method, m, TIMEOUT_S) for m in messages)))

        return self._run(gather)

    def upload(self, chunks: Sequence[bytes]) -> bytes:
        return self._run(
            lambda channel: StreamUnaryMethod(channel, f"/{SERVICE}/Upload", bytes, bytes)(
                list(chunks), timeout=TIMEOUT_S, metadata=self._metadata
            )
        )

    def download(self, size_bytes: int) -> int:
        async def download(channel: Channel) -> int:
            call = UnaryStreamMethod(channel, f"/{SERVICE}/Download", bytes, bytes)
            return sum(map(len, await call(b"%d" % size_bytes, timeout=TIMEOUT_S, metadata=self._metadata)))

        return self._run(download)

    def chat(self, messages: Sequence[bytes]) -> list[bytes]:
        async def chat(channel: Channel) -> list[bytes]:
            answers = []
            call = StreamStreamMethod(channel, f"/{SERVICE}/Chat", bytes, bytes)
            async with call.open(timeout=TIMEOUT_S, metadata=self._metadata) as stream:
                for message in messages:
                    await stream.send_message(message)
                    answer = await stream.recv_message()
                    assert answer is not None
                    answers.append(answer)
                await stream.end()
                assert await stream.recv_message() is None
            return answers

        return self._run(chat)

    def bulk(self, size_bytes: int, chunk_bytes: int) -> tuple[bytes, bytes]:
        sent, came = hashlib.sha256(), hashlib.sha256()

        async def bulk(channel: Channel) -> None:
            call = StreamStreamMethod(channel, f"/{SERVICE}/Chat", bytes, bytes)
            async with call.open(timeout=4 * TIMEOUT_S, metadata=self._metadata) as stream:

                async def send() -> None:
                    for message in _chunks(size_bytes, chunk_bytes, sent):
                        await stream.send_message(message)
                    await stream.end()

                await stream.send_request()
                sender = asyncio.ensure_future(send())
                async for message in stream:
                    came.update(message)
                await sender

        self._run(bulk)
        return sent.digest(), came.digest()

    def cancelled(self, method: str, message: bytes, after_s: float) -> None:
        async def cancel(channel: Channel) -> None:
            task = asyncio.ensure_future(self._unary(channel, method, message, TIMEOUT_S))
            done, _ = await asyncio.wait([task], timeout=after_s)
            assert not done, "the call ended before it was cancelled"
            task.cancel()
            await asyncio.wait([task])

        self._run(cancel)

    def close(self) -> None:
        async def closed() -> None:
            # grpclib's close begins TLS's goodbye and returns; the loop must run until its sockets are gone.
            while len(self._loop._selector.get_map()) > 1:  # type: ignore[attr-defined]  # no public way to ask
                await asyncio.sleep(0.005)

        if self._channel is not None:
            self._channel.close()
            self._loop.run_until_complete(asyncio.wait_for(closed(), TIMEOUT_S))
        self._loop.close()
