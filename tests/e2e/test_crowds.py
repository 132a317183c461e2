"""Thousands at once, over real sockets, on a daemon in a process of its own. Figures are printed, counts are asserted."""

import concurrent.futures
import resource
import ssl
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from beds.hosts.in_process import PLAIN, TLS, TOKEN, write_config
from beds.hosts.served import SECTIONS, Served
from beds.http2 import EMPTY_SETTINGS
from beds.peers.clients import GrpcioClient
from beds.peers.crowd import HEADERS, PREFACE, SETTINGS_ACK, Crowd, answered, call, ended, frame, headers
from bentpipe.daemon.connections.held_bytes import CLIENT_BYTES

GATED = """
[[satellite]]
org = "acme"
name = "gated"
[satellite.process]
command = ["sh", "-c", 'until [ -e "$0" ]; do sleep 0.05; done; exec "$1" -P -m bentpipe.daemon.testbed.satellite "$2"',
    "{gate}", "{python}", "{{port}}"]
"""
METADATA = (("satellite_org", "acme"), ("satellite_token", TOKEN))
HELD_PLAIN, HELD_TLS, HELD_GRPCIO = 4_690, 300, 10
HELD_BYTES = 64 << 20
HALF_OPEN = 9_000
MAX_CONNECTIONS = 9_500
DEADLINE_S = 12
PATIENCE_S = 120


@pytest.fixture(autouse=True)
def _enough_descriptors() -> Iterator[None]:
    """For both ends of every connection the daemon needs two, and this process one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{wanted} open files are needed, and the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The satellite acme/gated boots no further until this file is there."""
    return tmp_path / "gate"


@pytest.fixture
def max_strangers(request: pytest.FixtureRequest) -> str:
    """A line of [limits]; none unless the test is about strangers."""
    return f"max_strangers = {request.param}\n" if hasattr(request, "param") else ""


@pytest.fixture
def served(
    tmp_path: Path, authority: trustme.CA, client_authority: trustme.CA, gate: Path, max_strangers: str
) -> Iterator[Served]:
    limits = (
        f"max_connections = {MAX_CONNECTIONS}\nmax_connections_per_address = 20000\nmax_held_per_satellite = 10000\n"
        f"{max_strangers}"
        f'greeting_deadline = "{DEADLINE_S}s"\nheld_bytes = {HELD_BYTES}'
    )
    sections = SECTIONS + GATED.format(gate=gate, python=sys.executable)
    with Served(write_config(tmp_path, authority, client_authority, limits=limits, sections=sections)) as running:
        yield running


def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    return context


def grpcio_call(port: int, satellite: str) -> tuple[bytes, float]:
    """A new connection and one call on it. Returns the answer, and how long it took."""
    began = time.monotonic()
    client = GrpcioClient(port, None, (("satellite_name", satellite), *METADATA))
    try:
        return client.unary("Echo", b"held", timeout_s=PATIENCE_S), time.monotonic() - began
    finally:
        client.close()


def test_thousands_held_for_one_sleeping_satellite(served: Served, authority: trustme.CA, gate: Path) -> None:
    held = HELD_PLAIN + HELD_TLS + HELD_GRPCIO
    before_bytes = served.rss_bytes
    port = served.ports[PLAIN]
    with Crowd(("127.0.0.1", port)) as crowd, concurrent.futures.ThreadPoolExecutor(HELD_GRPCIO) as pool:
        opening = call("gated", TOKEN, b"held")
        crowd.join(HELD_PLAIN, opening)
        plain_bytes = wait_held(served, crowd, HELD_PLAIN) - before_bytes
        crowd.join(HELD_TLS, opening, address=("127.0.0.1", served.ports[TLS]), tls=trust(authority))
        tls_bytes = wait_held(served, crowd, HELD_PLAIN + HELD_TLS) - before_bytes - plain_bytes
        calls = [pool.submit(grpcio_call, port, "gated") for _ in range(HELD_GRPCIO)]
        wait_held(served, crowd, held)
        samples = served.scrape()
        assert samples["bentpipe_wakes_total", ""] == 1
        assert len(opening) * HELD_PLAIN <= samples["bentpipe_held_bytes", ""] <= HELD_BYTES + CLIENT_BYTES * held
        print(
            f"\n{held} held: {plain_bytes / HELD_PLAIN / 1024:.1f} KiB of the daemon's memory for a plain one, "
            f"{tls_bytes / HELD_TLS / 1024:.1f} KiB with TLS; {turns(samples)}"
        )
        assert plain_bytes + tls_bytes <= HELD_BYTES + CLIENT_BYTES * held
        gate.touch()
        began = time.monotonic()
        assert crowd.until(answered, PATIENCE_S) == HELD_PLAIN + HELD_TLS
        assert [each.result()[0] for each in calls] == [b"held"] * HELD_GRPCIO
        samples = served.scrape()
        print(f"all answered {time.monotonic() - began:.1f} s after the satellite may boot; {turns(samples)}")
    assert samples["bentpipe_wakes_total", ""] == 1
    assert samples["bentpipe_connections_ended_total", "spliced"] == held
    assert samples["bentpipe_held_bytes", ""] == 0


