"""Clients in other languages behind the face of clients.py: one process a connection, orders and answers as JSON lines."""

import base64
import json
import subprocess
from collections.abc import Sequence

import pytest

from beds.peers.builds import go_peer, java_client, js_client, tonic_client
from beds.peers.clients import TIMEOUT_S, CallError, Metadata

CANCELLED = 1


class ChildClient:
    """One client process."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        ca_pem: bytes | None,
        metadata: Metadata,
        keepalive_s: float = 0,
    ) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._order(
            "open",
            target=f"{'localhost' if ca_pem else '127.0.0.1'}:{port}",
            ca=(ca_pem or b"").decode(),
            metadata=list(metadata),
            keepalive_s=keepalive_s,
        )

    def _order(
        self, do: str, method: str = "", messages: Sequence[bytes] = (), timeout_s: float = TIMEOUT_S, **rest: object
    ) -> list[bytes]:
        order = {"do": do, "method": method, "timeout_s": timeout_s, **rest}
        order["messages"] = [base64.b64encode(message).decode() for message in messages]
        self._stdin.write(json.dumps(order).encode() + b"\n")
        self._stdin.flush()
        line = self._stdout.readline()
        assert line, f"the client ended with {self._process.wait()}"
        answer = json.loads(line)
        if answer["code"]:
            raise CallError(answer["code"], answer["details"])
        return [base64.b64decode(message or "") for message in answer["messages"] or ()]

    def unary(self, method: str, message: bytes, *, timeout_s: float = TIMEOUT_S) -> bytes:
        [answer] = self._order("concurrent", method, [message], timeout_s)
        return answer

    def concurrent(self, method: str, messages: Sequence[bytes]) -> list[bytes]:
        return self._order("concurrent", method, messages)

    def upload(self, chunks: Sequence[bytes]) -> bytes:
        [answer] = self._order("upload", "Upload", chunks)
        return answer

    def download(self, size_bytes: int) -> int:
        _, size = self._order("download", "Download", size_bytes=size_bytes)
        return int(size)

    def chat(self, messages: Sequence[bytes]) -> list[bytes]:
        return self._order("chat", "Chat", messages)

    def bulk(self, size_bytes: int, chunk_bytes: int) -> tuple[bytes, bytes]:
        sent, came = self._order(
            "bulk", "Chat", timeout_s=4 * TIMEOUT_S, size_bytes=size_bytes, chunk_bytes=chunk_bytes
        )
        return sent, came

    def cancelled(self, method: str, message: bytes, after_s: float) -> None:
        with pytest.raises(CallError) as error:
            self._order("cancel", method, [message], timeout_s=2 * after_s)
        assert error.value.code == CANCELLED

    def close(self) -> None:
        if self._process.poll() is None:
            self._order("close")
        self._stdin.close()
        self._process.wait(TIMEOUT_S)
        self._stdout.close()


def go_client(port: int, ca_pem: bytes | None, metadata: Metadata, keepalive_s: float = 0) -> ChildClient:
    """grpc-go. Raises builds.Missing."""
    return ChildClient((go_peer(), "client"), port, ca_pem, metadata, keepalive_s)


def node_client(port: int, ca_pem: bytes | None, metadata: Metadata, keepalive_s: float = 0) -> ChildClient:
    """@grpc/grpc-js. Raises builds.Missing."""
    return ChildClient(js_client(), port, ca_pem, metadata, keepalive_s)


def rust_client(port: int, ca_pem: bytes | None, metadata: Metadata, keepalive_s: float = 0) -> ChildClient:
    """tonic. Raises builds.Missing."""
    return ChildClient((tonic_client(),), port, ca_pem, metadata, keepalive_s)


def jvm_client(port: int, ca_pem: bytes | None, metadata: Metadata, keepalive_s: float = 0) -> ChildClient:
    """grpc-java. Raises builds.Missing."""
    return ChildClient(java_client(), port, ca_pem, metadata, keepalive_s)
