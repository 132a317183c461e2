"""Checks the machine's certificate from the daemon: it is there, it belongs to its key, and it has not ended.

Each check yields findings and changes nothing.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator

from bentpipe.daemon.image.programs.findings import Finding, fail, fine, warn
from bentpipe.daemon.image.programs.looks import SatelliteLook
from bentpipe.daemon.image.programs.settings import RESPONDER_SETTINGS

ENROL_LOG = "journalctl -u bentpipe-enrol.service says why; the machine must reach the daemon's [satellite_ca] port"
LATE_S = 7 * 86_400.0
"""The next certificate comes after a third of the life of the present one. If so little is left, something is wrong."""
OTHERS = 0o077


def check_certificate(look: SatelliteLook) -> Iterator[Finding]:
    """Only if the machine is rendered with one."""
    try:
        name = json.loads(look.text(RESPONDER_SETTINGS) or "{}").get("certificate", "")
    except (ValueError, AttributeError):
        return  # the check of the responder's answer tells that
    if not name:
        return
    path = look.path(name)
    if not path.exists():
        yield fail("certificate", f"{name} is not there", ENROL_LOG)
        return
    if path.stat().st_mode & OTHERS:
        yield fail("certificate", f"{name} has the private key, and others may read it", f"chmod 600 {name}")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(str(path))
        told = look.run("openssl", "x509", "-in", str(path), "-noout", "-enddate")
        ends = ssl.cert_time_to_seconds((told or "").partition("=")[2].strip())
    except (ssl.SSLError, ValueError) as exc:
        yield fail("certificate", f"{name} cannot be used: {exc}", f"remove {name}, and restart bentpipe-enrol.service")
        return
    days = (ends - time.time()) / 86_400
    if days <= 0:
        yield fail("certificate", f"it ended {-days:.0f} days ago", ENROL_LOG)
    elif ends - time.time() < LATE_S:
        yield warn("certificate", f"it ends in {days:.1f} days and was not renewed", ENROL_LOG)
    else:
        yield fine("certificate", f"for another {days:.0f} days")


CHECKS = (check_certificate,)
