"""Random clients go to a real data plane, while its control plane changes what it may do: it admits only whom that would.

The control plane's own decision is the oracle: proto/greeting.py, proto/request.py, edge/identity.py. Of each client is seen
what it said and heard, of each satellite which bytes it got, and of the data plane what it tells its control plane.
"""

import dataclasses
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.fuzz.admissions import (
    DOMAIN,
    OUR_FRAME,
    OURS,
    WIDE_GRANTS,
    PortKind,
    claim_of,
    first_request,
    frames_of,
    random_admission,
    random_client,
    without_ours,
)
from beds.fuzz.crowd import FuzzClient, Satellites, SeenClient, SeenSatellite, client_at, opening_bytes
from beds.planes.scripted import WAIT_S, PlaneBed, ScriptedControl
from beds.ports import free_port
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.edge.grant_table import grant_records
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes import snapshots as s
from bentpipe.daemon.planes.splice_tag import SpliceTag
from bentpipe.native.engine import EndReason
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.events import HeaderList, RequestHeaders
from bentpipe.proto.first_settings import FirstSettings
from bentpipe.proto.frames import ACK, HEADER_BYTES, FrameType
from bentpipe.proto.greeting import Greeting

CLIENTS = int(os.environ.get("BENTPIPE_TEST_ADMISSIONS", "400"))
SEED = int(os.environ.get("BENTPIPE_SEED", "0")) or random.randrange(1, 1 << 30)
AT_ONCE = 12
ALLOWED = 1_000_000
CHANGE_S = 0.2
NETLINK = 1
"""The socket by which the data plane asks who listens is opened at the first question, and stays."""


