"""Unix sockets for their owner and root alone: one listens in the place of a dead process's, the other knows its peer."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): process, user, group."""

LONGEST_PATH_BYTES = 107
"""sun_path has 108 bytes, the last of them NUL (unix(7))."""

OPENING = ".opening"
"""The name of a socket in its folder until it listens. It is what ss(8) and /proc/net/unix show, as the kernel keeps it."""


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


class PrivateListener(socket.socket):
    """A Unix socket that listens, at `path`: the name that the kernel knows (getsockname) is not that of the file."""

    path = Path()

    def dup(self) -> socket.socket:  # type: ignore[override]
        """A copy of the descriptor, as a socket that Trio takes."""
        return socket.socket(fileno=os.dup(self.fileno()))

    def remove(self, owner: str) -> None:
        """Close it, and remove its file unless that belongs to another process by now. Raises OSError."""
        self.close()
        with contextlib.suppress(FileExistsError):
            remove_dead(self.path, self.type, owner)


def listen_private(path: Path, kind: socket.SocketKind, backlog: int, owner: str) -> PrivateListener:
    """Listen at `path` with mode 0600, in the place of a dead process's socket; `owner` names what a living one is.

    The file gets its name once the socket listens. Between bind and listen it would refuse connections, as the socket of a
    dead process does, and another process would remove it as such. Raises OSError: EADDRINUSE if another one listens there,
    EEXIST if there is a file that is not a socket, ENAMETOOLONG.
    """
    opening = path.with_name(OPENING)
    if max(len(os.fsencode(each)) for each in (path, opening)) > LONGEST_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"the path of a Unix socket has at most {LONGEST_PATH_BYTES} bytes")
    sock = PrivateListener(socket.AF_UNIX, kind)
    sock.path = path
    try:
        with _alone_in(path.parent):
            remove_dead(path, kind, owner)
            opening.unlink(missing_ok=True)  # of a process that died here
            sock.bind(str(opening))
            opening.chmod(0o600)  # nobody can connect before listen()
            sock.listen(backlog)
            try:
                os.link(opening, path)  # unlike a rename, it fails if the path is taken
            finally:
                opening.unlink()
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """While the block runs, no other process opens a socket in the folder by `listen_private`."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


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
