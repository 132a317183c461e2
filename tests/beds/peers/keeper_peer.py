"""A keeper in a process of its own, and a daemon that a test scripts request by request."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bentpipe.daemon.keeper.program import READY
from bentpipe.daemon.keeper.protocol import (
    MESSAGE_BYTES,
    OLDEST_VERSION,
    VERSION,
    Field,
    Flag,
    Kind,
    Message,
    Tag,
    decode,
    encode,
)

DEADLINE_S = 20.0
HELLO: list[Field] = [(Tag.OLDEST, OLDEST_VERSION), (Tag.NEWEST, VERSION)]


class Peer:
    """A daemon, as far as the keeper can tell."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(str(path))
        self._number = 0

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, kind: Kind, fields: list[Field] | None = None) -> Message:
        self._number += 1
        self.sock.send(encode(kind, self._number, fields or []))
        while True:
            answer = self.receive()
            assert answer is not None
            if answer.number == self._number:
                return answer

    def receive(self) -> Message | None:
        try:
            packet = self.sock.recv(MESSAGE_BYTES + 1)
        except ConnectionResetError:
            return None
        return decode(packet) if packet else None

    def spawn(self, name: str, *command: str) -> Message:
        fields: list[Field] = [(Tag.NAME, name), (Tag.GRACE_MS, 100), (Tag.NOTE, b"note")]
        return self.ask(Kind.SPAWN, fields + [(Tag.ARGUMENT, each) for each in command])

    def wait_ended(self, name: str) -> Message:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            told = self.ask(Kind.LOOK, [(Tag.NAME, name)])
            if Flag.EXITED in Flag(told.value(Tag.FLAGS) or 0):
                return told
            assert time.monotonic() < deadline
            time.sleep(0.01)


def seated(path: Path) -> Peer:
    peer = Peer(path)
    assert peer.ask(Kind.HELLO, HELLO).kind == Kind.DONE
    return peer


@contextlib.contextmanager
def kept(path: Path, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A keeper that listens at `path`. It must live to the end, and end in good order then."""
    process = subprocess.Popen([*command, f"socket={path}", "detached=yes"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == READY
    try:
        yield process
        assert process.poll() is None, "the keeper has died"
    finally:
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert not path.exists()


INSTALLED = (sys.executable, "-I", "-m", "bentpipe.daemon.keeper")
"""The keeper's program."""
