"""Clients hear the same, byte for byte, whether their first frames are read in C or in Python alone."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trustme

from beds.hosts.form import serve_file
from beds.hosts.in_process import DEADLINE_S, PLAIN, TOKEN, exchange, write_config
from beds.over_limits import CASES as LIMIT_CASES
from beds.peers.crowd import call
from beds.peers.rfc9113 import CASES, HELD, OPENING
from bentpipe.daemon.service.serve import Daemon
from bentpipe.native.greeting import nghttp2_version

REFUSED = [
    *(case.past_it for case in LIMIT_CASES),
    *(start + case.sent for case in CASES for start, code in ((OPENING, case.opening), (HELD, case.held)) if code),
]
ID = re.compile(rb"\b[0-9a-z]{6}-[0-9a-z]{4}-[0-9a-z]{5}\b")
"""Of a connection."""
OTHERS = [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x02", b"no protocol\r\n\r\n"]


@pytest.fixture
async def daemons(tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA) -> AsyncIterator[list[Daemon]]:
    if nghttp2_version() is None:
        pytest.skip("the engine was built without nghttp2")
    async with trio.open_nursery() as nursery:
        running = []
        for kind in ("auto", "python"):
            folder = tmp_path / kind
            folder.mkdir()
            sections = f'[daemon]\ngreeting = "{kind}"\n'
            path = write_config(folder, authority, client_authority, limits="max_held = 100", sections=sections)
            running.append(await nursery.start(serve_file, path))
        yield running
        for daemon in running:
            daemon.handoff.abort_all()
            daemon.drain.set()


async def answers(daemons: list[Daemon], sent: bytes) -> list[bytes]:
    """What each daemon says, without the ids of connections."""
    return [ID.sub(b"ID", await exchange(daemon, PLAIN, sent)) for daemon in daemons]


async def test_refusals(daemons: list[Daemon]) -> None:
    for sent in (*REFUSED, *OTHERS):
        in_c, in_python = await answers(daemons, sent)
        assert in_c == in_python, sent[:200]
    assert daemons[0].counters.malformed == daemons[1].counters.malformed


async def test_a_call_goes_through(daemons: list[Daemon]) -> None:
    for daemon in daemons:
        heard = b""
        with trio.fail_after(DEADLINE_S):
            async with await trio.open_tcp_stream(*daemon.addresses[PLAIN]) as stream:
                await stream.send_all(call("sat", TOKEN, b"hello"))
                while b"hello" not in heard:
                    chunk = await stream.receive_some()
                    assert chunk, heard
                    heard += chunk
