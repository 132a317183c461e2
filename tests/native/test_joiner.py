"""The joiner: connections between their first bytes and their splice. Real sockets; proto/ack_filter.py is the oracle.

A C program gives the joiner storms of clients and satellites of every kind under ASan+UBSan and TSan.
"""

import contextlib
import dataclasses
import errno
import os
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
import trustme
from hypothesis import HealthCheck, given, settings

from beds.driver_build import build_join_storm
from beds.memory import check_nothing_left, resident_bytes
from beds.peers.raw_tls import RawTls
from beds.turns import wait_counted
from bentpipe.native.engine import Engine, EngineOptions, Leg
from bentpipe.native.joiner import Join, Joiner, News, NewsFlag, StreamFailure, StreamId
from bentpipe.native.tls import (
    CONTROL_FLOOD,
    TlsClientContext,
    TlsConnection,
    TlsError,
    TlsServerContext,
    WantRead,
    failure_of,
)
from bentpipe.proto import limits
from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.frames import ACK, FrameType, frame

DEADLINE_S = 60.0
PATIENT_MS = 600_000
STORM = int(os.environ.get("BENTPIPE_SHORT_CONNECTIONS", "600"))
EXAMPLES = int(os.environ.get("BENTPIPE_EXAMPLES", "60"))
ACK_FRAME = frame(FrameType.SETTINGS, ACK, 0)
RST_AT_CLOSE = b"\x01\x00\x00\x00\x00\x00\x00\x00"


class Bed:
    """A joiner, and its news, which a test waits for."""

    def __init__(self) -> None:
        self.joiner = Joiner()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.news: dict[StreamId, list[News]] = {}

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A peer's end and ours."""
        near = socket.create_connection(self.listener.getsockname(), timeout=DEADLINE_S)
        return near, self.listener.accept()[0]

    def stream(self) -> tuple[socket.socket, socket.socket, StreamId]:
        near, far = self.pair()
        far.setblocking(False)
        stream = self.joiner.open(far.fileno(), None)
        self.joiner.allow(stream, 0)
        return near, far, stream

    def wait(self, stream: StreamId, flag: NewsFlag) -> News:
        """The next news of this kind of a stream."""
        until = time.monotonic() + DEADLINE_S
        while True:
            known = self.news.get(stream, [])
            for at, news in enumerate(known):
                if news.flags & flag:
                    known[at] = dataclasses.replace(news, flags=news.flags & ~flag)
                    return news
            ready = select.select([self.joiner.event_fd], [], [], max(0.0, until - time.monotonic()))[0]
            assert ready, f"no {flag!r}"
            for news in self.joiner.take():
                self.news.setdefault(news.stream, []).append(news)

    def read(self, stream: StreamId, size: int) -> bytes:
        """So many bytes that a stream has told of."""
        found = b""
        while len(found) < size:
            found += self.wait(stream, NewsFlag.DATA).data
        return found

    def end(self, *streams: StreamId) -> None:
        for stream in streams:
            self.joiner.release(stream)
        for stream in streams:
            self.wait(stream, NewsFlag.RELEASED)
            free(self.joiner, stream)
            self.news.pop(stream, None)

    def close(self) -> None:
        self.joiner.close()
        self.listener.close()


def free(joiner: Joiner, stream: StreamId) -> None:
    tls = joiner.free(stream)
    if tls is not None:
        tls.close()


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    bed = Bed()
    yield bed
    bed.close()


