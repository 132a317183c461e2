"""The Compute service over a fleet whose machines are in memory, by a clock that jumps: states, words, rights, leases."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import trio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from trio.testing import MockClock

from beds.hosts.api_host import Person
from beds.machines.memory_provider import FakeMachine, MemoryProvider, OnStart
from bentpipe.config.model import ProcessSection, SatelliteSection
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.api import reservations as reservations_module
from bentpipe.daemon.api.call import RETRIED, Call, Method
from bentpipe.daemon.api.compute import SERVICE_PATH, Compute, Specs
from bentpipe.daemon.api.reservations import Reservations
from bentpipe.daemon.api.statuses import StateBoard
from bentpipe.daemon.errors import BentpipeError, ProviderPermission
from bentpipe.daemon.fleet import satellite as satellite_module
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import Address, MachineState, SatelliteKey, SatelliteState, Transition
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.messages import PREFIX_BYTES, encode_message

NAMES = ("a", "b", "other")
BOOT_S, STOP_S = 25.0, 28.0
USER = Person("user", {("acme", "a"): frozenset({Scope.USE}), ("acme", "b"): frozenset({Scope.USE})})
MANAGER = Person("manager", {("acme", "*"): frozenset({Scope.MANAGE})}, writes=True)
STRANGER = Person("stranger", {("else", "*"): frozenset({Scope.USE, Scope.MANAGE})})

SLEEP, STARTING, OPERATIONAL, STOPPING = (
    getattr(pb, f"SATELLITE_STATUS_{name}") for name in ("SLEEP", "STARTING", "OPERATIONAL", "STOPPING")
)


@dataclasses.dataclass
class Wire:
    """The connection of one call: what was sent, and when."""

    sent: list[tuple[float, bytes]] = dataclasses.field(default_factory=list)

    def send(self, stream_id: int, message: bytes) -> None:
        self.sent.append((trio.current_time(), message[PREFIX_BYTES:]))

    def acknowledge(self, stream_id: int, window_bytes: int) -> None:
        pass

    async def wait_sent(self, stream_id: int, most_bytes: int) -> None:
        await trio.lowlevel.checkpoint()


@dataclasses.dataclass
class Answer:
    """What a call came to."""

    sent: list[tuple[float, bytes]]
    began: float
    status: GrpcStatus = GrpcStatus.OK
    words: str = ""
    ended: float = 0.0

    @property
    def statuses(self) -> list[int]:
        return [pb.ReserveSatelliteResponse.FromString(message).status for _, message in self.sent]

    @property
    def took_s(self) -> float:
        return self.ended - self.began


class Bed:
    def __init__(self, nursery: trio.Nursery, habits: dict[str, object]) -> None:
        self.nursery = nursery
        self.provider = MemoryProvider()
        for name in NAMES:
            self.provider.add(f"acme.{name}", pending_s=BOOT_S, stopping_s=STOP_S, **habits)
        self.board, self.reservations = StateBoard(), Reservations()
        self.told: list[Transition] = []
        process = ProcessSection.model_validate({"command": ["sleep", "{port}"]})
        times = {"sleep_after": 60, "min_awake": 30, "hold_limit": 1200, "wake_deadline": 600}
        sections = [
            SatelliteSection.model_validate({"org": "acme", "name": name, "process": process, **times})
            for name in NAMES
        ]
        self.fleet = Fleet(sections, FleetContext(self.provider, self.observe), max_held=100)
        specs = {satellite.key: Specs("linux/arm64", "c7g.large") for satellite in self.fleet.satellites}
        self.compute = Compute(self.fleet, specs, self.board, self.reservations, None)

    def observe(self, transition: Transition) -> None:
        self.told.append(transition)
        self.board.observe(transition)

    async def run(self) -> None:
        await self.nursery.start(self.fleet.run)
        self.nursery.start_soon(self.reservations.run_reservations)

    def satellite(self, name: str = "a") -> Satellite:
        return self.fleet.get(SatelliteKey("acme", name))

    def machine(self, name: str = "a") -> FakeMachine:
        return next(each for each in self.provider.machines.values() if each.machine_id == f"acme.{name}")

    async def call(
        self,
        method: str,
        request: Message,
        caller: Person = MANAGER,
        *,
        timeout_s: float = math.inf,
        authority: str = "edge:8372",
    ) -> Answer:
        wire = Wire()
        headers = [(b":path", (SERVICE_PATH + method).encode()), (b":authority", authority.encode())]
        if timeout_s < math.inf:
            headers.append((b"grpc-timeout", b"%dS" % timeout_s))
        call = Call(wire, 1, tuple(headers), caller, trio.current_time())
        call.receive_data(encode_message(request.SerializeToString()), 0)
        call.complete()
        served: Method = self.compute.methods[SERVICE_PATH + method]
        answer = Answer(wire.sent, trio.current_time())
        with call.scope:
            try:
                await served.serve(call)
            except BentpipeError as exc:
                answer.status, answer.words = served.status_of(exc), exc.peer_hint
        answer.ended = trio.current_time()
        return answer

    def start(
        self, method: str, request: Message, caller: Person = MANAGER, *, timeout_s: float = math.inf
    ) -> list[Answer]:
        """Call in the background; the answer appears in the list that is returned."""
        answers: list[Answer] = []

        async def run() -> None:
            answers.append(await self.call(method, request, caller, timeout_s=timeout_s))

        self.nursery.start_soon(run)
        return answers

    async def wake(self, name: str = "a") -> None:
        async with self.satellite(name).lease("nobody"):
            pass


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch) -> None:
    async def listens(address: Address, tell: Callable[[str], None]) -> None:
        await trio.sleep(0.5)

    monkeypatch.setattr(satellite_module, "wait_listening", listens)


@pytest.fixture
def habits() -> dict[str, object]:
    return {}


@pytest.fixture
async def bed(autojump_clock: MockClock, nursery: trio.Nursery, habits: dict[str, object]) -> Bed:
    made = Bed(nursery, habits)
    await made.run()
    return made


def reserve(name: str = "a", update_interval: Duration | None = None) -> pb.ReserveSatelliteRequest:
    return pb.ReserveSatelliteRequest(org_id="acme", name=name, update_interval=update_interval)


def wake(name: str = "a", update_interval: Duration | None = None) -> pb.WakeSatelliteRequest:
    return pb.WakeSatelliteRequest(org_id="acme", name=name, update_interval=update_interval)


def sleep(name: str = "a", update_interval: Duration | None = None) -> pb.SleepSatelliteRequest:
    return pb.SleepSatelliteRequest(org_id="acme", name=name, update_interval=update_interval)


# -- what is -----------------------------------------------------------------------------------------------------------


async def test_every_field_of_a_satellite_that_the_cli_reads(autojump_clock: MockClock, bed: Bed) -> None:
    answer = await bed.call("GetSatellite", pb.GetSatelliteRequest(org_id="acme", name="a"), USER)
    [(_, message)] = answer.sent
    got = pb.GetSatelliteResponse.FromString(message)
    assert (got.id, got.platform, got.size, got.status) == ("acme/a", "linux/arm64", "c7g.large", SLEEP)
    assert got.is_managed
    assert got.satellite_address == "edge:8372"
    assert not got.HasField("certificate")
    assert (got.maintenance_window_start, got.maintenance_window_end) == ("", "")
    await bed.wake()
    [(_, message)] = (await bed.call("GetSatellite", pb.GetSatelliteRequest(org_id="acme", name="a"), USER)).sent
    got = pb.GetSatelliteResponse.FromString(message)
    assert got.status == OPERATIONAL
    assert got.last_used.seconds > 1_700_000_000


@pytest.mark.parametrize(
    ("authority", "address"),
    [("edge:8372", "edge:8372"), ("edge", "edge:443"), ("[::1]:8372", "[::1]:8372"), ("[::1]", "[::1]:443")],
)
async def test_the_address_for_builds_is_where_the_api_was_called(
    autojump_clock: MockClock, bed: Bed, authority: str, address: str
) -> None:
    request = pb.GetSatelliteRequest(org_id="acme", name="a")
    [(_, message)] = (await bed.call("GetSatellite", request, USER, authority=authority)).sent
    assert pb.GetSatelliteResponse.FromString(message).satellite_address == address


async def test_a_list_has_what_the_caller_may_use_by_name(autojump_clock: MockClock, bed: Bed) -> None:
    for caller, names in ((USER, ["a", "b"]), (MANAGER, ["a", "b", "other"]), (STRANGER, [])):
        [(_, message)] = (await bed.call("ListSatellites", pb.ListSatellitesRequest(org_id="acme"), caller)).sent
        assert [each.name for each in pb.ListSatellitesResponse.FromString(message).instances] == names
    [(_, message)] = (await bed.call("ListSatellites", pb.ListSatellitesRequest(org_id="acme"), USER)).sent
    first = pb.ListSatellitesResponse.FromString(message).instances[0]
    assert (first.status, first.platform, first.size) == (SLEEP, "linux/arm64", "c7g.large")


# -- rights ------------------------------------------------------------------------------------------------------------

REQUESTS: dict[str, Callable[[str, str], Message]] = {
    "GetSatellite": lambda org, name: pb.GetSatelliteRequest(org_id=org, name=name),
    "WakeSatellite": lambda org, name: pb.WakeSatelliteRequest(org_id=org, name=name),
    "SleepSatellite": lambda org, name: pb.SleepSatelliteRequest(org_id=org, name=name),
    "ReserveSatellite": lambda org, name: pb.ReserveSatelliteRequest(org_id=org, name=name),
    "UpdateSatellite": lambda org, name: pb.UpdateSatelliteRequest(org_id=org, name=name),
    "DeleteSatellite": lambda org, name: pb.DeleteSatelliteRequest(org_id=org, name=name),
}
NEED_MANAGE = {"SleepSatellite", "UpdateSatellite", "DeleteSatellite"}


@pytest.mark.parametrize("method", REQUESTS)
async def test_no_answer_tells_a_foreign_satellite_from_one_that_does_not_exist(
    autojump_clock: MockClock, bed: Bed, method: str
) -> None:
    make = REQUESTS[method]
    revoked = Person("gone", {("acme", "*"): frozenset({Scope.MANAGE})}, revoked=True)
    foreign = [
        await bed.call(method, make("acme", name), caller)
        for caller, name in ((STRANGER, "a"), (USER, "other"), (revoked, "a"))
    ]
    absent = [
        await bed.call(method, make(org, name), caller)
        for caller, org, name in (
            (USER, "acme", "z"),
            (MANAGER, "acme", "z"),
            (MANAGER, "nowhere", "a"),
            (STRANGER, "else", "a"),
        )
    ]
    answers = {(each.status, each.words, tuple(each.sent)) for each in (*foreign, *absent)}
    assert len(answers) == 1
    assert answers.pop()[0] is GrpcStatus.NOT_FOUND
    assert bed.machine("a").calls == []


@pytest.mark.parametrize("method", REQUESTS)
async def test_what_takes_more_than_use(autojump_clock: MockClock, bed: Bed, method: str) -> None:
    answer = await bed.call(method, REQUESTS[method]("acme", "a"), USER)
    assert (answer.status is GrpcStatus.PERMISSION_DENIED) is (method in NEED_MANAGE)


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize(("org", "name", "field"), [("", "a", "org_id"), ("acme", "", "name"), ("acme", "a\n", "name")])
async def test_names_that_are_missing_or_malformed(
    autojump_clock: MockClock, bed: Bed, method: str, org: str, name: str, field: str
) -> None:
    answer = await bed.call(method, REQUESTS[method](org, name))
    assert answer.status is GrpcStatus.INVALID_ARGUMENT
    assert field in answer.words


async def test_satellites_of_the_configuration_are_not_changed_here(autojump_clock: MockClock, bed: Bed) -> None:
    for method in ("UpdateSatellite", "DeleteSatellite"):
        assert (await bed.call(method, REQUESTS[method]("acme", "a"))).status is GrpcStatus.UNIMPLEMENTED
    launch = pb.LaunchSatelliteRequest(org_id="acme", name="new")
    assert (await bed.call("LaunchSatellite", launch)).status is GrpcStatus.UNIMPLEMENTED
    assert (await bed.call("LaunchSatellite", launch, USER)).status is GrpcStatus.PERMISSION_DENIED


# -- wake and reserve --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "make"), [("WakeSatellite", wake), ("ReserveSatellite", reserve)])
async def test_states_as_they_come_and_again_every_ten_seconds(
    autojump_clock: MockClock, bed: Bed, method: str, make: Callable[[], Message]
) -> None:
    answer = await bed.call(method, make(), USER, timeout_s=1200)
    assert answer.status is GrpcStatus.OK
    assert answer.statuses == [SLEEP, STARTING, STARTING, STARTING, OPERATIONAL]
    times = [at - answer.began for at, _ in answer.sent]
    assert times == pytest.approx([0, 0, 10, 20, 25.5], abs=0.5)
    again = await bed.call(method, make(), USER)
    assert again.statuses == [OPERATIONAL]
    assert again.took_s < 0.1


async def test_the_interval_that_the_caller_asks_for(autojump_clock: MockClock, bed: Bed) -> None:
    answer = await bed.call("WakeSatellite", wake(update_interval=Duration(seconds=5)))
    assert answer.statuses == [SLEEP, *[STARTING] * 6, OPERATIONAL]
    answer = await bed.call("ReserveSatellite", reserve("b", update_interval=Duration(nanos=1)))
    assert len(answer.statuses) < 40, "not more often than once a second"


async def test_a_satellite_that_is_falling_asleep_is_woken_again(autojump_clock: MockClock, bed: Bed) -> None:
    await bed.wake()
    bed.satellite().ask_to_sleep()
    await trio.sleep(5)
    answer = await bed.call("ReserveSatellite", reserve(), USER)
    assert answer.status is GrpcStatus.OK
    shown = [status for at, status in enumerate(answer.statuses) if answer.statuses[at - 1 : at] != [status]]
    assert shown == [STOPPING, SLEEP, STARTING, OPERATIONAL]


async def test_a_hundred_callers_start_one_machine_once(autojump_clock: MockClock, bed: Bed) -> None:
    answers = [bed.start("ReserveSatellite", reserve(), USER) for _ in range(100)]
    await trio.sleep(BOOT_S + 5)
    assert {tuple(answer.statuses) for [answer] in answers} == {(SLEEP, STARTING, STARTING, STARTING, OPERATIONAL)} | {
        tuple(answer.statuses) for [answer] in answers if answer.statuses[0] == STARTING
    }
    assert all(answer.status is GrpcStatus.OK and answer.statuses[-1] == OPERATIONAL for [answer] in answers)
    assert bed.machine().starts == 1


@pytest.mark.parametrize("habits", [{"on_start": OnStart.NO_KEY}, {"on_start": OnStart.DIE}, {"forbidden": True}])
async def test_a_wake_that_fails_ends_with_its_reason_and_never_says_failed(
    autojump_clock: MockClock, bed: Bed
) -> None:
    for method, make in (("WakeSatellite", wake), ("ReserveSatellite", reserve)):
        answer = await bed.call(method, make(), USER, timeout_s=1200)
        assert answer.status is GrpcStatus.ABORTED
        assert answer.status not in RETRIED
        assert answer.words
        assert set(answer.statuses) <= {SLEEP, STARTING}
        assert answer.took_s < BOOT_S + 2, "the caller reads the reason as soon as it is known"


@pytest.mark.parametrize("habits", [{"on_start": OnStart.HANG}])
async def test_a_caller_hears_before_its_own_deadline_that_there_is_no_end_to_wait_for(
    autojump_clock: MockClock, bed: Bed
) -> None:
    answer = await bed.call("WakeSatellite", wake(), USER, timeout_s=300)
    assert answer.status is GrpcStatus.ABORTED
    assert "starting" in answer.words
    assert 295 < answer.took_s < 300
    assert len(answer.statuses) == 31
    assert bed.satellite().waiting == 0


async def test_a_drain_ends_the_streams_with_unavailable(autojump_clock: MockClock, bed: Bed) -> None:
    answers = bed.start("ReserveSatellite", reserve(), USER)
    await trio.sleep(5)
    bed.fleet.drain()
    await trio.sleep(0.1)
    assert answers[0].status is GrpcStatus.UNAVAILABLE


async def test_a_right_that_ends_while_its_owner_waits(autojump_clock: MockClock, bed: Bed) -> None:
    caller = Person("leaver", {("acme", "a"): frozenset({Scope.USE})})
    answers = bed.start("ReserveSatellite", reserve(), caller)
    await trio.sleep(5)
    caller.revoked = True
    await trio.sleep(6)
    assert answers, "at the next repetition of the state"
    await trio.sleep(BOOT_S)
    assert answers[0].status is GrpcStatus.NOT_FOUND
    assert OPERATIONAL not in answers[0].statuses
    assert bed.satellite().leases == 0


# -- reservations ------------------------------------------------------------------------------------------------------


async def test_a_reservation_keeps_the_satellite_awake_for_a_named_time(autojump_clock: MockClock, bed: Bed) -> None:
    await bed.call("ReserveSatellite", reserve(), USER)
    await trio.sleep(reservations_module.RESERVED_S - 1)
    assert (bed.satellite().state, bed.satellite().leases) == (SatelliteState.OPERATIONAL, 1)
    answer = await bed.call("SleepSatellite", sleep())
    assert answer.status is GrpcStatus.ABORTED
    assert "used" in answer.words
    await trio.sleep(2)
    assert bed.satellite().leases == 0
    await trio.sleep(60 + STOP_S + 1)
    assert bed.satellite().state is SatelliteState.SLEEP, "sleep_after begins with its end"


async def test_a_reservation_ends_when_its_build_has_connected_twice(autojump_clock: MockClock, bed: Bed) -> None:
    key = SatelliteKey("acme", "a")
    await bed.call("ReserveSatellite", reserve(), USER)
    bed.reservations.connected(key, "somebody")
    bed.reservations.connected(SatelliteKey("acme", "b"), "user")
    bed.reservations.connected(key, "cert+user")
    assert bed.satellite().leases == 1
    bed.reservations.connected(key, "user")
    assert (bed.satellite().leases, bed.reservations.count) == (0, 0)
    bed.reservations.connected(key, "user")


async def test_two_builds_of_one_principal_share_a_reservation(autojump_clock: MockClock, bed: Bed) -> None:
    key = SatelliteKey("acme", "a")
    for _ in range(2):
        await bed.call("ReserveSatellite", reserve(), USER)
    assert bed.satellite().leases == 1
    for left in (1, 1, 1, 0):
        bed.reservations.connected(key, "user")
        assert bed.satellite().leases == left


async def test_a_wake_reserves_nothing(autojump_clock: MockClock, bed: Bed) -> None:
    await bed.call("WakeSatellite", wake(), USER)
    assert (bed.satellite().leases, bed.reservations.count) == (0, 0)


# -- sleep -------------------------------------------------------------------------------------------------------------


async def test_a_satellite_is_put_to_sleep(autojump_clock: MockClock, bed: Bed) -> None:
    await bed.wake()
    answer = await bed.call("SleepSatellite", sleep(update_interval=Duration(seconds=10)), timeout_s=300)
    assert answer.status is GrpcStatus.OK
    assert answer.statuses == [OPERATIONAL, STOPPING, STOPPING, STOPPING, SLEEP]
    assert bed.machine().state in (MachineState.STOPPED, MachineState.HIBERNATED)
    again = await bed.call("SleepSatellite", sleep())
    assert (again.statuses, again.status) == ([SLEEP], GrpcStatus.OK)
    assert any(transition.cause == "idle, and somebody asked for it" for transition in bed.told)


async def test_a_satellite_is_not_put_to_sleep_under_anybody(autojump_clock: MockClock, bed: Bed) -> None:
    async with bed.satellite().lease("builder"):
        answer = await bed.call("SleepSatellite", sleep())
        assert (answer.status, answer.statuses) == (GrpcStatus.ABORTED, [])
        assert "used" in answer.words
        assert bed.satellite().state is SatelliteState.OPERATIONAL


async def test_a_client_that_comes_calls_the_sleep_off(autojump_clock: MockClock, bed: Bed) -> None:
    await bed.wake()
    answers = bed.start("SleepSatellite", sleep())
    await trio.sleep(3)
    await bed.wake()
    assert [answer.status for answer in answers] in ([GrpcStatus.OK], [GrpcStatus.ABORTED])
    assert bed.satellite().state is SatelliteState.OPERATIONAL


@pytest.mark.parametrize("habits", [{"stop_hangs": True}])
async def test_a_sleep_that_takes_longer_than_its_caller_waits(autojump_clock: MockClock, bed: Bed) -> None:
    await bed.wake()
    answer = await bed.call("SleepSatellite", sleep(), timeout_s=60)
    assert answer.status is GrpcStatus.ABORTED
    assert 55 < answer.took_s < 60


async def test_a_satellite_that_is_starting_or_failed_is_not_put_to_sleep(autojump_clock: MockClock, bed: Bed) -> None:
    bed.start("WakeSatellite", wake())
    await trio.sleep(5)
    answer = await bed.call("SleepSatellite", sleep())
    assert answer.status is GrpcStatus.ABORTED
    assert "starting" in answer.words
    bed.machine("b").errors.append(ProviderPermission("no"))
    await bed.call("WakeSatellite", wake("b"))
    assert (await bed.call("SleepSatellite", sleep("b"))).status is GrpcStatus.ABORTED
