"""Strangers and principals that meet a limit at the same time, on a daemon in a process of its own: who gets in, who goes.

What is measured is the daemon's resident memory against what its accounts say.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import shutil
import socket
import ssl
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hpack
import pytest
import trustme

from beds.hosts.in_process import PLAIN, TLS, TOKEN, frames_of, write_config
from beds.hosts.served import SECTIONS, Served
from beds.http2 import EMPTY_SETTINGS, texts
from beds.peers.clients import GrpcioClient
from beds.peers.crowd import END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, Crowd, Member, call, frame, headers
from beds.programs import program
from bentpipe.daemon.testbed.edge_host import DATA_PLANE

OTHER_TOKEN = "bp_other"
SECOND = f"""
[[token]]
name = "second"
hash = "sha256:{hashlib.sha256(OTHER_TOKEN.encode()).hexdigest()}"
grants = ["acme/*"]
"""
NEVER = """
[[satellite]]
org = "acme"
name = "never"
hold_limit = "10m"
[satellite.process]
command = ["sleep", "1000", "{port}"]
stop_grace = "1s"
"""
HEALTH = "/grpc.health.v1.Health/Watch"
CALM_S = 1.2
"""Longer than the grace: a stranger that is here for so long may have to make room."""
PATIENCE_S = 30.0

Start = Callable[..., contextlib.AbstractContextManager[Served]]


@pytest.fixture
def start(tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA) -> Start:
    """`start(limits)`: a daemon with these limits, two tokens, and a satellite that never gets ready."""

    def started(limits: str = "") -> Served:
        sections = SECTIONS + SECOND + NEVER
        return Served(write_config(tmp_path, authority, client_authority, limits=limits, sections=sections))

    return started


def health_request(stream: int, method: str = "Watch", more: tuple[tuple[str, str], ...] = (), *, end: bool) -> bytes:
    """A health check's HEADERS; `end` also ends the request, with an empty message."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/grpc.health.v1.Health/{method}"),
        (":authority", "edge"),
        ("content-type", "application/grpc"),
        *more,
    ]
    asked = frame(HEADERS, END_HEADERS, stream, hpack.Encoder().encode(fields, huffman=False))
    return asked + (frame(0, END_STREAM, stream, bytes(5)) if end else b"")


WATCH = PREFACE + EMPTY_SETTINGS + health_request(1, end=True)


def echo(port: int, token: str = TOKEN, satellite: str = "sat") -> bytes:
    metadata = (("satellite_org", "acme"), ("satellite_name", satellite), ("satellite_token", token))
    client = GrpcioClient(port, None, metadata)
    try:
        return client.unary("Echo", b"hello", timeout_s=PATIENCE_S)
    finally:
        client.close()


def answered_watch(member: Member) -> bool:
    return any(kind == HEADERS for kind, *_ in frames_of(bytes(member.received)))


def goaway_words(member: Member) -> bytes:
    return b"".join(payload[8:] for kind, _, _, payload in frames_of(bytes(member.received)) if kind == GOAWAY)


def held_until(served: Served, crowd: Crowd, name: str, value: float, label: str = "") -> dict[tuple[str, str], float]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        crowd.turn(0.02)
        samples = served.scrape()
        if samples.get((name, label)) == value:
            return samples
        assert time.monotonic() < deadline, (name, samples.get((name, label)))


@pytest.mark.parametrize("opening", [WATCH, PREFACE + EMPTY_SETTINGS, b""], ids=["watch", "greeting", "silent"])
def test_strangers_at_every_place_keep_no_token_out(start: Start, opening: bytes) -> None:
    """60 Watches used to hold every place of max_connections = 60, and callers were reset without a line."""
    with start("max_connections = 60") as served, Crowd(("127.0.0.1", served.ports[PLAIN])) as crowd:
        crowd.join(60, opening)
        deadline = time.monotonic() + CALM_S
        while time.monotonic() < deadline:
            crowd.turn(0.02)
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            calls = [pool.submit(echo, served.ports[PLAIN]) for _ in range(20)]
            while not all(each.done() for each in calls):
                crowd.turn(0.02)
        assert [each.result() for each in calls] == [b"hello"] * 20
        for _ in range(20):
            crowd.turn(0.02)
        samples = served.scrape()
        out = [member for member in crowd.members.values() if member.ended]
        assert samples["bentpipe_account_connections", "stranger"] <= 60 // 8 + 1
        assert len(out) >= 60 - 8
        assert samples["bentpipe_limits_reached_total", "max_strangers"] >= 60 - 8
        if opening:
            assert sum(b"max_strangers" in goaway_words(member) for member in out) == len(out)
        assert "max_strangers" in served.log()


