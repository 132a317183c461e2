"""`bentpipe doctor --satellite`, and on a satellite `bentpipe-doctor`: says whether the machine is what was rendered.

It is a program of its own and not a part of the responder: it must also work when the responder does not. It must never
change anything.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
from collections.abc import Iterator

from bentpipe.daemon.image.programs import check_disks, check_identity, check_limits, check_programs
from bentpipe.daemon.image.programs.findings import Finding, Severity, fail, fine, warn
from bentpipe.daemon.image.programs.looks import SatelliteLook
from bentpipe.daemon.image.programs.settings import RESPONDER_SETTINGS, SETTINGS, SetupError, load_settings

ANSWER_S = 5.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""RFC 9113, section 3.4, and an empty SETTINGS frame."""
SETTINGS_TYPE = 4
EXIT_FAILED, EXIT_NO_SATELLITE = 1, 2


def check_answer(look: SatelliteLook) -> Iterator[Finding]:
    """The responder takes a connection and speaks HTTP/2, or TLS."""
    try:
        told = json.loads(look.text(RESPONDER_SETTINGS) or "")
        port = int(told["listen"].rpartition(":")[2])
    except (ValueError, KeyError, AttributeError) as exc:
        yield fail("responder's answer", f"{RESPONDER_SETTINGS} cannot be used: {exc}", "render the image again")
        return
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWER_S) as plain:
            yield _shake(plain, port) if told.get("certificate") else _greet(plain, port)
    except OSError as exc:
        remedy = "journalctl -u bentpipe-responder.service"
        yield fail("responder's answer", f"none at port {port}: {exc}", remedy)


def _greet(plain: socket.socket, port: int) -> Finding:
    plain.sendall(PREFACE)
    head = plain.recv(9)
    if len(head) == 9 and head[3] == SETTINGS_TYPE:
        remedy = "give the satellite TLS: an address is not an identity"
        return warn("responder's answer", f"in plaintext at port {port}", remedy)
    return fail(
        "responder's answer", f"what listens at port {port} does not speak HTTP/2", "another program has the port"
    )


def _shake(plain: socket.socket, port: int) -> Finding:
    """It asks for a certificate that only the daemon has: the handshake up to there shows that it answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(plain) as tls:
        return fine("responder's answer", f"{tls.version()} at port {port}")


def findings(look: SatelliteLook) -> Iterator[Finding]:
    """Run every check. If one fails, its line says so, and the others still run."""
    checks = (*check_programs.CHECKS, *check_limits.CHECKS, *check_disks.CHECKS, *check_identity.CHECKS, check_answer)
    for check in checks:
        try:
            yield from check(look)
        except (OSError, ValueError) as exc:
            subject = check.__name__.removeprefix("check_")
            yield Finding(Severity.WARN, subject, f"cannot look: {exc}")


def main() -> int:
    """Print the findings. Returns 1 if one is a FAIL, 2 if this is not a satellite."""
    if not SETTINGS.exists():
        sys.stderr.write(f"this machine is not a satellite: {SETTINGS} is not there (`bentpipe sat render` makes it)\n")
        return EXIT_NO_SATELLITE
    try:
        look = SatelliteLook(load_settings())
    except SetupError as exc:
        sys.stderr.write(f"{exc}\n")
        return EXIT_FAILED
    seen = list(findings(look))
    for finding in seen:
        sys.stdout.write(f"{finding}\n")
    return EXIT_FAILED if any(each.severity is Severity.FAIL for each in seen) else 0


if __name__ == "__main__":
    sys.exit(main())
