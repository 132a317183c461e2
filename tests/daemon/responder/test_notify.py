"""The responder tells systemd that it is ready and that its loop goes on, and does without it."""

import socket
from pathlib import Path

import pytest

from beds.peers.responder_process import CALL_DEADLINE_S, ResponderProcess


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_watchdog_stopping(tmp_path: Path, abstract: bool) -> None:
    name = f"@bentpipe-{tmp_path.name}-{id(tmp_path)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(CALL_DEADLINE_S)
        environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1500000"}
        with ResponderProcess({}, environment=environment) as responder:
            said = [manager.recv(100) for _ in range(4)]
            assert sorted(set(said)) == [b"READY=1", b"WATCHDOG=1"]
            assert said.count(b"READY=1") == 1
            responder.process.terminate()
            while (word := manager.recv(100)) != b"STOPPING=1":
                assert word == b"WATCHDOG=1"


def test_a_manager_that_has_gone(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "300000"}
    with ResponderProcess({}, environment=environment) as responder:
        assert responder.wait_status("machine").boot_id
        responder.wait_said("systemd does not listen")
