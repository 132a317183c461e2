"""The real grpcurl, a client of grpc-go, asks the responder with proto/responder.proto as its reference."""

import datetime
import json
import subprocess
from pathlib import Path

import pytest

from beds.peers.builds import Missing, grpcurl
from beds.peers.responder_process import CALL_DEADLINE_S, ResponderProcess
from beds.tls_pairs import daemon, machine
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.authority import MachineName, new_authority
from bentpipe.daemon.responder.enrol import DAEMON_NAME

ROOT = Path(__file__).parents[3]
METHOD = "bentpipe.responder.v1.Responder/GetStatus"


@pytest.fixture
def program() -> str:
    try:
        return grpcurl()
    except Missing as exc:
        pytest.skip(str(exc))


def ask(program: str, responder: ResponderProcess, *options: str) -> dict[str, object]:
    reference = ["-import-path", str(ROOT), "-proto", "proto/responder.proto"]
    command = [program, *options, *reference, f"127.0.0.1:{responder.port}", METHOD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_plaintext(program: str) -> None:
    with ResponderProcess({}) as responder:
        responder.wait_status("machine")
        status = ask(program, responder, "-plaintext")
    assert status["bootId"]
    assert "memoryTotalBytes" in str(status["machine"])


def test_tls(program: str, tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    authority, name = new_authority("fleet", now), MachineName("fleet", SatelliteKey("acme", "one"), "1" * 64)
    mine, asker = machine(tmp_path / "m", authority, name, now), daemon(tmp_path / "d", authority, now)
    trusted = tmp_path / "ca.pem"
    trusted.write_text(mine.trusted)
    files = {"certificate": str(mine.file), "key": str(mine.file), "client_ca": str(trusted)}
    with ResponderProcess({**files, "client_name": DAEMON_NAME}) as responder:
        own = ["-cacert", str(trusted), "-cert", str(asker.file), "-key", str(asker.file), "-authority", name.dns]
        assert ask(program, responder, *own)["bootId"]
