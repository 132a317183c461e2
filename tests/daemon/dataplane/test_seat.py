"""The one seat of the data plane: control planes that die, hang, flood, break the protocol; clients meanwhile."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.planes.scripted import (
    HALF,
    OPENING,
    PlaneBed,
    ScriptedControl,
    plane_bed,
    read_exactly,
    read_to_end,
    wait_until,
)
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes.bounds import DATA_BYTES, DOWN_WINDOW, MESSAGE_BYTES, UP_WINDOW
from bentpipe.daemon.planes.sockets import connect_private
from bentpipe.daemon.service.plane_start import live_planes
from bentpipe.proto.frames import FrameType, frame


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneBed]:
    with plane_bed(tmp_path_factory.mktemp("plane")) as bed:
        yield bed


@pytest.fixture(autouse=True)
def closing(bed: PlaneBed) -> Iterator[None]:
    yield
    bed.close_connections()


def test_clients_wait_for_a_control_plane_and_for_its_successor(bed: PlaneBed) -> None:
    """Greeted, spoken to, held: nothing is lost, nothing is said twice, and the mark is passed on."""
    early = bed.client()
    first = bed.control(take_over=True)
    arrived = first.expect(r.ArrivedRecord)
    assert not r.ArrivalFlag.AGAIN & arrived.flags
    early.sendall(b"pingmore")
    first.expect(r.BytesRecord, arrived.id)
    first.send(r.SayRecord(arrived.id, r.SayFlag.NONE, 42, b"settings", ((len(OPENING), 4),)))
    assert read_exactly(early, 8) == b"settings"
    first.close()
    meanwhile = bed.client()
    second = bed.control()
    again = second.expect(r.ArrivedRecord, arrived.id)
    assert again.flags & r.ArrivalFlag.AGAIN
    assert (again.mark, again.first, again.kept) == (42, OPENING + b"more", len(OPENING) + 4)
    assert second.expect(r.ArrivedRecord).port == meanwhile.getsockname()[1]
    satellite = second.splice(bed, arrived.id)
    early.sendall(b"behind")
    assert read_exactly(satellite, len(OPENING) + 10) == OPENING + b"morebehind"


def test_a_client_that_has_left_while_nobody_sat_is_offered_to_nobody(bed: PlaneBed) -> None:
    """A control plane could wake a satellite for it."""
    control = bed.control(take_over=True)
    gone = bed.client()
    control.expect(r.ArrivedRecord)
    control.close()
    gone.close()
    client = bed.client()
    assert bed.control().expect(r.ArrivedRecord).port == client.getsockname()[1]


def test_a_go_that_was_sent_is_carried_out_though_its_control_plane_is_dead(bed: PlaneBed) -> None:
    control = bed.control(take_over=True)
    client = bed.client()
    arrived = control.expect(r.ArrivedRecord)
    control.open(bed.satellite_port)
    satellite = bed.accept()
    os.kill(bed.process.pid, signal.SIGSTOP)
    try:
        control.go(arrived.id, tag=b"tag")
        control.close()
    finally:
        os.kill(bed.process.pid, signal.SIGCONT)
    client.sendall(b"on")
    assert read_exactly(satellite, len(OPENING) + 2) == OPENING + b"on"
    successor = bed.control()
    live = successor.expect(r.LiveRecord)
    assert (live.id, live.tag, live.stage, live.peer) == (
        *(arrived.id, b"tag", r.Stage.SPLICED),
        "{}:{}".format(*client.getsockname()),
    )
    assert successor.synced.count == 1


def test_halves_end_with_their_control_plane_and_owned_clients_are_finished(bed: PlaneBed) -> None:
    control = bed.control(take_over=True)
    client = bed.client()
    arrived = control.expect(r.ArrivedRecord)
    control.open(bed.satellite_port)
    satellite = bed.accept()
    control.send(r.SayRecord(arrived.id, r.SayFlag.OWN, 0, b"answer"))
    control.close()
    assert read_to_end(client) == b"answer"
    assert read_to_end(satellite) == b""
    successor = bed.control()
    assert successor.none_of(r.ArrivedRecord)


def test_a_live_control_plane_keeps_its_seat_unless_it_is_taken_over(bed: PlaneBed) -> None:
    control = bed.control(take_over=True)
    client = bed.client()
    arrived = control.expect(r.ArrivedRecord)
    rival = ScriptedControl(live_planes(bed.folder)[0], seat=False)
    bed.opened.append(rival.sock)
    rival.send(r.SeatRecord(r.LINK_ID, take_over=False))
    assert rival.expect(r.ByeRecord).code is r.ByeCode.SEAT_TAKEN
    successor = bed.control(take_over=True)
    assert successor.expect(r.ArrivedRecord).id == arrived.id
    control.expect(r.YieldRecord)
    control.wait_closed()
    control.send(r.ShutRecord(arrived.id, r.Shutting.RESET, 0))
    successor.send(r.SayRecord(arrived.id, r.SayFlag.NONE, 0, b"mine"))
    assert read_exactly(client, 4) == b"mine"


def test_a_control_plane_that_hangs_stops_no_splice_and_does_not_grow_the_plane(bed: PlaneBed) -> None:
    """It reads nothing: its clients wait in their sockets, splices go on, and a new control plane gets everything."""
    control = bed.control(take_over=True, window=False)
    spliced = bed.client()
    satellite = control.splice(bed, control.expect(r.ArrivedRecord).id)
    read_exactly(satellite, len(OPENING))
    before = bed.rss_bytes()
    clients = [bed.client(said=OPENING + bytes(UP_WINDOW)) for _ in range(200)]
    for number in range(50):
        spliced.sendall(number.to_bytes(4, "big") * 1000)
        assert read_exactly(satellite, 4000) == number.to_bytes(4, "big") * 1000
    wait_until(lambda: bed.cpu_idle(0.2), "the plane never rests")
    assert bed.rss_bytes() - before < 64 << 20
    successor = bed.control(take_over=True)
    found = {successor.expect(r.ArrivedRecord).port for _ in clients}
    assert found == {client.getsockname()[1] for client in clients}
    spliced.sendall(b"alive")
    assert read_exactly(satellite, 5) == b"alive"


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda about: [r.SayRecord(about + 1_000_000, r.SayFlag.NONE, 0, b"x")], id="an id never given"),
        pytest.param(
            lambda about: [r.SayRecord(about, r.SayFlag.NONE, 0, b"", ((1 << 40, 5),))], id="a drop of nothing"
        ),
        pytest.param(lambda about: [r.WindowRecord(about, 5, 0)], id="a window that shrinks"),
        pytest.param(lambda about: [r.KeptRecord(r.LINK_ID, 1 << 40)], id="an end never sent"),
        pytest.param(lambda about: [r.OpenRecord(5, 1, 1, "127.0.0.1", "", "")], id="a half without its bit"),
        pytest.param(lambda about: [r.SeatRecord(r.LINK_ID, take_over=True)], id="a second SEAT"),
    ],
)
def test_breaking_the_protocol_loses_the_seat_and_nothing_else(bed: PlaneBed, wrong: object) -> None:
    assert callable(wrong)
    control = bed.control(take_over=True)
    spliced = bed.client()
    satellite = control.splice(bed, control.expect(r.ArrivedRecord).id)
    read_exactly(satellite, len(OPENING))
    client = bed.client()
    arrived = control.expect(r.ArrivedRecord)
    control.send(*wrong(arrived.id))
    assert control.expect(r.ByeRecord).code is r.ByeCode.BROKEN
    control.wait_closed()
    successor = bed.control()
    assert successor.expect(r.ArrivedRecord).id == arrived.id
    spliced.sendall(b"alive")
    assert read_exactly(satellite, 5) == b"alive"
    assert client.fileno() >= 0


def test_words_beyond_the_window_end_the_link_and_a_client_that_reads_nothing(bed: PlaneBed) -> None:
    """What one control plane leaves unread must not add up with the words of the next one."""
    control = bed.control(take_over=True)
    client = bed.client()
    arrived = control.expect(r.ArrivedRecord)
    say_all_that_is_taken(control, arrived.id)
    control.send(r.SayRecord(arrived.id, r.SayFlag.NONE, 0, bytes(DATA_BYTES)))
    assert control.expect(r.ByeRecord).code is r.ByeCode.BROKEN
    control.wait_closed()  # BYE comes before the data plane lets go of the client: one that reads by then is offered again
    assert set(read_to_end(client)) == {0}
    assert bed.control().none_of(r.ArrivedRecord)


def say_all_that_is_taken(control: ScriptedControl, client: int) -> None:
    """Until the window stays shut, since the client's TCP is full."""
    said, allowed = 0, DOWN_WINDOW
    while True:
        for _ in range((allowed - said) // DATA_BYTES):
            control.send(r.SayRecord(client, r.SayFlag.NONE, 0, bytes(DATA_BYTES)))
            said += DATA_BYTES
        until = time.monotonic() + 2.0
        while not any(isinstance(record, r.WindowRecord) for record in control.records):
            if time.monotonic() > until:
                return
            control.read(0.1)
        allowed = control.expect(r.WindowRecord, client).allowed


def test_bytes_that_are_not_a_message_end_the_link_alone(bed: PlaneBed) -> None:
    with connect_private(live_planes(bed.folder)[0]) as sock:
        sock.setblocking(True)
        sock.settimeout(20)
        sock.send(b"\xff" * 500)
        while sock.recv(MESSAGE_BYTES):
            pass
    with connect_private(live_planes(bed.folder)[0]) as sock:
        sock.setblocking(True)
        sock.settimeout(20)
        while sock.recv(MESSAGE_BYTES):
            pass  # HELLO, then BYE: it has said nothing in time
    assert bed.control(take_over=True).seated.session


def test_a_flood_of_records_grows_nothing(bed: PlaneBed) -> None:
    control = bed.control(take_over=True)
    bed.client()
    arrived = control.expect(r.ArrivedRecord)
    before = bed.rss_bytes()
    for _ in range(200):
        control.send(*[r.PingRecord(r.LINK_ID, 1)] * 50, *[r.NoteRecord(r.LINK_ID, bytes(50_000))] * 2)
        control.send(*[r.WindowRecord(arrived.id, UP_WINDOW, 0)] * 20)
        control.read(0.0)
        control.records.clear()
    assert bed.rss_bytes() - before < 40 << 20


def test_clients_that_no_control_plane_takes_in_time_hear_words_and_later_ones_wait_in_the_kernel(
    tmp_path: Path,
) -> None:
    words = frame(FrameType.SETTINGS, 0, 0) + b"later"
    with plane_bed(tmp_path) as bed:
        control = bed.control()
        control.send(r.WordsRecord(r.LINK_ID, words))
        control.expect(r.DoneRecord)
        control.close()
        began = time.monotonic()
        client = bed.client()
        other = bed.client(said=b"GET / HTTP/1.1\r\n")
        assert read_to_end(client) == words
        assert read_to_end(other) == b"", "a peer of another protocol gets no HTTP/2"
        assert time.monotonic() - began >= 14
        wait_until(lambda: "kernel's queue" in bed.log, "the door stays open")
        late = bed.client()
        successor = bed.control()
        assert successor.expect(r.ArrivedRecord).port == late.getsockname()[1]
        successor.splice(bed, 3, HALF)


def test_nothing_is_left_of_many_control_planes_and_clients(bed: PlaneBed) -> None:
    control = bed.control(take_over=True)
    before = bed.fds()
    for _ in range(20):
        for _ in range(5):
            bed.client()
            control.expect(r.ArrivedRecord)
        control.open(bed.satellite_port)
        control.close()
        control = bed.control()
        bed.close_connections_but(control.sock)
        for _ in range(5):
            control.send(r.ShutRecord(control.expect(r.ArrivedRecord).id, r.Shutting.RESET, 0))
            control.expect(r.ClosedRecord)
    wait_until(lambda: bed.fds() <= before, f"descriptors are left: {bed.fds()} after {before}")
