"""Ports that a process opens later: none is given twice, whatever the kernel gives away meanwhile."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bentpipe.daemon import ports
from bentpipe.daemon.ports import reserve_port

OTHER_PROCESS = """
import sys
from bentpipe.daemon.ports import reserve_port
kept = [reserve_port("127.0.0.1") for _ in range(100)]
print(*(one.port for one in kept), flush=True)
sys.stdin.read()
"""


def narrow(monkeypatch: pytest.MonkeyPatch, *candidates: int) -> None:
    monkeypatch.setattr(ports, "_candidates", lambda: iter(candidates))


def test_the_kernel_gives_such_a_port_to_nobody() -> None:
    first, last = (int(word) for word in ports.EPHEMERAL.read_text().split())
    with contextlib.ExitStack() as opened:
        chosen = {opened.enter_context(reserve_port("127.0.0.1")).port for _ in range(200)}
    assert len(chosen) == 200
    assert not any(first <= port <= last for port in chosen)


def test_two_processes_reserve_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", OTHER_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        theirs = [int(word) for word in other.stdout.readline().split()]
        narrow(monkeypatch, *theirs)
        with pytest.raises(OSError, match="no free port on"):
            reserve_port("127.0.0.1")
        other.stdin.close()
        other.wait()
        with reserve_port("127.0.0.1") as mine:
            assert mine.port == theirs[0]


def test_a_port_is_free_for_the_next_once_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with reserve_port("127.0.0.1") as first:
        port = first.port
    narrow(monkeypatch, port)
    with reserve_port("127.0.0.1") as second:
        assert second.port == port


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_with_a_listener_is_left_out(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with reserve_port(host) as probe, socket.socket(family) as listener, reserve_port(host) as spare:
        probe.close()
        listener.bind((host, probe.port))
        listener.listen()
        narrow(monkeypatch, probe.port, spare.port)
        spare.close()
        with reserve_port(host) as found:
            assert found.port == spare.port


def test_a_taken_port_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with reserve_port("127.0.0.1") as one, reserve_port("127.0.0.1") as two:
        candidates = (one.port, two.port)
    narrow(monkeypatch, *candidates)
    with reserve_port("127.0.0.1", taken={candidates[0]}) as found:
        assert found.port == candidates[1]


def test_all_ports_if_the_kernel_gives_away_nearly_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    everything = tmp_path / "ip_local_port_range"
    everything.write_text("1024\t65535\n")
    monkeypatch.setattr(ports, "EPHEMERAL", everything)
    with reserve_port("127.0.0.1") as found:
        assert ports.LOWEST_PORT <= found.port <= ports.HIGHEST_PORT


def test_an_address_that_is_not_of_this_host() -> None:
    with pytest.raises(OSError, match="Cannot assign"):
        reserve_port("192.0.2.1")
