"""The opener: accepted sockets, until their first bytes are there. Real sockets, and peers of every kind.

The Python functions of daemon/connections, which the control plane uses when it has its connections itself, are the oracle.
A C program gives the opener storms of honest, broken and aborted connections under ASan+UBSan and TSan.
"""

import contextlib
import os
import select
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
import trio
import trustme
from hypothesis import HealthCheck, given, settings

from beds.driver_build import build_storm
from beds.memory import check_nothing_left
from beds.peers.raw_tls import RawTls
from beds.turns import wait_counted
from bentpipe.daemon.connections.arrival import Arrival, Proxies
from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.connections.tls_start import begins_tls, start_tls
from bentpipe.daemon.connections.transport import PeerLeft, Transport, TransportError
from bentpipe.daemon.records.book import Book
from bentpipe.native.opener import Opened, Opener, OpeningAborted, OpeningStep
from bentpipe.native.tls import TlsFlood, TlsServerContext, TlsTruncated, WantRead

DEADLINE_S = 60.0
FIRST_BYTES = 16 << 10
STORM = int(os.environ.get("BENTPIPE_SHORT_CONNECTIONS", "600"))
EXAMPLES = int(os.environ.get("BENTPIPE_EXAMPLES", "60"))
CLIENT_HELLO = b"\x16\x03\x01"


