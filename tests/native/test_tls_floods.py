"""A TLS peer that sends records which carry nothing, or next to nothing: what one call of ours may cost is bounded.

Against the peer of tests/beds/peers/raw_tls.py, which can write any record, in both roles and in TLS 1.2 and 1.3; first each
kind of record alone, then hypothesis looks for the mixture that costs most.
"""

import array
import contextlib
import fcntl
import select
import socket
import ssl
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
import trustme
from hypothesis import HealthCheck, given, settings, target

from beds.peers.flood_bed import DEADLINE_S, V12, V13, pair, say, shake
from beds.peers.raw_tls import (
    ALERT,
    CHANGE_CIPHER_SPEC,
    CLIENT_HELLO,
    HANDSHAKE,
    HELLO_REQUEST,
    NEW_SESSION_TICKET,
    NO_RENEGOTIATION,
    TICKET,
    USER_CANCELED,
    RawTls,
    message,
)
from bentpipe.native.engine import EndReason, Engine, EngineOptions, Leg
from bentpipe.native.tls import (
    TlsClientContext,
    TlsConnection,
    TlsError,
    TlsFlood,
    TlsServerContext,
    WantRead,
    WantWrite,
)

READ_BYTES = 16_384
CALL_BYTES = (256 + 64) << 10
"""What one call may take out of the socket: CALL_BYTES of tls_meter.c, and the read that passes it."""
LONG_TURN_IN_NORMAL_READS = 40
"""What no call may cost: reading 256 KiB in records of full size is some 0.2 ms, a turn that is too long is 50 ms."""


class Bed:
    """Certificates, and connections between a raw peer and ours."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        issued = self._authority.issue_cert("localhost")
        files = {"ca": self._authority.cert_pem, "cert": issued.cert_chain_pems[0], "key": issued.private_key_pem}
        for name, blob in files.items():
            (folder / name).write_bytes(blob.bytes())
        self._issued = issued
        self.server = TlsServerContext(folder / "cert", folder / "key")
        self.client = TlsClientContext(ca=folder / "ca")

    def connect(
        self, version: ssl.TLSVersion, *, raw_serves: bool = False
    ) -> tuple[RawTls, socket.socket, TlsConnection]:
        """Shake hands. Returns the raw peer, our socket and our TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if raw_serves else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = version
        if raw_serves:
            self._issued.configure_cert(context)
            context.num_tickets = 0
            context.set_alpn_protocols(["h2"])
        else:
            self._authority.configure_trust(context)
        near, far = pair()
        ours: TlsServerContext | TlsClientContext = self.client if raw_serves else self.server
        tls = TlsConnection(ours, far.fileno(), server_name="localhost" if raw_serves else None)
        made: list[RawTls] = []
        thread = threading.Thread(target=lambda: made.append(RawTls(near, context, server_side=raw_serves)))
        thread.start()
        shake(tls, far)
        thread.join()
        return made[0], far, tls


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return Bed(tmp_path_factory.mktemp("bed"))


def waiting_bytes(sock: socket.socket) -> int:
    """In the socket, not read yet."""
    found = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, found)
    return found[0]


