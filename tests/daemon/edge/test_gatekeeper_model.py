"""Gates, tokens and credits under every order of events: a control plane, a data plane, and the link between them.

The control plane's side is the real Gatekeeper, the data plane's side the real tables. Records lie in two queues until the
test delivers them. Either side may die, hang (nothing is delivered), or lose the link, at any moment. What a control plane
has left in the socket may be read long after its death.

What must hold, whatever happens:

- once a gate is shut, nobody comes through it, and all who came have been told of: the satellite may sleep;
- once a table of tokens is confirmed, nobody is admitted by an earlier one;
- clients and places that are lent are never more than the limit;
- a gate is good for no longer than its time after a living control plane has spoken of it last;
- a host counts as a user of the satellite in the fleet's store while a client comes through, and not for ever.
"""

import collections
import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import cast

import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bentpipe.config.accounts import TokenSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Place, Quotas
from bentpipe.daemon.dataplane.admission_tables import AdmissionTables, Admitted
from bentpipe.daemon.edge.announcements import Announcements
from bentpipe.daemon.edge.gate_facts import GateFinder, ListenerOwner
from bentpipe.daemon.edge.gatekeeper import Gatekeeper
from bentpipe.daemon.edge.grant_table import grant_records
from bentpipe.daemon.edge.plane import RemotePlane
from bentpipe.daemon.errors import SleepVetoed
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.planes import snapshots as s
from bentpipe.daemon.planes.records import LINK_ID, Record

KEYS = [SatelliteKey("acme", f"s{number}") for number in range(3)]
TOKENS = ["one", "two"]
LIMIT, PRINCIPALS_LIMIT = 128, 64
"""A sixteenth of all places, and of a principal's, is lent, and nothing once half of them are taken."""
VALID_S = 10
RUNS = int(os.environ.get("BENTPIPE_TEST_GATES", "60"))
"""Of up to 50 events each."""
RARELY = st.integers(0, 11)
"""The rare thing happens at 0: else most runs would be nothing but beginnings."""


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def section_of(token: str) -> TokenSection:
    return TokenSection(name=token, hash="sha256:" + digest_of(token).hex(), grants=("acme/*",))


class Awake:
    """A satellite, as its gate sees it. `may_leave` says whether its gate is shut and no client is known."""

    def __init__(self, key: SatelliteKey, may_leave: Callable[[SatelliteKey], bool]) -> None:
        self.key = key
        self.open_address: Address | None = None
        self.certain = True
        self.is_entered = True
        """Whether other hosts must not stop it."""
        self._may_leave = may_leave

    def is_certain(self) -> bool:
        return self.certain

    def leave_if_unused(self) -> None:
        if self.open_address is None and self._may_leave(self.key):
            self.is_entered = False


class Link:
    """A RemotePlane, as far as the gatekeeper uses it: what it sends lies in a queue."""

    takes_snapshots = True

    def __init__(self, spoke: Callable[[Record], None]) -> None:
        self.number = 1
        self.sent: collections.deque[Record] = collections.deque()
        self.is_cut = False
        self._spoke = spoke

    def send_nowait(self, record: Record) -> None:
        if not self.is_cut:
            self.sent.append(record)
            self._spoke(record)

    def teach(self, tls: SatelliteTls) -> None:
        raise AssertionError("no satellite has TLS here")


@dataclasses.dataclass
class Client:
    """One that the data plane has joined."""

    key: SatelliteKey
    principal: str
    token: str
    told: bool = False
    place: Place | None = None


