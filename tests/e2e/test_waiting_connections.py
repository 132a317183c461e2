"""Connections without a request, as the Earthly CLI opens one beside its calls: how long they stay, and what they cost."""

import contextlib
import hashlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trustme

from beds.hosts.form import serve_file
from beds.http2 import EMPTY_SETTINGS, texts
from beds.quoted import without_id
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.testbed.satellite import SERVICE
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto.frames import PREFACE, FrameType, frame

GREETING_S = 0.5
AGE_S = 4.0
WAIT_S = 3 * GREETING_S
DEADLINE_S = 60.0
LIST = "/api.public.compute.Compute/ListSatellites"
STRANGERS = 8


def config_text(*, limits: str = f'stranger_age = "{AGE_S}s"', tls: str = "", api: bool = True) -> str:
    return f"""
[daemon]
drain_deadline = "100ms"
[limits]
greeting_deadline = "{GREETING_S}s"
{limits}
[[listener]]
address = "127.0.0.1:0"
api = {str(api).lower()}
{tls}
[[token]]
name = "ada"
hash = "sha256:{hashlib.sha256(b"ada").hexdigest()}"
grants = ["acme/*"]
[[satellite]]
org = "acme"
name = "builder"
sleep_mode = "stop"
min_awake = 0
[satellite.process]
command = ["{sys.executable}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "{{port}}"]
"""


@contextlib.asynccontextmanager
async def serving(folder: Path, text: str) -> AsyncIterator[Daemon]:
    path = folder / "bentpipe.toml"
    path.write_text(text)
    async with trio.open_nursery() as nursery:
        daemon = await nursery.start(serve_file, path)
        yield daemon
        daemon.drain.set()


class RawClient:
    """A client of HTTP/2 that says what a test tells it to say."""

    def __init__(self, daemon: Daemon, source: str = "127.0.0.1", said: bytes | None = None) -> None:
        port = daemon.addresses[0][1]
        self._sock = socket.create_connection(("127.0.0.1", port), DEADLINE_S, source_address=(source, 0))
        self._sock.settimeout(0.0)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.events: list[h2.events.Event] = []
        self.closed = False
        self._speaks = said is None
        """Whether it goes on to speak HTTP/2."""
        if said is None:
            self.h2.initiate_connection()
            said = self.h2.data_to_send()
        self.say(said)

    def say(self, data: bytes | None = None) -> None:
        with contextlib.suppress(OSError):
            self._sock.sendall(self.h2.data_to_send() if data is None else data)

    async def hear(self, kind: type[h2.events.Event]) -> h2.events.Event:
        with trio.fail_after(DEADLINE_S):
            while not (found := [event for event in self.events if isinstance(event, kind)]):
                assert not self.closed, self.events
                await self.read()
        return found[0]

    async def read(self) -> None:
        await trio.lowlevel.wait_readable(self._sock)
        try:
            data = self._sock.recv(65536)
        except OSError:
            data = b""
        self.closed = not data
        if data and self._speaks:
            self.events += self.h2.receive_data(data)
            self.say()

    async def read_to_end(self) -> None:
        with trio.fail_after(DEADLINE_S):
            while not self.closed:
                await self.read()

    async def ping(self) -> None:
        self.events = [event for event in self.events if not isinstance(event, h2.events.PingAckReceived)]
        self.h2.ping(b"01234567")
        self.say()
        await self.hear(h2.events.PingAckReceived)

    def ask(self, path: str, token: str = "ada", *fields: tuple[str, str]) -> None:
        message = pb.ListSatellitesRequest(org_id="acme").SerializeToString()
        headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "edge")]
        headers += [
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", f"Bearer {token}"),
            *fields,
        ]
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, headers)
        self.h2.send_data(stream, b"\0" + len(message).to_bytes(4) + message, end_stream=True)
        self.say()

    def close(self) -> None:
        self._sock.close()


@contextlib.contextmanager
def clients() -> Iterator[list[RawClient]]:
    made: list[RawClient] = []
    try:
        yield made
    finally:
        for client in made:
            client.close()


async def all_over(daemon: Daemon) -> None:
    with trio.fail_after(DEADLINE_S):
        while daemon.quotas.total or not daemon.counters.ended:
            await trio.sleep(0.01)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with serving(tmp_path, config_text()) as made:
        yield made


