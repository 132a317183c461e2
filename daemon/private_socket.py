"""Unix sockets for their owner and root alone: one listens in the place of a dead process's, the other knows its peer."""

import errno
import os
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple, Protocol

CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): process, user, group."""


class Peer(NamedTuple):
    """The process on the other end of a connection, as the kernel knows it."""

    pid: int
    uid: int

    @property
    def is_trusted(self) -> bool:
        """Whether it is root's or this user's."""
        return self.uid in (0, os.geteuid())


class Connected(Protocol):
    """A connected Unix socket, blocking or Trio's."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes:
        """As socket.socket has it."""
        ...


def peer_of(sock: Connected) -> Peer:
    """Ask the kernel (unix(7), SO_PEERCRED): of a listener that systemd has made, the peer is process 1."""
    pid, uid, _ = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return Peer(pid, uid)


def listen_private(path: Path, kind: socket.SocketKind, backlog: int, owner: str) -> socket.socket:
    """Listen at `path` with mode 0600, in the place of a dead process's socket; `owner` names what a living one is.

    Raises OSError: EADDRINUSE if another one listens there, EEXIST if there is a file that is not a socket.
    """
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        remove_dead(path, kind, owner)
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def remove_dead(path: Path, kind: socket.SocketKind, owner: str) -> None:
    """Remove the socket of a dead process, if there is one. Raises OSError, as `listen_private` does."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file that is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # its process is dead
            return
        except BlockingIOError:
            pass
    raise FileExistsError(errno.EADDRINUSE, f"another {owner} listens there")