class Bed:
    """An opener, certificates, and connections to it."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        for name in ("localhost", "other"):
            issued = authority.issue_cert(name)
            issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
            issued.private_key_pem.write_to_path(folder / f"{name}.key")
        authority.cert_pem.write_to_path(folder / "ca.pem")
        self.authority = authority
        self.folder = folder
        self.files = [folder / name for name in ("localhost.pem", "localhost.key", "ca.pem")]
        self.context = self.server("localhost")
        self.strict = TlsServerContext(*self.files[:2], client_ca=folder / "ca.pem")
        self.opener = Opener(2, FIRST_BYTES)
        self.listener = socket.create_server(("127.0.0.1", 0))

    def server(self, name: str) -> TlsServerContext:
        return TlsServerContext(self.folder / f"{name}.pem", self.folder / f"{name}.key")

    def pair(self) -> tuple[socket.socket, socket.socket]:
        near = socket.create_connection(self.listener.getsockname(), timeout=DEADLINE_S)
        return near, self.listener.accept()[0]

    def take(self, count: int = 1, within_s: float = DEADLINE_S) -> list[Opened]:
        """Wait for so many."""
        found: list[Opened] = []
        until = time.monotonic() + within_s
        while len(found) < count:
            assert select.select([self.opener.event_fd], [], [], max(0.0, until - time.monotonic()))[0], "none ended"
            found += self.opener.take()
        return found

    def client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        context.set_alpn_protocols(["h2"])
        return context

    def close(self) -> None:
        self.opener.close()
        self.listener.close()


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    bed = Bed(tmp_path_factory.mktemp("opener"))
    yield bed
    bed.close()


def wrapped(bed: Bed, near: socket.socket) -> ssl.SSLSocket:
    """A client that has not begun its handshake; it has the socket now."""
    return bed.client_context().wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False)


def shake(client: ssl.SSLSocket, bed: Bed, far: socket.socket, context: TlsServerContext) -> None:
    bed.opener.start(far.fileno(), context)
    client.do_handshake()


def test_a_plain_peer(bed: Bed) -> None:
    near, far = bed.pair()
    with near, far:
        bed.opener.start(far.fileno(), None)
        near.sendall(b"hello")
        [opened] = bed.take()
        assert (opened.step, opened.tls, opened.error) == (OpeningStep.DONE, None, None)
        assert b"hello".startswith(opened.first)
        assert opened.first
        assert not far.getblocking() or os.get_blocking(far.fileno()) is False
        assert far.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert len(bed.opener) == 0


def test_what_is_known_of_a_tls_peer(bed: Bed) -> None:
    near, far = bed.pair()
    context = bed.client_context()
    bed.authority.issue_cert("client").configure_cert(context)
    with far, context.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False) as client:
        shake(client, bed, far, bed.strict)
        client.sendall(b"hello")
        [opened] = bed.take()
        assert (opened.step, opened.first) == (OpeningStep.DONE, b"hello")
        assert opened.tls is not None
        known = opened.tls.server_name, opened.tls.alpn, opened.tls.version
        assert known == ("localhost", "h2", "TLSv1.3")
        assert opened.tls.peer_certificate_der is not None
        opened.tls.write(b"answer")
        assert client.recv(6) == b"answer"
        opened.tls.close()


def test_no_byte_is_lost_behind_the_first_ones(bed: Bed) -> None:
    """The peer says more than the first bytes may be, at once."""
    said = os.urandom(5 * FIRST_BYTES)
    near, far = bed.pair()
    with (
        far,
        wrapped(bed, near) as client,
    ):
        shake(client, bed, far, bed.context)
        client.sendall(said)
        [opened] = bed.take()
        found, tls = opened.first, opened.tls
        assert 0 < len(found) <= FIRST_BYTES
        assert tls is not None
        while len(found) < len(said):
            try:
                found += tls.read(1 << 16)
            except WantRead:
                assert select.select([far], [], [], DEADLINE_S)[0]
        assert found == said
        tls.close()


def test_a_client_without_the_certificate_that_is_asked_for(bed: Bed) -> None:
    near, far = bed.pair()
    with (
        far,
        wrapped(bed, near) as client,
    ):
        shake(client, bed, far, bed.strict)  # TLS 1.3: the client is done before it is refused
        [opened] = bed.take()
        assert opened.step is OpeningStep.HANDSHAKE
        assert "certificate" in str(opened.error)


def test_the_context_of_an_opening_is_the_one_that_it_began_with(bed: Bed) -> None:
    """A reload in the middle of a handshake; the old context is in use by nobody else."""
    old = bed.server("localhost")
    near, far = bed.pair()
    with (
        far,
        wrapped(bed, near) as client,
    ):
        old.add(bed.server("other"))  # so that OpenSSL asks the context which certificate to show
        bed.opener.start(far.fileno(), old)
        del old
        client.do_handshake()
        client.sendall(b"x")
        [opened] = bed.take()
        assert opened.step is OpeningStep.DONE
        opened.tls.close() if opened.tls else None


@pytest.mark.parametrize(
    ("said", "step"),
    [
        (b"", OpeningStep.FIRST_BYTE),
        (CLIENT_HELLO, OpeningStep.HANDSHAKE),
    ],
)
@pytest.mark.parametrize("how", ["fin", "rst", "abort"])
def test_a_peer_that_leaves(bed: Bed, said: bytes, step: OpeningStep, how: str) -> None:
    near, far = bed.pair()
    with far:
        about = bed.opener.start(far.fileno(), bed.context)
        near.sendall(said)
        if how == "abort":
            wait_read(far, len(said), step)
            bed.opener.abort(about)
        else:
            linger(near) if how == "rst" else None
            near.close()
        [opened] = bed.take()
        near.close()
        kinds = {"fin": (type(None), TlsTruncated), "rst": (ConnectionResetError,), "abort": (OpeningAborted,)}
        assert isinstance(opened.error, kinds[how]), opened
        assert opened.first == b""
        if how != "rst":  # which may come before the bytes are read
            assert opened.step is step


def linger(sock: socket.socket) -> None:
    """Its close sends RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def wait_read(far: socket.socket, size: int, step: OpeningStep) -> None:
    """Wait until the opener has read what was sent, if it reads it at all."""
    until = time.monotonic() + DEADLINE_S
    while size and step is OpeningStep.HANDSHAKE:
        with contextlib.suppress(BlockingIOError):
            if far.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                assert time.monotonic() < until
                time.sleep(0.001)
                continue
        return


