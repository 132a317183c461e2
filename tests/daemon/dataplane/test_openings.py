"""Connections until their first bytes, in a data plane of its own process: hostile peers, limits, deadlines, reload."""

import contextlib
import os
import resource
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.hosts.in_process import goaway_of
from beds.peers.raw_tls import RawTls
from beds.planes.scripted import OPENING, PlaneBed, plane_bed, read_to_end, wait_until
from beds.ports import free_port
from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.planes import records as r
from bentpipe.proto.errors import ErrorCode

HELLO_BEGIN = b"\x16\x03\x01\x02\x00\x01\x00"
"""The beginning of a ClientHello."""
CROWD = 60


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[PlaneBed]:
    with plane_bed(tmp_path, '[limits]\ngreeting_deadline = "1s"') as bed:
        yield bed


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[PlaneBed]:
    """Without a deadline that a test could meet."""
    with plane_bed(tmp_path, '[limits]\ngreeting_deadline = "10m"') as bed:
        yield bed


def connect(bed: PlaneBed, said: bytes = b"", *, tls_port: bool = True) -> socket.socket:
    """A client that says some bytes of its own on the port."""
    sock = socket.create_connection(("127.0.0.1", bed.tls if tls_port else bed.plain), timeout=30)
    bed.opened.append(sock)
    sock.sendall(said)
    return sock


def outcome(name: Outcome) -> str:
    return f"ended.{name.value}"


@pytest.mark.parametrize(
    ("said", "tls_port"),
    [(b"", True), (HELLO_BEGIN, True), (b"", False)],
    ids=["silent on TLS", "half a ClientHello", "silent"],
)
def test_those_that_are_slow_end_at_the_deadline(bed: PlaneBed, said: bytes, tls_port: bool) -> None:
    with contextlib.closing(bed.control()) as control:
        before = bed.sockets()
        slow = [connect(bed, said, tls_port=tls_port) for _ in range(CROWD)]
        control.wait_counted(outcome(Outcome.DEADLINE), CROWD)
        assert all(read_to_end(sock) == b"" for sock in slow)
        bed.client(tls=True)
        assert control.expect(r.ArrivedRecord).first == OPENING
        assert bed.sockets() == before + 1


def test_one_that_says_a_byte_now_and_then_ends_too(bed: PlaneBed) -> None:
    with contextlib.closing(bed.control()) as control:
        sock = connect(bed)
        with contextlib.suppress(OSError):
            for byte in HELLO_BEGIN + b"\x01\xfc\x03\x03" + bytes(500):
                sock.sendall(bytes([byte]))
                control.read(0.1)
                if outcome(Outcome.DEADLINE) in control.counters:
                    break
        control.wait_counted(outcome(Outcome.DEADLINE), 1)


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_peers_that_leave_at_each_step_are_counted_and_leave_nothing(patient: PlaneBed, how: str) -> None:
    with contextlib.closing(patient.control()) as control:
        before = patient.sockets()
        # RST before the first byte is the kernel's alone: tests/daemon/connections/test_defer_accept.py.
        firsts = (
            (b"", HELLO_BEGIN[:1], HELLO_BEGIN) if how == "fin" else (HELLO_BEGIN[:1], HELLO_BEGIN[:2], HELLO_BEGIN)
        )
        for said in firsts:
            sock = connect(patient, said)
            leave(patient, sock, how)
        context = ssl.create_default_context()
        patient.authority.configure_trust(context)
        sock = context.wrap_socket(connect(patient), server_hostname="localhost")
        leave(patient, sock, how)  # after its handshake, before its first byte
        plain = 0
        if how == "fin":  # with a byte of its own, a plain client is offered before it leaves
            leave(patient, connect(patient, tls_port=False), how)
            plain = 1
        control.wait_counted(outcome(Outcome.PROBE), len(firsts) + 1 + plain)
        assert patient.sockets() == before
        assert not any(isinstance(record, r.ArrivedRecord) for record in control.records)


def leave(bed: PlaneBed, sock: socket.socket, how: str) -> None:
    if how == "rst":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    bed.opened[:] = [each for each in bed.opened if each.fileno() >= 0]


def test_garbage_is_refused_and_others_are_served(patient: PlaneBed) -> None:
    with contextlib.closing(patient.control()) as control:
        for size in (1, 5, 64, 5000):
            garbage = connect(patient, b"\x16" + os.urandom(4) + bytes(size))
            with contextlib.suppress(OSError):  # it may have been reset already
                garbage.shutdown(socket.SHUT_WR)
        control.wait_counted("accepted", 4)
        patient.client(tls=True)
        assert control.expect(r.ArrivedRecord).first == OPENING
        control.wait_counted("clients", 1)


def test_plaintext_on_a_tls_port_is_said(patient: PlaneBed) -> None:
    with contextlib.closing(patient.control()) as control:
        connect(patient, OPENING)
        arrived = control.expect(r.ArrivedRecord)
        assert r.ArrivalFlag.PLAINTEXT in arrived.flags
        assert arrived.first == OPENING


def test_key_updates_before_the_first_byte_end_it(patient: PlaneBed) -> None:
    with contextlib.closing(patient.control()) as control:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        patient.authority.configure_trust(context)
        raw = RawTls(connect(patient), context)
        with contextlib.suppress(OSError):
            raw.sock.sendall(b"".join(raw.key_update() for _ in range(500)))
        assert goaway_of(raw.read_all()) == (ErrorCode.ENHANCE_YOUR_CALM, b"over the limit TLS_CONTROL_RECORDS")
        control.wait_counted(outcome(Outcome.MALFORMED), 1)
        control.wait_counted("malformed.TLS_CONTROL_RECORDS", 1)


