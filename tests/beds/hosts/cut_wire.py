"""A TCP way to a server that a test can cut: what is under way breaks, and what comes is closed at once."""

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Self

CHUNK_BYTES = 1 << 16


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


class CutWire:
    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._live: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._cut = False
        self._thread = threading.Thread(target=self._accept, name="wire", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            for sock in self._live:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        with self._lock:
            self._cut = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
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
