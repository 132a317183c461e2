"""The demo's satellite once more on another gRPC stack: grpclib (pure Python on the h2 library), same methods.

`python -m beds.peers.grpclib_satellite PORT [--boot SECONDS]`.
"""

import argparse
import asyncio
import hashlib
import os
import time

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from beds.peers.grpclib_codec import BytesCodec

SERVICE = "bentpipe.demo.Satellite"
CHUNK_BYTES = 1 << 16


BytesStream = Stream[bytes, bytes]


async def received(stream: BytesStream) -> bytes:
    """The next message; the client has promised one."""
    message = await stream.recv_message()
    assert message is not None
    return message


async def echo(stream: BytesStream) -> None:
    await stream.send_message(await received(stream))


async def upload(stream: BytesStream) -> None:
    digest = hashlib.sha256()
    async for chunk in stream:
        digest.update(chunk)
    await stream.send_message(digest.hexdigest().encode())


async def download(stream: BytesStream) -> None:
    left = int(await received(stream))
    digest = hashlib.sha256()
    block = os.urandom(CHUNK_BYTES)
    while left:
        chunk = block[: min(left, CHUNK_BYTES)]
        digest.update(chunk)
        left -= len(chunk)
        await stream.send_message(chunk)
    await stream.send_trailing_metadata(metadata={"sha256": digest.hexdigest()})


async def chat(stream: BytesStream) -> None:
    await stream.send_initial_metadata()
    async for message in stream:
        await stream.send_message(message)


async def sleep(stream: BytesStream) -> None:
    await asyncio.sleep(float(await received(stream)))
    await stream.send_message(b"awake")


async def fail(stream: BytesStream) -> None:
    raise GRPCError(Status(int(await received(stream))), "as asked for")


class Service:
    """What grpclib's Server takes: path → handler."""

    def __mapping__(self) -> dict[str, Handler]:
        kinds = {
            "Echo": (echo, Cardinality.UNARY_UNARY),
            "Upload": (upload, Cardinality.STREAM_UNARY),
            "Download": (download, Cardinality.UNARY_STREAM),
            "Chat": (chat, Cardinality.STREAM_STREAM),
            "Sleep": (sleep, Cardinality.UNARY_UNARY),
            "Fail": (fail, Cardinality.UNARY_UNARY),
        }
        return {f"/{SERVICE}/{name}": Handler(function, kind, bytes, bytes) for name, (function, kind) in kinds.items()}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--boot", type=float, default=0.0)
    arguments = parser.parse_args()
    time.sleep(arguments.boot)
    server = Server([Service()], codec=BytesCodec())
    await server.start("127.0.0.1", arguments.port)
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