async def test_it_stays_is_answered_and_asks_in_the_end(daemon: Daemon) -> None:
    with contextlib.closing(RawClient(daemon)) as client:
        began = time.monotonic()
        while time.monotonic() - began < WAIT_S:
            await client.ping()
            await trio.sleep(0.1)
        assert (daemon.quotas.strangers, daemon.quotas.waiting) == (1, 1)
        client.ask(LIST)
        trailers = await client.hear(h2.events.TrailersReceived)
        assert isinstance(trailers, h2.events.TrailersReceived)
        assert texts(trailers.headers or [])["grpc-status"] == "0"
        assert (daemon.quotas.admitted, daemon.quotas.waiting, daemon.quotas.strangers) == (1, 0, 0)
        # It is on its principal's account now: it outlives `stranger_age`.
        await trio.sleep(AGE_S * 1.3)
        await client.ping()


async def test_a_refused_request_makes_it_a_stranger_like_others(daemon: Daemon) -> None:
    with contextlib.closing(RawClient(daemon)) as client:
        await trio.sleep(WAIT_S)
        await client.ping()
        client.ask(LIST, "wrong")
        answer = await client.hear(h2.events.ResponseReceived)
        assert isinstance(answer, h2.events.ResponseReceived)
        assert texts(answer.headers or [])["grpc-status"] == "16"
        assert (daemon.quotas.strangers, daemon.quotas.waiting) == (1, 0)


async def test_a_request_for_a_satellite_goes_to_another_connection_and_nothing_is_lost(daemon: Daemon) -> None:
    """By a real client, which does that by itself: C-core has connected, and asks long after that."""
    port = daemon.addresses[0][1]
    metadata = (("satellite_name", "builder"), ("satellite_org", "acme"), ("satellite_token", "ada"))
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        await trio.to_thread.run_sync(lambda: grpc.channel_ready_future(channel).result(DEADLINE_S))
        await trio.sleep(WAIT_S)
        assert (daemon.counters.accepted, daemon.quotas.waiting) == (1, 1)
        message = bytes(range(256)) * 400
        call = channel.unary_unary(f"/{SERVICE}/Echo")
        echo = await trio.to_thread.run_sync(lambda: call(message, metadata=metadata, timeout=DEADLINE_S))
        assert echo == message
        assert (daemon.counters.accepted, daemon.handoff.live, daemon.quotas.waiting) == (2, 1, 0)


async def test_its_goaway_says_that_no_request_was_looked_at(daemon: Daemon) -> None:
    for path in (f"/{SERVICE}/Echo", "/grpc.health.v1.Health/Check"):
        with contextlib.closing(RawClient(daemon)) as client:
            await trio.sleep(WAIT_S)
            client.ask(
                path, "ada", ("satellite_name", "builder"), ("satellite_org", "acme"), ("satellite_token", "ada")
            )
            said = await client.hear(h2.events.ConnectionTerminated)
            assert isinstance(said, h2.events.ConnectionTerminated)
            assert (said.error_code, said.last_stream_id) == (0, 0)
            assert b"connect again" in (said.additional_data or b"")
            assert not [event for event in client.events if isinstance(event, h2.events.ResponseReceived)]
            await client.read_to_end()
    assert daemon.fleet.statistics().wakes == 0


async def test_it_ends_in_good_order_with_strangers_age(daemon: Daemon) -> None:
    with contextlib.closing(RawClient(daemon)) as client:
        began = time.monotonic()
        said = await client.hear(h2.events.ConnectionTerminated)
        assert time.monotonic() - began > AGE_S * 0.8
        assert isinstance(said, h2.events.ConnectionTerminated)
        assert said.error_code == 0
        await client.read_to_end()
    await all_over(daemon)
    assert daemon.quotas.waiting == 0
    assert daemon.counters.ended[Outcome.PROBE] == 1


HALF_A_FRAME = frame(FrameType.HEADERS, 0, 1, b"\x83")[:-1]


@pytest.mark.parametrize(
    "said",
    [b"", PREFACE[:10], PREFACE, PREFACE + EMPTY_SETTINGS[:-1], PREFACE + EMPTY_SETTINGS + HALF_A_FRAME],
    ids=["nothing", "half a preface", "a preface", "half of SETTINGS", "half a request"],
)
async def test_what_is_not_a_whole_opening_ends_by_the_greetings_deadline(daemon: Daemon, said: bytes) -> None:
    with contextlib.closing(RawClient(daemon, said=said)) as client:
        await client.read_to_end()
    await all_over(daemon)
    assert daemon.counters.ended[Outcome.DEADLINE] == 1
    assert daemon.quotas.waiting == 0


async def test_without_the_api_nothing_changes(tmp_path: Path) -> None:
    async with serving(tmp_path, config_text(api=False)) as daemon:
        with contextlib.closing(RawClient(daemon)) as client:
            said = await client.hear(h2.events.ConnectionTerminated)
            assert isinstance(said, h2.events.ConnectionTerminated)
            assert without_id((said.additional_data or b"").decode()) == "no complete request before greeting_deadline"
        await all_over(daemon)
        assert daemon.counters.ended[Outcome.DEADLINE] == 1


