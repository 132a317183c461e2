"""Unix sockets for their owner: the name is there once they listen, one process has it, and a dead one's is replaced."""

import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bentpipe.daemon.private_socket import OPENING, PrivateListener, listen_private

OWNER = "process"
DEADLINE_S = 30.0
DYING = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.bind(sys.argv[1])
os._exit(0)
"""
RACER = """
import errno, socket, sys
from pathlib import Path
from bentpipe.daemon.private_socket import listen_private
sys.stdin.readline()
try:
    sock = listen_private(Path(sys.argv[1]), socket.SOCK_STREAM, 4, "process")
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
else:
    print("listens", flush=True)
    sys.stdin.readline()
"""


def listening(path: Path) -> PrivateListener:
    return listen_private(path, socket.SOCK_STREAM, 4, OWNER)


def refuses(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)  # its queue may be full
        return sock.connect_ex(str(path)) not in (0, errno.EAGAIN)


def test_it_is_its_owners_alone_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    sock = listening(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sock.path == path
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert not refuses(path)
    sock.remove(OWNER)
    assert list(tmp_path.iterdir()) == []


def test_the_socket_of_the_next_process_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    first = listening(path)
    path.unlink()
    with listening(path):
        first.remove(OWNER)
        assert not refuses(path)


def test_a_living_process_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with listening(path):
        with pytest.raises(OSError, match="another process listens there") as caught:
            listening(path)
        assert caught.value.errno == errno.EADDRINUSE
        assert not refuses(path)


@pytest.mark.parametrize("name", ["a", OPENING])
def test_what_a_dead_process_has_left_is_replaced(tmp_path: Path, name: str) -> None:
    """Also between bind and listen, when it dies with the socket's first name."""
    subprocess.run([sys.executable, "-ISc", DYING, str(tmp_path / name)], check=True)
    assert (tmp_path / name).exists()
    with listening(tmp_path / "a"):
        assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_what_is_not_a_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("of somebody")
    with pytest.raises(OSError, match="not a socket"):
        listening(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "of somebody"


@pytest.mark.parametrize("name", ["x" * 100, "x"])
def test_a_path_that_is_too_long_is_refused_in_words(tmp_path: Path, name: str) -> None:
    folder = tmp_path / ("y" * (107 - len(os.fsencode(tmp_path)) - 3))
    folder.mkdir()
    with pytest.raises(OSError, match="107 bytes"):
        listening(folder / name)
    assert list(folder.iterdir()) == []


def test_one_of_many_processes_gets_the_name_and_none_loses_it(tmp_path: Path) -> None:
    """A dead process's socket is there, so each of them finds something to remove."""
    path = tmp_path / "a"
    subprocess.run([sys.executable, "-ISc", DYING, str(path)], check=True)
    racers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", RACER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    try:
        said: list[str] = []
        each_writes(racers)
        for racer in racers:
            assert racer.stdout is not None
            said.append(racer.stdout.readline().strip())
        assert sorted(said) == ["EADDRINUSE"] * 7 + ["listens"]
        assert not refuses(path)
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def each_writes(racers: list["subprocess.Popen[str]"]) -> None:
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()


def test_nobody_is_refused_while_the_name_is_there(tmp_path: Path) -> None:
    """Between bind and listen a socket would refuse."""
    path = tmp_path / "a"
    over = threading.Event()
    refused: list[int] = []

    def knock() -> None:
        while not over.is_set():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.setblocking(False)  # its queue may be full
                code = sock.connect_ex(str(path))
                if code == errno.ECONNREFUSED:
                    refused.append(code)

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        opened = [opens_once(path) for _ in range(200)]
    finally:
        over.set()
        knocking.join(DEADLINE_S)
    for each in opened:
        each.close()
    assert len(opened) == 200
    assert refused == []


def opens_once(path: Path) -> PrivateListener:
    """Listen, and give the name up before the socket is closed."""
    sock = listening(path)
    path.unlink()
    return sock
