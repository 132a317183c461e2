"""The data plane brings clients to awake satellites itself, as a scripted control plane has told it to."""

import contextlib
import os
import ssl
import time
from collections.abc import Iterator

import pytest
import trustme

from beds.http2 import EMPTY_SETTINGS
from beds.planes.admitting import (
    CHANGED,
    KEY,
    MACHINE,
    OURS,
    SETTINGS_ACK,
    THEIRS,
    TOKEN,
    WHOLE,
    AdmittingControl,
    request,
)
from beds.planes.scripted import (
    OPENING,
    PlaneBed,
    plane_bed,
    read_exactly,
    read_to_end,
    wait_until,
)
from beds.ports import free_port
from beds.suspended import suspended
from bentpipe.daemon.model import Address
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes import snapshots as s
from bentpipe.daemon.planes.splice_tag import SpliceTag
from bentpipe.proto.frames import PREFACE, FrameType, frame

GONE = "the control plane is away"


@pytest.fixture(scope="module", params=["auto", "python"], ids=["in C", "in Python"])
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneBed]:
    """Threads in C bring the clients to their satellites, or Python does."""
    with plane_bed(tmp_path_factory.mktemp("plane"), f'greeting = "{request.param}"') as bed:
        yield bed


@pytest.fixture
def admitting(bed: PlaneBed) -> Iterator[AdmittingControl]:
    yield AdmittingControl(bed)
    bed.close_connections()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_request_in_the_first_flight_reaches_its_satellite(
    bed: PlaneBed, admitting: AdmittingControl, tls: bool
) -> None:
    client = bed.client(tls=tls, said=WHOLE)
    satellite = bed.accept()
    assert read_exactly(satellite, len(WHOLE)) == WHOLE
    admitted = admitting.control.expect(s.AdmittedRecord)
    tag = SpliceTag.decode(admitted.tag)
    assert (tag.key, tag.principal, tag.payer, tag.host) == (KEY, "alice", "alice", "127.0.0.1")
    assert (tag.credentials, tag.address) == (frozenset({"token:laptop"}), Address("127.0.0.1", bed.satellite_port))
    assert admitted.gate == admitting.gate_number
    admitting.control.expect(r.WentRecord, admitted.id)
    satellite.sendall(EMPTY_SETTINGS)
    assert read_exactly(client, len(EMPTY_SETTINGS)) == EMPTY_SETTINGS
    client.sendall(b"more")
    assert read_exactly(satellite, 4) == b"more"
    satellite.close()
    client.close()
    ended = admitting.control.expect(r.EndedRecord, admitted.id)
    assert ended.tag == admitted.tag
    assert (ended.up, ended.down) == (4, len(EMPTY_SETTINGS))
    assert not [each for each in admitting.control.records if isinstance(each, r.ArrivedRecord)]


@pytest.mark.parametrize("acks_first", [True, False], ids=["ack first", "ack owed"])
def test_a_client_that_waits_for_settings_is_introduced(
    bed: PlaneBed, admitting: AdmittingControl, acks_first: bool
) -> None:
    client = bed.client()
    assert read_exactly(client, len(OURS)) == OURS
    client.sendall(SETTINGS_ACK + request() if acks_first else request())
    satellite = bed.accept()
    assert read_exactly(satellite, len(OPENING)) == OPENING
    satellite.sendall(THEIRS)
    assert read_exactly(client, len(CHANGED)) == CHANGED
    admitted = admitting.control.expect(s.AdmittedRecord)
    assert (admitted.streams, admitted.window_bytes) == (50, 65535)
    if not acks_first:
        client.sendall(SETTINGS_ACK + b"")
    asked = request()
    assert read_exactly(satellite, len(asked)) == asked
    client.sendall(SETTINGS_ACK)
    assert read_exactly(satellite, len(SETTINGS_ACK)) == SETTINGS_ACK
    admitting.control.expect(r.WentRecord, admitted.id)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (OPENING + request(token="another"), "no-token"),
        (OPENING + request(name="two"), "not-granted"),
        (OPENING + request(path="/grpc.health.v1.Health/Check"), "unusual"),
        (OPENING + request(more=(("satellite_token", "twice"),)), "unusual"),
        (OPENING + request(more=(("authorization", "Bearer other"),)), "unusual"),
        (OPENING + frame(FrameType.PUSH_PROMISE, 0, 1, bytes(4)), "unusual"),
        (OPENING + request() + frame(FrameType.RST_STREAM, 0, 1, bytes(4)), "unusual"),
        (b"GET / HTTP/1.1\r\n\r\n", "unusual"),
    ],
    ids=["token", "satellite", "health", "two tokens", "two kinds", "malformed", "reset", "http1"],
)
def test_what_is_unusual_is_offered_as_it_came(
    bed: PlaneBed, admitting: AdmittingControl, said: bytes, why: str
) -> None:
    wait_until(lambda: admitting.control.read(0.1) and bool(admitting.control.counters), "nothing is counted")
    before = admitting.control.counters.get(f"unadmitted.{why}", 0)
    bed.client(said=said)
    arrived = admitting.control.expect(r.ArrivedRecord)
    assert (arrived.first, arrived.kept) == (said, len(said))
    admitting.control.wait_counted(f"unadmitted.{why}", before + 1)


