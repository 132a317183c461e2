"""Floods where the kernel does the records: control records come to OpenSSL one by one, and are counted as elsewhere.

Skipped where the kernel has no TLS; a guest has it (test_guest.py).
"""

import select
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from beds.peers.flood_bed import V12, V13, pair, raw_client, say, shake
from beds.peers.raw_tls import CLIENT_HELLO, HANDSHAKE, USER_CANCELED, RawTls, message
from bentpipe.native.engine import EndReason, Engine, EngineOptions, Ktls, Leg, ktls_self_test
from bentpipe.native.tls import TlsConnection, TlsServerContext

USABLE, FOUND = ktls_self_test()
pytestmark = pytest.mark.skipif(not USABLE, reason=f"no kTLS on this kernel: {FOUND}")
DEADLINE_S = 60
ENDS = {EndReason.CLIENT_TLS_FLOOD, EndReason.CLIENT_TLS_ERROR}
"""A KeyUpdate is more than the kernel's TLS can take, so one is enough (RFC 8446 §4.6.3)."""
KINDS: dict[str, tuple[ssl.TLSVersion, Callable[[RawTls], bytes]]] = {
    "1.2 warning": (V12, lambda raw: raw.alert(USER_CANCELED)),
    "1.2 ClientHello": (V12, lambda raw: raw.record(message(CLIENT_HELLO, bytes(100)), HANDSHAKE)),
    "1.3 warning": (V13, lambda raw: raw.alert(USER_CANCELED)),
    "1.3 empty": (V13, lambda raw: raw.record(b"")),
    "1.3 KeyUpdate that asks": (V13, lambda raw: raw.key_update(asks=True)),
}


class Spliced:
    """A raw client whose records the kernel reads, the engine, a plain satellite."""

    def __init__(self, folder: Path, version: ssl.TLSVersion) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        (folder / "cert").write_bytes(issued.cert_chain_pems[0].bytes())
        (folder / "key").write_bytes(issued.private_key_pem.bytes())
        server = TlsServerContext(folder / "cert", folder / "key")
        server.enable_ktls()
        near, far = pair()
        tls = TlsConnection(server, far.fileno())
        made: list[RawTls] = []
        thread = threading.Thread(target=lambda: made.append(raw_client(authority, near, version)))
        thread.start()
        shake(tls, far)
        thread.join()
        [self.raw] = made
        assert Ktls(tls.ktls)
        self.engine = Engine(EngineOptions(threads=1, splice="always", ktls=Ktls.TX | Ktls.RX))
        self.satellite, other = pair()
        self.engine.splice(Leg(far.detach(), tls), Leg(other.detach(), None))

    def close(self) -> None:
        self.satellite.close()
        self.raw.sock.close()
        self.engine.close()


@pytest.fixture
def splice(tmp_path: Path) -> Iterator[Callable[[ssl.TLSVersion], Spliced]]:
    made: list[Spliced] = []

    def make(version: ssl.TLSVersion) -> Spliced:
        made.append(Spliced(tmp_path, version))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_ends_it(splice: Callable[[ssl.TLSVersion], Spliced], kind: str) -> None:
    """What was said before arrives; then it ends with its reason."""
    version, make = KINDS[kind]
    spliced = splice(version)
    spliced.raw.sock.sendall(spliced.raw.record(b"before"))
    assert spliced.satellite.recv(100) == b"before"
    say(spliced.raw, b"".join(make(spliced.raw) for _ in range(500)))
    assert select.select([spliced.engine.event_fd], [], [], DEADLINE_S)[0]
    [ended] = spliced.engine.take_ended()
    assert ended.reason in ENDS


def test_records_without_data_do_not_end_the_stream(splice: Callable[[ssl.TLSVersion], Spliced]) -> None:
    """splice(2) returns 0 for one, as for FIN; the kernel passes over them by itself, and what follows still arrives."""
    spliced = splice(V12)
    for _ in range(5):
        spliced.raw.sock.sendall(spliced.raw.record(bytes(16_000)) + spliced.raw.record(b""))
        received = 0
        while received < 16_000:
            data = spliced.satellite.recv(1 << 16)
            assert data
            received += len(data)
    spliced.raw.sock.sendall(spliced.raw.record(b"") + spliced.raw.record(b"after"))
    assert spliced.satellite.recv(100) == b"after"
