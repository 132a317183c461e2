"""A TCP way to a server from a source address of one's choice, with what a proxy would say first."""

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from beds.hosts.cut_wire import carry

PAUSE_S = 0.002
"""Between the pieces of a header, so that each is a segment of its own."""


class SourceWire:
    """Listens on `port`; every connection to it goes on to `target` from the address `source`, behind `first`."""

    def __init__(self, target: int, source: str, first: Sequence[bytes] = ()) -> None:
        self._target = ("127.0.0.1", target)
        self._source = source
        self._first = first
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="source wire", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            server = socket.create_connection(self._target, source_address=(self._source, 0))
            with server:
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in self._first:
                    server.sendall(piece)
                    time.sleep(PAUSE_S)
                carry(client, server)
