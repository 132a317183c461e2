"""TCP ways to a server: one that a test can cut, and one from a source address of the test's choice."""

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

CHUNK_BYTES = 1 << 16
PAUSE_S = 0.002
"""Between the pieces of a header, so that each is a segment of its own."""


def carry(client: socket.socket, server: socket.socket) -> None:
    """Copy both ways until one side ends. Raises OSError."""
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, server)
        selector.register(server, selectors.EVENT_READ, client)
        while True:
            for key, _ in selector.select():
                data = key.fileobj.recv(CHUNK_BYTES)  # type: ignore[union-attr]
                if not data:
                    return
                key.data.sendall(data)


class Wire:
    """Listens on `port`; a subclass says with `_carry` where a connection to it goes on to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name="wire", daemon=True)

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
            threading.Thread(target=self._carry_one, args=(client,), daemon=True).start()

    def _carry_one(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._carry(client)

    def _carry(self, client: socket.socket) -> None:
        raise NotImplementedError


class CutWire(Wire):
    """A way to 127.0.0.1 at `port`. Cut, what is under way breaks, and what comes is closed at once."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._target = ("127.0.0.1", port)
        self._live: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._cut = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cut()
        super().__exit__(kind, error, traceback)

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            for sock in self._live:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        with self._lock:
            self._cut = False

    def _carry(self, client: socket.socket) -> None:
        with self._lock:
            if self._cut:
                return
            server = socket.create_connection(self._target)
            self._live |= {client, server}
        with server:
            try:
                carry(client, server)
            finally:
                with self._lock:
                    self._live -= {client, server}


class SourceWire(Wire):
    """Every connection goes on to `target` from the address `source`, behind `first`, as a proxy's would."""

    def __init__(self, target: int, source: str, first: Sequence[bytes] = ()) -> None:
        super().__init__()
        self._target = ("127.0.0.1", target)
        self._source = source
        self._first = first

    def _carry(self, client: socket.socket) -> None:
        with socket.create_connection(self._target, source_address=(self._source, 0)) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in self._first:
                server.sendall(piece)
                time.sleep(PAUSE_S)
            carry(client, server)
