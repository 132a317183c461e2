"""The sockets of the page for operators: opened before anything is started, closed and removed at the end."""

import socket
from collections.abc import Iterator, Sequence

from bentpipe.config.admin import AdminSection
from bentpipe.daemon.connections.listener import bind
from bentpipe.daemon.private_socket import PrivateListener, listen_private

BACKLOG = 64
"""Of the Unix socket."""
OWNER = "daemon"


def open_admin(section: AdminSection | None) -> Iterator[socket.socket]:
    """Open the page's sockets. Raises OSError, with a message."""
    if section is None:
        return
    if section.address is not None:
        yield from bind(*section.address)
    path = section.socket_path()
    if path is not None:
        try:
            yield listen_private(path, socket.SOCK_STREAM, BACKLOG, OWNER)
        except OSError as exc:
            raise OSError(exc.errno, f"[admin] path {path}: {exc.strerror}") from exc
    elif section.address is None:
        raise OSError("[admin] has neither path nor address, and there is no RuntimeDirectory= for a socket: give one")


def close_admin(sockets: Sequence[socket.socket]) -> None:
    """Close them, and remove a socket's file unless it belongs to another daemon by now. Raises OSError."""
    for sock in sockets:
        if isinstance(sock, PrivateListener):
            sock.remove(OWNER)
        else:
            sock.close()


def place_of(sock: socket.socket) -> str:
    """Where the page is: a path, or what a browser opens."""
    if isinstance(sock, PrivateListener):
        return str(sock.path)
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