class Worst:
    """What calls cost, and how the last ended."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.taken_bytes = 0
        self.got_bytes = 0
        self.calls = 0
        self.ended: Exception | None = None

    def read(self, tls: TlsConnection, sock: socket.socket) -> None:
        """Read until the peer has nothing more to say. What came between two looks is counted as if it was taken."""
        while True:
            before, began_s = waiting_bytes(sock), time.thread_time()
            data: bytes | None = None
            try:
                data = tls.read(READ_BYTES)
            except WantRead:
                pass
            except (TlsError, OSError) as exc:
                self.ended = exc
            self.cpu_s = max(self.cpu_s, time.thread_time() - began_s)
            self.taken_bytes = max(self.taken_bytes, before - waiting_bytes(sock))
            self.calls += 1
            self.got_bytes += len(data or b"")
            if self.ended or data == b"":
                return
            if data is None and not waiting_bytes(sock) and not select.select([sock], [], [], 0.2)[0]:
                return


def flood(raw: RawTls, sock: socket.socket, tls: TlsConnection, said: bytes) -> Worst:
    """Say it all at once, and read it."""

    thread = threading.Thread(target=say, args=(raw, said))
    thread.start()
    time.sleep(0.05)
    worst = Worst()
    worst.read(tls, sock)
    tls.close()
    sock.close()
    raw.sock.close()
    thread.join()
    return worst


Make = Callable[[RawTls], bytes]
KINDS_13: dict[str, Make] = {
    "KeyUpdate": lambda raw: raw.key_update(),
    "KeyUpdate that asks for ours": lambda raw: raw.key_update(asks=True),
    "warning": lambda raw: raw.alert(USER_CANCELED),
    "empty": lambda raw: raw.record(b""),
    "empty except for padding": lambda raw: raw.record(b"", padding=16_000),
}
KINDS_12: dict[str, Make] = {
    "empty": lambda raw: raw.record(b""),
    "warning": lambda raw: raw.alert(USER_CANCELED),
}
TO_SERVER_12: dict[str, Make] = {
    "ClientHello anew": lambda raw: raw.record(message(CLIENT_HELLO, bytes(100)), HANDSHAKE),
}
TO_CLIENT_12: dict[str, Make] = {
    "HelloRequest": lambda raw: raw.record(message(HELLO_REQUEST), HANDSHAKE),
    "HelloRequests in one record": lambda raw: raw.record(message(HELLO_REQUEST) * 4000, HANDSHAKE),
}
TO_CLIENT_13: dict[str, Make] = {
    "ticket": lambda raw: raw.record(message(NEW_SESSION_TICKET, TICKET), HANDSHAKE),
    "tickets in one record": lambda raw: raw.record(message(NEW_SESSION_TICKET, TICKET) * 700, HANDSHAKE),
}
FLOODS = [
    *((V13, serves, name, make) for serves in (False, True) for name, make in KINDS_13.items()),
    *((V12, serves, name, make) for serves in (False, True) for name, make in KINDS_12.items()),
    *((V13, True, name, make) for name, make in TO_CLIENT_13.items()),
    *((V12, False, name, make) for name, make in TO_SERVER_12.items()),
    *((V12, True, name, make) for name, make in TO_CLIENT_12.items()),
]


@pytest.mark.parametrize(
    ("version", "raw_serves", "make"),
    [(version, serves, make) for version, serves, _, make in FLOODS],
    ids=[f"{version.name}-{'satellite' if serves else 'client'}-{name}" for version, serves, name, _ in FLOODS],
)
def test_what_carries_nothing_ends_the_connection_soon(
    bed: Bed, version: ssl.TLSVersion, raw_serves: bool, make: Make
) -> None:
    raw, far, tls = bed.connect(version, raw_serves=raw_serves)
    said = raw.record(b"before") + b"".join(make(raw) for _ in range(400))
    worst = flood(raw, far, tls, said)
    assert worst.got_bytes == len(b"before")
    assert isinstance(worst.ended, TlsFlood), worst.ended
    assert worst.ended.limit == "TLS_CONTROL_RECORDS"
    assert "TLS_CONTROL_RECORDS" in str(worst.ended)


@pytest.mark.parametrize("raw_serves", [False, True])
def test_key_updates_of_the_honest_do_no_harm(bed: Bed, raw_serves: bool) -> None:
    """Some at once, as after a rekeying by volume, among data; each is answered where that was asked for."""
    raw, far, tls = bed.connect(V13, raw_serves=raw_serves)
    said = b"".join(raw.record(b"x" * 1000) + raw.key_update(asks=bool(n % 2)) for n in range(20))
    worst = flood(raw, far, tls, said + raw.record(b"x"))
    assert worst.ended is None
    assert worst.got_bytes == 20_001


@pytest.mark.parametrize("raw_serves", [False, True])
def test_new_keys_are_asked_for_while_a_record_of_ours_waits(bed: Bed, raw_serves: bool) -> None:
    """OpenSSL would answer at once, fail and end the connection; the answer may wait for our next record."""
    raw, far, tls = bed.connect(V13, raw_serves=raw_serves)
    written = 0
    with contextlib.suppress(WantWrite):
        while True:
            written += tls.write(bytes(5000))
    raw.sock.sendall(b"".join(raw.key_update(asks=True) + raw.record(b"x") for _ in range(4)))
    time.sleep(0.1)
    assert tls.read(100) == b"xxxx"
    heard: list[bytes] = []

    def hear() -> None:
        while sum(map(len, heard)) < written + 15_000 and (data := raw.read()):
            heard.append(data)

    thread = threading.Thread(target=hear)
    thread.start()
    for _ in range(3):
        complete_write(tls, far, bytes(5000))
    thread.join()
    assert sum(map(len, heard)) == written + 15_000  # by ssl's own reading, which has followed our new keys
    for sock in (far, raw.sock):
        sock.close()


def complete_write(tls: TlsConnection, sock: socket.socket, data: bytes) -> None:
    while True:
        try:
            assert tls.write(data) == len(data)
        except WantWrite:
            assert select.select([], [sock], [], DEADLINE_S)[1]
        else:
            return


def test_small_records_are_many_but_bounded_a_call(bed: Bed) -> None:
    """A byte a record is legal for as long as one likes: each call reads some of them, and goes on later."""
    raw, far, tls = bed.connect(V13)
    worst = flood(raw, far, tls, raw.records(bytes(20_000), 1))
    assert worst.ended is None
    assert worst.got_bytes == 20_000
    assert worst.calls >= 20_000 / 600


@pytest.mark.parametrize("size", [1, 5, 100])
def test_a_handshake_in_fragments(bed: Bed, size: int) -> None:
    """A ClientHello as large as OpenSSL takes one, in records of some bytes: refused by count, never one long call."""
    near, far = pair()
    tls = TlsConnection(bed.server, far.fileno())
    hello = message(CLIENT_HELLO, b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + b"\xff\xf0" + bytes(65_520))
    records = b"".join(
        bytes((HANDSHAKE, 3, 1)) + len(part).to_bytes(2) + part
        for part in (hello[at : at + size] for at in range(0, len(hello), size))
    )
    near.sendall(records[: 1 << 19])
    calls, most = 0, 0
    flooded: TlsFlood | None = None
    while flooded is None:
        before = waiting_bytes(far)
        try:
            tls.do_handshake()
        except WantRead:
            assert select.select([far], [], [], DEADLINE_S)[0]
        except TlsFlood as exc:
            flooded = exc
        most = max(most, before - waiting_bytes(far))
        calls += 1
    assert flooded.limit == "TLS_HANDSHAKE_RECORDS"
    assert most <= 64 * (5 + size)
    assert calls > 4
    near.close()
    far.close()


def test_change_cipher_specs_in_the_handshake(bed: Bed) -> None:
    """Dropped by TLS 1.3 (RFC 8446 §5), but not for ever."""
    near, far = pair()
    tls = TlsConnection(bed.server, far.fileno())
    hello = ssl.MemoryBIO()
    begun = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        begun.do_handshake()
    near.sendall(hello.read() + bytes((CHANGE_CIPHER_SPEC, 3, 3, 0, 1, 1)) * 1000)
    with pytest.raises(TlsError):
        shake(tls, far)
    near.close()
    far.close()


@pytest.mark.parametrize(
    ("group", "taken"),
    [("ffdhe8192", False), ("ffdhe2048", False), ("P-521", False), ("P-256", True), ("X25519", True)],
)
def test_groups_that_cost_milliseconds_are_not_taken(bed: Bed, group: str, taken: bool) -> None:
    """The client alone would pick: finite fields of 8192 bits are 12 ms of a server, a whole handshake is 0.4."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-groups", group, "-quiet"]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        far, _ = server.accept()
    with client, far:
        far.setblocking(False)
        tls = TlsConnection(bed.server, far.fileno())
        if taken:
            shake(tls, far)
        else:
            with pytest.raises(TlsError, match="no suitable key share"):
                shake(tls, far)
        tls.close()
        client.terminate()