def test_a_client_in_the_clear_at_a_tls_port_is_offered(bed: PlaneBed, admitting: AdmittingControl) -> None:
    """Its token does not count: the port demands TLS, and perhaps a client certificate."""
    client = bed.client(said=b"", to=bed.tls)
    client.sendall(WHOLE)
    arrived = admitting.control.expect(r.ArrivedRecord)
    assert arrived.flags & r.ArrivalFlag.PLAINTEXT
    assert arrived.first == WHOLE
    assert not [each for each in admitting.control.records if isinstance(each, s.AdmittedRecord)]


def test_a_port_of_the_control_api_admits_clients_of_satellites(bed: PlaneBed, admitting: AdmittingControl) -> None:
    bed.client(said=WHOLE, to=bed.api)
    assert read_exactly(bed.accept(), len(WHOLE)) == WHOLE
    admitted = admitting.control.expect(s.AdmittedRecord)
    admitting.control.expect(r.WentRecord, admitted.id)


@pytest.mark.parametrize(
    "path",
    [
        "/api.public.compute.Compute/GetSatellite",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/api/v0/account",
        "/bentpipe.operations.Operations/Wake",
        "/grpc.health.v1.Health/Check",
    ],
)
def test_calls_of_the_control_api_are_offered(bed: PlaneBed, admitting: AdmittingControl, path: str) -> None:
    """At a port without it they are a satellite's: only health checks are the daemon's everywhere."""
    said = OPENING + request(path=path)
    bed.client(said=said, to=bed.api)
    assert admitting.control.expect(r.ArrivedRecord).first == said
    assert not [each for each in admitting.control.records if isinstance(each, s.AdmittedRecord)]
    if "health" not in path:
        bed.client(said=said)
        assert read_exactly(bed.accept(), len(said)) == said


def test_an_offered_client_goes_on_from_what_it_was_told(bed: PlaneBed, admitting: AdmittingControl) -> None:
    """It has got SETTINGS and acknowledged them: the offer has the mark, and the transcript is without the ACK."""
    client = bed.client()
    assert read_exactly(client, len(OURS)) == OURS
    client.sendall(SETTINGS_ACK + request(token="another"))
    arrived = admitting.control.expect(r.ArrivedRecord)
    whole = OPENING + request(token="another")
    assert arrived.flags & r.ArrivalFlag.AGAIN
    assert arrived.mark & 3 == 3
    assert (arrived.first, arrived.kept) == (whole, len(whole))
    satellite = admitting.control.splice(bed, arrived.id)
    client.sendall(b"on")
    assert read_exactly(satellite, len(whole) + 2) == whole + b"on"


def test_a_client_without_a_request_is_offered_after_a_while(bed: PlaneBed, admitting: AdmittingControl) -> None:
    client = bed.client()
    assert read_exactly(client, len(OURS)) == OURS
    arrived = admitting.control.expect(r.ArrivedRecord)
    assert arrived.first == OPENING
    assert arrived.mark & 3 == 1
    client.sendall(b"late")
    assert admitting.control.expect(r.BytesRecord, arrived.id).data == b"late"


def test_a_client_that_leaves_before_its_request_is_offered_with_its_end(
    bed: PlaneBed, admitting: AdmittingControl
) -> None:
    client = bed.client()
    assert read_exactly(client, len(OURS)) == OURS
    client.close()
    arrived = admitting.control.expect(r.ArrivedRecord)
    assert admitting.control.expect(r.BytesRecord, arrived.id).end