def read_exactly(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (more := sock.recv(size - len(found))):
        found += more
    return found


def read_to_end(sock: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(1 << 16):
            found += more
    return found


def join(**fields: object) -> Join:
    known: dict[str, object] = {
        "to_client": b"",
        "to_satellite": b"",
        "frames": b"",
        "ack_owed": False,
        "deadline_ms": PATIENT_MS,
    }
    return Join(**(known | fields))  # type: ignore[arg-type]


# -- one stream ------------------------------------------------------------------------------------------------------------


def test_nothing_is_read_beyond_what_is_allowed(bed: Bed) -> None:
    near, far, stream = bed.stream()
    with near, far:
        near.sendall(b"0123456789")
        bed.joiner.allow(stream, 4)
        assert bed.read(stream, 4) == b"0123"
        bed.joiner.allow(stream, 4)
        bed.joiner.allow(stream, 7)
        assert bed.read(stream, 3) == b"456"
        assert far.recv(10, socket.MSG_PEEK) == b"789"
        bed.end(stream)
        assert far.recv(10) == b"789"


def test_words_go_out_in_order_and_what_the_peer_does_not_take_comes_back(bed: Bed) -> None:
    near, far, stream = bed.stream()
    with near, far:
        words = os.urandom(16 << 20)
        for at in range(0, len(words), 1 << 16):
            bed.joiner.say(stream, words[at : at + (1 << 16)])
        bed.wait(stream, NewsFlag.SENT)
        bed.joiner.release(stream)
        last = bed.wait(stream, NewsFlag.RELEASED)
        assert last.failure is StreamFailure.FINE
        assert last.unsent
        assert bed.joiner.sent_bytes(stream) == len(words) - len(last.unsent)
        free(bed.joiner, stream)
        far.setblocking(True)
        sender = threading.Thread(target=send_and_end, args=(far, last.unsent))
        sender.start()
        assert read_to_end(near) == words
        sender.join()


def send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_the_end_of_a_peer_is_told_after_its_bytes(bed: Bed) -> None:
    near, far, stream = bed.stream()
    with far:
        bed.joiner.allow(stream, 100)
        near.sendall(b"last")
        near.shutdown(socket.SHUT_WR)
        assert bed.read(stream, 4) == b"last"
        bed.wait(stream, NewsFlag.END)
        bed.joiner.say(stream, b"answer")
        assert read_exactly(near, 6) == b"answer"
        near.close()
        bed.end(stream)


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_peer_that_hangs_up_is_found_though_its_bytes_may_not_be_read(bed: Bed, how: str) -> None:
    near, far, stream = bed.stream()
    with far:
        near.sendall(b"unread")
        if how == "rst":
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_AT_CLOSE)
        near.close()
        bed.wait(stream, NewsFlag.HUNG_UP)
        bed.end(stream)


def test_a_reset_is_told_as_what_it_is(bed: Bed) -> None:
    near, far, stream = bed.stream()
    with far:
        bed.joiner.allow(stream, 100)
        near.sendall(b"x")
        bed.read(stream, 1)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_AT_CLOSE)
        near.close()
        assert bed.wait(stream, NewsFlag.BROKEN).result == -errno.ECONNRESET
        bed.joiner.say(stream, b"to nobody")
        bed.end(stream)


def test_a_pause_stops_all_reading_and_loses_nothing(bed: Bed) -> None:
    streams = [bed.stream() for _ in range(20)]
    bed.joiner.pause(paused=True)
    for near, _, stream in streams:
        bed.joiner.allow(stream, 100)
        near.sendall(b"waits")
    _, far, _ = streams[0]
    assert select.select([far], [], [], DEADLINE_S)[0]
    assert not any(news.flags & NewsFlag.DATA for news in bed.joiner.take())
    bed.joiner.pause(paused=False)
    for _, _, stream in streams:
        assert bed.read(stream, 5) == b"waits"
    bed.end(*(stream for _, _, stream in streams))
    for near, far, _ in streams:
        near.close()
        far.close()


# -- a satellite -----------------------------------------------------------------------------------------------------------


