"""The data plane as a process, spoken to record by record: clients, halves, GO, splices, ends."""

import functools
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from beds.issued import DAY, NOW, Issued
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
from bentpipe.daemon.planes.bounds import CREDENTIALS
from bentpipe.daemon.service.plane_counts import told_certificate_ends
from bentpipe.proto.frames import ACK, FrameType, frame

ACK_FRAME = frame(FrameType.SETTINGS, ACK, 0)
TAG = b"acme/box"
RST_AT_CLOSE = b"\x01\x00\x00\x00\x00\x00\x00\x00"


def test_the_process_has_loaded_no_policy() -> None:
    look = (
        "import sys, bentpipe.daemon.service.plane_process\n"
        "print(*(name for name in sys.modules if name.startswith(('bentpipe.daemon.', 'boto', 'aiosqlite', 'sqlite3'))))"
    )
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", look], capture_output=True, text=True, check=True
    ).stdout.split()
    never = ("fleet", "store", "registry", "ledger", "accounts", "providers", "api", "edge", "coordination", "pki")
    assert [each for each in loaded if each.split(".")[0] != "bentpipe" or each.split(".")[2] in never] == []


def test_the_threads_for_new_connections_give_way_to_the_engines(bed: PlaneBed, control: ScriptedControl) -> None:
    pid = control.hello.pid
    nices = {"python": {os.getpriority(os.PRIO_PROCESS, pid)}}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip().rstrip("-0123456789")
        if name in ("bp-engine", "bp-opener", "bp-joiner"):
            nices.setdefault(name, set()).add(os.getpriority(os.PRIO_PROCESS, int(task.name)))
    [engine] = nices.pop("bp-engine")
    assert engine == os.getpriority(os.PRIO_PROCESS, 0)
    assert len(nices) == 3
    [other] = set().union(*nices.values())
    # It leads a session, which is a group unless the tests run in a cgroup that divides the cores.
    assert other in {engine, max(engine, 10)}


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_is_announced_heard_spoken_to_and_shut(bed: PlaneBed, control: ScriptedControl, tls: bool) -> None:
    with bed.client(tls=tls) as client:
        arrived = control.expect(r.ArrivedRecord)
        assert (arrived.first, arrived.kept, arrived.listener) == (OPENING, len(OPENING), int(tls))
        assert (arrived.host, arrived.port) == client.getsockname()[:2]
        wanted = ("h2", "TLSv1.3", "localhost") if tls else ("", "", "")
        assert (arrived.alpn, arrived.tls_version, arrived.server_name) == wanted
        client.sendall(b"more")
        more = control.expect(r.BytesRecord)
        assert (more.offset, more.data, more.end) == (len(OPENING), b"more", False)
        control.send(r.SayRecord(arrived.id, r.SayFlag.NONE, 7, b"words"))
        assert read_exactly(client, 5) == b"words"
        control.send(
            r.SayRecord(arrived.id, r.SayFlag.NONE, 7, b"last"), r.ShutRecord(arrived.id, r.Shutting.GRACEFUL, 0)
        )
        assert read_to_end(client) == b"last"
    control.expect(r.ClosedRecord, arrived.id)


def test_a_peer_that_says_nothing_is_never_announced(bed: PlaneBed, control: ScriptedControl) -> None:
    bed.client(said=b"").close()
    bed.client(tls=True, said=b"").close()
    with bed.client() as client:
        assert control.expect(r.ArrivedRecord).port == client.getsockname()[1]
    assert control.none_of(r.ArrivedRecord)


def moved_down(control: ScriptedControl, client: int) -> int:
    control.send(r.MetersRecord(r.LINK_ID, (client, client + 1_000)))
    ((about, _, down, _),) = control.expect(r.MeteredRecord).meters
    assert about == client
    return down


@pytest.mark.parametrize("tls", [False, True])
def test_go_replays_and_splices_and_the_end_is_kept(bed: PlaneBed, control: ScriptedControl, tls: bool) -> None:
    client = bed.client(tls=tls)
    arrived = control.expect(r.ArrivedRecord)
    client.sendall(b"unseen by the control plane")
    satellite = control.splice(bed, arrived.id, tag=TAG)
    assert read_exactly(satellite, len(OPENING) + 27) == OPENING + b"unseen by the control plane"
    satellite.sendall(b"answer")
    assert read_exactly(client, 6) == b"answer"
    wait_until(lambda: moved_down(control, arrived.id) == 6, "the engine counts what it has sent")
    client.close()
    satellite.close()
    ended = control.expect(r.EndedRecord, arrived.id)
    assert (ended.tag, ended.down, ended.seq) == (TAG, 6, control.synced.next_end)
    assert ended.start_us <= ended.end_us
    # Where the splice began is not known here.
    assert (ended.before[0] + ended.up, ended.before[1]) == (len(OPENING) + 27, 0)
    control.close()
    again = bed.control(take_over=True)
    assert again.expect(r.EndedRecord, arrived.id) == ended, "an end that nobody has accounted for comes again"
    again.send(r.KeptRecord(r.LINK_ID, ended.seq))
    again.close()
    last = bed.control(take_over=True)
    assert last.synced.next_end == ended.seq + 1
    last.close()