@pytest.mark.parametrize("speaks", [True, False], ids=["after settings", "first flight"])
def test_a_satellite_that_cannot_be_reached_is_the_control_planes(bed: PlaneBed, speaks: bool) -> None:
    nobody = free_port()
    admitting = AdmittingControl(bed, port=nobody)
    client = bed.client(said=OPENING if speaks else WHOLE)
    if speaks:
        assert read_exactly(client, len(OURS)) == OURS
        client.sendall(request())
    arrived = admitting.control.expect(r.ArrivedRecord)
    assert arrived.kept == len(WHOLE)
    bed.close_connections()


def test_a_satellite_that_says_nothing_is_the_control_planes(bed: PlaneBed, admitting: AdmittingControl) -> None:
    client = bed.client()
    assert read_exactly(client, len(OURS)) == OURS
    client.sendall(request())
    satellite = bed.accept()
    assert read_exactly(satellite, len(OPENING)) == OPENING
    arrived = admitting.control.expect(r.ArrivedRecord)
    assert arrived.kept == len(WHOLE)
    assert read_to_end(satellite) == b""  # it got no request, and its connection is closed


def test_a_stranger_at_a_local_satellites_port_gets_nothing(bed: PlaneBed) -> None:
    admitting = AdmittingControl(bed, uid=os.getuid() + 4321)
    bed.client(said=WHOLE)
    stranger = bed.accept()
    assert read_to_end(stranger) == b""
    admitting.control.expect(r.ArrivedRecord)
    bed.close_connections()


def test_the_owner_of_the_port_gets_its_client(bed: PlaneBed) -> None:
    admitting = AdmittingControl(bed, uid=os.getuid())
    bed.client(said=WHOLE)
    assert read_exactly(bed.accept(), len(WHOLE)) == WHOLE
    admitting.control.expect(s.AdmittedRecord)
    bed.close_connections()


def test_nobody_comes_through_a_gate_that_is_shut(bed: PlaneBed, admitting: AdmittingControl) -> None:
    """Neither a newcomer, nor a client that was on its way: its satellite has not answered yet."""
    client = bed.client()
    assert read_exactly(client, len(OURS)) == OURS
    client.sendall(request())
    satellite = bed.accept()
    assert read_exactly(satellite, len(OPENING)) == OPENING
    admitting.shut_gate()
    arrived = admitting.control.expect(r.ArrivedRecord)
    assert arrived.kept == len(WHOLE)
    assert read_to_end(satellite) == b""
    bed.client(said=WHOLE)
    assert admitting.control.expect(r.ArrivedRecord).first == WHOLE
    assert not [each for each in admitting.control.records if isinstance(each, s.AdmittedRecord)]
    admitting.open_gate()
    bed.client(said=WHOLE)
    assert read_exactly(bed.accept(), len(WHOLE)) == WHOLE


def test_a_token_that_was_taken_back_admits_nobody(bed: PlaneBed, admitting: AdmittingControl) -> None:
    client = bed.client()
    assert read_exactly(client, len(OURS)) == OURS
    client.sendall(request())
    satellite = bed.accept()
    assert read_exactly(satellite, len(OPENING)) == OPENING
    admitting.tell_tokens("another")
    satellite.sendall(THEIRS)
    assert admitting.control.expect(r.ArrivedRecord).kept == len(WHOLE)
    bed.client(said=WHOLE)
    assert admitting.control.expect(r.ArrivedRecord).first == WHOLE


def test_a_token_that_has_expired_admits_nobody(bed: PlaneBed, admitting: AdmittingControl) -> None:
    admitting.tell_tokens(TOKEN, expires_us=1_000_000)
    bed.client(said=WHOLE)
    assert admitting.control.expect(r.ArrivedRecord).first == WHOLE


def test_no_more_clients_than_the_credit(bed: PlaneBed, admitting: AdmittingControl) -> None:
    assert admitting.credit(2).used == 0
    for _ in range(2):
        bed.client(said=WHOLE)
        bed.accept()
        admitting.control.expect(s.AdmittedRecord)
    bed.client(said=WHOLE)
    admitting.control.expect(r.ArrivedRecord)
    assert admitting.credit(3).used == 2
    bed.client(said=WHOLE)
    bed.accept()
    admitting.control.expect(s.AdmittedRecord)


