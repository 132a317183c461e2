"""A newer data plane takes the listening sockets of the old one, which drains: no client is refused, reset or cut."""

import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.planes.scripted import OPENING, PlaneBed, ScriptedControl, plane_bed, read_exactly, read_to_end, wait_until
from bentpipe.daemon.dataplane.handover import FOLDER_NAME, take_listeners
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes.sockets import connect_private, plane_sockets
from bentpipe.daemon.service.plane_start import live_planes


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[PlaneBed]:
    with plane_bed(tmp_path) as bed:
        yield bed


def control_of(bed: PlaneBed, path: Path) -> ScriptedControl:
    control = ScriptedControl(path)
    bed.opened.append(control.sock)
    return control


def test_upgrades_refuse_reset_and_cut_nothing(bed: PlaneBed) -> None:
    """Clients come all the time; each data plane answers those that it has accepted."""
    failures: list[str] = []
    answered = [0]
    stop = threading.Event()

    def come() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", bed.plain), timeout=30) as client:
                    client.sendall(OPENING)
                    if read_to_end(client) != b"answer":
                        failures.append("no answer")
                    answered[0] += 1
            except OSError as exc:
                failures.append(str(exc))

    first = live_planes(bed.folder)
    controls = [control_of(bed, first[0])]
    spliced = bed.client(tls=True)
    satellite = controls[0].splice(bed, controls[0].expect(r.ArrivedRecord).id)
    read_exactly(satellite, len(OPENING))
    held = bed.client()
    held_id = controls[0].expect(r.ArrivedRecord).id
    thread = threading.Thread(target=come)
    thread.start()
    try:
        for _ in range(3):
            known = set(live_planes(bed.folder))
            starting = threading.Thread(target=bed.start)
            starting.start()
            while starting.is_alive() or not set(live_planes(bed.folder)) - known:
                answer(controls, held_id)
            new = next(iter(set(live_planes(bed.folder)) - known))
            controls.append(control_of(bed, new))
            before = answered[0]
            while answered[0] < before + 20:
                answer(controls, held_id)
    finally:
        stop.set()
        while thread.is_alive():
            answer(controls, held_id)
        thread.join()
    assert failures == []
    wait_until(lambda: [each.poll() for each in bed.processes] == [None, 0, 0, None], bed.log)
    spliced.sendall(b"still moved by the first")
    assert read_exactly(satellite, 24) == b"still moved by the first"
    controls[0].send(r.SayRecord(held_id, r.SayFlag.NONE, 0, b"held"), r.ShutRecord(held_id, r.Shutting.GRACEFUL, 0))
    assert read_to_end(held) == b"held"
    spliced.close()
    satellite.close()
    ended = controls[0].expect(r.EndedRecord)
    controls[0].send(r.KeptRecord(r.LINK_ID, ended.seq))
    assert bed.processes[0].wait(30) == 0


def answer(controls: list[ScriptedControl], held_id: int) -> None:
    for control in controls:
        if control.closed:
            continue
        control.read(0.01)
        for record in [each for each in control.records if isinstance(each, r.ArrivedRecord)]:
            control.records.remove(record)
            if control is controls[0] and record.id == held_id:
                continue
            words = r.SayRecord(record.id, r.SayFlag.NONE, 0, b"answer")
            control.send(words, r.ShutRecord(record.id, r.Shutting.GRACEFUL, 0))


def test_a_new_data_plane_that_dies_before_it_accepts_changes_nothing(bed: PlaneBed) -> None:
    for _ in range(3):
        taken = take_listeners(bed.folder)
        assert {sock.getsockname()[1] for socks in taken.sockets.values() for sock in socks} == set(bed.ports)
        taken.give_up()
    (path,) = plane_sockets(bed.folder / FOLDER_NAME)
    with connect_private(path) as hung:
        hung.setblocking(True)
        hung.settimeout(20)
        hung.recv(100)
        hung.send(b"nonsense")
        assert hung.recv(100) == b""
    control = bed.control()
    client = bed.client()
    assert control.expect(r.ArrivedRecord).port == client.getsockname()[1]
    assert "taken the listening sockets" not in bed.log


def test_a_new_data_plane_that_cannot_start_changes_nothing(bed: PlaneBed) -> None:
    good = bed.config.read_text()
    bed.config.write_text(good.replace("key.pem", "none.pem"))
    with pytest.raises(AssertionError):
        bed.start()
    assert bed.process.returncode == 2
    bed.config.write_text(good)
    control = bed.control()
    bed.client()
    control.expect(r.ArrivedRecord)


def test_a_data_plane_is_found_again_if_its_files_were_removed(bed: PlaneBed) -> None:
    """As by a program that clears /tmp. Else the next control plane could not start, since the port would be taken."""
    control = bed.control()
    shutil.rmtree(bed.folder)
    wait_until(lambda: bool(live_planes(bed.folder)), bed.log)
    wait_until(lambda: bool(list(plane_sockets(bed.folder / FOLDER_NAME))), bed.log)
    bed.client()
    control.expect(r.ArrivedRecord)  # the link that was there is not touched
    control.close()
    successor = bed.control()
    assert bed.folder.stat().st_mode & 0o777 == 0o700
    taken = take_listeners(bed.folder)
    assert {sock.getsockname()[1] for socks in taken.sockets.values() for sock in socks} == set(bed.ports)
    taken.give_up()
    bed.client()
    successor.expect(r.ArrivedRecord)


def test_the_socket_of_a_data_plane_that_was_killed_is_removed(bed: PlaneBed) -> None:
    os.kill(bed.process.pid, signal.SIGKILL)
    bed.process.wait()
    assert live_planes(bed.folder) == []
    assert list(plane_sockets(bed.folder)) == []
    bed.start()
    control = bed.control()
    bed.client()
    control.expect(r.ArrivedRecord)
    assert len(list(plane_sockets(bed.folder / FOLDER_NAME))) == 1