class Authority:
    """Certificates of a satellite and the authority that a client trusts."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        issued = self.authority.issue_cert("box.internal")
        self.files = [folder / name for name in ("cert.pem", "key.pem", "ca.pem")]
        issued.cert_chain_pems[0].write_to_path(self.files[0])
        issued.private_key_pem.write_to_path(self.files[1])
        self.authority.cert_pem.write_to_path(self.files[2])
        self.trust = TlsClientContext(ca=self.files[2])
        self.server = TlsServerContext(*self.files[:2])
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(self.context)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("joiner"))


def connect(
    bed: Bed, address: tuple[str, int], tls: tuple[TlsClientContext, str] | None = None, ms: int = PATIENT_MS
) -> tuple[socket.socket, StreamId]:
    """A socket that is connecting, and its stream."""
    sock = socket.socket()
    sock.setblocking(False)
    assert sock.connect_ex(address) in (0, errno.EINPROGRESS)
    shaking = None if tls is None else TlsConnection(tls[0], sock.fileno(), server_name=tls[1])
    half = bed.joiner.connect(sock.fileno(), shaking, ms)
    bed.joiner.allow(half, 100)
    return sock, half


def test_a_satellite_is_connected_and_heard(bed: Bed) -> None:
    sock, half = connect(bed, bed.listener.getsockname())
    peer = bed.listener.accept()[0]
    with sock, peer:
        bed.wait(half, NewsFlag.CONNECTED)
        peer.sendall(b"settings")
        assert bed.read(half, 8) == b"settings"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        bed.end(half)


def test_a_satellite_that_refuses(bed: Bed) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        sock, half = connect(bed, unused.getsockname())
        last = bed.wait(half, NewsFlag.RELEASED)
        assert (last.failure, last.result) == (StreamFailure.CONNECT, -errno.ECONNREFUSED)
        free(bed.joiner, half)
        sock.close()


@pytest.mark.parametrize("name", ["box.internal", "other.name"])
def test_the_tls_of_a_satellite(bed: Bed, authority: Authority, name: str) -> None:
    sock, half = connect(bed, bed.listener.getsockname(), (authority.trust, name))
    peer = bed.listener.accept()[0]
    with sock, peer:
        if name == "other.name":
            with contextlib.suppress(OSError):
                authority.context.wrap_socket(peer, server_side=True).close()
            last = bed.wait(half, NewsFlag.RELEASED)
            assert last.failure is StreamFailure.HANDSHAKE
            error = failure_of(last.result, last.words)
            assert isinstance(error, TlsError)
            assert "certificate" in str(error)
            free(bed.joiner, half)
            return
        with authority.context.wrap_socket(peer, server_side=True) as server:
            bed.wait(half, NewsFlag.CONNECTED)
            server.sendall(b"settings")
            assert bed.read(half, 8) == b"settings"
            bed.joiner.say(half, b"opening")
            assert server.recv(7) == b"opening"
            bed.end(half)


@pytest.mark.parametrize("tls", [False, True])
def test_a_satellite_that_says_nothing_is_late(bed: Bed, authority: Authority, tls: bool) -> None:
    """Plain: its queue is full, and so TCP is never answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        crowd = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            crowd.append(sock)
        address = bed.listener.getsockname() if tls else full.getsockname()
        sock, half = connect(bed, address, (authority.trust, "box.internal") if tls else None, 200)
        last = bed.wait(half, NewsFlag.RELEASED)
        assert last.failure is (StreamFailure.HANDSHAKE if tls else StreamFailure.CONNECT)
        assert last.result == -errno.ETIME
        free(bed.joiner, half)
        for each in (*crowd, sock):
            each.close()
        if tls:
            bed.listener.accept()[0].close()


def test_a_dial_is_stopped(bed: Bed, authority: Authority) -> None:
    sock, half = connect(bed, bed.listener.getsockname(), (authority.trust, "box.internal"))
    peer = bed.listener.accept()[0]
    bed.joiner.release(half)
    bed.joiner.say(half, b"nobody hears it")
    last = bed.wait(half, NewsFlag.RELEASED)
    assert last.result == -errno.ECANCELED
    bed.joiner.allow(half, 5)
    bed.joiner.release(half)
    free(bed.joiner, half)
    sock.close()
    peer.close()


# -- the join --------------------------------------------------------------------------------------------------------------