def test_what_the_half_has_said_is_passed_on_from_where_the_control_plane_has_read(
    bed: PlaneBed, control: ScriptedControl
) -> None:
    with bed.client() as client:
        arrived = control.expect(r.ArrivedRecord)
        control.open(bed.satellite_port)
        satellite = bed.accept()
        control.send(r.SayRecord(HALF, r.SayFlag.NONE, 0, OPENING))
        assert read_exactly(satellite, len(OPENING)) == OPENING
        satellite.sendall(b"readunread")
        while control.expect(r.BytesRecord, HALF).offset + 10 < 10:
            pass
        control.send(
            r.GoRecord(arrived.id, HALF, r.GoFlag.NONE, len(OPENING), 0, 4, 5_000, TAG, b"changed"),
        )
        control.expect(r.WentRecord, arrived.id)
        assert read_exactly(client, 13) == b"changedunread"
        client.sendall(b"up")
        assert read_exactly(satellite, 2) == b"up", "the opening is not sent twice"


@pytest.mark.parametrize("early", [False, True])
def test_the_ack_of_our_settings_never_reaches_the_satellite(
    bed: PlaneBed, control: ScriptedControl, early: bool
) -> None:
    """`early`: the client's ACK has come, and the control plane has not seen it when it says GO."""
    with bed.client() as client:
        arrived = control.expect(r.ArrivedRecord)
        if early:
            client.sendall(ACK_FRAME)
            control.expect(r.BytesRecord, arrived.id)
        control.open(bed.satellite_port)
        satellite = bed.accept()
        control.go(arrived.id, flags=r.GoFlag.ACK_OWED, frame_at=len(OPENING))
        ping = frame(FrameType.PING, 0, 0, bytes(8))
        client.sendall(ping if early else ACK_FRAME + ping)
        assert read_exactly(satellite, len(OPENING + ping)) == OPENING + ping
        control.expect(r.WentRecord, arrived.id)
    satellite.close()
    ended = control.expect(r.EndedRecord, arrived.id)
    assert ended.before[0] + ended.up == len(OPENING + ACK_FRAME + ping)


def test_an_ack_that_never_comes_ends_the_go_with_words(bed: PlaneBed, control: ScriptedControl) -> None:
    with bed.client() as client:
        arrived = control.expect(r.ArrivedRecord)
        control.open(bed.satellite_port)
        satellite = bed.accept()
        control.go(arrived.id, flags=r.GoFlag.ACK_OWED, frame_at=len(OPENING), deadline_ms=200)
        failed = control.expect(r.FailedRecord, arrived.id)
        assert (failed.step, failed.outcome) == (r.FailedAt.REPLAY, "deadline")
        assert read_to_end(client) == b""
        assert read_to_end(satellite) == OPENING


def test_dropped_ranges_are_not_replayed(bed: PlaneBed, control: ScriptedControl) -> None:
    with bed.client() as client:
        arrived = control.expect(r.ArrivedRecord)
        client.sendall(b"pingrest")
        control.expect(r.BytesRecord, arrived.id)
        control.send(r.SayRecord(arrived.id, r.SayFlag.NONE, 1, b"pong", ((len(OPENING), 4),)))
        satellite = control.splice(bed, arrived.id)
        assert read_exactly(satellite, len(OPENING) + 4) == OPENING + b"rest"


def test_a_half_that_nobody_answers_fails_in_words(control: ScriptedControl) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        control.send(r.OpenRecord(HALF, unused.getsockname()[1], 5_000, "127.0.0.1", "", ""))
        failed = control.expect(r.FailedRecord, HALF)
        assert failed.step is r.FailedAt.DIAL
        assert "Connection refused" in failed.words
    control.send(r.OpenRecord(HALF, 1, 5_000, "127.0.0.1", "satellite:acme/none", ""))
    assert control.expect(r.FailedRecord, HALF).step is r.FailedAt.TLS


