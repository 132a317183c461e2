"""The control socket: which users may ask, malformed requests, bounds, and whose file it is."""

import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from bentpipe.daemon.private_socket import Peer
from bentpipe.daemon.service import control
from bentpipe.daemon.service.control import (
    CLIENTS,
    REQUEST_BYTES,
    ControlError,
    ControlServer,
    Fields,
    ask,
    open_control_socket,
)

DEADLINE_S = 10.0


async def echo(fields: Fields) -> Fields:
    await trio.lowlevel.checkpoint()
    return fields


async def refuse(fields: Fields) -> Fields:
    await trio.lowlevel.checkpoint()
    raise ControlError("not today")


async def crash(fields: Fields) -> Fields:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    server = ControlServer(open_control_socket(tmp_path / "c"), {"echo": echo, "refuse": refuse, "crash": crash})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run_control)
        yield tmp_path / "c"
        nursery.cancel_scope.cancel()
    server.close()
    assert not (tmp_path / "c").exists()


async def said(path: Path, sent: bytes) -> bytes:
    with trio.fail_after(DEADLINE_S):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(sent)
            await stream.send_eof()
            return b"".join([part async for part in stream])


async def test_a_verb_is_done(path: Path) -> None:
    assert await trio.to_thread.run_sync(ask, path, "echo", {"a": 1}) == {"a": 1}


async def test_words_for_the_operator(path: Path) -> None:
    with pytest.raises(ControlError, match="not today"):
        await trio.to_thread.run_sync(ask, path, "refuse", {})
    with pytest.raises(ControlError, match="unknown verb; this daemon knows crash, echo, refuse"):
        await trio.to_thread.run_sync(ask, path, "dance", {})
    with pytest.raises(ControlError, match="no complete answer"):
        await trio.to_thread.run_sync(ask, path, "crash", {})
    assert await trio.to_thread.run_sync(ask, path, "echo", {}) == {}


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"no json\n", "not a line of JSON"),
        (b"[" * 5000 + b"\n", "not a line of JSON"),
        (b"[1]\n", "not a JSON object"),
        (b'{"verb": "echo"}', "no end of line"),
        (b'{"verb": ["x"]}\n', "unknown verb"),
        (b"x" * (REQUEST_BYTES + 1), "bytes"),
        (b"\xff\n", "not a line of JSON"),
    ],
)
async def test_malformed_requests(path: Path, sent: bytes, words: str) -> None:
    assert words in json.loads(await said(path, sent))["error"]


async def test_nobody_else_may_ask(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ours, other = socket.socketpair()
    with ours, other:
        monkeypatch.setattr(control, "peer_of", lambda sock: Peer(1, os.geteuid() + 1 or 1))
        with pytest.raises(ControlError, match="may not ask"):
            control.check_peer(ours)
        monkeypatch.setattr(control, "peer_of", lambda sock: Peer(1, 0))
        control.check_peer(ours)


async def test_clients_that_stay_keep_nobody_out_for_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "DEADLINE_S", 0.5)
    with trio.fail_after(DEADLINE_S):
        idle = [await trio.open_unix_socket(path) for _ in range(2 * CLIENTS)]
        assert await said(path, b'{"verb": "echo"}\n') == b'{"done": {}}\n'
        for each in idle:
            await each.aclose()


def test_the_file_of_a_dead_daemon_is_replaced_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with open_control_socket(path), pytest.raises(OSError, match="another daemon listens there"):
        open_control_socket(path)
    assert path.exists()
    with open_control_socket(path):
        pass
    path.unlink()
    path.write_text("precious")
    with pytest.raises(OSError, match="not a socket"):
        open_control_socket(path)
    assert path.read_text() == "precious"
    with pytest.raises(OSError, match=r"path .*: No such file"):
        open_control_socket(tmp_path / "none" / "c")


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no daemon answers"):
        ask(tmp_path / "c", "echo", {})
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "d"))
    with pytest.raises(ControlError, match="refused"):
        ask(tmp_path / "d", "echo", {})


def test_a_daemon_that_refuses_before_it_has_read_all_is_still_heard(tmp_path: Path) -> None:
    """Its socket is closed while the request is being written."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def refuse() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b'{"error": "not you"}\n')

        thread = threading.Thread(target=refuse)
        thread.start()
        try:
            with pytest.raises(ControlError, match=r"^not you$"):
                ask(path, "cut", {"filler": "x" * 1_000_000})  # more than a socket's buffer takes
        finally:
            thread.join()
