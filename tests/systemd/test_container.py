"""The steps of Containerfile, run in a clean Debian root: no engine for containers is needed, and no registry.

What needs one is not tested: layers, the base image's own settings, and the engine's networks.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.booted.machine import Booted
from beds.booted.package import built_package
from beds.booted.root import booted_root
from beds.peers.builds import ROOT, Missing

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

SUITE = "trixie"
STEP = re.compile(r"^([A-Z]+) (.*)$", re.MULTILINE)
NO_ARCHIVE = "apt-get update && "
"""The root has no network, but all that the package depends on."""
INSTALL_DEADLINE_S = 300.0
STOP_DEADLINE_S = 60.0
CONFIGURATION = '[[listener]]\naddress = "127.0.0.1:8372"\n[control]\n'
PROBE = "import socket; socket.create_connection(('127.0.0.1', 8372), timeout=5).close()"


def steps(name: str) -> list[str]:
    """The arguments of all steps of one kind."""
    return [found[2] for found in STEP.finditer((ROOT / "Containerfile").read_text()) if found[1] == name]


@pytest.fixture(scope="module")
def container() -> Iterator[Booted]:
    try:
        root, package = booted_root(SUITE), built_package(SUITE)
    except Missing as exc:
        pytest.skip(str(exc))
    [copied] = steps("COPY")
    source, target = copied.split()
    assert Path("dist", package.name).match(source)
    with Booted(root) as host:
        host.put(target, package.read_bytes())
        for step in steps("RUN"):
            host.run(step.removeprefix(NO_ARCHIVE), deadline_s=INSTALL_DEADLINE_S)
        yield host


def test_the_daemon_runs_as_its_user_without_rights(container: Booted) -> None:
    [variables], [user] = steps("ENV"), steps("USER")
    [entry], [arguments] = steps("ENTRYPOINT"), steps("CMD")
    container.put("/etc/bentpipe/bentpipe.toml", CONFIGURATION.encode())
    command = [*json.loads(entry), *json.loads(arguments)]
    isolated = (
        "setpriv",
        f"--reuid={user}",
        f"--regid={user}",
        "--clear-groups",
        "--bounding-set=-all",
        "--no-new-privs",
    )
    with subprocess.Popen(
        [*container.command, *variables.split(), *isolated, *command], stderr=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stderr is not None
        try:
            said = []
            for line in daemon.stderr:
                said.append(line)
                if "listening" in line:
                    break
            assert daemon.poll() is None, "".join(said)
            subprocess.run([*container.network, sys.executable, "-c", PROBE], check=True)
        finally:
            # nsenter(1), which is the process here, passes on no signal.
            container.attempt('kill -TERM $(pgrep --uid "$1" --full "bentpipe serve")', user)
        daemon.communicate(timeout=STOP_DEADLINE_S)
    assert daemon.returncode == 0
    assert container.run("stat -c %U /var/lib/bentpipe/ledger.sqlite").strip() == "bentpipe"


def test_the_package_leaves_nothing_of_its_installation(container: Booted) -> None:
    assert container.attempt("ls /tmp/bentpipe.deb")[0] != 0