def wait_held(served: Served, crowd: Crowd, count: int) -> int:
    """Wait until so many clients are held. Returns the daemon's memory."""
    deadline = time.monotonic() + PATIENCE_S
    while served.scrape()["bentpipe_waiters", ""] < count:
        assert time.monotonic() < deadline
        for _ in range(10):
            crowd.turn(0.02)
    return served.rss_bytes


def turns(samples: dict[tuple[str, str], float]) -> str:
    return (
        f"longest turn {samples['bentpipe_turns_longest_seconds', ''] * 1000:.0f} ms "
        f"({samples['bentpipe_turns_longest_cpu_seconds', ''] * 1000:.0f} ms of CPU), "
        f"{samples['bentpipe_turns_long_total', '']:.0f} of {samples['bentpipe_turns_total', '']:.0f} over 50 ms"
    )


@pytest.mark.parametrize("max_strangers", [HALF_OPEN + 20], indirect=True)
def test_thousands_of_half_open_greetings(served: Served) -> None:
    """At every stage; a normal client is served beside them, and each is closed by the deadline and counted."""
    plain, tls = (("127.0.0.1", served.ports[index]) for index in (PLAIN, TLS))
    grpcio_call(plain[1], "sat")
    alone = [grpcio_call(plain[1], "sat")[1] for _ in range(10)]
    before_bytes = served.rss_bytes
    block = headers("sat", TOKEN)
    stages = [b"", PREFACE[:10], PREFACE, PREFACE + EMPTY_SETTINGS, PREFACE + EMPTY_SETTINGS + SETTINGS_ACK[:5]]
    stages += [PREFACE + EMPTY_SETTINGS + frame(HEADERS, 0, 1, block), b"\x16\x03\x01\x02\0"]
    with Crowd(plain) as crowd:
        for number in range(10):
            stage = stages[number % len(stages)]
            crowd.join(HALF_OPEN // 10, stage, address=tls if stage.startswith(b"\x16") else plain)
        while served.scrape()["bentpipe_connections_accepted_total", ""] < HALF_OPEN + 11:
            for _ in range(10):
                crowd.turn(0.02)
        beside = [grpcio_call(plain[1], "sat")[1] for _ in range(10)]
        samples, bytes_each = served.scrape(), (served.rss_bytes - before_bytes) / HALF_OPEN
        open_now = samples["bentpipe_connections", ""]
        print(
            f"\n{open_now:.0f} half-open: {bytes_each / 1024:.1f} KiB each; a new client's call takes "
            f"{statistics.median(beside) * 1000:.0f} ms ({max(beside) * 1000:.0f} at most), without them "
            f"{statistics.median(alone) * 1000:.0f} ms ({max(alone) * 1000:.0f}); {turns(samples)}"
        )
        assert crowd.until(ended, PATIENCE_S) == HALF_OPEN
    samples = served.scrape()
    assert samples["bentpipe_connections_ended_total", "deadline"] == HALF_OPEN
    assert samples["bentpipe_connections_ended_total", "spliced"] == 21
    assert samples["bentpipe_held_bytes", ""] == 0
    print(turns(samples))
