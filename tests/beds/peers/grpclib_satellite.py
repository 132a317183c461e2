"""The demo's satellite once more on another gRPC stack: grpclib (pure Python on the h2 library), same methods.

`python -P grpclib_satellite.py PORT [--boot SECONDS]`.
"""

import argparse
import asyncio
import hashlib
import os
import time

from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

SERVICE = "bentpipe.demo.Satellite"
CHUNK_BYTES = 1 << 16


class BytesCodec(CodecBase):
    """Messages are bytes as they are."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: type) -> bytes:
        return message

    def decode(self, data: bytes, message_type: type) -> bytes:
        return data


async def echo(stream: Stream) -> None:
    await stream.send_message(await stream.recv_message())


async def upload(stream: Stream) -> None:
    digest = hashlib.sha256()
    async for chunk in stream:
        digest.update(chunk)
    await stream.send_message(digest.hexdigest().encode())


async def download(stream: Stream) -> None:
    left = int(await stream.recv_message())
    digest = hashlib.sha256()
    block = os.urandom(CHUNK_BYTES)
    while left:
        chunk = block[: min(left, CHUNK_BYTES)]
        digest.update(chunk)
        left -= len(chunk)
        await stream.send_message(chunk)
    await stream.send_trailing_metadata(metadata={"sha256": digest.hexdigest()})


async def chat(stream: Stream) -> None:
    await stream.send_initial_metadata()
    async for message in stream:
        await stream.send_message(message)


async def sleep(stream: Stream) -> None:
    await asyncio.sleep(float(await stream.recv_message()))
    await stream.send_message(b"awake")


async def fail(stream: Stream) -> None:
    raise GRPCError(Status(int(await stream.recv_message())), "as asked for")


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