# -- the search ---------------------------------------------------------------------------------------------------------

segments = st.tuples(
    st.sampled_from(["data", "data", "padded", "empty", *KINDS_13, ALERT]),
    st.sampled_from([0, 1, 16, 1000, 16_384]),
    st.integers(1, 31),
)
"""Kind, size, how often in a row: 31 empty ones are what OpenSSL lets pass."""


def build(raw: RawTls, plan: list[tuple[object, int, int]], bytes_wanted: int) -> bytes:
    """Repeat the plan until there is enough of it."""
    said = bytearray()
    while len(said) < bytes_wanted:
        for kind, size, count in plan:
            for _ in range(count):
                if kind == "data":
                    said += raw.record(bytes(size or 1))
                elif kind == "padded":
                    said += raw.record(b"x", padding=min(size, 16_000))
                elif isinstance(kind, str) and kind in KINDS_13:
                    said += KINDS_13[kind](raw)
                else:
                    said += raw.alert(NO_RENEGOTIATION)
    return bytes(said)


@pytest.fixture(scope="module")
def normal_s(bed: Bed) -> float:
    """CPU of reading 256 KiB of plain data, the least of some times."""

    def once() -> float:
        raw, far, tls = bed.connect(V13)
        raw.sock.sendall(raw.records(bytes(256 << 10)))
        time.sleep(0.05)
        began_s = time.thread_time()
        for _ in range(16):
            tls.read(READ_BYTES)
        spent_s = time.thread_time() - began_s
        tls.close()
        far.close()
        raw.sock.close()
        return spent_s

    return min(once() for _ in range(5))