class Pair:
    """A client and a satellite, each with its peer."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.client, self.client_far, self.client_id = bed.stream()
        self.satellite, self.satellite_far, self.satellite_id = bed.stream()
        self.client.settimeout(DEADLINE_S)
        self.satellite.settimeout(DEADLINE_S)

    def join(self, wanted: Join) -> None:
        self.bed.joiner.join(self.client_id, self.satellite_id, wanted)

    def wait_joined(self) -> None:
        last = self.bed.wait(self.client_id, NewsFlag.RELEASED)
        assert last.flags & NewsFlag.JOINED, last
        assert last.failure is StreamFailure.FINE

    def wait_failed(self) -> News:
        last = self.bed.wait(self.client_id, NewsFlag.RELEASED)
        assert not last.flags & NewsFlag.JOINED
        return last

    def close(self) -> None:
        for stream in (self.client_id, self.satellite_id):
            free(self.bed.joiner, stream)
            self.bed.news.pop(stream, None)
        for sock in (self.client, self.client_far, self.satellite, self.satellite_far):
            sock.close()


@pytest.fixture
def pair(bed: Bed) -> Iterator[Pair]:
    pair = Pair(bed)
    yield pair
    pair.close()


def test_each_side_gets_what_the_other_has_said(pair: Pair) -> None:
    pair.join(join(to_client=b"settings", to_satellite=b"opening"))
    pair.wait_joined()
    assert read_exactly(pair.client, 8) == b"settings"
    assert read_exactly(pair.satellite, 7) == b"opening"


def test_bytes_that_were_read_and_not_taken_follow_in_order(bed: Bed, pair: Pair) -> None:
    """They are told to nobody any more."""
    for near, stream in ((pair.client, pair.client_id), (pair.satellite, pair.satellite_id)):
        bed.joiner.allow(stream, 1000)
        near.sendall(b"seen")
        assert bed.read(stream, 4) == b"seen"
    pair.client.sendall(b"up")
    pair.satellite.sendall(b"down")
    assert select.select([bed.joiner.event_fd], [], [], DEADLINE_S)[0]
    time.sleep(0.01)
    bed.joiner.say(pair.client_id, b"before ")
    pair.join(join(to_client=b"seen", to_satellite=b"seen"))
    pair.wait_joined()
    engine = Engine(EngineOptions(threads=1))
    client, satellite = Leg(pair.client_far.fileno(), None), Leg(pair.satellite_far.fileno(), None)
    engine.splice(client, satellite)
    pair.client_far.detach()
    pair.satellite_far.detach()
    pair.client.shutdown(socket.SHUT_WR)
    pair.satellite.shutdown(socket.SHUT_WR)
    assert read_to_end(pair.satellite) == b"seenup"
    assert read_to_end(pair.client) == b"before seendown"
    engine.close()


def test_nothing_is_told_of_bytes_that_a_join_has(bed: Bed, pair: Pair) -> None:
    bed.joiner.allow(pair.client_id, 1000)
    pair.client.sendall(b"unseen")
    assert select.select([bed.joiner.event_fd], [], [], DEADLINE_S)[0]
    pair.join(join())
    last = bed.wait(pair.client_id, NewsFlag.RELEASED)
    assert last.data == b""
    assert not any(news.data for news in bed.news[pair.client_id])
    assert read_exactly(pair.satellite, 6) == b"unseen"


def test_both_ways_are_relayed_until_the_ack_has_come(pair: Pair) -> None:
    ping = frame(FrameType.PING, 0, 0, bytes(8))
    pair.join(join(to_satellite=b"opening", frames=ping[:5], ack_owed=True))
    assert read_exactly(pair.satellite, 7) == b"opening"
    pair.satellite.sendall(b"early")
    assert read_exactly(pair.client, 5) == b"early"
    pair.client.sendall(ping[5:])
    assert read_exactly(pair.satellite, len(ping)) == ping
    pair.client.sendall(ping + ACK_FRAME + b"rest")
    pair.wait_joined()
    assert read_exactly(pair.satellite, len(ping) + 4) == ping + b"rest"
    assert pair.bed.joiner.read_bytes(pair.client_id) == len(ping[5:] + ping + ACK_FRAME + b"rest")
    assert pair.bed.joiner.read_bytes(pair.satellite_id) == len(b"early")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ((limits.FRAME_BYTES + 1).to_bytes(3, "big") + b"\0\0\0\0\0\1", "FRAME_BYTES"),
        (frame(FrameType.SETTINGS, ACK, 0, bytes(6)), "FRAME_SIZE_ERROR"),
        (frame(FrameType.SETTINGS, ACK, 5), "PROTOCOL_ERROR"),
    ],
)
def test_a_frame_that_must_not_come_ends_it(pair: Pair, header: bytes, words: str) -> None:
    pair.join(join(ack_owed=True))
    pair.client.sendall(header)
    last = pair.wait_failed()
    assert (last.failure, last.header) == (StreamFailure.FRAME, header[:9])
    with pytest.raises(GreetingError) as caught:
        AckFilter().receive_data(last.header)
    assert words in (caught.value.limit, caught.value.error_code.name)


@pytest.mark.parametrize("side", ["client", "satellite"])
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_side_that_leaves_before_the_ack(pair: Pair, side: str, how: str) -> None:
    pair.join(join(to_satellite=b"x", ack_owed=True))
    assert read_exactly(pair.satellite, 1) == b"x"
    leaving = pair.client if side == "client" else pair.satellite
    if side == "satellite":
        pair.satellite.sendall(b"last words")
        assert read_exactly(pair.client, 10) == b"last words"
    if how == "rst":
        leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_AT_CLOSE)
    leaving.close()
    last = pair.wait_failed()
    assert last.failure is (StreamFailure.CLIENT if side == "client" else StreamFailure.SATELLITE)
    assert last.result == (0 if how == "fin" else -errno.ECONNRESET)


def test_an_ack_that_never_comes(pair: Pair) -> None:
    pair.join(join(ack_owed=True, deadline_ms=100))
    assert pair.wait_failed().failure is StreamFailure.LATE


def test_a_join_is_stopped(bed: Bed, pair: Pair) -> None:
    pair.join(join(ack_owed=True))
    bed.joiner.release(pair.client_id)
    assert pair.wait_failed().failure is StreamFailure.STOPPED


def test_a_satellite_that_reads_nothing_holds_the_client_back(pair: Pair) -> None:
    """What waits for it does not grow, and all of it comes in the end."""
    size = limits.FRAME_BYTES
    body = frame(FrameType.DATA, 0, 1, bytes(size)) * 2_000
    pair.join(join(ack_owed=True))
    sent = [0]

    def send() -> None:
        pair.client.sendall(body + ACK_FRAME)
        sent[0] = 1

    sender = threading.Thread(target=send)
    sender.start()
    before = resident_bytes()
    time.sleep(0.5)
    assert not sent[0]
    assert resident_bytes() - before < 16 << 20
    assert read_exactly(pair.satellite, len(body)) == body
    sender.join()
    pair.wait_joined()


def opened_tls(bed: Bed, authority: Authority) -> tuple[RawTls, socket.socket, TlsConnection]:
    """A TLS client after its handshake, as the opener leaves it."""
    near, far = bed.pair()
    far.setblocking(False)
    tls = TlsConnection(authority.server, far.fileno())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.authority.configure_trust(context)
    context.check_hostname = False
    shaking = threading.Thread(target=lambda: made.append(RawTls(near, context)))
    made: list[RawTls] = []
    shaking.start()
    while True:
        try:
            tls.do_handshake()
            break
        except WantRead:
            assert select.select([far], [], [], DEADLINE_S)[0]
    shaking.join()
    return made[0], far, tls


def test_a_client_that_floods_is_not_read_and_can_be_written_to(bed: Bed, authority: Authority) -> None:
    raw, far, tls = opened_tls(bed, authority)
    with raw.sock, far:
        stream = bed.joiner.open(far.fileno(), tls)
        bed.joiner.allow(stream, 1000)
        with contextlib.suppress(OSError):
            raw.sock.sendall(b"".join(raw.key_update() for _ in range(500)))
        assert bed.wait(stream, NewsFlag.BROKEN).result == CONTROL_FLOOD
        bed.joiner.say(stream, b"goodbye")
        assert select.select([raw.sock], [], [], DEADLINE_S)[0]
        bed.end(stream)


# -- the oracle ------------------------------------------------------------------------------------------------------------

frames = st.builds(
    lambda kind, flags, stream, size: frame(kind, flags, stream, bytes(size)),
    st.sampled_from([FrameType.SETTINGS, FrameType.PING, FrameType.HEADERS, FrameType.DATA, FrameType.WINDOW_UPDATE]),
    st.sampled_from([0, 1, 4, 5]),
    st.sampled_from([0, 0, 1, 1 << 30]),
    st.sampled_from([0, 0, 1, 6, 8, 9, 300, limits.FRAME_BYTES, limits.FRAME_BYTES + 1]),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(frames | st.just(ACK_FRAME), max_size=8).map(b"".join),
    st.lists(st.integers(0, 40_000), max_size=6),
    st.integers(0, 40_000),
)
def test_as_the_filter_in_python(bed: Bed, stream: bytes, cuts: list[int], known: int) -> None:
    """The client's bytes: a part is given with the join, the rest comes in pieces."""
    stream += ACK_FRAME + b"the end"
    pair = Pair(bed)
    filtering, wanted, fails = AckFilter(), b"", False
    try:
        wanted = filtering.receive_data(stream)
    except GreetingError:
        fails = True
    known = min(known, len(stream))
    pair.join(join(frames=stream[:known], ack_owed=True))
    at = known
    for cut in sorted({min(known + each, len(stream)) for each in (*cuts, len(stream))}):
        with contextlib.suppress(OSError):
            pair.client.sendall(stream[at:cut])
        at = cut
    if fails:
        assert pair.wait_failed().failure is StreamFailure.FRAME
    else:
        pair.wait_joined()
        pair.client.shutdown(socket.SHUT_WR)
        pair.client_far.setblocking(True)
        rest = read_to_end(pair.client_far)
        assert read_exactly(pair.satellite, len(wanted) - len(rest)) + rest == wanted
    pair.close()


