"""A socket by which other processes of this user find the data plane, for as long as it lives."""

import logging
import os
import socket
from pathlib import Path

import trio

from bentpipe.daemon.logs import log_limited
from bentpipe.daemon.planes.sockets import listen_for_planes, make_private_folder

log = logging.getLogger("bentpipe.dataplane")

FILE_LOOK_S = 2.0
"""Between two looks for the socket's file."""


class PlaneSocket:
    """Listens at a path. If its file is removed, as by a program that clears /tmp, it is made again.

    Else the next control plane would find no data plane, and could start none, since the port would be taken.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self._sock = listen_for_planes(path)

    async def accept(self) -> socket.socket:
        """Return the next connection. Raises OSError if it could not be accepted."""
        while True:
            with trio.move_on_after(FILE_LOOK_S):
                await trio.lowlevel.wait_readable(self._sock)
                try:
                    return self._sock.accept()[0]
                except BlockingIOError:
                    pass
            self._look_for_file()

    def _look_for_file(self) -> None:
        if os.path.lexists(self.path):
            return
        fields = {"socket": str(self.path)}
        try:
            make_private_folder(self.path.parent)
            found = listen_for_planes(self.path)
        except OSError as exc:
            fields["error"] = str(exc)
            log_limited(log, "lost socket", "the socket's file was removed, and cannot be made", fields, logging.ERROR)
            return
        self._sock.close()
        self._sock = found
        log.warning("the socket's file was removed: a new one was made", extra={"fields": fields})

    def close(self) -> None:
        """Close it, and remove its file. Idempotent."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
            self.path.unlink(missing_ok=True)
