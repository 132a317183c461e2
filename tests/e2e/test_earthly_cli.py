"""The Earthly CLI's recorded calls, replayed against a daemon whose one TLS port has both the API and the satellites."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio

from beds.hosts.api_daemon import ApiToken, write_api_config
from beds.hosts.form import serve_file
from beds.peers.clients import GrpcioClient
from beds.peers.earthly_cli import RECORDED, Answer, EarthlyCli, Json
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.service.serve import Daemon
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.logstream_pb2 import StreamLogRequest, StreamLogResponse

TOKEN, USE_TOKEN, OTHER_TOKEN = "bp_manager", "bp_user", "bp_foreign"
MAX_HELD = 2
"""Callers that may wait for one satellite."""
AT_ONCE_S = 5.0
"""On a busy machine. Had the CLI to try again, its user would read our words after 31 s or more."""
SLEEP, STARTING, OPERATIONAL, STOPPING = (
    getattr(pb, f"SATELLITE_STATUS_{name}") for name in ("SLEEP", "STARTING", "OPERATIONAL", "STOPPING")
)
COMPUTE = "/api.public.compute.Compute/"


class Bed:
    """A daemon with the satellites acme/builder, acme/vanilla, acme/broken and acme/slow, which all sleep."""

    def __init__(self, daemon: Daemon, ca_pem: bytes) -> None:
        self.daemon, self.ca_pem = daemon, ca_pem

    async def replay(self, command: str, check: Callable[[EarthlyCli, list[Json]], None], token: str = TOKEN) -> None:
        """Run `check` with the CLI and the command's calls, in a thread."""

        def run() -> None:
            with EarthlyCli(self.daemon.addresses[0], self.ca_pem, token) as cli:
                check(cli, RECORDED[command])

        with trio.fail_after(60):
            await trio.to_thread.run_sync(run)

    def state(self, name: str = "builder") -> SatelliteState:
        return self.daemon.fleet.get(SatelliteKey("acme", name)).state

    def satellite_client(self, jwt: str) -> GrpcioClient:
        """BuildKit's client: the metadata in the CLI's order."""
        metadata = (("satellite_name", "builder"), ("satellite_org", "acme"), ("satellite_token", jwt))
        return GrpcioClient(self.daemon.addresses[0][1], self.ca_pem, metadata)


@pytest.fixture
async def bed(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Bed]:
    tokens = {
        "anna": ApiToken(TOKEN, scope="manage"),
        "ben": ApiToken(USE_TOKEN),
        "eve": ApiToken(OTHER_TOKEN, ("other/*",)),
    }
    satellites = {
        "acme/builder": ("--boot", "0.3"),
        "acme/vanilla": (),
        "acme/broken": ("--fail",),
        "acme/slow": ("--boot", "600"),
        "other/theirs": (),
    }
    sections = f"[limits]\nmax_held_per_satellite = {MAX_HELD}\n"
    config, ca = write_api_config(tmp_path, tokens, satellites, sections=sections)
    daemon = await nursery.start(serve_file, config)
    yield Bed(daemon, ca.read_bytes())
    daemon.drain.set()
    with trio.fail_after(30):
        while nursery.child_tasks:
            await trio.sleep(0.01)