class AdmissionMachine(RuleBasedStateMachine):
    """The data plane outlives control planes; a new data plane has a new number."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.tables = AdmissionTables()
        self.up: collections.deque[Record] = collections.deque()
        self.on_the_way: list[tuple[Admitted, str]] = []
        self.joined: list[Client] = []
        self.tokens = list(TOKENS)
        self.enabled = True
        self.is_dead = False
        """Whether there is no control plane."""
        self.good_until: dict[SatelliteKey, float] = {}
        self.gates: dict[int, SatelliteKey] = {}
        self.satellites = [Awake(key, self.may_leave) for key in KEYS]
        for satellite in self.satellites:
            satellite.open_address = Address("10.0.0.1", 1)
        self.start_control()
        self.everything_is_read()
        for token in TOKENS:
            self.clients_ask([0], token)
        assert self.on_the_way, "nobody is admitted: then this finds nothing"

    def start_control(self) -> None:
        """A control plane begins, and is seated: it adopts all that is joined."""
        self.quotas = Quotas(
            QuotaLimits(4, 1 << 20, 4, LIMIT, per_principal=PRINCIPALS_LIMIT), lambda: self.now, lambda: len(TOKENS)
        )
        self.admission = Admission([section_of(token) for token in self.tokens])
        finder = GateFinder({}, set(), lambda key, address: ListenerOwner(7))
        self.keeper = Gatekeeper(
            *(finder, self.admission, self.quotas, Announcements()),
            enabled=self.enabled,
            valid_s=VALID_S,
            clock_us=lambda: self.now_us,
        )
        self.generations: dict[int, frozenset[str]] = {}
        self.seat()

    def spoke(self, record: Record) -> None:
        """The control plane says something of gates: from now on they are good for so long."""
        match record:
            case s.GateRecord():
                self.gates[record.id] = SatelliteKey(record.org, record.name)
                self.good_until[self.gates[record.id]] = self.now + VALID_S
            case s.RenewRecord():
                self.good_until.update((self.gates[number], self.now + VALID_S) for number in record.gates)

    def may_leave(self, key: SatelliteKey) -> bool:
        return self.keeper.is_shut(key) and not any(each.told for each in self.joined if each.key == key)

    def seat(self) -> None:
        self.is_dead = False
        self.link = Link(self.spoke)
        self.up.clear()
        self.tables.reset()
        for client in self.joined:
            if client.place is not None:
                client.place.release()
            client.place, client.told = self.quotas.adopt("1.2.3.4", client.principal, client.key), True
        self.keeper.seated(cast(RemotePlane, self.link))
        self.tell_tokens()
        for satellite in self.satellites:
            self.keeper.stepped(satellite)
            satellite.leave_if_unused()

    def tell_tokens(self) -> None:
        """What `run_grants` does, without a pause."""
        records = grant_records(self.admission) if self.enabled else []
        generation = self.keeper.generation
        for record in records:
            self.link.send_nowait(record)
        self.link.send_nowait(s.GrantsRecord(LINK_ID, generation, len(records), 1, 0))
        self.keeper.told(cast(RemotePlane, self.link), generation, records)
        self.generations[generation] = frozenset(self.tokens if self.enabled else ())

    @property
    def now_us(self) -> int:
        return round(self.now * 1e6)

    # -- satellites and tokens -----------------------------------------------------------------------------------------

    @precondition(lambda self: not self.is_dead)
    @rule(number=st.integers(0, 2), awake=st.booleans(), port=st.integers(1, 2))
    def satellite_changes(self, number: int, awake: bool, port: int) -> None:
        satellite = self.satellites[number]
        satellite.open_address = Address("10.0.0.1", port) if awake else None
        satellite.is_entered = satellite.is_entered or awake
        self.keeper.stepped(satellite)
        satellite.leave_if_unused()

    @precondition(lambda self: not self.is_dead)
    @rule(number=st.integers(0, 2), sleeps=st.booleans())
    def satellite_is_to_sleep(self, number: int, sleeps: bool) -> None:
        """It is stopped if its gate can be shut, and if nobody came through. `sleeps`: whether the stop is done then."""
        satellite = self.satellites[number]

        async def try_it() -> None:
            async with self.keeper.kept_shut(satellite.key):
                here = [client for client in self.joined if client.key == satellite.key]
                assert all(client.told for client in here), "it would be stopped under a client"
                if sleeps and not here:
                    satellite.open_address = None

        with contextlib.suppress(SleepVetoed):
            trio.run(try_it, clock=trio.testing.MockClock(autojump_threshold=0))
        self.keeper.stepped(satellite)
        satellite.leave_if_unused()
        if satellite.open_address is not None and satellite.certain and self.enabled:
            self.keeper.look()
            assert satellite.key in self.keeper.open_gates, "its gate does not open again"

    @rule(number=st.integers(0, 2), certain=st.booleans())
    def certainty_changes(self, number: int, certain: bool) -> None:
        self.satellites[number].certain = certain

    @precondition(lambda self: not self.is_dead)
    @rule()
    def gates_are_looked_at(self) -> None:
        self.keeper.look()

    @precondition(lambda self: not self.is_dead)
    @rule(token=st.sampled_from(TOKENS), chance=st.integers(0, 5))
    def token_is_revoked_or_given(self, token: str, chance: int) -> None:
        if chance:
            return
        self.tokens = [each for each in TOKENS if (each in self.tokens) is not (each == token)]
        self.admission.replace_configured([section_of(each) for each in self.tokens], ())
        self.tell_tokens()

    @precondition(lambda self: not self.is_dead)
    @rule(chance=st.integers(0, 3))
    def configuration_is_read_again(self, chance: int) -> None:
        """Places that are lent are recalled while clients are on their way, and gates stay open."""
        if chance:
            return
        self.keeper.follow(enabled=self.enabled)
        self.tell_tokens()

    @precondition(lambda self: not self.is_dead)
    @rule(chance=RARELY)
    def switch_is_turned(self, chance: int) -> None:
        if chance < 3 or not self.enabled:
            self.enabled = not self.enabled
            self.keeper.follow(enabled=self.enabled)
            self.tell_tokens()

    # -- the link ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.link.sent)
    @rule(count=st.integers(1, 4))
    def data_plane_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.link.sent))):
            match self.link.sent.popleft():
                case s.GrantRecord() as record:
                    self.tables.add_token(record)
                case s.GrantsRecord() as record:
                    self.tables.take_table(record)
                    self.up.append(s.GrantedRecord(LINK_ID, record.generation))
                case s.GateRecord() as record:
                    self.tables.open_gate(record)
                case s.RenewRecord() as record:
                    for gate in record.gates:
                        self.tables.renew(gate, record.until_us)
                case s.ShutGateRecord() as record:
                    self.tables.shut_gate(record.id)
                    self.up.append(s.GatedRecord(record.id))
                case s.CreditRecord() as record:
                    used = self.tables.credit(record)
                    self.up.append(s.CreditedRecord(LINK_ID, record.allowed, used, record.principal))
                case other:
                    raise AssertionError(other)

    @precondition(lambda self: self.up and not self.link.is_cut and not self.is_dead)
    @rule(count=st.integers(1, 4))
    def control_plane_reads(self, count: int) -> None:
        plane = cast(RemotePlane, self.link)
        for _ in range(min(count, len(self.up))):
            match self.up.popleft():
                case s.AdmittedRecord() as record:
                    client = next(each for each in self.joined if id(each) == record.id)
                    self.keeper.take_admitted(plane, record, client.key, client.principal)
                    client.place = self.quotas.adopt("1.2.3.4", client.principal, client.key, lent=True)
                    client.told = True
                    self.keeper.top_up(plane, client.principal)
                case s.GatedRecord() | s.GrantedRecord() | s.CreditedRecord() as record:
                    self.keeper.answered(plane, record)
                case other:
                    raise AssertionError(other)

    @rule()
    def everything_is_read(self) -> None:
        while self.link.sent or (self.up and self.is_heard):
            if self.link.sent:
                self.data_plane_reads(count=1)
            if self.up and self.is_heard:
                self.control_plane_reads(count=1)
        if self.is_heard:
            for satellite in self.satellites:
                if satellite.open_address is None and self.may_leave(satellite.key):
                    assert not satellite.is_entered, "the other hosts are not told that nobody uses it here"

    @precondition(lambda self: self.is_heard and not self.enabled and not self.on_the_way)
    @rule()
    def places_come_back(self) -> None:
        self.everything_is_read()
        self.keeper.follow(enabled=False)
        self.tell_tokens()
        self.everything_is_read()
        assert self.keeper.lent(cast(RemotePlane, self.link)) == 0, "places that were recalled are not free"

    @property
    def is_heard(self) -> bool:
        return not self.link.is_cut and not self.is_dead

    @rule(chance=RARELY)
    def link_is_cut(self, chance: int) -> None:
        if not chance:
            self.link.is_cut = True

    @precondition(lambda self: self.link.is_cut and not self.is_dead)
    @rule()
    def link_is_there_again(self) -> None:
        self.seat()
        self.everything_is_read()

    @rule(chance=RARELY)
    def control_plane_dies(self, chance: int) -> None:
        if not chance:
            self.start_control()
        elif chance == 1:
            self.start_control()
            self.everything_is_read()
        elif chance == 2:
            self.is_dead = True  # what it has said lies in the socket

    @precondition(lambda self: self.is_dead)
    @rule()
    def control_plane_begins(self) -> None:
        self.start_control()
        self.everything_is_read()

    @rule(chance=RARELY)
    def data_plane_dies(self, chance: int) -> None:
        if chance:
            return
        for client in self.joined:
            if client.place is not None:
                client.place.release()
        self.joined, self.on_the_way, self.tables = [], [], AdmissionTables()
        self.keeper.forget(cast(RemotePlane, self.link))
        if self.is_dead:
            self.start_control()
        else:
            self.seat()
        self.everything_is_read()

    # -- clients of the data plane -------------------------------------------------------------------------------------

    @rule(numbers=st.lists(st.integers(0, 2), min_size=1, max_size=6), token=st.sampled_from(TOKENS))
    def clients_ask(self, numbers: list[int], token: str) -> None:
        for number in numbers:
            found = self.tables.admit(digest_of(token), KEYS[number], self.now_us, 0)
            if isinstance(found, Admitted):
                self.on_the_way.append((found, token))

    @rule(numbers=st.lists(st.integers(0, 2), min_size=1, max_size=6), token=st.sampled_from(TOKENS))
    def clients_come(self, numbers: list[int], token: str) -> None:
        self.clients_ask(numbers, token)
        while self.on_the_way:
            self.client_is_joined_or_offered(0)

    @precondition(lambda self: self.on_the_way)
    @rule(which=st.integers(0, 100), count=st.integers(1, 6))
    def clients_are_joined_or_offered(self, which: int, count: int) -> None:
        for _ in range(min(count, len(self.on_the_way))):
            self.client_is_joined_or_offered(which)

    def client_is_joined_or_offered(self, which: int) -> None:
        admitted, token = self.on_the_way.pop(which % len(self.on_the_way))
        if not self.tables.still_holds(admitted, self.now_us, 0):
            self.tables.give_back(admitted)
            return
        key = admitted.gate.key
        assert self.now < self.good_until[key], "a client comes through a gate that has run out"
        assert self.satellites[KEYS.index(key)].is_entered, "other hosts may stop it"
        assert self.is_dead or not self.is_shut(key), "a client comes through a gate that is shut"
        confirmed = self.keeper.confirmed(cast(RemotePlane, self.link))
        if self.is_heard and confirmed in self.generations and confirmed == self.tables.generation:
            assert token in self.generations[confirmed], "a client is admitted by a token that was taken back"
        client = Client(key, admitted.token.principal, token)
        self.joined.append(client)
        if self.is_heard:
            self.up.append(s.AdmittedRecord(id(client), admitted.gate.number, 0, 1, 0, 0, 0, 0, "", b"", "", ""))

    @precondition(lambda self: not self.is_dead and any(client.told for client in self.joined))
    @rule(which=st.integers(0, 100))
    def client_ends(self, which: int) -> None:
        told = [client for client in self.joined if client.told]
        client = told[which % len(told)]
        if client.place is not None:
            client.place.release()
        self.joined.remove(client)
        self.satellites[KEYS.index(client.key)].leave_if_unused()

    @rule(seconds=st.integers(1, 6))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    # -- what must hold ------------------------------------------------------------------------------------------------

    def is_shut(self, key: SatelliteKey) -> bool:
        """Whether the control plane may put the satellite to sleep."""
        return self.keeper.is_shut(key)

    @invariant()
    def who_came_through_a_shut_gate_is_known(self) -> None:
        for key in KEYS:
            if self.is_shut(key) and not self.is_dead:
                assert all(client.told for client in self.joined if client.key == key)

    @invariant()
    def no_more_than_the_limit(self) -> None:
        if self.is_dead:
            return
        assert self.quotas.taken <= LIMIT
        assert self.quotas.admitted == sum(client.told for client in self.joined)
        # Every client that is joined and not known yet has a place: it is lent to the plane, and no place is lost.
        lent = self.keeper.lent(cast(RemotePlane, self.link))
        assert self.quotas.taken - self.quotas.admitted == lent
        assert sum(not client.told for client in self.joined) <= lent


AdmissionMachine.TestCase.settings = settings(max_examples=RUNS, stateful_step_count=50, deadline=None)
TestGatekeeper = AdmissionMachine.TestCase


def test_places_of_clients_on_their_way_stay_lent_when_all_are_recalled() -> None:
    """The data plane says how many it is about to admit, though it may admit no more."""
    machine = AdmissionMachine()
    machine.begin()
    assert len(machine.on_the_way) == len(TOKENS)
    machine.configuration_is_read_again(chance=0)
    machine.everything_is_read()
    machine.clients_are_joined_or_offered(which=0, count=len(TOKENS))
    assert len(machine.joined) == len(TOKENS)
    machine.everything_is_read()
    machine.no_more_than_the_limit()


def test_clients_on_their_way_are_offered_if_their_gate_runs_out() -> None:
    machine = AdmissionMachine()
    machine.begin()
    machine.time_passes(seconds=VALID_S + 1)
    machine.clients_are_joined_or_offered(which=0, count=len(TOKENS))
    assert machine.joined == []
