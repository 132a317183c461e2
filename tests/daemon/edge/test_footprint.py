"""What Python keeps of a spliced connection: an entry in the books, and nothing of the greeting, the session or a task."""

import gc
import hashlib
import os
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator

import hpack
import pytest
import trio
import trio.testing

from beds.http2 import EMPTY_SETTINGS
from bentpipe.config.model import Config
from bentpipe.daemon.connections.native_greeting import NativeGreeting
from bentpipe.daemon.connections.transport import Transport
from bentpipe.daemon.edge.handoff import Splice
from bentpipe.daemon.edge.session import Session
from bentpipe.daemon.service.serve import Daemon, serve
from bentpipe.proto.frames import END_HEADERS, END_STREAM, PREFACE, FrameType, frame
from bentpipe.proto.greeting import Greeting

TOKEN = "bp_footprint"
CONNECTIONS = 200
KEPT_BYTES = 3 << 10
"""What one spliced connection may cost in Python objects."""
DEADLINE_S = 60


def opening() -> bytes:
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/bentpipe.demo.Satellite/Echo"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("satellite_name", "s"),
        ("satellite_org", "acme"),
        ("satellite_token", TOKEN),
    ]
    message = frame(FrameType.DATA, END_STREAM, 1, b"\0\0\0\0\0")
    return (
        PREFACE + EMPTY_SETTINGS + frame(FrameType.HEADERS, END_HEADERS, 1, hpack.Encoder().encode(headers)) + message
    )


@pytest.fixture
async def daemon(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemon]:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    config = Config.model_validate(
        {
            "listener": [{"address": "127.0.0.1:0"}],
            "token": [
                {
                    "name": "t",
                    "hash": f"sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}",
                    "grants": ["acme/*"],
                }
            ],
            "satellite": [
                {
                    "org": "acme",
                    "name": "s",
                    "process": {
                        "command": [sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}"],
                        "stop_grace": "3s",
                    },
                }
            ],
        }
    )
    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve, config)
        yield running
        running.handoff.abort_all()
        running.drain.set()


async def connect(daemon: Daemon, count: int) -> list[int]:
    """Open connections, return once every one of them is spliced, and the tasks that did it are gone.

    Bare descriptors: a client's objects would be counted.
    """
    wanted = daemon.handoff.live + count
    streams = [await trio.open_tcp_stream(*daemon.addresses[0]) for _ in range(count)]
    for stream in streams:
        await stream.send_all(opening())
    with trio.fail_after(DEADLINE_S):
        while daemon.handoff.live < wanted:
            await trio.sleep(0.01)
    await trio.testing.wait_all_tasks_blocked()  # the last session ends a step after its hand-off
    return [stream.socket.detach() for stream in streams]


def alive() -> Counter[type]:
    gc.collect()
    return Counter(type(each) for each in gc.get_objects())


async def test_nothing_of_the_greeting_outlives_the_hand_off(daemon: Daemon) -> None:
    fds = await connect(daemon, 1)  # what is made once is made now
    with trio.fail_after(DEADLINE_S):
        while not daemon.fleet.statistics().resumes:  # the woken satellite is asked over a connection of its own
            await trio.sleep(0.01)
    await trio.testing.wait_all_tasks_blocked()
    tasks = trio.lowlevel.current_statistics().tasks_living
    before = alive()
    tracemalloc.start()
    start_bytes, _ = tracemalloc.get_traced_memory()
    fds += await connect(daemon, CONNECTIONS)
    after = alive()
    end_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for kind in (Greeting, NativeGreeting, Session, Transport, hpack.Decoder):
        assert after[kind] == before[kind], kind
    assert after[Splice] - before[Splice] == CONNECTIONS
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    kept_bytes = (end_bytes - start_bytes) / CONNECTIONS
    print(f"\nPython keeps {kept_bytes:.0f} bytes of each spliced connection")
    assert kept_bytes <= KEPT_BYTES
    for fd in fds:
        os.close(fd)