@contextlib.contextmanager
def flooding(port: int, source: str, per_s: int) -> Iterator[None]:
    """So many connections a second come from one address, and say nothing."""
    over = threading.Event()

    def flood() -> None:
        began, opened = time.monotonic(), 0
        sockets: collections.deque[socket.socket] = collections.deque()
        while not over.wait(0.02):
            for _ in range(int((time.monotonic() - began) * per_s) - opened):
                opened += 1
                with contextlib.suppress(OSError):
                    sockets.append(socket.create_connection(("127.0.0.1", port), PATIENCE_S, (source, 0)))
            while len(sockets) > 2 * per_s:
                sockets.popleft().close()
        for sock in sockets:
            sock.close()

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_flood_of_one_address_makes_nobody_wait(start: Start) -> None:
    """It came faster than the grace let anybody in, so that callers stood behind it in the kernel's queue: 3 s and more."""
    with start("max_connections = 400") as served:
        echo(served.ports[PLAIN])
        took = []
        with flooding(served.ports[PLAIN], "127.0.0.9", 5 * 400 // 8 // 2):
            deadline = time.monotonic() + PATIENCE_S
            while served.scrape().get(("bentpipe_limits_reached_total", "max_strangers"), 0) <= 200:
                assert time.monotonic() < deadline, "the flood reaches no limit"
                time.sleep(0.1)
            for _ in range(5):
                began = time.monotonic()
                assert echo(served.ports[PLAIN]) == b"hello"
                took.append(time.monotonic() - began)
        assert statistics.median(took) < CALM_S / 2


def test_strangers_at_every_place_by_default(start: Start) -> None:
    """The same with default settings: 1,400 half-open greetings with and without TLS, and callers beside them."""
    with start() as served, Crowd(("127.0.0.1", served.ports[PLAIN])) as crowd:
        # A data plane of its own limits those without a first byte, and the control plane the others.
        crowd.join(700 if DATA_PLANE == "inside" else 1400, PREFACE + EMPTY_SETTINGS)
        crowd.join(700, b"\x16\x03\x01\x02\0", address=("127.0.0.1", served.ports[TLS]))
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            calls = [pool.submit(echo, served.ports[PLAIN]) for _ in range(30)]
            while not all(each.done() for each in calls):
                crowd.turn(0.02)
        assert [each.result() for each in calls] == [b"hello"] * 30
        samples = served.scrape()
        assert samples["bentpipe_account_connections", "stranger"] <= 1250
        assert samples["bentpipe_connections_ended_total", "over-limit"] >= 1400 - 1250


def test_an_ipv6_crowd_counts_by_what_one_customer_has(
    tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA
) -> None:
    """60 /64s of one /48 make room for each other, and not those who came before from elsewhere."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--net", "true"], check=False).returncode:
        pytest.skip("a network namespace is needed, and may not be made here")
    sections = SECTIONS + '[[listener]]\naddress = "[::1]:0"\n'
    limits = 'max_connections = 60\ngreeting_deadline = "120s"'
    path = write_config(tmp_path, authority, client_authority, limits=limits, sections=sections)
    ran = subprocess.run(
        [unshare, "--net", *program("peers.many_addresses"), path],
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    there = json.loads(ran.stdout)
    assert there["first"] == 2
    assert there["last"] == 1
    assert there["crowd"] <= 5


def test_a_crowd_with_tokens_comes_in_at_once_past_the_strangers(start: Start) -> None:
    """The places before a token is shown are few; nobody of 40 who come in one moment is evicted for the others."""
    with start("max_connections = 80\nmax_connections_per_address = 2") as served:
        echo(served.ports[PLAIN])
        with Crowd(("127.0.0.1", served.ports[PLAIN])) as crowd:
            crowd.join(40, call("never", TOKEN))
            held_until(served, crowd, "bentpipe_waiters", 40)
            assert not any(member.ended for member in crowd.members.values())


@pytest.mark.parametrize(("limits", "bound_bytes"), [("", 48 << 20), ('stranger_bytes = "16MiB"', 16 << 20)])
def test_unfinished_streams_in_place_are_counted_and_bounded(start: Start, limits: str, bound_bytes: int) -> None:
    """40 connections with 100 unfinished streams each took 145 MiB, and held_bytes said 0."""
    more = tuple((f"k{number}", "v" * 400) for number in range(80))
    fields = hpack.Encoder().encode(
        [(":method", "POST"), (":scheme", "http"), (":path", HEALTH), (":authority", "x"), *more], huffman=False
    )

    def stream(number: int) -> bytes:
        parts = [fields[at : at + 16_000] for at in range(0, len(fields), 16_000)]
        kinds = [HEADERS] + [9] * (len(parts) - 1)
        return b"".join(
            frame(kind, END_HEADERS if part is parts[-1] else 0, number, part)
            for kind, part in zip(kinds, parts, strict=True)
        )

    with start(limits) as served, Crowd(("127.0.0.1", served.ports[PLAIN])) as crowd:
        echo(served.ports[PLAIN])
        before = served.rss_bytes
        crowd.join(40, PREFACE + EMPTY_SETTINGS + b"".join(stream(2 * n + 1) for n in range(100)))
        most_said, most_grown, deadline = 0.0, 0, time.monotonic() + 10
        while time.monotonic() < deadline:
            crowd.turn(0.02)
            most_said = max(most_said, served.scrape()["bentpipe_held_bytes", ""])
            most_grown = max(most_grown, served.rss_bytes - before)
        print(f"\nheld_bytes {most_said / 2**20:.1f} MiB at most, memory grew by {most_grown / 2**20:.1f} MiB")
        assert 0 < most_said <= bound_bytes
        assert most_grown <= 2 * bound_bytes
        assert echo(served.ports[PLAIN]) == b"hello"


def test_one_token_cannot_fill_what_is_for_all(start: Start) -> None:
    """max_held: the other principal is held, and the newest of the greedy one hears why it is not any more."""
    with start("max_held = 10") as served, Crowd(("127.0.0.1", served.ports[PLAIN])) as crowd:
        for count in (5, 10):
            crowd.join(5, call("never", TOKEN))
            held_until(served, crowd, "bentpipe_waiters", count)
        greedy = list(crowd.members.values())
        crowd.join(1, call("never", TOKEN))
        held_until(served, crowd, "bentpipe_refusals_total", 1, "RESOURCE_EXHAUSTED")
        crowd.join(5, call("never", OTHER_TOKEN))
        samples = held_until(served, crowd, "bentpipe_limits_reached_total", 6, "max_held")
        held_until(served, crowd, "bentpipe_waiters", 10)
        others = [member for member in crowd.members.values() if member not in greedy][1:]
        assert len(others) == 5
        assert not any(member.ended for member in others)
        deadline = time.monotonic() + PATIENCE_S
        while sum(member.ended for member in greedy) < 5:
            crowd.turn(0.02)
            assert time.monotonic() < deadline
        assert [member.ended for member in greedy] == [False] * 5 + [True] * 5, "the newest have gone"
        for member in greedy[5:]:
            [trailers] = [payload for kind, _, _, payload in frames_of(bytes(member.received)) if kind == HEADERS]
            words = texts(hpack.Decoder().decode(trailers))
            assert words["grpc-status"] == "8"
            assert "limits.max_held" in words["grpc-message"]
        assert samples["bentpipe_account_connections", "principal"] >= 10


def test_one_token_cannot_fill_a_satellite_that_two_use(start: Start) -> None:
    with start("max_held_per_satellite = 4") as served, Crowd(("127.0.0.1", served.ports[PLAIN])) as crowd:
        crowd.join(4, call("never", TOKEN))
        held_until(served, crowd, "bentpipe_waiters", 4)
        crowd.join(2, call("never", OTHER_TOKEN))
        held_until(served, crowd, "bentpipe_limits_reached_total", 2, "max_held_per_satellite")
        held_until(served, crowd, "bentpipe_waiters", 4)
        assert [member.ended for member in crowd.members.values()][4:] == [False] * 2


def test_one_token_cannot_fill_max_connections(start: Start) -> None:
    """Running builds are not cut for it: a share of the places is kept for each principal. The greedy one hears why."""
    with start("max_connections = 60") as served, Crowd(("127.0.0.1", served.ports[PLAIN])) as crowd:
        echo(served.ports[PLAIN])
        crowd.join(60, call("sat", TOKEN))
        deadline = time.monotonic() + PATIENCE_S
        while served.scrape().get(("bentpipe_limits_reached_total", "max_connections"), 0) < 1:
            crowd.turn(0.02)
            assert time.monotonic() < deadline
        assert echo(served.ports[PLAIN], OTHER_TOKEN) == b"hello"
        samples = held_until(served, crowd, "bentpipe_account_connections", 0, "stranger")
        assert samples["bentpipe_splices", ""] >= 40
        refused = [member for member in crowd.members.values() if member.ended]
        assert refused
        for member in refused:
            trailers = [payload for kind, _, _, payload in frames_of(bytes(member.received)) if kind == HEADERS]
            assert "limits.max_connections" in texts(hpack.Decoder().decode(trailers[0]))["grpc-message"]


@pytest.mark.parametrize(
    ("key", "count", "satellite"),
    [
        ("max_connections_per_principal", 5, "sat"),
        ("max_connections_per_satellite", 8, "sat"),
        ("max_held_per_principal", 3, "never"),
    ],
)
def test_each_key_bounds_whom_it_names(start: Start, key: str, count: int, satellite: str) -> None:
    """The greedy token hears the key's name. The other token is served, and another satellite is if one was the limit."""
    with start(f"{key} = {count}") as served, Crowd(("127.0.0.1", served.ports[PLAIN])) as crowd:
        crowd.join(2 * count, call(satellite, TOKEN))
        deadline = time.monotonic() + PATIENCE_S
        while served.scrape().get(("bentpipe_limits_reached_total", key), 0) < count:
            crowd.turn(0.02)
            assert time.monotonic() < deadline
        while sum(member.ended for member in crowd.members.values()) < count:
            crowd.turn(0.02)
            assert time.monotonic() < deadline
        for member in [member for member in crowd.members.values() if member.ended]:
            trailers = [payload for kind, _, _, payload in frames_of(bytes(member.received)) if kind == HEADERS]
            words = texts(hpack.Decoder().decode(trailers[0]))
            assert words["grpc-status"] == "8"
            assert f"limits.{key}" in words["grpc-message"]
        assert echo(served.ports[PLAIN], OTHER_TOKEN) == b"hello"
        if key == "max_connections_per_satellite":
            assert echo(served.ports[PLAIN], TOKEN, "other") == b"hello"


def test_a_connection_for_health_has_an_age(start: Start) -> None:
    """Its client is told by GOAWAY before it is closed, and what it asks meanwhile is answered."""
    with start('stranger_age = "1s"') as served:
        with socket.create_connection(("127.0.0.1", served.ports[PLAIN])) as sock:
            sock.settimeout(PATIENCE_S)
            sock.sendall(WATCH)
            received = b""
            while not any(kind == GOAWAY for kind, *_ in frames_of(received)):
                received += sock.recv(1 << 16)
            [first] = [payload for kind, _, _, payload in frames_of(received) if kind == GOAWAY]
            assert first == (2**31 - 1).to_bytes(4) + bytes(4), "no stream is given up yet"
            sock.sendall(health_request(3, "Check", end=True))
            while not any(stream == 3 for _, _, stream, _ in frames_of(received)):
                received += sock.recv(1 << 16)
            while data := sock.recv(1 << 16):
                received += data
        assert sum(kind == GOAWAY for kind, *_ in frames_of(received)) == 2


def test_a_health_check_with_a_token_is_not_a_strangers(start: Start) -> None:
    token = (("satellite_token", TOKEN), ("satellite_org", "acme"), ("satellite_name", "sat"))
    opening = PREFACE + EMPTY_SETTINGS + health_request(1, more=token, end=True)
    with start("max_connections = 60") as served, Crowd(("127.0.0.1", served.ports[PLAIN])) as crowd:
        crowd.join(20, opening)
        assert crowd.until(answered_watch, PATIENCE_S) == 20
        held_until(served, crowd, "bentpipe_account_connections", 20, "principal")
        assert not any(member.ended for member in crowd.members.values())


def test_nobody_keeps_the_scraper_out(start: Start) -> None:
    with start() as served, Crowd(("127.0.0.1", served.metrics_port)) as crowd:
        crowd.join(30, b"GET /metrics HTTP/1.1\r\n")
        time.sleep(CALM_S)
        for _ in range(3):
            assert served.scrape()["bentpipe_connections", ""] == 0
        for _ in range(20):
            crowd.turn(0.02)
        assert sum(not member.ended for member in crowd.members.values()) <= 8


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    return context


def settled_bytes(served: Served, crowd: Crowd) -> float:
    """What the accounts say once they say the same all the time: the daemon has read everything by then."""
    said, times, deadline = -1.0, 0, time.monotonic() + PATIENCE_S
    while times < 20:
        assert time.monotonic() < deadline
        crowd.turn(0.05)
        now = served.scrape()["bentpipe_held_bytes", ""]
        said, times = now, times + 1 if now == said else 0
    return said


COUNT = 400
UNFINISHED = PREFACE + EMPTY_SETTINGS + b"".join(health_request(2 * n + 1, end=False) for n in range(20))
HELD = call("never", TOKEN, b"x" * 1000)
KINDS = {
    "half-open": (PREFACE + EMPTY_SETTINGS, False, "bentpipe_connections"),
    "half-open with TLS": (PREFACE + EMPTY_SETTINGS, True, "bentpipe_connections"),
    "unfinished streams": (UNFINISHED, False, "bentpipe_connections"),
    "held": (HELD, False, "bentpipe_waiters"),
    "held with TLS": (HELD, True, "bentpipe_waiters"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_held_bytes_tell_the_truth_of_memory(start: Start, authority: trustme.CA, kind: str) -> None:
    opening, tls, there = KINDS[kind]
    limits = 'max_connections = 4000\nmax_strangers = 2000\ngreeting_deadline = "60s"'
    with start(limits) as served:
        port = served.ports[TLS if tls else PLAIN]
        context = trusting(authority) if tls else None

        def come(count: int) -> tuple[float, int]:
            """Clients in that number: what the accounts say and what the process has when all are there."""
            with Crowd(("127.0.0.1", port)) as crowd:
                crowd.join(count, opening, tls=context)
                held_until(served, crowd, there, count)
                crowd.until(lambda member: member.shaken and not member.unsent, PATIENCE_S)
                return settled_bytes(served, crowd), served.rss_bytes

        def nobody() -> None:
            with Crowd(("127.0.0.1", port)) as crowd:
                samples = held_until(served, crowd, "bentpipe_connections", 0)
                assert samples["bentpipe_held_bytes", ""] == 0

        come(50)  # what is made once is made now
        nobody()
        # The first crowd takes what the process had free, some MB, which its growth would not show.
        said_before, seen_before = come(COUNT)
        nobody()
        said_after, seen_after = come(3 * COUNT)
        said, grown, count = said_after - said_before, seen_after - seen_before, 2 * COUNT
        print(f"\n{kind}: {said / count / 1024:.1f} KiB each counted, {grown / count / 1024:.1f} seen")
        assert grown / 2 <= said <= grown * 2
        nobody()


def test_refusals_that_nobody_reads_are_counted(start: Start) -> None:
    """A stranger with many streams that reads nothing: its refusal waits for five seconds, on its account."""
    opening = PREFACE + EMPTY_SETTINGS
    streams = b"".join(frame(HEADERS, END_HEADERS, 2 * n + 1, headers("sat", "wrong")) for n in range(400))
    with start() as served, contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sock.connect(("127.0.0.1", served.ports[PLAIN]))
            sock.sendall(opening + streams)
        deadline = time.monotonic() + PATIENCE_S
        while served.scrape().get(("bentpipe_refusals_total", "UNAUTHENTICATED"), 0) < 20:
            assert time.monotonic() < deadline
        samples = served.scrape()
        assert samples["bentpipe_account_connections", "stranger"] == samples["bentpipe_connections", ""]
        assert samples["bentpipe_held_bytes", ""] >= samples["bentpipe_connections", ""] * 12_000
