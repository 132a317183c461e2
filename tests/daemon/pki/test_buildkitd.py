"""What real buildkitd makes of a machine's identity: one file as certificate and key, and the daemon as its only client."""

import contextlib
import dataclasses
import os
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beds.peers.buildkit_host import BUILDKITD, CONTAINED
from beds.peers.builds import BuildKit, Missing, buildkit
from beds.peers.earthly_buildkit import earthly_buildkitd
from beds.ports import free_port
from beds.tls_pairs import Party, daemon, machine
from beds.utc import now
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.authority import MachineName, new_authority, rotated

AUTHORITY = new_authority("test", now())
MINE = MachineName("test", SatelliteKey("acme", "one"), "1" * 64)
THEIRS = MachineName("test", SatelliteKey("rival", "one"), "1" * 64)
START_DEADLINE_S = 60.0
POLL_S = 0.1


@contextlib.contextmanager
def serving(programs: BuildKit, folder: Path, identity: Path, trusted: Path) -> Iterator[int]:
    port = free_port()
    settings = folder / "buildkitd.toml"
    settings.write_text(f'[grpc.tls]\ncert = "{identity}"\nkey = "{identity}"\nca = "{trusted}"\n')
    command = [*CONTAINED, programs.buildkitd, "--addr", f"tcp://127.0.0.1:{port}", "--config", str(settings)]
    command += ["--root", str(folder / "root"), "--oci-worker-binary", programs.runc, *BUILDKITD]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield port
        finally:
            process.kill()
            process.wait()


def asks(programs: BuildKit, port: int, trusted: Path, shown: Path | None, name: str = MINE.dns) -> str:
    """Ask for the workers. Returns "" if buildkitd answers, else buildctl's words."""
    command = [
        programs.buildctl,
        "--addr",
        f"tcp://127.0.0.1:{port}",
        "--tlsservername",
        name,
        "--tlscacert",
        str(trusted),
    ]
    if shown is not None:
        command += ["--tlscert", str(shown), "--tlskey", str(shown)]
    # The fork's gRPC answers no ALPN, which a newer client insists on by default; the daemon does not.
    environment = {**os.environ, "GRPC_ENFORCE_ALPN_ENABLED": "false"}
    done = subprocess.run(
        [*command, "debug", "workers"], capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    return done.stderr if done.returncode else ""


def until_answered(ask: Callable[[], str]) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while words := ask():
        assert time.monotonic() < deadline, words
        time.sleep(POLL_S)


@pytest.mark.parametrize("flavour", ["moby", "earthly"])
def test_buildkitd_serves_the_daemon_alone(tmp_path: Path, flavour: str) -> None:
    try:
        programs = buildkit()
        if flavour == "earthly":
            programs = dataclasses.replace(programs, buildkitd=earthly_buildkitd())
    except Missing as exc:
        pytest.skip(str(exc))
    mine, theirs = machine(tmp_path / "m", AUTHORITY, MINE, now()), machine(tmp_path / "t", AUTHORITY, THEIRS, now())
    edge, after = (
        daemon(tmp_path / "d", AUTHORITY, now()),
        daemon(tmp_path / "r", rotated(AUTHORITY, "test", now()), now()),
    )
    identity, trusted = tmp_path / "identity.pem", tmp_path / "ca.pem"
    identity.write_text(mine.file.read_text())
    trusted.write_text(mine.trusted)

    def ask(shown: Party | None, name: str = MINE.dns) -> str:
        return asks(programs, port, trusted, None if shown is None else shown.file, name)

    with serving(programs, tmp_path, identity, trusted) as port:
        until_answered(lambda: ask(edge))
        assert ask(after) == "", "the daemon with a rotated authority, which buildkitd does not know yet"
        for nobody in (None, theirs, mine):
            assert ask(nobody), "neither no certificate nor a machine's opens it"
        assert THEIRS.dns in ask(edge, THEIRS.dns), "it is not another satellite's machine"
        shown = ssl.get_server_certificate(("127.0.0.1", port))
        identity.write_text(theirs.file.read_text())
        assert ask(edge) == ""
        assert ssl.get_server_certificate(("127.0.0.1", port)) == shown, "it does not read its files again"