# -- many ------------------------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_many(bed: Bed) -> None:
    def some(count: int) -> None:
        for number in range(count):
            pair = Pair(bed)
            bed.joiner.allow(pair.client_id, 100)
            pair.client.sendall(b"hello")
            pair.join(join(ack_owed=number % 3 == 0))
            if number % 3 == 0:
                bed.joiner.release(pair.client_id)
                pair.wait_failed()
            else:
                bed.wait(pair.client_id, NewsFlag.JOINED)
            pair.close()

    check_nothing_left(some, STORM)


def test_its_end_ends_all() -> None:
    bed = Bed()
    pairs = [Pair(bed) for _ in range(20)]
    for pair in pairs[:10]:
        pair.join(join(ack_owed=True))
    bed.close()
    for pair in pairs:
        for sock in (pair.client, pair.client_far, pair.satellite, pair.satellite_far):
            sock.close()


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_a_storm_under_sanitizers(authority: Authority, sanitizer: str) -> None:
    program: list[str | Path] = [build_join_storm(sanitizer), str(STORM), "7", *authority.files]
    result = subprocess.run(program, capture_output=True, text=True, timeout=240, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    counts = {line.split()[0]: int(line.split()[1]) for line in result.stdout.splitlines()}
    assert sum(counts.values()) == STORM
    assert all(counts.values()), counts


def test_turns_are_counted_and_end(bed: Bed) -> None:
    near, far, stream = bed.stream()
    with near, far:
        near.sendall(b"hello")
        bed.joiner.allow(stream, 5)
        assert bed.read(stream, 5) == b"hello"
        bed.end(stream)
    wait_counted(bed.joiner.threads)