def test_a_go_without_its_half_or_client_is_refused(bed: PlaneBed, control: ScriptedControl) -> None:
    with bed.client() as client:
        arrived = control.expect(r.ArrivedRecord)
        control.go(arrived.id, half=HALF | 77)
        assert control.expect(r.FailedRecord, arrived.id).step is r.FailedAt.REFUSED
        control.send(r.SayRecord(arrived.id, r.SayFlag.NONE, 0, b"still ours"))
        assert read_exactly(client, 10) == b"still ours"


@pytest.mark.parametrize("how", [r.Shutting.RESET, r.Shutting.GRACEFUL])
def test_a_splice_is_ended(bed: PlaneBed, control: ScriptedControl, how: r.Shutting) -> None:
    with bed.client() as client:
        arrived = control.expect(r.ArrivedRecord)
        satellite = control.splice(bed, arrived.id)
        read_exactly(satellite, len(OPENING))
        control.send(r.ShutRecord(arrived.id, r.Shutting.IF_QUIET, 0), r.ShutRecord(arrived.id, how, 0))
        control.expect(r.EndedRecord, arrived.id)
        assert read_to_end(client) == b""


def test_a_splice_that_has_moved_since_is_left_alone(bed: PlaneBed, control: ScriptedControl) -> None:
    with bed.client() as client:
        arrived = control.expect(r.ArrivedRecord)
        satellite = control.splice(bed, arrived.id)
        satellite.sendall(b"12345")
        assert read_exactly(client, 5) == b"12345"
        wait_until(lambda: moved_down(control, arrived.id) == 5, "the engine counts what it has sent")
        control.send(r.ShutRecord(arrived.id, r.Shutting.IF_QUIET, 4))
        assert control.expect(r.BusyRecord, arrived.id).moved == 5
        satellite.sendall(b"on")
        assert read_exactly(client, 2) == b"on"


def test_the_end_of_a_client_and_its_death_are_told(bed: PlaneBed, control: ScriptedControl) -> None:
    with bed.client() as client:
        arrived = control.expect(r.ArrivedRecord)
        client.shutdown(socket.SHUT_WR)
        assert control.expect(r.BytesRecord, arrived.id).end
    client = bed.client()
    arrived = control.expect(r.ArrivedRecord)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_AT_CLOSE)
    client.close()
    assert control.expect(r.GoneRecord, arrived.id).hangup is r.Hangup.LEFT
    control.send(r.ShutRecord(arrived.id, r.Shutting.RESET, 0))
    control.expect(r.ClosedRecord, arrived.id)


def test_a_stop_drains(tmp_path: Path) -> None:
    with plane_bed(tmp_path) as bed:
        control = bed.control()
        client = bed.client()
        satellite = control.splice(bed, control.expect(r.ArrivedRecord).id)
        read_exactly(satellite, len(OPENING))
        control.send(r.DrainRecord(r.LINK_ID, 0))
        control.expect(r.DoneRecord)
        wait_until(lambda: refuses(bed), "it still listens")
        client.sendall(b"still moved")
        assert read_exactly(satellite, 11) == b"still moved"
        client.close()
        satellite.close()
        ended = control.expect(r.EndedRecord)
        assert bed.process.poll() is None, "it waits until its last end is accounted for"
        control.send(r.KeptRecord(r.LINK_ID, ended.seq))
        assert bed.process.wait(20) == 0
        assert [path for path in bed.folder.rglob("*") if path.is_socket()] == []


def refuses(bed: PlaneBed) -> bool:
    try:
        bed.client().close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_drain_that_has_to_cut_says_so(tmp_path: Path) -> None:
    with plane_bed(tmp_path) as bed:
        control = bed.control()
        with bed.client():
            control.splice(bed, control.expect(r.ArrivedRecord).id)
            control.send(r.DrainRecord(r.LINK_ID, 200))
            assert bed.process.wait(20) == 3


