"""Pebble, Let's Encrypt's ACME server for tests, in the network of a root that has booted, where certbot asks it.

It takes every name for proven, since a root has no DNS and no way in from outside. All else is as in the protocol:
accounts, orders, and chains of an authority that is made anew at each start. It is apart from `beds.peers.builds`, since
each change of that module builds every peer again.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import trustme

from beds.booted.machine import Booted
from beds.peers import builds

PEBBLE = "github.com/letsencrypt/pebble/v2/cmd/pebble"
PORT, MANAGEMENT_PORT = 14000, 15000
DIRECTORY = f"https://localhost:{PORT}/dir"
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0
POLL_S = 0.1


def pebble() -> str:
    """The program. Raises Missing."""
    return str(builds._go_build("pebble", PEBBLE) / "pebble")


def _ask(host: Booted, url: str, ca: Path) -> bytes:
    """Get a page within the root's network."""
    script = (
        "import ssl, sys, urllib.request; "
        "context = ssl.create_default_context(cafile=sys.argv[2]); "
        "sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], context=context, timeout=10).read())"
    )
    done = subprocess.run(
        [*host.network, sys.executable, "-c", script, url, ca],
        capture_output=True,
        check=True,
        timeout=START_DEADLINE_S,
    )
    return done.stdout


@contextlib.contextmanager
def acme_server(host: Booted, folder: Path, program: str) -> Iterator[Path]:
    """Run it until the end of the block. Gives a file with the authority of the certificates that it issues.

    The authority of its own certificate is in the root as /root/acme-ca.pem, for certbot's REQUESTS_CA_BUNDLE.
    """
    authority = trustme.CA()
    own, issued = folder / "acme-ca.pem", folder / "issuer.pem"
    authority.cert_pem.write_to_path(own)
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "acme.pem")
    host.put("/root/acme-ca.pem", own.read_bytes())
    settings = {
        "listenAddress": f"127.0.0.1:{PORT}",
        "managementListenAddress": f"127.0.0.1:{MANAGEMENT_PORT}",
        "certificate": str(folder / "acme.pem"),
        "privateKey": str(folder / "acme.pem"),
        "httpPort": 80,
        "tlsPort": 443,
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": settings}))
    environment = {**os.environ, "PEBBLE_VA_ALWAYS_VALID": "1", "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    with (folder / "pebble.log").open("wb") as log:
        process = subprocess.Popen(
            [*host.network, program, "-config", str(folder / "pebble.json")], env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                issued.write_bytes(_ask(host, f"https://localhost:{MANAGEMENT_PORT}/roots/0", own))
                break
            assert process.poll() is None, (folder / "pebble.log").read_text()
            assert time.monotonic() < deadline, (folder / "pebble.log").read_text()
            time.sleep(POLL_S)
        yield issued
    finally:
        process.kill()
        process.wait(timeout=STOP_DEADLINE_S)


def main() -> int:
    """Build it, and say whether it is there."""
    try:
        pebble()
    except builds.Missing as exc:
        sys.stdout.write(f"peer Pebble: its tests are skipped: {exc}\n")
    else:
        sys.stdout.write("peer Pebble: ready\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