def test_a_satellite_is_reached_while_the_control_plane_is_away(bed: PlaneBed) -> None:
    admitting = AdmittingControl(bed)
    admitting.control.close()
    client = bed.client(said=WHOLE)
    satellite = bed.accept()
    assert read_exactly(satellite, len(WHOLE)) == WHOLE
    satellite.sendall(EMPTY_SETTINGS)
    assert read_exactly(client, len(EMPTY_SETTINGS)) == EMPTY_SETTINGS
    successor = bed.control()
    live = successor.expect(r.LiveRecord)
    assert SpliceTag.decode(live.tag).key == KEY
    assert live.stage is r.Stage.SPLICED
    bed.client(said=WHOLE)  # what the last one told ended with it
    assert successor.expect(r.ArrivedRecord).first == WHOLE
    bed.close_connections()


def test_a_client_that_has_left_takes_no_credit_while_the_control_plane_is_away(bed: PlaneBed) -> None:
    """Else the first clients after a crash would be all that reach their satellites: nobody else gives the credit back."""
    admitting = AdmittingControl(bed)
    admitting.credit(2)
    seats = bed.log.count(GONE)
    admitting.control.close()
    wait_until(lambda: bed.log.count(GONE) > seats, bed.log)
    stays = bed.client(said=WHOLE)
    assert read_exactly(bed.accept(), len(WHOLE)) == WHOLE
    sockets = bed.sockets()
    for _ in range(3):
        client = bed.client(said=WHOLE)
        satellite = bed.accept()
        assert read_exactly(satellite, len(WHOLE)) == WHOLE
        client.close()
        assert read_to_end(satellite) == b""
        satellite.close()
        wait_until(lambda: bed.sockets() == sockets, "the connection that has ended is still there")
    for _ in range(2):
        bed.client(said=WHOLE)
    bed.accept()
    control = bed.control()
    control.expect(r.ArrivedRecord)  # with the one that stays only one more had a place
    assert control.none_of(r.ArrivedRecord)
    stays.close()
    bed.close_connections()


def test_a_gate_runs_out_without_its_control_plane(bed: PlaneBed) -> None:
    admitting = AdmittingControl(bed, valid_ms=1)
    admitting.control.close()
    time.sleep(0.01)
    bed.client(said=WHOLE)
    assert bed.control().expect(r.ArrivedRecord).first == WHOLE
    bed.close_connections()


def test_a_satellite_with_tls_is_reached_while_the_control_plane_is_away(bed: PlaneBed) -> None:
    """By what it has taught. A machine that does not prove itself is given no byte, and its client is offered."""
    admitting, satellites, others = AdmittingControl(bed), trustme.CA(), trustme.CA()
    admitting.control.send(r.TrustRecord(r.LINK_ID, "issued", satellites.cert_pem.bytes(), b"", b""))
    assert admitting.control.expect(r.DoneRecord).words == ""
    before = admitting.control.counters.get("unadmitted.unreached", 0)
    admitting.shut_gate()
    admitting.open_gate(trust="issued")
    admitting.control.close()
    client = bed.client(said=WHOLE)
    assert bed.accept_tls(server_of(satellites))
    satellite = bed.opened[-1]
    assert read_exactly(satellite, len(WHOLE)) == WHOLE
    satellite.sendall(EMPTY_SETTINGS)
    assert read_exactly(client, len(EMPTY_SETTINGS)) == EMPTY_SETTINGS
    for wrong in (server_of(others), server_of(satellites, "other.internal")):
        bed.client(said=WHOLE)
        assert not said_to(bed, wrong)
    successor = bed.control()
    for _ in range(2):
        assert successor.expect(r.ArrivedRecord).first == WHOLE
    successor.wait_counted("unadmitted.unreached", before + 2)
    bed.close_connections()


def server_of(authority: trustme.CA, name: str = MACHINE) -> ssl.SSLContext:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(server)
    return server


def said_to(bed: PlaneBed, server: ssl.SSLContext) -> bytes:
    """What a machine hears behind the handshake, if that succeeds at all from its side."""
    if not bed.accept_tls(server):
        return b""
    with contextlib.suppress(OSError):
        return read_to_end(bed.opened[-1])
    return b""