def test_a_reload_takes_the_satellites_of_the_file_as_it_is_now_and_new_certificates(tmp_path: Path) -> None:
    with plane_bed(tmp_path) as bed:
        control = bed.control()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        bed.authority.issue_cert("box.internal").configure_cert(server)
        control.send(r.OpenRecord(HALF, bed.satellite_port, 5_000, "127.0.0.1", "satellite:acme/box", "box.internal"))
        assert control.expect(r.FailedRecord, HALF).step is r.FailedAt.TLS
        bed.config.write_text(
            bed.config.read_text()
            + '[[satellite]]\norg = "acme"\nname = "box"\nprovider = "process"\n'
            + 'process = { command = ["none", "{port}"] }\n'
            + f'tls = {{ ca = "{tmp_path}/ca.pem", server_name = "box.internal" }}\n'
        )
        before = bed.log.count("certificate reloaded")
        control.send(r.ReloadRecord(r.LINK_ID))
        assert control.expect(r.DoneRecord).words == ""
        wait_until(lambda: "certificates of satellites reloaded" in bed.log, bed.log)
        wait_until(lambda: bed.log.count("certificate reloaded") == before + len(bed.ports), bed.log)
        control.send(
            r.OpenRecord(HALF | 1 << 8, bed.satellite_port, 5_000, "127.0.0.1", "satellite:acme/box", "other.name")
        )
        bed.accept_tls(server)
        assert control.expect(r.FailedRecord).step is r.FailedAt.TLS, "another name is not trusted"
        control.send(
            r.OpenRecord(HALF | 1 << 9, bed.satellite_port, 5_000, "127.0.0.1", "satellite:acme/box", "box.internal")
        )
        assert bed.accept_tls(server)
        control.expect(r.WentRecord)


def test_a_reload_says_what_it_could_not_read_and_keeps_what_it_had(tmp_path: Path) -> None:
    with plane_bed(tmp_path) as bed:
        control = bed.control()
        key = (tmp_path / "key.pem").read_bytes()
        (tmp_path / "key.pem").write_text("not a key")
        control.send(r.ReloadRecord(r.LINK_ID))
        assert f"listener 127.0.0.1:{bed.tls}" in control.expect(r.DoneRecord).words
        bed.client(tls=True)
        control.expect(r.ArrivedRecord)
        bed.config.write_text("no configuration")
        (tmp_path / "key.pem").write_bytes(key)
        control.send(r.ReloadRecord(r.LINK_ID))
        assert str(bed.config) in control.expect(r.DoneRecord).words


def test_it_tells_until_when_its_certificates_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the operator's names, in COUNTERS and in its log, also of a newer credential."""
    given = tmp_path / "credentials"
    given.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    bed = PlaneBed(tmp_path)
    old, new = Issued("edge", begins=NOW - 80 * DAY, ends=NOW + 10 * DAY), Issued("edge")
    (given / "tls.pem").write_bytes(old.key_pem() + old.pem())
    text = bed.config.read_text()
    for name in ("cert.pem", "key.pem"):
        text = text.replace(f"{tmp_path}/{name}", "credential:tls.pem")
    bed.config.write_text(text)
    try:
        bed.start()
        control = bed.control()

        def is_told(issued: Issued) -> bool:
            control.read(0.1)
            end = issued.certificate.not_valid_after_utc.timestamp()
            return told_certificate_ends([control.counters]) == {"credential:tls.pem": end}

        wait_until(lambda: is_told(old), bed.log)
        wait_until(lambda: "credential:tls.pem: certificate 'CN=edge' expires on" in bed.log, bed.log)
        for issued in (new, Issued("edge", ends=NOW + 50 * DAY)):  # the second one replaces the first in memory
            control.send(r.CredentialRecord(r.LINK_ID, "tls.pem", issued.key_pem() + issued.pem()))
            assert control.expect(r.DoneRecord).words == ""
            control.send(r.ReloadRecord(r.LINK_ID))
            assert control.expect(r.DoneRecord).words == ""
            wait_until(functools.partial(is_told, issued), bed.log)
        assert str(given) not in bed.log
    finally:
        bed.close()


def test_a_newer_credential_is_used_by_this_and_later_reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under systemd, the file of the start stays as it was."""
    given = tmp_path / "credentials"
    given.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    bed = PlaneBed(tmp_path)
    (given / "tls.key").write_bytes((tmp_path / "key.pem").read_bytes())
    bed.config.write_text(bed.config.read_text().replace(f"{tmp_path}/key.pem", "credential:tls.key"))
    try:
        bed.start()
        control = bed.control()
        renewed = trustme.CA()
        issued = renewed.issue_cert("localhost")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        control.send(r.ReloadRecord(r.LINK_ID))
        assert control.expect(r.DoneRecord).words, "the key belongs to another certificate"
        control.send(r.CredentialRecord(r.LINK_ID, "tls.key", issued.private_key_pem.bytes()))
        assert control.expect(r.DoneRecord).words == ""
        bed.authority = renewed
        for _ in range(2):
            control.send(r.ReloadRecord(r.LINK_ID))
            assert control.expect(r.DoneRecord).words == ""
            bed.client(tls=True)
            control.expect(r.ArrivedRecord)
        for number in range(CREDENTIALS):
            control.send(r.CredentialRecord(r.LINK_ID, f"more-{number}", b"x"))
            assert bool(control.expect(r.DoneRecord).words) is (number == CREDENTIALS - 1)
    finally:
        bed.close()