@pytest.mark.parametrize("tls", [False, True])
def test_every_byte_of_a_long_beginning_comes_in_order(patient: PlaneBed, tls: bool) -> None:
    """More than the first bytes of a record, in pieces of every size."""
    body = OPENING + os.urandom(40_000)
    with contextlib.closing(patient.control()) as control:
        client = patient.client(tls=tls, said=b"")
        at = 0
        for size in (1, 2, 23, 600, len(body)):
            client.sendall(body[at : at + size])
            at += size
        arrived = control.expect(r.ArrivedRecord)
        found = arrived.first
        while len(found) < len(body):
            record = control.expect(r.BytesRecord, arrived.id)
            assert record.offset == len(found)
            found += record.data
        assert found == body


def test_the_limit_by_address_evicts_those_that_wait(patient: PlaneBed) -> None:
    """More than the limit, all from one address, half of them in a handshake: the newest stay."""
    with contextlib.closing(patient.control()) as control:
        control.send(r.LimitsRecord(r.LINK_ID, 20, 10, 0, 0))
        control.expect(r.DoneRecord)
        crowd = [connect(patient, HELLO_BEGIN if at % 2 else b"") for at in range(CROWD)]
        control.wait_counted(outcome(Outcome.OVER_LIMIT), CROWD - 20)
        patient.client(tls=True)
        assert control.expect(r.ArrivedRecord).first == OPENING
        assert sum(sock.fileno() >= 0 for sock in crowd) == CROWD


def test_a_limit_of_handshakes_delays_and_refuses_none(patient: PlaneBed) -> None:
    with contextlib.closing(patient.control()) as control:
        control.send(r.LimitsRecord(r.LINK_ID, 0, 0, 10, 0))
        control.expect(r.DoneRecord)
        for _ in range(12):
            patient.client(tls=True)
        assert len({control.expect(r.ArrivedRecord).id for _ in range(12)}) == 12


def test_new_certificates_hold_for_new_connections(patient: PlaneBed, tmp_path: Path) -> None:
    """While handshakes with the old one are under way, which complete."""
    context = ssl.create_default_context()
    patient.authority.configure_trust(context)

    def shown(sock: socket.socket) -> bytes:
        with context.wrap_socket(sock, server_hostname="localhost") as client:
            return client.getpeercert(binary_form=True) or b""

    with contextlib.closing(patient.control()) as control:
        under_way = connect(patient)
        old = shown(connect(patient))
        control.wait_counted("accepted", 2)
        issued = patient.authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        patient.process.send_signal(signal.SIGHUP)
        lines = len(patient.ports)
        wait_until(lambda: patient.log.count("certificate reloaded") == lines, "no new certificate")
        assert shown(connect(patient)) == ssl.PEM_cert_to_DER_cert((tmp_path / "cert.pem").read_text())
        assert shown(under_way) == old


def test_without_descriptors_clients_wait_and_come_in_later(patient: PlaneBed) -> None:
    with contextlib.closing(patient.control()) as control:
        soft, hard = resource.prlimit(patient.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(patient.process.pid, resource.RLIMIT_NOFILE, (patient.fds(), hard))
        waiting = [patient.client() for _ in range(5)]
        wait_until(lambda: "cannot accept" in patient.log, "accept did not fail")
        assert not any(isinstance(record, r.ArrivedRecord) for record in control.records)
        resource.prlimit(patient.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert len({control.expect(r.ArrivedRecord).id for _ in waiting}) == len(waiting)


def test_draining_waits_for_those_that_come_just_then(patient: PlaneBed) -> None:
    """A handshake that is under way when the data plane begins to drain is completed, and the client is served."""
    with contextlib.closing(patient.control()) as control:
        context = ssl.create_default_context()
        patient.authority.configure_trust(context)
        sock = connect(patient)
        control.wait_counted("accepted", 1)
        patient.process.send_signal(signal.SIGTERM)
        control.wait_counted("draining", 1)
        with context.wrap_socket(sock, server_hostname="localhost") as client:
            client.sendall(OPENING)
            arrived = control.expect(r.ArrivedRecord)
            control.send(r.ShutRecord(arrived.id, r.Shutting.GRACEFUL, 0))
        assert patient.process.wait(30) == 0


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_a_proxy_names(tmp_path: Path, tls: bool) -> None:
    """The header comes byte by byte, and what is behind it at once."""
    port = free_port()
    files = f'certificate = "{tmp_path}/cert.pem", key = "{tmp_path}/key.pem"'
    lines = ["[[listener]]", f'address = "127.0.0.1:{port}"', 'proxy_protocol = { from = ["127.0.0.1/32"] }']
    lines += [f"tls = {{ {files} }}"] if tls else []
    with plane_bed(tmp_path, "\n".join(lines)) as bed, contextlib.closing(bed.control()) as control:
        sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        bed.opened.append(sock)
        header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"
        for at in range(len(header)):
            sock.sendall(header[at : at + 1])
        if tls:
            context = ssl.create_default_context()
            bed.authority.configure_trust(context)
            sock = context.wrap_socket(sock, server_hostname="localhost")
            bed.opened.append(sock)
        sock.sendall(OPENING)
        arrived = control.expect(r.ArrivedRecord)
        assert (arrived.host, arrived.port, arrived.first) == ("192.0.2.7", 4711, OPENING)
        assert arrived.flags == r.ArrivalFlag.BY_PROXY
        assert bool(arrived.tls_version) is tls
        slow = socket.create_connection(("127.0.0.1", port), timeout=30)
        with slow:
            slow.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert read_to_end(slow) == b""
        control.wait_counted(outcome(Outcome.NO_PROXY_HEADER), 1)
