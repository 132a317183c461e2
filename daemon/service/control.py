"""The control socket of a running daemon: a Unix socket, one request for each connection, one line of JSON each way.

    {"verb": "cut", "principal": "ci"}   ->   {"done": {"cut": 3}}   or   {"error": "words for people"}

Owns: the socket and a few short connections. It does not know what a verb does: `serve` gives the table. Only root and the
daemon's own user may ask. The file's mode says so, and the kernel confirms it (unix(7), SO_PEERCRED).
"""

import contextlib
import json
import os
import socket
import struct
import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import trio

from bentpipe.daemon.errors import BentpipeError, Source
from bentpipe.daemon.private_socket import PrivateListener, listen_private, peer_of
from bentpipe.daemon.tasks import Owner, contained

REQUEST_BYTES = 8 << 10
ANSWER_BYTES = 4 << 20
"""The longest answer that the asking side accepts: a list of thousands of satellites fits."""
CREDENTIAL_NAMES = "credentials"
"""The field of `reload` with the names of the credentials whose files come with it, in the same order."""
RELOAD_DEADLINE_S = 60.0
"""For a reload, with those before it."""
CLIENTS = 8
"""Connections at once. The next one waits in the socket's queue, within its own deadline."""
DEADLINE_S = 10.0
"""From accept to the end of the answer, unless the verb has a deadline of its own."""
MOST_FILES = 16
"""Descriptors that come with a request (unix(7), SCM_RIGHTS)."""
FILES = "files"
"""The field by which a verb gets them, as a list of numbers. They are closed after the verb: it copies what it keeps."""
NUMBER = struct.Struct("i")
"""A descriptor in an SCM_RIGHTS message."""
OWNER = "daemon"
"""What listens there, in words."""
SERVICE_SOCKET = Path("/run/bentpipe/control.sock")
"""The path that the unit's RuntimeDirectory= gives; an operator's shell has no RUNTIME_DIRECTORY."""

Fields = Mapping[str, object]
Verb = Callable[[Fields], Awaitable[Fields]]


class ControlError(BentpipeError):
    """The request cannot be carried out. The message is for the operator who made it."""

    source = Source.OPERATOR


def open_control_socket(path: Path) -> PrivateListener:
    """Listen at `path`, and replace the socket of a dead daemon. Raises OSError, with a message."""
    try:
        return listen_private(path, socket.SOCK_STREAM, CLIENTS, OWNER)
    except OSError as exc:
        raise OSError(exc.errno, f"[control] path {path}: {exc.strerror}") from exc


class ControlServer:
    """Answers requests by a table of verbs. It takes the socket, and removes its file at the end."""

    def __init__(
        self,
        sock: PrivateListener,
        verbs: Mapping[str, Verb],
        deadlines: Mapping[str, float] = types.MappingProxyType({}),
    ) -> None:
        """`deadlines` are those of verbs that may take longer than DEADLINE_S, in seconds."""
        self._sock = sock
        self._verbs = verbs
        self._deadlines = deadlines
        self._places = trio.Semaphore(CLIENTS)

    async def run_control(self) -> None:
        """Serve for ever."""
        # A copy, since Trio closes the listeners that it serves, and this may be started again.
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._sock.dup()))
        await trio.serve_listeners(self._serve, [listener])

    def close(self) -> None:
        """Close the socket and remove its file, unless the file belongs to another daemon by now."""
        with contained(Owner("control")):
            self._sock.remove(OWNER)

    async def _serve(self, stream: trio.SocketStream) -> None:
        with contained(Owner("control client")):
            async with self._places, stream:
                with trio.move_on_after(DEADLINE_S) as scope, contextlib.ExitStack() as files:
                    try:
                        await stream.send_all(await self._answer(stream, files, scope))
                    except trio.BrokenResourceError:
                        return  # it has left; its request was carried out nevertheless

    async def _answer(self, stream: trio.SocketStream, files: contextlib.ExitStack, scope: trio.CancelScope) -> bytes:
        try:
            check_peer(stream.socket)
            line, numbers = await _read_request(stream, files)
            answer: Fields = {"done": await self._do(line, numbers, scope)}
        except ControlError as exc:
            answer = {"error": str(exc)}
        return json.dumps(answer).encode() + b"\n"

    async def _do(self, line: bytes, files: list[int], scope: trio.CancelScope) -> Fields:
        try:
            request: object = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise ControlError(f"the request is not a line of JSON: {exc}") from exc
        if not isinstance(request, dict):
            raise ControlError("the request is not a JSON object")
        name = str(request.pop("verb", ""))
        verb = self._verbs.get(name)
        if verb is None:
            raise ControlError(f"unknown verb; this daemon knows {', '.join(sorted(self._verbs))}")
        scope.deadline += self._deadlines.get(name, DEADLINE_S) - DEADLINE_S
        return await verb({**request, FILES: files} if files else request)


def check_peer(sock: socket.socket | trio.socket.SocketType) -> None:
    """Check that the kernel says that root or this daemon's own user has connected. Raises ControlError."""
    peer = peer_of(sock)
    if not peer.is_trusted:
        raise ControlError(f"user {peer.uid} may not ask this daemon: root may, and user {os.geteuid()}")


async def _read_request(stream: trio.SocketStream, files: contextlib.ExitStack) -> tuple[bytes, list[int]]:
    """The line and the descriptors that came with it, which `files` closes."""
    line = b""
    numbers: list[int] = []
    while not line.endswith(b"\n"):
        room = socket.CMSG_SPACE(MOST_FILES * NUMBER.size)
        data, received, flags, _ = await stream.socket.recvmsg(REQUEST_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, packed in received:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                for (number,) in NUMBER.iter_unpack(packed[: len(packed) // NUMBER.size * NUMBER.size]):
                    files.callback(os.close, number)
                    numbers.append(number)
        if flags & socket.MSG_CTRUNC or len(numbers) > MOST_FILES:
            raise ControlError(f"the request has over {MOST_FILES} descriptors")
        if not data:
            raise ControlError("the request has no end of line")
        line += data
        if len(line) > REQUEST_BYTES:
            raise ControlError(f"the request has over {REQUEST_BYTES} bytes")
    return line, numbers


def ask(
    path: Path, verb: str, fields: Fields, *, files: Sequence[int] = (), deadline_s: float = DEADLINE_S
) -> dict[str, object]:
    """Ask the daemon at `path`, and wait `deadline_s` for each part of its answer. Raises ControlError.

    `files` are descriptors that go with the request; the caller keeps its own.
    """
    answer = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(deadline_s)
        try:
            sock.connect(str(path))
            line = json.dumps({"verb": verb, **fields}).encode() + b"\n"
            # A daemon that refuses before it has read all of it closes: its answer says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sent = socket.send_fds(sock, [line], files) if files else 0
                sock.sendall(line[sent:])
            with contextlib.suppress(ConnectionResetError):
                while len(answer) < ANSWER_BYTES and (data := sock.recv(65536)):
                    answer += data
        except OSError as exc:
            raise ControlError(
                f"no daemon answers at {path}: {exc.strerror or exc}; does the service run (systemctl status bentpipe)?"
            ) from exc
    if not answer.endswith(b"\n"):
        raise ControlError(f"the daemon at {path} gave no complete answer")
    found: object = json.loads(answer)
    if not isinstance(found, dict) or not isinstance(found.get("done"), dict):
        words = found["error"] if isinstance(found, dict) and "error" in found else "not an answer of bentpipe"
        raise ControlError(str(words))
    done: dict[str, object] = found["done"]
    return done