def log_in(cli: EarthlyCli, call: Json) -> None:
    status, answer = cli.http(call)
    assert status == 200
    expiry = time.mktime(time.strptime(str(answer["expiry"]), "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert expiry > time.time() + 1_800, "it is fetched before a wake that may take 20 minutes"
    assert cli.jwt
    assert cli.jwt.isascii()
    assert " " not in cli.jwt


def orgs(cli: EarthlyCli, call: Json) -> None:
    status, answer = cli.http(call)
    assert status == 200
    assert answer["details"] == [{"name": "acme", "id": "acme", "admin": True, "type": "UNSPECIFIED"}]


def listed(cli: EarthlyCli, call: Json) -> None:
    answer = cli.grpc(call, pb.ListSatellitesRequest)
    assert answer.status == GrpcStatus.OK
    [message] = answer.messages
    instances = pb.ListSatellitesResponse.FromString(message).instances
    assert [(each.name, each.platform, each.size) for each in instances] == [
        (name, "linux/arm64", "process") for name in ("broken", "builder", "slow", "vanilla")
    ]
    assert all(each.status for each in instances)
    assert not any(each.hidden for each in instances)


def got(cli: EarthlyCli, call: Json) -> pb.GetSatelliteResponse:
    answer = cli.grpc(call, pb.GetSatelliteRequest)
    assert answer.status == GrpcStatus.OK
    [message] = answer.messages
    found = pb.GetSatelliteResponse.FromString(message)
    assert found.is_managed
    assert found.satellite_address == f"localhost:{cli.address[1]}", "where BuildKit's client connects: HOST:PORT"
    assert not found.HasField("certificate"), "it trusts SSL_CERT_FILE"
    assert (found.id, found.platform, found.size) == ("acme/builder", "linux/arm64", "process")
    assert (found.maintenance_window_start, found.maintenance_window_end) == ("", ""), "a start without an end is fatal"
    assert found.HasField("last_used") is (found.status == OPERATIONAL), "it was not used before its first wake"
    return found


def statuses(answer: Answer) -> list[int]:
    """Without repetitions. The three kinds of answer have the status in the same field."""
    found = [pb.WakeSatelliteResponse.FromString(message).status for message in answer.messages]
    return [status for at, status in enumerate(found) if found[at - 1 : at] != [status]]


def begin(cli: EarthlyCli, calls: list[Json]) -> list[Json]:
    """Every command begins so. Returns the rest."""
    log_in(cli, calls[0])
    orgs(cli, calls[1])
    cli.api.ping()
    return calls[2:]


@pytest.mark.parametrize(
    "command", ["org ls", "org select acme", "sat ls --json", "sat select vanilla", "sat rm --force new1"]
)
async def test_commands_that_look(bed: Bed, command: str) -> None:
    def check(cli: EarthlyCli, calls: list[Json]) -> None:
        for call in begin(cli, calls):
            listed(cli, call)

    await bed.replay(command, check)
    assert bed.state() is SatelliteState.SLEEP


async def test_account_login_and_tokens(bed: Bed) -> None:
    def login(cli: EarthlyCli, calls: list[Json]) -> None:
        log_in(cli, calls[0])
        status, answer = cli.http(calls[1])
        assert status == 200
        assert str(answer["email"]).count("@") == 1
        assert answer["writeAccess"] is True

    def tokens(cli: EarthlyCli, calls: list[Json]) -> None:
        log_in(cli, calls[0])
        status, answer = cli.http(calls[1])
        assert status == 200
        assert answer == {"tokenDetails": [{"name": "anna", "write": True, "indefinite": True}]}

    await bed.replay("account login --token TOKEN", login)
    await bed.replay("account list-tokens", tokens)


async def test_inspect(bed: Bed) -> None:
    def check(cli: EarthlyCli, calls: list[Json]) -> None:
        calls = begin(cli, calls)
        listed(cli, calls[0])
        assert got(cli, calls[1]).status == SLEEP
        log_in(cli, calls[2])

    await bed.replay("sat inspect builder", check)


async def test_wake_and_sleep(bed: Bed) -> None:
    def wake(cli: EarthlyCli, calls: list[Json]) -> None:
        calls = begin(cli, calls)
        listed(cli, calls[0])
        got(cli, calls[1])
        answer = cli.grpc(calls[2], pb.WakeSatelliteRequest)
        assert (statuses(answer), answer.status) == ([SLEEP, STARTING, OPERATIONAL], GrpcStatus.OK)
        assert got(cli, calls[1]).status == OPERATIONAL
        again = cli.grpc(calls[2], pb.WakeSatelliteRequest)
        assert (statuses(again), again.status) == ([OPERATIONAL], GrpcStatus.OK)

    def sleep(cli: EarthlyCli, calls: list[Json]) -> None:
        calls = begin(cli, calls)
        listed(cli, calls[0])
        answer = cli.grpc(calls[1], pb.SleepSatelliteRequest)
        assert answer.status == GrpcStatus.OK, answer.words
        assert statuses(answer) == [OPERATIONAL, STOPPING, SLEEP]
        again = cli.grpc(calls[1], pb.SleepSatelliteRequest)
        assert (statuses(again), again.status) == ([SLEEP], GrpcStatus.OK)

    await bed.replay("sat wake builder", wake)
    assert bed.state() is SatelliteState.OPERATIONAL
    await bed.replay("sat sleep builder", sleep)
    assert bed.state() is SatelliteState.SLEEP


async def test_a_build_from_login_to_its_last_byte(bed: Bed) -> None:
    def build(cli: EarthlyCli, calls: list[Json]) -> None:
        log_in(cli, calls[0])
        orgs(cli, calls[1])
        assert got(cli, calls[2]).status == SLEEP
        log_in(cli, calls[3])
        jwt = cli.jwt
        cli.api.ping()
        answer = cli.grpc(calls[4], pb.ReserveSatelliteRequest)
        assert (statuses(answer), answer.status) == ([SLEEP, STARTING, OPERATIONAL], GrpcStatus.OK)
        began = time.monotonic()
        # GetBillingPlanRequest has the org's name in the same field.
        billing = cli.grpc({**calls[5], "body": {"org_id": "acme"}}, pb.ListSatellitesRequest)
        assert (billing.status, billing.messages) == (GrpcStatus.UNIMPLEMENTED, [])
        assert time.monotonic() - began < 1
        satellite = bed.daemon.fleet.get(SatelliteKey("acme", "builder"))
        assert satellite.leases == 1, "it is reserved"
        for _ in range(2):  # one connection to probe, and one to work
            client = bed.satellite_client(jwt)
            assert client.unary("Echo", b"artifact") == b"artifact"
            client.close()
        status, answer_json = cli.http(calls[6])
        assert status == 200
        assert "email" in answer_json
        status, answer_json = cli.http(
            {**calls[6], "http": "GET /api/v1/secrets/user/std/registry/docker.io/username HTTP/1.1"}
        )
        assert (status, answer_json) == (200, {}), "so that Docker's own credentials are used"
        logs = [*(StreamLogRequest() for _ in range(100)), StreamLogRequest(eof=True)]
        ended = cli.grpc(calls[7], StreamLogRequest, logs)
        assert ended.status == GrpcStatus.OK
        assert [StreamLogResponse.FromString(message).eof_ack for message in ended.messages] == [True]

    await bed.replay("build-sat-builder", build)
    with trio.fail_after(10):
        while bed.daemon.fleet.get(SatelliteKey("acme", "builder")).leases:
            await trio.sleep(0.01)
    assert bed.state() is SatelliteState.OPERATIONAL


@pytest.mark.parametrize(
    "command", ["sat update builder", "sat update --force --size xlarge --drop-cache --version v0.8.14 builder"]
)
async def test_what_the_configuration_alone_can_change_is_refused_at_once(bed: Bed, command: str) -> None:
    def check(cli: EarthlyCli, calls: list[Json]) -> None:
        calls = begin(cli, calls)
        got(cli, calls[0])
        answer = cli.grpc(calls[1], pb.UpdateSatelliteRequest)
        assert answer.status == GrpcStatus.UNIMPLEMENTED
        assert "configuration" in answer.words

    await bed.replay(command, check)


async def test_removing_is_refused_at_once(bed: Bed) -> None:
    def check(cli: EarthlyCli, calls: list[Json]) -> None:
        calls = begin(cli, calls)
        listed(cli, calls[0])
        answer = cli.grpc(calls[1], pb.DeleteSatelliteRequest)
        assert answer.status == GrpcStatus.UNIMPLEMENTED

    await bed.replay("sat rm builder", check)


# -- errors: a status that the CLI retries hides our words for 31 s or more ---------------------------------------------


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < AT_ONCE_S


def about(call: Json, name: str) -> Json:
    """The call, about another satellite."""
    return {**call, "body": {"org_id": "acme", "name": name}}


async def test_a_wake_that_fails_is_told_at_once_and_not_retried(bed: Bed) -> None:
    """By Reserve and Wake, for the first caller and for one that finds it FAILED. FAILED itself is never sent."""

    def check(cli: EarthlyCli, calls: list[Json]) -> None:
        log_in(cli, calls[0])
        wake = about(RECORDED["sat wake builder"][-1], "broken")
        for call, kind in ((about(calls[4], "broken"), pb.ReserveSatelliteRequest), (wake, pb.WakeSatelliteRequest)):
            for _ in range(2):
                with at_once():
                    answer = cli.grpc(call, kind)
                assert answer.status == GrpcStatus.ABORTED
                assert answer.words
                assert set(statuses(answer)) <= {SLEEP, STARTING}

    await bed.replay("build-sat-builder", check)


async def test_what_the_caller_may_not_do_is_told_at_once(bed: Bed) -> None:
    def check(cli: EarthlyCli, calls: list[Json]) -> None:
        log_in(cli, calls[0])
        for command, kind in (
            ("sat sleep builder", pb.SleepSatelliteRequest),
            ("sat update builder", pb.UpdateSatelliteRequest),
            ("sat rm builder", pb.DeleteSatelliteRequest),
        ):
            with at_once():
                answer = cli.grpc(RECORDED[command][-1], kind)
            assert (answer.status, answer.messages) == (GrpcStatus.PERMISSION_DENIED, []), command
            assert "manage" in answer.words
        assert got(cli, calls[2]).status == SLEEP

    await bed.replay("build-sat-builder", check, token=USE_TOKEN)


async def test_a_satellite_that_is_busy_waking_or_in_use_is_told_at_once(bed: Bed) -> None:
    """A limit that is reached, and a sleep that is refused: ABORTED, since the CLI repeats the usual statuses of both."""

    def check(cli: EarthlyCli, calls: list[Json]) -> None:
        log_in(cli, calls[0])
        waiting = [cli.begin(about(calls[4], "slow"), pb.ReserveSatelliteRequest) for _ in range(MAX_HELD)]
        while bed.daemon.fleet.statistics().waiting < MAX_HELD:
            time.sleep(0.01)
        for call, kind in ((calls[4], pb.ReserveSatelliteRequest), (wake, pb.WakeSatelliteRequest)):
            with at_once():
                answer = cli.grpc(about(call, "slow"), kind)
            assert answer.status == GrpcStatus.ABORTED
            assert "limits.max_held_per_satellite" in answer.words
        with at_once():
            answer = cli.grpc(about(sleep, "slow"), pb.SleepSatelliteRequest)
        assert answer.status == GrpcStatus.ABORTED
        assert "starting" in answer.words
        assert cli.grpc(calls[4], pb.ReserveSatelliteRequest).status == GrpcStatus.OK
        with at_once():
            answer = cli.grpc(sleep, pb.SleepSatelliteRequest)
        assert answer.status == GrpcStatus.ABORTED, "it is reserved"
        # Those who wait are told of a drain, and go to another host.
        trio.from_thread.run_sync(bed.daemon.fleet.drain)
        with at_once():
            for wire, stream in waiting:
                ended = wire.finish(stream)
                assert ended.status == GrpcStatus.UNAVAILABLE
                assert set(statuses(ended)) <= {SLEEP, STARTING}

    wake, sleep = RECORDED["sat wake builder"][-1], RECORDED["sat sleep builder"][-1]
    await bed.replay("build-sat-builder", check)


async def test_a_token_that_is_bad_is_fatal_at_once(bed: Bed) -> None:
    def check(cli: EarthlyCli, calls: list[Json]) -> None:
        began = time.monotonic()
        status, answer = cli.http(calls[0])
        assert status == 401
        assert answer["message"]
        assert time.monotonic() - began < 1
        cli.jwt = "nonsense"
        for call, kind in ((calls[2], pb.GetSatelliteRequest), (calls[4], pb.ReserveSatelliteRequest)):
            assert cli.grpc(call, kind).status == GrpcStatus.UNAUTHENTICATED, "the CLI logs in again, once"
        assert cli.http(calls[1])[0] == 401

    await bed.replay("build-sat-builder", check, token="bp_wrong")


async def test_somebody_of_another_org_learns_nothing(bed: Bed) -> None:
    def check(cli: EarthlyCli, calls: list[Json]) -> None:
        log_in(cli, calls[0])
        assert cli.http(calls[1])[1] == {
            "details": [{"name": "other", "id": "other", "admin": False, "type": "UNSPECIFIED"}]
        }
        answers = []
        for name in ("builder", "nothing"):
            for call, kind in ((calls[2], pb.GetSatelliteRequest), (calls[4], pb.ReserveSatelliteRequest)):
                answers.append(cli.grpc({**call, "body": {"org_id": "acme", "name": name}}, kind))
        assert {(each.status, each.words, tuple(each.messages)) for each in answers} == {
            (GrpcStatus.NOT_FOUND, answers[0].words, ())
        }

    await bed.replay("build-sat-builder", check, token=OTHER_TOKEN)
    assert bed.state() is SatelliteState.SLEEP


async def test_every_other_path_is_a_quick_404(bed: Bed) -> None:
    def check(cli: EarthlyCli, calls: list[Json]) -> None:
        for path in ("/api/v0/secrets/x", "/", "/api/v0/account/login/x", "/api/v1/projects"):
            began = time.monotonic()
            status, answer = cli.http({**calls[0], "http": f"GET {path} HTTP/1.1"})
            assert (status, answer) == (404, {"message": "not found"})
            assert time.monotonic() - began < 1

    await bed.replay("build-sat-builder", check)


async def test_a_drain_is_retried_elsewhere(bed: Bed) -> None:
    def check(cli: EarthlyCli, calls: list[Json]) -> None:
        log_in(cli, calls[0])
        trio.from_thread.run_sync(bed.daemon.fleet.drain)
        assert cli.grpc(calls[4], pb.ReserveSatelliteRequest).status == GrpcStatus.UNAVAILABLE

    await bed.replay("build-sat-builder", check)
