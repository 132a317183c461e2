"""The sockets of the page for operators: where they are, how one is opened, and how it is closed and removed."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from bentpipe.config.admin import AdminSection
from bentpipe.daemon.connections.listener import bind
from bentpipe.daemon.connections.listening_sockets import ListeningSockets, Place
from bentpipe.daemon.private_socket import PrivateListener, listen_private

BACKLOG = 64
"""Of the Unix socket."""
OWNER = "daemon"


def admin_places(section: AdminSection | None, environment: Mapping[str, str] = os.environ) -> tuple[Place, ...]:
    """Where the page is to be served. Raises OSError if the section leaves no place."""
    if section is None:
        return ()
    path = section.socket_path(environment)
    found = tuple(each for each in (section.address, path) if each is not None)
    if not found:
        raise OSError("[admin] has neither path nor address, and there is no RuntimeDirectory= for a socket: give one")
    return found


def open_admin_place(place: Place) -> Sequence[socket.socket]:
    """Open the page's sockets at one place. Raises OSError, with a message."""
    if not isinstance(place, Path):
        return bind(*place)
    try:
        return [listen_private(place, socket.SOCK_STREAM, BACKLOG, OWNER)]
    except OSError as exc:
        raise OSError(exc.errno, f"[admin] path {place}: {exc.strerror}") from exc


def close_admin(sock: socket.socket) -> None:
    """Close it, and remove a socket's file unless it belongs to another daemon by now. Raises OSError."""
    if isinstance(sock, PrivateListener):
        sock.remove(OWNER)
    else:
        sock.close()


def admin_sockets(opened: Mapping[Place, Sequence[socket.socket]]) -> ListeningSockets:
    """The page's sockets, of which those that are not wanted any more are closed and removed."""
    return ListeningSockets(opened, close_admin)


def place_of(sock: socket.socket) -> str:
    """Where the page is: a path, or what a browser opens."""
    if isinstance(sock, PrivateListener):
        return str(sock.path)
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
