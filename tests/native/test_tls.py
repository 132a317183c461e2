"""TLS on the sockets themselves, against Python's ssl: names, certificates, truncation, and the kernel's part of it.

The tests of kTLS need a kernel with TLS; where there is none they are skipped here and run in a guest (test_guest.py).
"""

import contextlib
import hashlib
import os
import select
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from bentpipe.native.engine import Ended, EndReason, Engine, EngineOptions, Ktls, Leg, ktls_self_test
from bentpipe.native.tls import TlsClientContext, TlsConnection, TlsError, TlsServerContext, WantRead, WantWrite

USABLE, FOUND = ktls_self_test()
needs_ktls = pytest.mark.skipif(not USABLE, reason=f"no kTLS on this kernel: {FOUND}")
STREAM_BYTES = 20_000_000
DEADLINE_S = 30


class Authority:
    """A CA, and files of it."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self._ca.cert_pem.bytes())

    def issue(self, *names: str) -> tuple[Path, Path]:
        issued = self._ca.issue_cert(*names)
        certificate, key = self._folder / f"{names[0]}.pem", self._folder / f"{names[0]}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return certificate, key

    def client(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.minimum_version = context.maximum_version = version
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def pair(window_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Connect; with a window, `near` takes no more than that unread, and `far` keeps no more unsent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.socket()
        if window_bytes is not None:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
        near.settimeout(DEADLINE_S)
        near.connect(server.getsockname())
        far, _ = server.accept()
    if window_bytes is not None:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, window_bytes)
    far.setblocking(False)
    return near, far


def complete(step: Callable[[], object], sock: socket.socket) -> None:
    while True:
        try:
            step()
        except WantRead:
            assert select.select([sock], [], [], DEADLINE_S)[0]
        except WantWrite:
            assert select.select([], [sock], [], DEADLINE_S)[1]
        else:
            return


def connect(
    server: TlsServerContext, client: ssl.SSLContext, name: str, window_bytes: int | None = None
) -> tuple[ssl.SSLSocket, socket.socket, TlsConnection]:
    """Shake hands. Returns the client's socket, the server's and its TLS."""
    near, far = pair(window_bytes)
    tls = TlsConnection(server, far.fileno())
    wrapped: list[ssl.SSLSocket | ssl.SSLError] = []

    def shake() -> None:
        try:
            wrapped.append(client.wrap_socket(near, server_hostname=name))
        except ssl.SSLError as exc:
            near.close()
            wrapped.append(exc)

    thread = threading.Thread(target=shake)
    thread.start()
    refused: TlsError | None = None
    try:
        complete(tls.do_handshake, far)
    except TlsError as exc:
        refused = exc
    thread.join()
    [peer] = wrapped
    if isinstance(peer, ssl.SSLError):  # its own words say more than the alert that it sent
        far.close()
        raise refused if refused and "ALERT" in str(peer) else peer
    if refused:
        far.close()
        peer.close()
        raise refused
    return peer, far, tls


def ended(engine: Engine) -> Ended:
    assert select.select([engine.event_fd], [], [], DEADLINE_S)[0]
    [end] = engine.take_ended()
    return end


@pytest.mark.parametrize(
    ("asked", "shown"), [("a.example", "a.example"), ("b.example", "b.example"), ("x.wild.example", "b.example")]
)
def test_the_certificate_is_chosen_by_server_name(authority: Authority, asked: str, shown: str) -> None:
    server = TlsServerContext(*authority.issue("a.example"))
    server.add(TlsServerContext(*authority.issue("b.example", "*.wild.example")))
    peer, far, tls = connect(server, authority.client(), asked)
    certificate = peer.getpeercert()
    assert certificate
    assert ("DNS", shown) in certificate["subjectAltName"]
    assert tls.server_name == asked
    for sock in (peer, far):
        sock.close()


def test_an_unknown_name_gets_the_listeners_own_certificate(authority: Authority) -> None:
    server = TlsServerContext(*authority.issue("a.example"))
    server.add(TlsServerContext(*authority.issue("b.example")))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'c\.example'"):
        connect(server, authority.client(), "c.example")


def test_a_client_without_the_wanted_certificate_is_refused(authority: Authority) -> None:
    server = TlsServerContext(*authority.issue("a.example"), client_ca=authority.ca)
    with pytest.raises(TlsError, match="peer did not return a certificate"):
        connect(server, authority.client(ssl.TLSVersion.TLSv1_2), "a.example")
    known = authority.client()
    known.load_cert_chain(*authority.issue("somebody.example"))
    peer, far, tls = connect(server, known, "a.example")
    assert tls.peer_certificate_der
    for sock in (peer, far):
        sock.close()


@pytest.mark.parametrize("suite", ["AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"])
def test_a_satellite_gets_no_suite_that_http2_may_not_use(tmp_path: Path, suite: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", key_type=trustme.KeyType.RSA).configure_cert(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(suite)
    near, far = pair()
    ends: list[str] = []

    def satellite() -> None:
        with contextlib.suppress(ssl.SSLError), near, context.wrap_socket(near, server_side=True) as tls:
            ends.append(str(tls.cipher()))

    thread = threading.Thread(target=satellite)
    thread.start()
    tls = TlsConnection(TlsClientContext(ca=tmp_path / "ca.pem"), far.fileno(), server_name="localhost")
    if suite == "ECDHE-RSA-AES128-GCM-SHA256":
        complete(tls.do_handshake, far)
        assert tls.cipher == suite
    else:
        with pytest.raises(TlsError, match="handshake failure"):
            complete(tls.do_handshake, far)
    tls.close()
    far.close()
    thread.join()
    assert bool(ends) is (suite == "ECDHE-RSA-AES128-GCM-SHA256")


def test_files_that_do_not_fit_are_named(authority: Authority, tmp_path: Path) -> None:
    certificate, _ = authority.issue("a.example")
    _, key = authority.issue("b.example")
    with pytest.raises(TlsError, match=r"b\.example\.key"):
        TlsServerContext(certificate, key)
    with pytest.raises(TlsError, match=r"none\.pem"):
        TlsClientContext(ca=tmp_path / "none.pem")


class Spliced:
    """A TLS client, the engine, a plain satellite."""

    def __init__(
        self, authority: Authority, version: ssl.TLSVersion, ktls: Ktls, window_bytes: int | None = None
    ) -> None:
        server = TlsServerContext(*authority.issue("localhost"))
        if ktls:
            server.enable_ktls()
        self.engine = Engine(EngineOptions(threads=1, ktls=ktls))
        self.client, near, tls = connect(server, authority.client(version), "localhost", window_bytes)
        self.kernel = Ktls(tls.ktls)
        self.satellite, far = pair()
        self.id = self.engine.splice(Leg(near.detach(), tls), Leg(far.detach(), None))

    def transfer(self, source: socket.socket, sink: socket.socket) -> int:
        """Send STREAM_BYTES, compare, return how many the engine spliced."""
        data = os.urandom(1_000_000)
        before = self.engine.statistics().spliced_bytes

        def send() -> None:
            for _ in range(STREAM_BYTES // len(data)):
                source.sendall(data)

        sender = threading.Thread(target=send)
        sender.start()
        received = hashlib.sha256()
        left = STREAM_BYTES
        while left:
            chunk = sink.recv(min(left, 1 << 18))
            assert chunk
            received.update(chunk)
            left -= len(chunk)
        sender.join()
        assert received.digest() == hashlib.sha256(data * (STREAM_BYTES // len(data))).digest()
        return self.engine.statistics().spliced_bytes - before

    def close(self) -> None:
        self.client.close()
        self.satellite.close()
        self.engine.close()


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
KERNEL_OR_NOT = [pytest.param(Ktls.NONE, id="userspace"), pytest.param(USABLE, id="kernel", marks=needs_ktls)]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_userspace_tls_carries_a_stream_both_ways(authority: Authority, version: ssl.TLSVersion) -> None:
    wire = Spliced(authority, version, Ktls.NONE)
    assert wire.kernel is Ktls.NONE
    assert wire.transfer(wire.client, wire.satellite) == 0
    assert wire.transfer(wire.satellite, wire.client) == 0
    wire.satellite.shutdown(socket.SHUT_WR)
    assert wire.client.recv(1) == b"", "close_notify, not an error of ssl"
    wire.client.unwrap().close()
    assert ended(wire.engine).reason is EndReason.CLOSED
    wire.close()


@needs_ktls
@pytest.mark.parametrize("allowed", [USABLE, Ktls.TX | Ktls.RX], ids=["as the self-test says", "both ways"])
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_the_kernels_tls_is_spliced(authority: Authority, version: ssl.TLSVersion, allowed: Ktls) -> None:
    """The self-test may refuse to receive, for what this kernel does to pipes of one slot; the engine's have sixteen."""
    wire = Spliced(authority, version, allowed)
    down = wire.transfer(wire.satellite, wire.client)
    up = wire.transfer(wire.client, wire.satellite)
    assert (down > STREAM_BYTES // 2) == bool(wire.kernel & allowed & Ktls.TX)
    assert (up > STREAM_BYTES // 2) == bool(wire.kernel & allowed & Ktls.RX)
    assert wire.kernel & Ktls.TX, "OpenSSL gives the sending direction to this kernel"
    wire.satellite.shutdown(socket.SHUT_WR)
    assert wire.client.recv(1) == b"", "close_notify, not an error of ssl"
    wire.client.unwrap().close()  # a control record, behind a stream that may have been spliced
    assert ended(wire.engine).reason is EndReason.CLOSED
    wire.close()


@needs_ktls
def test_a_cut_is_told_from_an_end_with_the_kernels_tls_too(authority: Authority) -> None:
    wire = Spliced(authority, ssl.TLSVersion.TLSv1_3, USABLE)
    wire.transfer(wire.satellite, wire.client)
    wire.client.shutdown(socket.SHUT_WR)  # of the socket: no close_notify
    assert wire.satellite.recv(1) == b""
    wire.satellite.close()
    assert ended(wire.engine).reason is EndReason.CLIENT_TRUNCATED
    wire.close()


@pytest.mark.parametrize("ktls", KERNEL_OR_NOT)
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_slow_reader_gets_all_and_then_the_end(authority: Authority, version: ssl.TLSVersion, ktls: Ktls) -> None:
    """The kernel's TLS queues records that TCP has no room for; FIN must not overtake them, nor may close drop them."""
    for size in (16_139, 480_333):
        wire = Spliced(authority, version, ktls, window_bytes=4096)
        data = os.urandom(size)
        wire.satellite.sendall(data)
        wire.satellite.shutdown(socket.SHUT_WR)
        received = bytearray()
        while chunk := wire.client.recv(1000):
            received += chunk
        assert received == data
        wire.client.unwrap().close()  # its own end, by close_notify; all of ours was read
        assert ended(wire.engine).reason is EndReason.CLOSED
        wire.close()


@needs_ktls
def test_the_switch_turns_it_off(authority: Authority) -> None:
    wire = Spliced(authority, ssl.TLSVersion.TLSv1_3, Ktls.NONE)
    assert wire.kernel is Ktls.NONE
    assert wire.transfer(wire.satellite, wire.client) == 0
    wire.close()


@pytest.mark.parametrize("ktls", KERNEL_OR_NOT)
@pytest.mark.parametrize("update", ["k", "K"], ids=["own key", "both keys"])
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program, the client that updates its keys")
def test_a_key_update_is_followed_or_ends_the_connection_in_words(
    authority: Authority, update: str, ktls: Ktls
) -> None:
    """RFC 8446 §4.6.3. Userspace follows it; a kernel that cannot re-key must not go on with wrong bytes."""
    server = TlsServerContext(*authority.issue("localhost"))
    if ktls:
        server.enable_ktls()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}", "-tls1_3", "-no_ign_eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        far, _ = listener.accept()
    assert client.stdin
    assert client.stdout
    far.setblocking(False)
    tls = TlsConnection(server, far.fileno())
    complete(tls.do_handshake, far)
    engine = Engine(EngineOptions(threads=1, ktls=ktls))
    satellite, near = pair()
    engine.splice(Leg(far.detach(), tls), Leg(near.detach(), None))

    def say(words: str) -> None:
        assert client.stdin
        client.stdin.write(words.encode())
        client.stdin.flush()

    say("before\n")
    assert satellite.recv(100) == b"before\n"
    say(f"{update}\n")
    assert client.stderr
    assert any(line == b"KEYUPDATE\n" for line in client.stderr), "a command is a read of its own: wait for it"
    for number in range(3):
        answer = f"answer {number}\n".encode()
        try:
            say(f"after {number}\n")
            received = satellite.recv(100)
        except (BrokenPipeError, ConnectionResetError):  # the client has left; the satellite was told
            received = b""
        if not received:
            assert ktls, "userspace TLS must follow"
            assert ended(engine).reason is EndReason.CLIENT_TLS_ERROR
            break
        assert received == f"after {number}\n".encode()
        satellite.sendall(answer)
        for line in client.stdout:
            if line == answer:
                break
        else:
            pytest.fail("what the satellite says must go on with the keys that the client has, or not at all")
    for pipe in (client.stdin, client.stdout, client.stderr):
        with contextlib.suppress(BrokenPipeError):  # what was written for a client that has left
            pipe.close()
    client.terminate()
    client.wait()
    satellite.close()
    engine.close()


@pytest.mark.parametrize("ktls", KERNEL_OR_NOT)
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program, the client that renegotiates")
def test_renegotiation_is_refused(authority: Authority, ktls: Ktls) -> None:
    """TLS 1.2's way to make a server work for nothing (CVE-2011-1473), and to change who is talking."""
    server = TlsServerContext(*authority.issue("localhost"))
    if ktls:
        server.enable_ktls()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}", "-tls1_2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        far, _ = listener.accept()
    far.setblocking(False)
    tls = TlsConnection(server, far.fileno())
    complete(tls.do_handshake, far)
    engine = Engine(EngineOptions(threads=1, ktls=ktls))
    satellite, near = pair()
    engine.splice(Leg(far.detach(), tls), Leg(near.detach(), None))
    assert client.stdin
    client.stdin.write(b"before\n")
    client.stdin.flush()
    assert satellite.recv(100) == b"before\n"
    client.stdin.write(b"R\n")
    client.stdin.flush()
    assert client.stderr
    words = client.stderr.read()
    assert b"RENEGOTIATING" in words
    assert b"no renegotiation" in words, words
    client.stdin.close()
    client.stderr.close()
    assert client.wait() != 0
    assert ended(engine).reason in (EndReason.CLIENT_TRUNCATED, EndReason.CLIENT_TLS_ERROR, EndReason.CLIENT_RESET)
    satellite.close()
    engine.close()
