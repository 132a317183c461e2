"""The service manager's side is a real AF_UNIX datagram socket, and descriptors passed to a real child."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bentpipe.daemon.service import sd


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_reaches_the_manager(tmp_path: Path, abstract: bool) -> None:
    name = f"@bentpipe-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        assert sd.notify("READY=1", {"NOTIFY_SOCKET": name})
        assert manager.recv(100) == b"READY=1"


def test_no_manager() -> None:
    assert not sd.notify("READY=1", {})


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "20000000"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval(environment: dict[str, str], interval_s: float | None) -> None:
    assert sd.watchdog_interval_s(environment) == interval_s


def test_passed_sockets_by_name() -> None:
    """A child takes descriptor 3 as systemd passes it: it reports the port, and that nothing is inherited further."""
    program = (
        "import os; os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from bentpipe.daemon.service import sd\n"
        "[sock] = sd.listen_sockets()['clients']\n"
        "print(sock.getsockname()[1], sock.fileno(), os.get_inheritable(3))"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        answer = subprocess.run(
            ["bash", "-c", f'exec 3<&{server.fileno()}; exec "$@"', "bash", sys.executable, "-P", "-c", program],
            env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "clients"},
            pass_fds=[server.fileno()],
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout.split() == [str(server.getsockname()[1]), "3", "False"]


def test_sockets_of_another_process_are_not_taken() -> None:
    assert sd.listen_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == {}