async def test_a_flood_of_pings_is_slowed_down_and_is_nobody_elses_harm(daemon: Daemon) -> None:
    with clients() as made:
        flood = RawClient(daemon)
        made.append(flood)
        await trio.sleep(WAIT_S)
        for _ in range(20_000):
            flood.h2.ping(b"01234567")
        flood._sock.settimeout(0.5)
        flood.say()
        other = RawClient(daemon)
        made.append(other)
        began = time.monotonic()
        other.ask(LIST)
        await other.hear(h2.events.TrailersReceived)
        assert time.monotonic() - began < 10.0


async def test_if_places_are_scarce_it_is_the_first_to_go(tmp_path: Path) -> None:
    limits = f'max_strangers = {STRANGERS}\nmax_connections = 40\nstranger_age = "60s"'
    async with serving(tmp_path, config_text(limits=limits)) as daemon:
        with clients() as made:
            # From many addresses, so that no prefix is crowded, as an attacker has them.
            waiting = [RawClient(daemon, f"127.0.1.{number}") for number in range(1, STRANGERS)]
            made += waiting
            await trio.sleep(WAIT_S)
            assert daemon.quotas.waiting == STRANGERS - 1
            # Two strangers of one address, so that it is the most crowded one: they begin their requests.
            begun = [RawClient(daemon, "127.0.0.9", said=PREFACE + EMPTY_SETTINGS) for _ in range(2)]
            made += begun
            with trio.fail_after(DEADLINE_S):
                while daemon.counters.accepted < STRANGERS + 1:
                    await trio.sleep(0.01)
            assert (daemon.quotas.strangers, daemon.quotas.waiting) == (STRANGERS, STRANGERS - 2)
            assert not any(client.closed for client in begun)
            told: list[bytes] = []

            async def hear(client: RawClient) -> None:
                said = await client.hear(h2.events.ConnectionTerminated)
                assert isinstance(said, h2.events.ConnectionTerminated)
                told.append(said.additional_data or b"")

            async with trio.open_nursery() as nursery:
                for client in waiting:
                    nursery.start_soon(hear, client)
                with trio.fail_after(DEADLINE_S):
                    while not told:
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
            assert [b"had to make room" in words for words in told] == [True]
            # However many come, each with a token gets in, and the daemon holds no more than its limits say.
            for number in range(3 * STRANGERS):
                made.append(RawClient(daemon, f"127.0.2.{number + 1}"))
            asking = RawClient(daemon, "127.0.3.1")
            made.append(asking)
            asking.ask(LIST)
            await asking.hear(h2.events.TrailersReceived)
            assert daemon.quotas.strangers <= STRANGERS
            assert daemon.quotas.total <= 40


async def test_a_known_certificate_keeps_it_for_longer(tmp_path: Path) -> None:
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("ada@example.com")
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    (tmp_path / "key.pem").write_bytes(server.private_key_pem.bytes())
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = (
        f'[listener.tls]\ncertificate = "{tmp_path / "cert.pem"}"\nkey = "{tmp_path / "key.pem"}"\n'
        f'client_ca = "{tmp_path / "ca.pem"}"\n'
        '[[certificate]]\nname = "ada-laptop"\nsan = "EMAIL:ada@example.com"\ngrants = ["acme/*"]\n'
    )
    async with serving(tmp_path, config_text(limits='stranger_age = "2s"', tls=tls)) as daemon:
        credentials = grpc.ssl_channel_credentials(
            authority.cert_pem.bytes(),
            client.private_key_pem.bytes(),
            b"".join(blob.bytes() for blob in client.cert_chain_pems),
        )
        with grpc.secure_channel(f"127.0.0.1:{daemon.addresses[0][1]}", credentials) as channel:
            await trio.to_thread.run_sync(lambda: grpc.channel_ready_future(channel).result(DEADLINE_S))
            await trio.sleep(WAIT_S + 3.0)
            assert (daemon.quotas.admitted, daemon.quotas.strangers) == (1, 0)
            call = channel.unary_unary(LIST, lambda message: message, pb.ListSatellitesResponse.FromString)
            request = pb.ListSatellitesRequest(org_id="acme").SerializeToString()
            answer = await trio.to_thread.run_sync(lambda: call(request, timeout=DEADLINE_S))
            assert [each.name for each in answer.instances] == ["builder"]
            assert daemon.counters.accepted == 1
