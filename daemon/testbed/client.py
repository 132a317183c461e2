"""The demo's clients: grpcio over TLS.

Each channel has a connection of its own, and metadata as the Earthly CLI sends it.
"""

import contextlib
import hashlib
import time
from collections.abc import Iterator

import grpc

from bentpipe.daemon.testbed.edge_host import ORG, EdgeHost
from bentpipe.daemon.testbed.satellite import CHUNK_BYTES, MAX_MESSAGE_BYTES, SERVICE

TIMEOUT_S = 60.0


class DemoClient:
    """One client of one satellite."""

    def __init__(self, host: EdgeHost, satellite: str, token: str | None = None) -> None:
        self._channel = grpc.secure_channel(
            f"localhost:{host.port}",
            grpc.ssl_channel_credentials(host.ca_pem),
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ],
        )
        self._metadata = (
            ("satellite_name", satellite),
            ("satellite_org", ORG),
            ("satellite_token", host.token if token is None else token),
        )

    def __enter__(self) -> "DemoClient":
        return self

    def __exit__(self, *_error: object) -> None:
        self._channel.close()

    def echo(self, message: bytes) -> bytes:
        """One unary call. Raises grpc.RpcError."""
        return bytes(self.echo_future(message).result())

    def echo_future(self, message: bytes) -> grpc.Future:
        """Start a unary call."""
        call = self._channel.unary_unary(f"/{SERVICE}/Echo")
        return call.future(message, metadata=self._metadata, timeout=TIMEOUT_S)

    def upload(self, size_bytes: int, block: bytes) -> tuple[str, str]:
        """Stream `block` over and over up to `size_bytes`.

        Returns the SHA-256 of what was sent, and of what the satellite got.
        """
        digest = hashlib.sha256()

        def chunks() -> Iterator[bytes]:
            left = size_bytes
            while left:
                chunk = block[: min(left, len(block))]
                digest.update(chunk)
                left -= len(chunk)
                yield chunk

        answer = self._channel.stream_unary(f"/{SERVICE}/Upload")(chunks(), metadata=self._metadata, timeout=TIMEOUT_S)
        return digest.hexdigest(), bytes(answer).decode()

    def download(self, size_bytes: int) -> tuple[str, str]:
        """Stream `size_bytes` down. Returns the SHA-256 that the satellite sent, and that of the bytes that arrived."""
        digest = hashlib.sha256()
        stream = self._channel.unary_stream(f"/{SERVICE}/Download")(
            str(size_bytes).encode(), metadata=self._metadata, timeout=TIMEOUT_S
        )
        for chunk in stream:
            digest.update(chunk)
        trailers = dict(stream.trailing_metadata())
        return str(trailers["sha256"]), digest.hexdigest()


def stampede(host: EdgeHost, satellite: str, count: int) -> tuple[int, float]:
    """Start `count` clients at once, each on a connection of its own. Returns how many got their answer, and the seconds."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(DemoClient(host, satellite)) for _ in range(count)]
        begun = time.monotonic()
        calls = [client.echo_future(b"%d" % number) for number, client in enumerate(clients)]
        answers = [call.result() for call in calls]
        took_s = time.monotonic() - begun
    return sum(answer == b"%d" % number for number, answer in enumerate(answers)), took_s


def demo_block() -> bytes:
    """One message of an upload: not compressible, the same every time."""
    return b"".join(hashlib.sha256(number.to_bytes(4)).digest() for number in range(CHUNK_BYTES // 32))