def test_an_opening_that_is_over_can_be_aborted_until_it_is_taken(bed: Bed) -> None:
    near, far = bed.pair()
    with near, far:
        about = bed.opener.start(far.fileno(), None)
        near.sendall(b"x")
        assert select.select([bed.opener.event_fd], [], [], DEADLINE_S)[0]
        bed.opener.abort(about)
        bed.opener.abort(about)
        [opened] = bed.take()
        assert opened.step is OpeningStep.DONE
        with pytest.raises(KeyError):
            bed.opener.abort(about)


def test_key_updates_without_data_are_a_flood(bed: Bed) -> None:
    near, far = bed.pair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bed.authority.configure_trust(context)
    with near, far:
        bed.opener.start(far.fileno(), bed.context)
        raw = RawTls(near, context)
        with contextlib.suppress(OSError):
            near.sendall(b"".join(raw.key_update() for _ in range(500)))
        [opened] = bed.take()
        assert isinstance(opened.error, TlsFlood)
        assert opened.step is OpeningStep.FLIGHT


def test_a_limit_of_handshakes_delays_and_loses_none(bed: Bed) -> None:
    bed.opener.limit(20)
    began = time.monotonic()
    pairs = []
    for _ in range(12):
        near, far = bed.pair()
        bed.opener.start(far.fileno(), bed.context)
        near.setblocking(False)
        pairs.append((wrapped(bed, near), far))
    waiting = [client for client, _ in pairs]
    while waiting:
        waiting = [client for client in waiting if not shaken(client)]
        time.sleep(0.001)
    assert time.monotonic() - began >= 11 / 20 - 0.011, "more than the limit"
    bed.opener.limit(0)
    for client, _ in pairs:
        client.sendall(b"x")
    assert all(each.step is OpeningStep.DONE for each in bed.take(len(pairs)))
    for pair in pairs:
        for sock in pair:
            sock.close()


def shaken(client: ssl.SSLSocket) -> bool:
    try:
        client.do_handshake()
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return False
    return True


def test_a_limit_is_not_used_up_by_those_that_have_left(bed: Bed) -> None:
    """One handshake a second: those that wait are aborted, and the next client does not have to wait until its deadline."""
    bed.opener.limit(1)
    pairs = [bed.pair() for _ in range(2 * int(DEADLINE_S))]
    abouts = []
    for near, far in pairs:
        near.sendall(CLIENT_HELLO)
        abouts.append(bed.opener.start(far.fileno(), bed.context))
    for about in abouts:
        bed.opener.abort(about)
    assert all(isinstance(each.error, OpeningAborted) for each in bed.take(len(pairs)))
    near, far = bed.pair()
    with (
        far,
        wrapped(bed, near) as client,
    ):
        shake(client, bed, far, bed.context)
        bed.opener.limit(0)
        client.sendall(b"x")
        bed.take()
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_nothing_is_left_of_many(bed: Bed) -> None:
    def some(count: int) -> None:
        for at in range(count):
            near, far = bed.pair()
            with near, far:
                about = bed.opener.start(far.fileno(), bed.context)
                if at % 3 == 0:
                    bed.opener.abort(about)
                elif at % 3 == 1:
                    near.sendall(CLIENT_HELLO + bytes(40))
                else:
                    near.sendall(b"plain")
                bed.take()

    check_nothing_left(some, STORM)


