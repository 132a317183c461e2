"""Both processes are stopped as systemd stops their units: by a signal to each, the control plane's first.

Nothing waits for a process that is gone, and the port is free afterwards.
"""

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.hosts.one_satellite import emulated_ec2
from beds.hosts.two_planes import DEADLINE_S, PLAIN, TLS, TwoPlanes
from bentpipe.daemon.testbed.edge_host import end_process

DRAINS_S = 30.0
"""`drain_deadline` of these hosts: longer than anything here may take."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TwoPlanes, "subprocess.Popen[bytes]"]]:
    """A host, and its data plane. Neither process starts another, since both have a socket of systemd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, emulated_ec2() as emulator:
        notify.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        made = TwoPlanes(tmp_path, emulator)
        made.config.write_text(
            made.config.read_text().replace('drain_deadline = "2s"', f'drain_deadline = "{DRAINS_S}s"')
        )
        plane = made.begin("dataplane")
        try:
            made.start()
            yield made, plane
        finally:
            plane.send_signal(signal.SIGCONT)
            made.close()
            end_process(plane, DEADLINE_S)


@pytest.mark.parametrize("number", [None, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_control_plane_leaves_whatever_its_data_plane_does(
    host: tuple[TwoPlanes, "subprocess.Popen[bytes]"], number: signal.Signals | None
) -> None:
    both, plane = host
    with contextlib.closing(both.client(TLS)) as client:
        assert client.unary("Echo", b"hello") == b"hello"
        if number is not None:
            plane.send_signal(number)
        if number is signal.SIGKILL:
            plane.wait(DEADLINE_S)
            both.wait(lambda: both.count("a data plane is gone") == 1, "it is not missed")
        assert both.end_control(signal.SIGUSR2) == 0


def test_a_control_plane_that_waits_for_its_data_plane_leaves(
    host: tuple[TwoPlanes, "subprocess.Popen[bytes]"],
) -> None:
    both, plane = host
    assert both.end_control(signal.SIGUSR2) == 0
    plane.kill()
    plane.wait(DEADLINE_S)
    both.start_again()
    both.wait(lambda: b"NOTIFY_SOCKET" in environment_of(both), "it does not begin")
    assert both.control is not None
    both.control.send_signal(signal.SIGUSR2)
    assert both.control.wait(DEADLINE_S) in (0, -signal.SIGUSR2), "before its handlers the signal itself ends it"


def environment_of(host: TwoPlanes) -> bytes:
    assert host.control is not None
    return Path(f"/proc/{host.control.pid}/environ").read_bytes()


def test_when_all_is_stopped_builds_end_and_then_one_process_has_the_port(
    host: tuple[TwoPlanes, "subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, plane = host
    client = both.client(PLAIN)
    assert client.unary("Echo", b"hello") == b"hello"
    assert both.end_control(signal.SIGUSR2) == 0
    plane.send_signal(signal.SIGTERM)
    both.wait(lambda: both.count("draining") == 1, "it does not drain")
    assert client.unary("Echo", b"a build that goes on") == b"a build that goes on"
    client.close()
    assert plane.wait(DEADLINE_S) == 0
    monkeypatch.delenv("NOTIFY_SOCKET")
    text = both.config.read_text().replace('data_plane = "process"', 'data_plane = "inside"')
    both.config.write_text(text)
    both.form = "inside"
    both.start()
    with contextlib.closing(both.client(PLAIN)) as client:
        assert client.unary("Echo", b"one process") == b"one process"
    assert both.end_control(signal.SIGTERM) == 0