@given(plan=st.lists(segments, min_size=1, max_size=5), raw_serves=st.booleans())
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_the_worst_mixture_of_records(
    bed: Bed, normal_s: float, plan: list[tuple[object, int, int]], raw_serves: bool
) -> None:
    costs = []
    for _ in range(3):  # the least of some: others run on this machine too
        raw, far, tls = bed.connect(V13, raw_serves=raw_serves)
        worst = flood(raw, far, tls, build(raw, plan, 400_000))
        costs.append(worst.cpu_s)
        assert worst.taken_bytes <= CALL_BYTES
        if min(costs) < normal_s * LONG_TURN_IN_NORMAL_READS / 4:
            break
    target(min(costs) / normal_s, label="CPU of a call, in plain reads of 256 KiB")
    assert min(costs) < normal_s * LONG_TURN_IN_NORMAL_READS


# -- through the engine -------------------------------------------------------------------------------------------------


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(EngineOptions(threads=1))
    yield made
    made.close()


REASONS = {False: EndReason.CLIENT_TLS_FLOOD, True: EndReason.SATELLITE_TLS_FLOOD}


@pytest.mark.parametrize("raw_serves", [False, True])
@pytest.mark.parametrize("name", KINDS_13)
def test_a_flood_ends_a_splice_with_its_reason(bed: Bed, engine: Engine, raw_serves: bool, name: str) -> None:
    """Whichever side floods, the other has got what was said before, and the thread's turns stay short."""
    raw, far, tls = bed.connect(V13, raw_serves=raw_serves)
    near, other = pair()
    legs = [Leg(far.detach(), tls), Leg(other.detach(), None)]
    engine.splice(*(reversed(legs) if raw_serves else legs))
    raw.sock.sendall(raw.record(b"before"))
    assert near.recv(100) == b"before"
    said = b"".join(KINDS_13[name](raw) for _ in range(3000))
    thread = threading.Thread(target=say, args=(raw, said))
    thread.start()
    assert select.select([engine.event_fd], [], [], DEADLINE_S)[0]
    [ended] = engine.take_ended()
    assert ended.reason is REASONS[raw_serves]
    thread.join()
    with pytest.raises(ConnectionResetError):
        near.recv(100)
    near.close()
    raw.sock.close()


def test_a_byte_a_record_for_ever_leaves_the_thread_to_others(bed: Bed, engine: Engine) -> None:
    """It is legal, so it goes through; a neighbour on the thread is heard between two turns of it."""
    raw, far, tls = bed.connect(V13)
    sink, other = pair()
    engine.splice(Leg(far.detach(), tls), Leg(other.detach(), None))
    near, our_near = pair()
    our_far, away = pair()[::-1]
    engine.splice(Leg(our_near.detach(), None), Leg(our_far.detach(), None))
    said = raw.records(bytes(60_000), 1)
    before = engine.thread_turns()[0].turns
    threads = [threading.Thread(target=say, args=(raw, said)), threading.Thread(target=drain, args=(sink, 60_000))]
    for thread in threads:
        thread.start()
    near.sendall(b"heard?")
    assert away.recv(100) == b"heard?"
    for thread in threads:
        thread.join()
    assert engine.thread_turns()[0].turns - before > 60_000 / 3000
    for sock in (near, away, sink, raw.sock):
        sock.close()


def drain(sock: socket.socket, count: int) -> None:
    got = 0
    while got < count:
        got += len(sock.recv(1 << 16))