def test_its_end_ends_all(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    pairs = [bed.pair() for _ in range(20)]
    for near, far in pairs:
        bed.opener.start(far.fileno(), bed.context)
        near.sendall(CLIENT_HELLO)
    bed.close()
    for near, far in pairs:
        far.close()
        near.close()


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_a_storm_under_sanitizers(bed: Bed, sanitizer: str) -> None:
    program: list[str | Path] = [build_storm(sanitizer), str(STORM), "7", *bed.files]
    result = subprocess.run(program, capture_output=True, text=True, timeout=240, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    ended = [int(line.split()[0]) for line in result.stdout.splitlines()]
    assert sum(ended) == STORM
    assert all(ended)


# -- the oracle ------------------------------------------------------------------------------------------------------------


class Inputs:
    """What a peer sends, in pieces, and how it ends."""

    def __init__(self, pieces: list[bytes], how: str) -> None:
        self.pieces = pieces
        self.how = how

    def send(self, sock: socket.socket) -> None:
        for piece in self.pieces:
            with contextlib.suppress(OSError):
                sock.sendall(piece)
            time.sleep(0.001)
        if self.how == "rst":
            linger(sock)
        if self.how == "fin":
            sock.shutdown(socket.SHUT_WR)
        elif self.how != "stay":
            sock.close()


async def by_python(far: socket.socket, context: TlsServerContext) -> tuple[Outcome | None, bytes]:
    """The outcome as the Python functions find it, and the bytes of the first read."""
    transport = Transport(far)
    quotas = Quotas(QuotaLimits(10, 1 << 30, 10, 10), trio.current_time)
    arrival = Arrival(quotas, ("127.0.0.1", 1), Proxies(), Book())
    try:
        if await begins_tls(transport):
            await start_tls(transport, arrival, context)
        first = await transport.receive_some()
        if not first:
            return Outcome.PROBE, b""
        while len(first) < FIRST_BYTES and (more := transport.receive_nowait(FIRST_BYTES - len(first))):
            first += more
    except ConnectionOver as exc:
        return exc.outcome, b""
    except PeerLeft:
        return Outcome.PROBE, b""
    except TransportError:
        return Outcome.BROKEN, b""
    finally:
        transport.close()
    return None, first


def by_opener(bed: Bed, far: socket.socket) -> tuple[Outcome | None, bytes]:
    with far:
        bed.opener.start(far.fileno(), bed.context)
        [opened] = bed.take()
    if opened.step is OpeningStep.DONE:
        return None, opened.first
    if opened.error is None or isinstance(opened.error, TlsTruncated | ConnectionError):
        return Outcome.PROBE, b""
    return (Outcome.TLS_FAILED if opened.step is OpeningStep.HANDSHAKE else Outcome.BROKEN), b""


said = st.one_of(
    st.just(b""),
    st.binary(min_size=1, max_size=200),
    st.builds(lambda rest: CLIENT_HELLO + rest, st.binary(max_size=200)),
    st.builds(lambda rest: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rest, st.binary(max_size=20_000)),
)


@given(data=said, cuts=st.lists(st.integers(0, 40), max_size=3), how=st.sampled_from(["fin", "close"]))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_opener_says_what_python_says(bed: Bed, data: bytes, cuts: list[int], how: str) -> None:
    """Whatever a peer says and however it ends. The first read may return fewer bytes by chance: both are a prefix."""
    pieces, rest = [], data
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    inputs = Inputs([*pieces, rest], how)
    found = []
    for one in ("python", "opener"):
        near, far = bed.pair()
        with near:
            inputs.send(near)
            found.append(trio.run(by_python, far, bed.context) if one == "python" else by_opener(bed, far))
    assert found[0][0] == found[1][0]
    assert data.startswith(found[0][1])
    assert data.startswith(found[1][1])
    assert bool(found[0][1]) == bool(found[1][1])


def test_turns_are_counted_and_end(bed: Bed) -> None:
    near, far = bed.pair()
    with near:
        near.sendall(b"hello")
        by_opener(bed, far)
    wait_counted(bed.opener.threads)


def test_a_closed_opener_has_no_threads() -> None:
    opener = Opener(2, 100)
    assert opener.threads().keys() == {"opener-0", "opener-1"}
    opener.close()
    assert opener.threads() == {}
