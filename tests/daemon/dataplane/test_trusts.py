"""Certificates that the control plane teaches: satellites with TLS that no file of the data plane knows."""

import ssl
from pathlib import Path

import pytest
import trustme

from beds.planes.scripted import HALF, PlaneBed, ScriptedControl, plane_bed
from bentpipe.daemon.planes import records as r
from bentpipe.daemon.planes.bounds import TRUSTS_TAUGHT

NAME = "box.internal"


def teach(control: ScriptedControl, name: str, ca: bytes, certificate: bytes = b"", key: bytes = b"") -> str:
    control.send(r.TrustRecord(r.LINK_ID, name, ca, certificate, key))
    return control.expect(r.DoneRecord).words


def dial(bed: PlaneBed, control: ScriptedControl, half: int, trust: str = "issued", name: str = NAME) -> None:
    control.send(r.OpenRecord(half, bed.satellite_port, 5_000, "127.0.0.1", trust, name))


def server_of(authority: trustme.CA, clients: trustme.CA | None = None) -> ssl.SSLContext:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(server)
    if clients is not None:
        clients.configure_trust(server)
        server.verify_mode = ssl.CERT_REQUIRED
    return server


def test_a_name_that_was_taught_is_trusted_and_shown_our_certificate(bed: PlaneBed, control: ScriptedControl) -> None:
    satellites, ours = trustme.CA(), trustme.CA()
    shown = ours.issue_cert("edge")
    chain = b"".join(blob.bytes() for blob in shown.cert_chain_pems)
    assert teach(control, "issued", satellites.cert_pem.bytes(), chain, shown.private_key_pem.bytes()) == ""
    dial(bed, control, HALF)
    assert bed.accept_tls(server_of(satellites, ours))
    control.expect(r.WentRecord, HALF)
    # Another authority's certificate, and another name's, are refused as with files.
    dial(bed, control, HALF | 2)
    bed.accept_tls(server_of(trustme.CA(), ours))
    assert control.expect(r.FailedRecord, HALF | 2).step is r.FailedAt.TLS
    dial(bed, control, HALF | 4, name="other.internal")
    bed.accept_tls(server_of(satellites, ours))
    assert control.expect(r.FailedRecord, HALF | 4).step is r.FailedAt.TLS


def test_what_is_not_known_is_never_dialled_in_plaintext(bed: PlaneBed, control: ScriptedControl) -> None:
    bed.satellite.settimeout(0.2)
    ca = trustme.CA().cert_pem.bytes()
    try:
        for number, name in enumerate(("", NAME)):
            dial(bed, control, HALF | 8 + number, "registered:acme/own", name)
            failed = control.expect(r.FailedRecord)
            assert (failed.step, failed.words) == (r.FailedAt.TLS, "this data plane does not know registered:acme/own")
        assert teach(control, "registered:acme/own", ca) == ""
        assert teach(control, "registered:acme/own", b"") == "", "it is forgotten"
        dial(bed, control, HALF | 16, "registered:acme/own")
        assert control.expect(r.FailedRecord).step is r.FailedAt.TLS
        with pytest.raises(TimeoutError):
            bed.accept()
    finally:
        bed.satellite.settimeout(30.0)


@pytest.mark.parametrize(
    "told",
    [
        (b"not a certificate", b"", b""),
        (b"\x00\xff" * 100, b"", b""),
        (trustme.CA().cert_pem.bytes(), b"nor this", b"nor that"),
    ],
)
def test_what_cannot_be_used_is_told_and_what_was_taught_before_counts_no_more(
    bed: PlaneBed, control: ScriptedControl, told: tuple[bytes, bytes, bytes]
) -> None:
    assert teach(control, "issued", trustme.CA().cert_pem.bytes()) == ""
    assert teach(control, "issued", *told).startswith("issued: ")
    dial(bed, control, HALF)
    assert control.expect(r.FailedRecord).step is r.FailedAt.TLS


def test_the_next_control_plane_has_to_teach_again(bed: PlaneBed, control: ScriptedControl) -> None:
    authority = trustme.CA()
    assert teach(control, "issued", authority.cert_pem.bytes()) == ""
    successor = bed.control(take_over=True)
    dial(bed, successor, HALF)
    assert successor.expect(r.FailedRecord).step is r.FailedAt.TLS
    assert teach(successor, "issued", authority.cert_pem.bytes()) == ""
    dial(bed, successor, HALF | 2)
    assert bed.accept_tls(server_of(authority))
    successor.expect(r.WentRecord, HALF | 2)


def test_a_control_plane_that_teaches_too_much_loses_the_link_alone(bed: PlaneBed, control: ScriptedControl) -> None:
    client = bed.client()
    arrived = control.expect(r.ArrivedRecord)
    satellite = control.splice(bed, arrived.id)
    ca = trustme.CA().cert_pem.bytes()
    for number in range(TRUSTS_TAUGHT + 1):
        control.send(r.TrustRecord(r.LINK_ID, f"registered:acme/{number}", ca, b"", b""))
        control.read(0.0)
    control.wait_closed()
    client.sendall(b"still here")
    satellite.settimeout(10.0)
    received = b""
    while not received.endswith(b"still here"):
        received += satellite.recv(1024)


def test_the_file_comes_first(tmp_path: Path) -> None:
    with plane_bed(tmp_path) as bed:
        bed.config.write_text(
            bed.config.read_text()
            + '[[satellite]]\norg = "acme"\nname = "box"\nprovider = "process"\n'
            + 'process = { command = ["none", "{port}"] }\n'
            + f'tls = {{ ca = "{tmp_path}/ca.pem", server_name = "{NAME}" }}\n'
        )
        bed.process.terminate()
        bed.process.wait(20)
        bed.start()
        control = bed.control()
        evil = trustme.CA()
        assert teach(control, "satellite:acme/box", evil.cert_pem.bytes()) == ""
        dial(bed, control, HALF, "satellite:acme/box")
        bed.accept_tls(server_of(evil))
        assert control.expect(r.FailedRecord).step is r.FailedAt.TLS
        control.close()
