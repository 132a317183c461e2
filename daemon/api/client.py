"""Calls the control API of a daemon, as our own command line does: one call on each connection, and it blocks."""

import dataclasses
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from google.protobuf.message import Message

from bentpipe.daemon.errors import BentpipeError, Source
from bentpipe.proto.grpc_client import ClientCall, ClientError, Metadata
from bentpipe.proto.grpc_status import GrpcStatus

SILENCE_S = 30.0
"""Without a byte, after which a daemon is gone: streams of states repeat themselves every 10 s."""
READ_BYTES = 65_536
PORTS = {"https": 443, "http": 80}
NOT_THE_API = "this port is for builds and does not serve the control API: set api = true in its [[listener]]"

A = TypeVar("A", bound=Message)


class ControlApiError(BentpipeError):
    """The daemon refused the call (`status` says how), or could not be reached (UNAVAILABLE)."""

    source = Source.OPERATOR

    def __init__(self, message: str, status: GrpcStatus = GrpcStatus.UNAVAILABLE) -> None:
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """Where the API is, and what proves who calls.

    `url` is https://HOST:PORT, or http:// in a trusted network, or unix:/PATH of a socket on this host, which asks for no
    token.
    """

    url: str
    token: str
    ca: Path | None = None
    """Who signs the server's certificate, in PEM; by default the system's authorities."""
    patience_s: float = SILENCE_S
    """To connect, and for each next byte of an answer."""

    def connect(self) -> tuple[socket.socket, str, str]:
        """Connect. Returns the socket, the scheme and the authority. Raises ControlApiError."""
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return self._connect_locally(parts.path), "http", "localhost"
        if parts.scheme not in PORTS or not parts.hostname:
            raise ControlApiError(
                f"{self.url!r} is not a valid server: expected https://HOST:PORT or unix:/PATH",
                GrpcStatus.INVALID_ARGUMENT,
            )
        try:
            raw = socket.create_connection((parts.hostname, parts.port or PORTS[parts.scheme]), self.patience_s)
            if parts.scheme == "http":
                return raw, parts.scheme, parts.netloc
            context = ssl.create_default_context(cafile=None if self.ca is None else os.fspath(self.ca))
            context.set_alpn_protocols(["h2"])
            return context.wrap_socket(raw, server_hostname=parts.hostname), parts.scheme, parts.netloc
        except (OSError, ValueError) as exc:
            raise ControlApiError(f"{self.url}: {exc}") from exc

    def _connect_locally(self, path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.patience_s)
            sock.connect(path)
        except OSError as exc:
            sock.close()
            words = (
                f"no daemon answers at {path}: {exc.strerror or exc}; does the service run, and does [control] name it?"
            )
            raise ControlApiError(words) from exc
        return sock


def call(server: Server, path: str, request: Message, kind: type[A], *, silence_s: float | None = None) -> Iterator[A]:
    """Call a method of the API, and yield its answers as they come. Raises as `exchange`."""
    metadata = (("authorization", f"Bearer {server.token}"),)
    for message in exchange(server, path, request.SerializeToString(), metadata, silence_s=silence_s):
        yield kind.FromString(message)


def exchange(
    server: Server, path: str, request: bytes, metadata: Metadata, *, silence_s: float | None = None
) -> Iterator[bytes]:
    """Call any gRPC method, and yield its answers as they come. Raises ControlApiError.

    That is also raised after `silence_s` without a byte, by default the server's `patience_s`.
    """
    sock, scheme, authority = server.connect()
    with sock:
        sock.settimeout(server.patience_s if silence_s is None else silence_s)
        made = ClientCall(path, request, authority=authority, scheme=scheme, metadata=metadata)
        try:
            while made.status is None:
                sock.sendall(made.data_to_send())
                yield from made.receive_data(sock.recv(READ_BYTES))
        except (OSError, ClientError) as exc:
            raise ControlApiError(f"{server.url}: {exc}") from exc
    if made.status is not GrpcStatus.OK:
        raise ControlApiError(_words_of(made.words) or made.status.name, made.status)


def _words_of(words: str) -> str:
    """The answer of a listener for builds alone is about a satellite, which the caller did not ask for."""
    from bentpipe.daemon.edge.identity import NO_DESTINATION  # here: it takes longer to import than most calls take

    return f"{NOT_THE_API}; it says: {words}" if NO_DESTINATION in words else words