class FuzzBed(PlaneBed):
    """With a listener of each kind."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        domain, certified, one = free_port(), free_port(), free_port()
        tls = f'certificate = "{folder}/cert.pem", key = "{folder}/key.pem"'
        with self.config.open("a") as file:
            file.write(
                f'[[listener]]\naddress = "127.0.0.1:{domain}"\ntls = {{ {tls}, satellite_domain = "{DOMAIN}" }}\n'
                f'[[listener]]\naddress = "127.0.0.1:{certified}"\ntls = {{ {tls}, client_ca = "{folder}/ca.pem" }}\n'
                f'[[listener]]\naddress = "127.0.0.1:{one}"\none_request_per_connection = true\n'
            )
        self.by_kind = {
            PortKind.PLAIN: self.plain,
            PortKind.TLS: self.tls,
            PortKind.API: self.api,
            PortKind.DOMAIN: domain,
            PortKind.CLIENT_CA: certified,
            PortKind.ONE_REQUEST: one,
        }
        self.certificate = self.authority.issue_cert("client")


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzBed]:
    made = FuzzBed(tmp_path_factory.mktemp("plane"))
    try:
        made.start()
        yield made
    finally:
        made.close()


@dataclasses.dataclass(slots=True)
class OpenGate:
    """A gate that was told of."""

    key: SatelliteKey
    reachable: bool
    """Whether the listener has the owner that was told."""
    told_to_shut: bool = False
    gated: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Admitted:
    """A client that the data plane has admitted."""

    id: int
    tag: SpliceTag
    tables: list[Admission]
    """That may have been in force."""


class Told:
    """A control plane that changes its mind, and remembers what was in force when something was admitted."""

    def __init__(self, bed: FuzzBed, satellites: Satellites, chance: random.Random) -> None:
        self._bed = bed
        self._satellites = satellites
        self._chance = chance
        self._seats = 1
        self.control: ScriptedControl = bed.control(take_over=True)
        self.gates: dict[int, OpenGate] = {}
        self.arrived: dict[int, tuple[r.ArrivedRecord, bytearray]] = {}
        """By the client, with all bytes that were told."""
        self.admitted: dict[int, Admitted] = {}
        """By the client."""
        self.ends: dict[int, int] = {}
        """By the id: of EndReason; 0 if the join has failed."""
        self.admissions: list[Admission] = []
        """All."""
        self._in_force: list[tuple[int, Admission]] = []
        """From the last that was acknowledged on, by generation."""
        self._before: list[tuple[int, Admission]] = []
        """Likewise, when the last control plane has left."""
        self._offered: dict[int, int] = {}
        self._closing: list[tuple[float, int]] = []
        self.tell_all()

    def tell_all(self) -> None:
        """Tokens, and gates."""
        self.tell_tokens()
        for key in [SatelliteKey(org, name) for org in ("acme", "beta") for name in ("one", "one2", "two", "b-1")]:
            if self._chance.random() < 0.8:
                self.open_gate(key)

    def tell_tokens(self) -> None:
        admission = random_admission(self._chance, time.time(), WIDE_GRANTS)
        generation, records = len(self.admissions) + 1, grant_records(admission)
        self.admissions.append(admission)
        self._in_force.append((generation, admission))
        self.control.send(
            *records, s.GrantsRecord(r.LINK_ID, generation, len(records), OURS.streams, OURS.window_bytes)
        )
        for principal in {record.principal for record in records}:
            self.control.send(s.CreditRecord(r.LINK_ID, ALLOWED if self._chance.random() < 0.95 else 0, principal))

    def open_gate(self, key: SatelliteKey) -> None:
        number, owned = len(self.gates) + 1, self._chance.random() < 0.5
        stranger = owned and self._chance.random() < 0.2
        self.gates[number] = OpenGate(key, reachable=not stranger)
        uid = os.getuid() + (4321 if stranger else 0)
        where = (*(number, self._satellites.port(key), s.boot_us() + 60_000_000, owned, uid * owned),)
        self.control.send(s.GateRecord(*where, key.org, key.name, "127.0.0.1", "", ""))

    def change(self) -> None:
        """Something else is in force from now on."""
        chance = self._chance
        open_ = [number for number, gate in self.gates.items() if not gate.gated]
        shut = {gate.key for gate in self.gates.values()} - {self.gates[number].key for number in open_}
        pick = chance.random()
        if pick < 0.05:
            self.change_seat(away_s=chance.choice((0, 0, 0.05, 0.3)))
        elif pick < 0.25:
            self.tell_tokens()
        elif shut and chance.random() < 0.75:
            self.open_gate(chance.choice(sorted(shut, key=str)))
        elif left := [number for number in open_ if not self.gates[number].told_to_shut]:
            number = chance.choice(left)
            self.gates[number].told_to_shut = True
            self.control.send(s.ShutGateRecord(number))

    def _is_admitted(self, number: int, about: int, tag: bytes, in_force: list[tuple[int, Admission]]) -> None:
        self.admitted[number] = Admitted(about, SpliceTag.decode(tag), [admission for _, admission in in_force])

    def change_seat(self, *, away_s: float) -> None:
        """Another control plane sits. It knows nothing of what this one has told, and this one has not read all."""
        if away_s:
            self.control.close()
            time.sleep(away_s)
        self._before, self._in_force = self._in_force, []
        for gate in self.gates.values():
            gate.gated = True
        self._closing.clear()
        self.control = self._bed.control(take_over=True)
        self._seats += 1
        self.tell_all()

    def read(self) -> None:
        self.control.read(0.01)
        records, self.control.records = self.control.records, []
        for record in records:
            self._take(record)
        now = time.monotonic()
        for due, client in [each for each in self._closing if each[0] <= now]:
            self._closing.remove((due, client))
            self.control.send(r.ShutRecord(client, r.Shutting.RESET, 0))

    def _take(self, record: r.Record) -> None:
        match record:
            case r.ArrivedRecord():
                number = client_at(record.host)
                assert number not in self.arrived or record.flags & r.ArrivalFlag.AGAIN, "it was offered twice"
                assert number not in self.admitted, "it was admitted, and is offered"
                self._offered[record.id] = number
                self.arrived[number] = record, bytearray(record.first)
                self._closing.append((time.monotonic() + self._chance.choice((0, 0.05, 0.2)), record.id))
            case r.BytesRecord() if record.id in self._offered:
                self.arrived[self._offered[record.id]][1].extend(record.data)
            case s.AdmittedRecord():
                number = client_at(record.peer.rpartition(":")[0])
                assert number not in self.admitted
                assert number not in self.arrived, "it was offered, and is admitted"
                gate = self.gates[record.gate]
                assert not gate.gated, "it came through a gate after GATED"
                assert gate.reachable, "a stranger listens there"
                assert SpliceTag.decode(record.tag).key == gate.key
                self._is_admitted(number, record.id, record.tag, self._in_force)
            case s.GatedRecord():
                self.gates[record.id].gated = True
            case s.GrantedRecord():
                self._in_force = [each for each in self._in_force if each[0] >= record.generation]
            case r.LiveRecord() | r.EndedRecord():
                number = client_at(record.peer.rpartition(":")[0])
                if number not in self.admitted:
                    assert number not in self.arrived or self._seats > 1
                    self._is_admitted(number, record.id, record.tag, self._before)
                if isinstance(record, r.EndedRecord):
                    self.ends[record.id] = record.reason
            case r.FailedRecord():
                self.ends[record.id] = 0
            case r.ByeRecord():
                raise AssertionError(f"the data plane has ended the link: {record}")
            case _:
                pass


def run_clients(bed: FuzzBed, told: Told, seed: int) -> list[SeenClient]:
    clients = []
    for number in range(CLIENTS):
        case = random_client(seed, number)
        clients.append(FuzzClient(case, bed.by_kind[case.kind], bed.certificate))
    waiting, running = list(clients), [threading.Thread()] * 0
    changes_at = time.monotonic()
    while waiting or running:
        running = [each for each in running if each.is_alive()]
        while waiting and len(running) < AT_ONCE:
            running.append(threading.Thread(target=waiting.pop(0).run, daemon=True))
            running[-1].start()
        told.read()
        if time.monotonic() > changes_at:
            changes_at = time.monotonic() + CHANGE_S
            told.change()
    return [client.seen for client in clients]


def answered(seen: SeenClient) -> list[bytes]:
    """The PINGs that the data plane has answered: satellites answer none."""
    pings = []
    for kind, flags, raw in frames_of(bytes(24) + seen.heard):
        if kind == FrameType.PING and flags & ACK:
            pings.append(raw[HEADER_BYTES:])
    return pings


def check_client(seen: SeenClient, told: Told, satellites: list[SeenSatellite]) -> bool:
    """Raises AssertionError. Returns whether the control plane would have admitted the client."""
    case, admitted, arrived = seen.case, told.admitted.get(seen.case.number), told.arrived.get(seen.case.number)
    assert not seen.stuck, "it waits, and nobody answers"
    headers = first_request(seen.said, spoke=seen.spoke)
    own = [each for each in satellites if each.client == case.number]
    for satellite in own:
        claims = [claim_of(case, headers, admission) for admission in told.admissions]
        assert any(claim and claim.key == satellite.key for claim in claims), f"its bytes are at {satellite.key}"
    if admitted is not None:
        tag, claims = admitted.tag, [claim_of(case, headers, admission) for admission in admitted.tables]
        assert (tag.key, tag.principal, tag.payer, tag.credentials) in [
            (claim.key, claim.who, claim.payer, claim.credentials) for claim in claims if claim
        ]
        whole = told.ends.get(admitted.id) == EndReason.CLOSED.value and not case.leaves_early
        if own or whole:
            check_bytes(seen, own[-1], whole=whole)
    if arrived is not None:
        check_offer(seen, arrived[0], bytes(arrived[1]), headers)
    if admitted is None:
        assert all(each.heard == each.heard[: opening_bytes(each.heard)] for each in own), "its satellite has a request"
        assert not own or seen.spoke or case.leaves_early
    assert len(own) <= 1
    if not case.leaves_early and seen.said:
        assert admitted or arrived, "nobody knows of it"
    return any(claim_of(case, headers, admission) for admission in told.admissions)


def check_bytes(seen: SeenClient, satellite: SeenSatellite, *, whole: bool) -> None:
    """What each side has got is what the other has said, except what the data plane took out or changed."""
    expected = without_ours(seen.said, acked=seen.spoke, pings=answered(seen))
    words = satellite.said
    if seen.spoke:
        first = FirstSettings(OURS)
        words = first.receive_data(words)
        heard = seen.heard.removeprefix(OUR_FRAME)
        acks = b"".join(b"\0\0\x08\x06\1\0\0\0\0" + ping for ping in answered(seen))
        assert heard.startswith(acks) or not whole
        heard = heard.removeprefix(acks)
    else:
        heard = seen.heard
    if whole:
        assert satellite.heard == expected, f"its satellite has got {satellite.heard!r}, and not {expected!r}"
        assert heard == words, f"it has got {heard!r}, and not {words!r}"
    elif not seen.case.leaves_early:
        assert expected.startswith(satellite.heard)
        assert words.startswith(heard)


def check_offer(seen: SeenClient, record: r.ArrivedRecord, transcript: bytes, headers: HeaderList | None) -> None:
    """The control plane gets what the client has said, and reads the same of it."""
    case = seen.case
    assert bool(record.certificate) == (case.kind is PortKind.CLIENT_CA and case.speaks_tls)
    assert record.server_name == (case.server_name or "")
    if case.leaves_early or not seen.said:
        return
    spoke, acked = bool(record.mark & 1), bool(record.mark & 2)
    assert spoke or not seen.spoke
    # Of a client that was cut off, the words that it has not read are lost with it, and the last bytes perhaps.
    said = without_ours(seen.said, acked=acked, pings=answered(seen))
    assert said.startswith(transcript) or transcript.startswith(said) or spoke
    if spoke and not seen.spoke:
        return
    resumed = Greeting()
    if record.mark:
        resumed.resume(record.mark)
    read = None
    try:
        for event in resumed.receive_data(transcript, 0.0):
            if isinstance(event, RequestHeaders):
                read = event.headers
    except GreetingError:
        return
    # The limits of what was taken out (PINGs) count from zero again.
    assert read in (None, headers) or (headers is None and spoke)


def test_only_those_are_admitted_whom_the_control_plane_would_admit(bed: FuzzBed) -> None:
    chance = random.Random(SEED)
    satellites = Satellites(SEED)
    told = Told(bed, satellites, chance)
    sockets = bed.sockets() + NETLINK
    seen = run_clients(bed, told, SEED)
    told.control.ping()

    def left() -> str:
        told.read()
        live = [number for number, each in told.admitted.items() if each.id not in told.ends]
        return f"{bed.sockets() - sockets} sockets, joined {live}" if live or bed.sockets() > sockets else ""

    print(f"\nseed {SEED}")
    until = time.monotonic() + WAIT_S
    while what := left():
        assert time.monotonic() < until, f"seed {SEED}: {what} are left; {bed.log}"
    satellites.close()
    admissible = 0
    for client in seen:
        try:
            admissible += check_client(client, told, satellites.seen)
        except AssertionError as exc:
            raise AssertionError(f"seed {SEED}, {exc}, of {client}") from exc
    ways = len(told.admitted), len(told.arrived), sum(each == EndReason.CLOSED.value for each in told.ends.values())
    print(f"\nseed {SEED}: of {len(seen)} clients {admissible} may be admitted; admitted, offered, well ended: {ways}")
    assert len(told.admitted) > CLIENTS // 100, "hardly anybody is admitted"
    bed.close_connections()