@pytest.mark.parametrize("satellite_first", [True, False])
def test_what_both_say_in_the_same_moment_is_not_lost(
    bed: PlaneBed, admitting: AdmittingControl, satellite_first: bool
) -> None:
    """The data plane hears of both at once: its joiner reads all sockets that are ready in one turn."""
    admitting.credit(16)
    pairs = []
    for _ in range(16):
        client = bed.client()
        assert read_exactly(client, len(OURS)) == OURS
        client.sendall(request())
        satellite = bed.accept()
        assert read_exactly(satellite, len(OPENING)) == OPENING
        pairs.append((client, satellite))
    more = SETTINGS_ACK + frame(FrameType.DATA, 0, 1, bytes(range(256)))
    with suspended(bed.processes[-1].pid):
        for client, satellite in pairs:
            for sock, said in ((satellite, THEIRS), (client, more))[:: 1 if satellite_first else -1]:
                sock.sendall(said)
    for client, satellite in pairs:
        rest = WHOLE[len(OPENING) :] + more[len(SETTINGS_ACK) :]
        assert read_exactly(satellite, len(rest)) == rest
        assert read_exactly(client, len(CHANGED)) == CHANGED


def test_a_renewal_that_is_read_late_is_good_until_the_moment_that_it_names(bed: PlaneBed) -> None:
    """It lay in the socket while the data plane was suspended, and its control plane has died meanwhile."""
    admitting = AdmittingControl(bed)
    admitting.control.send(s.RenewRecord(r.LINK_ID, s.boot_us() - 1, (admitting.gate_number,)))
    admitting.control.ping()
    admitting.control.close()
    bed.client(said=WHOLE)
    assert bed.control().expect(r.ArrivedRecord).first == WHOLE
    bed.close_connections()


def test_a_client_that_ended_while_the_control_plane_was_away_is_accounted_for(bed: PlaneBed) -> None:
    admitting = AdmittingControl(bed)
    admitting.control.close()
    client = bed.client(said=WHOLE)
    satellite = bed.accept()
    read_exactly(satellite, len(WHOLE))
    satellite.sendall(b"answer")
    assert read_exactly(client, 6) == b"answer"
    satellite.close()
    client.close()
    successor = bed.control()
    while (ended := successor.expect(r.EndedRecord)).down != 6:
        pass  # of an earlier test's
    assert SpliceTag.decode(ended.tag).principal == "alice"
    bed.close_connections()


def hostile(bed: PlaneBed, *records: r.Record) -> None:
    """Each of these ends the link, and nothing else."""
    admitting = AdmittingControl(bed)
    client = bed.client(said=WHOLE)
    satellite = bed.accept()
    read_exactly(satellite, len(WHOLE))
    admitting.control.expect(s.AdmittedRecord)
    admitting.control.send(*records)
    assert admitting.control.expect(r.ByeRecord).code is r.ByeCode.BROKEN
    client.sendall(b"on")
    assert read_exactly(satellite, 2) == b"on"
    bed.close_connections()


def gate(number: int) -> s.GateRecord:
    return s.GateRecord(number, 1, 1, False, 0, "acme", "one", "127.0.0.1", "", "")


@pytest.mark.parametrize(
    "record",
    [
        s.GrantsRecord(r.LINK_ID, 9, 1, 1, 0),
        s.GrantsRecord(r.LINK_ID, 1, 0, 1, 0),
        gate(1),
        gate(2),
        s.ShutGateRecord(77),
    ],
    ids=["incomplete table", "older table", "old number", "second gate", "no such gate"],
)
def test_a_control_plane_that_breaks_these_rules_loses_its_seat(bed: PlaneBed, record: r.Record) -> None:
    hostile(bed, record)


def test_nothing_is_left_of_clients_that_went_every_way(bed: PlaneBed) -> None:
    bed.close_connections()
    admitting = AdmittingControl(bed)
    admitting.credit(1000)
    control, before = admitting.control, bed.sockets()
    for number in range(40):
        client = bed.client(said=(WHOLE, OPENING, OPENING + request(token="x"), PREFACE)[number % 4])
        if number % 4 == 0:
            bed.accept()
        client.close()
    bed.close_connections_but(control.sock)

    def all_closed() -> bool:
        control.read(0.05)
        for arrived in [each for each in control.records if isinstance(each, r.ArrivedRecord)]:
            control.records.remove(arrived)
            control.send(r.ShutRecord(arrived.id, r.Shutting.RESET, 0))
        return bed.sockets() <= before

    wait_until(all_closed, "sockets are left")
    bed.close_connections()
