"""An edge host with ports behind proxies, and what its log and its counters say of them."""

import contextlib
import dataclasses
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import trustme

from beds.hosts.wires import SourceWire
from beds.peers.clients import GrpcioClient
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost

PROXY_ADDRESS = "127.0.0.2"
ORDINARY, PLAIN, TLS = 0, 1, 2
"""Indices of the ports: EdgeHost's own, with TLS and without `proxy_protocol`, and two behind proxies."""
GREETING_DEADLINE_S = 2.0
DEADLINE_S = 10.0


@dataclasses.dataclass(frozen=True)
class Behind:
    """The edge host, and what its proxied TLS port is trusted by."""

    edge: EdgeHost
    ca_pem: bytes

    def call(self, wire: SourceWire, *, tls: bool, token: str | None = None) -> bytes:
        metadata = (
            ("satellite_name", "sat"),
            ("satellite_org", ORG),
            ("satellite_token", token or self.edge.token),
        )
        with contextlib.closing(GrpcioClient(wire.port, self.ca_pem if tls else None, metadata)) as client:
            return client.unary("Echo", b"through")

    def wire(self, port: int, *first: bytes, source: str = PROXY_ADDRESS) -> SourceWire:
        return SourceWire(self.edge.ports[port], source, first)

    def logged(self, message: str) -> list[dict[str, object]]:
        """Every such line so far: what was logged before the statistics stands before them."""
        self.outcomes()
        return self._records(message)

    def _records(self, message: str) -> list[dict[str, object]]:
        return [record for record in self.edge.records() if record["message"] == message]

    def outcomes(self) -> dict[str, int]:
        """How connections ended so far."""
        before = len(self._records("statistics"))
        os.kill(self.edge.pid, signal.SIGUSR1)
        wait_until(lambda: len(self._records("statistics")) > before)
        return self._records("statistics")[-1]["outcomes"]  # type: ignore[return-value]

    def lines_of_connections(self) -> list[dict[str, object]]:
        """What is logged of connections so far."""
        self.outcomes()
        return [record for record in self.edge.records() if record["logger"] == "bentpipe.edge"]

    def wait_outcome(self, kind: str, times: int) -> None:
        """Wait until that many connections have ended so."""
        wait_until(lambda: self.outcomes().get(kind, 0) >= times)

    def wait_logged(self, message: str, times: int) -> None:
        """Wait until it is logged that often."""
        wait_until(lambda: len(self._records(message)) >= times)

    def raw(self, port: int, sent: bytes, *, source: str = PROXY_ADDRESS, end: bool = False) -> bytes:
        """Send, and read to the end of the stream; a reset counts as one."""
        with socket.create_connection(("127.0.0.1", self.edge.ports[port]), DEADLINE_S, (source, 0)) as sock:
            received = b""
            with contextlib.suppress(ConnectionError):
                sock.sendall(sent)
                if end:
                    sock.shutdown(socket.SHUT_WR)
                while data := sock.recv(4096):
                    received += data
            return received


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def edge_behind_proxies(
    folder: Path, max_per_address: int, greeting_deadline_s: float = GREETING_DEADLINE_S
) -> Iterator[Behind]:
    """The satellite acme/sat and the three ports; certificates go to `folder`."""
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1")
    server.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    listener = f'[[listener]]\naddress = "127.0.0.1:0"\nproxy_protocol = {{ from = ["{PROXY_ADDRESS}", "fd00::/8"] }}\n'
    settings = (
        f"[limits]\nmax_connections_per_address = {max_per_address}\n"
        f'greeting_deadline = "{greeting_deadline_s}s"\n{listener}{listener}[listener.tls]\n'
        f'certificate = "{folder}/both.pem"\nkey = "{folder}/both.pem"\n'
    )
    with EdgeHost([DemoSatellite("sat")], sleep_after_s=600, settings=settings) as edge:
        yield Behind(edge, authority.cert_pem.bytes())
