"""The socket between the planes: where it lies, who may connect, and how it is opened.

A data plane listens on a socket of its own, `<folder>/<plane id>`. The folder is private (0700), the socket too (0600), and
both sides look at the other's user. The data plane binds the socket itself: of a socket that systemd has made, SO_PEERCRED
names PID 1 (unix(7): the credentials are those of the process that called listen).
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from bentpipe.daemon.private_socket import LONGEST_PATH_BYTES, OPENING, PrivateListener, listen_private, peer_of

BACKLOG = 16


class PeerDenied(OSError):
    """The process on the other end belongs to another user."""


def plane_socket_path(folder: Path, plane: str) -> Path:
    """Where the data plane `plane` listens. Raises OSError if the path is too long for a socket."""
    path = folder / plane
    if len(os.fsencode(path)) > LONGEST_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"{path}: the path of a Unix socket has at most {LONGEST_PATH_BYTES} bytes")
    return path


def is_private(found: os.stat_result) -> bool:
    """Whether it is a folder of this user that no other user may enter."""
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def make_private_folder(folder: Path) -> None:
    """Make the folder, if it is not there. Raises OSError if other users may enter it, or if it is another user's.

    Folders above it that are missing are private, too: one of them may be such a folder itself.
    """
    for each in (*reversed(folder.parents), folder):
        if not each.exists():
            each.mkdir(mode=0o700, exist_ok=True)
    if not is_private(folder.lstat()):
        raise OSError(
            errno.EPERM,
            f"{folder} must be a folder of this user with mode 0700, since who enters it may cut connections",
        )


def listen_for_planes(path: Path) -> PrivateListener:
    """Listen on a new private socket, which does not block. Raises OSError: EADDRINUSE if the path is taken."""
    try:
        sock = listen_private(path, socket.SOCK_SEQPACKET, BACKLOG, "data plane")
    except OSError as exc:
        raise OSError(exc.errno, f"cannot listen on {path}: {exc.strerror}") from exc
    sock.setblocking(False)
    return sock


def connect_private(path: Path) -> socket.socket:
    """Connect to a data plane. Never waits. Raises OSError (ECONNREFUSED: no process listens any more), PeerDenied."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        sock.connect(str(path))
        check_peer(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def check_peer(sock: socket.socket) -> int:
    """Returns the other process's id. Raises PeerDenied unless it is this user's, or root's."""
    peer = peer_of(sock)
    if not peer.is_trusted:
        raise PeerDenied(errno.EPERM, f"process {peer.pid} of user {peer.uid} may not speak with this daemon")
    return peer.pid


def plane_sockets(folder: Path) -> Iterator[Path]:
    """All sockets in the folder, in the order of their names; none if there is no folder."""
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if path.name != OPENING and stat.S_ISSOCK(path.lstat().st_mode):
                    yield path
