"""A daemon whose descriptors run out: it goes on, everything of it, and it ends when it is told to."""

import contextlib
import itertools
import os
import resource
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from beds.peers.edge_clients import client_of, status_of
from beds.programs import BENTPIPE
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.proto.grpc_status import GrpcStatus

PATIENCE_S = 30.0
LIMIT = 256
CROWD = 400
WATCHDOG_S = 1.0


class Manager:
    """The service manager's end of the notify socket: counts the watchdog's pings."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.pings: list[float] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self.path))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            if self._sock.recv(4096) == b"WATCHDOG=1":
                self.pings.append(time.monotonic())

    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}

    def check(self, since: float) -> None:
        """No gap was longer than the watchdog allows."""
        seen = [since, *(at for at in self.pings if at > since), time.monotonic()]
        gaps = [after - before for before, after in itertools.pairwise(seen)]
        assert max(gaps) < 2 * WATCHDOG_S, gaps


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    return Manager(tmp_path)


def wait_status(edge: EdgeHost, satellite: str, wanted: GrpcStatus) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while status_of(edge, satellite) is not wanted:
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Crowd:
    """Connections that say nothing, as many as a stranger pleases; all of them end with the `with`."""

    def __init__(self, port: int, count: int) -> None:
        self.sockets: list[socket.socket] = []
        for _ in range(count):
            sock = socket.socket()
            sock.settimeout(PATIENCE_S)
            with contextlib.suppress(OSError):
                sock.connect(("127.0.0.1", port))
            self.sockets.append(sock)

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in self.sockets:
            sock.close()


def accepted(port: int) -> int:
    """Connections that the daemon has accepted at `port` and not closed: until accept(2) the kernel gives them no inode.

    Source: Documentation/networking/proc_net_tcp.rst of the kernel."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" and row[9] != "0" for row in rows)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


SATELLITES = [DemoSatellite("one"), DemoSatellite("two")]


def settings(limits: str = "") -> str:
    return f'[limits]\ngreeting_deadline = "60s"\n{limits}'


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons of this test have a small hard limit."""
    started = subprocess.Popen

    def start(argv: list[str], **options: object) -> subprocess.Popen[bytes]:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT // 2, LIMIT))

        return started(argv, preexec_fn=limit, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr("bentpipe.daemon.testbed.edge_host.subprocess.Popen", start)


@pytest.mark.usefixtures("small")
def test_a_crowd_takes_no_descriptor_that_the_daemon_needs(manager: Manager) -> None:
    with EdgeHost(SATELLITES, sleep_after_s=600, settings=settings(), environment=manager.environment()) as edge:
        [shared] = [record for record in edge.records() if record["message"] == "descriptors"]
        assert shared["limit"] == LIMIT, "it is raised to the hard limit"
        assert resource.prlimit(edge.pid, resource.RLIMIT_NOFILE) == (LIMIT, LIMIT)
        build = client_of(edge, "one")
        assert build.unary("Echo", b"before") == b"before"
        began = time.monotonic()
        with Crowd(edge.port, CROWD):
            time.sleep(3 * WATCHDOG_S)
            assert open_files(edge.pid) <= LIMIT - 32, "a reserve is left"
            # The store, a process, and whatever else needs a descriptor: all of it works meanwhile.
            added = subprocess.run(
                [BENTPIPE, "token", "add", "--config", edge.config_path, "--name", "new", "--grant", f"{ORG}/*"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert build.unary("Echo", b"after") == b"after"
            manager.check(began)
        wait_status(edge, "two", GrpcStatus.OK)  # a satellite that is spawned now
        build.close()
        assert "bp_" in added.stdout
        assert edge.stop() == 0


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


@pytest.mark.usefixtures("small")
def test_satellites_have_the_limit_that_the_daemon_was_started_with() -> None:
    """A program that uses select(2) breaks with descriptors above 1,023; one that wants more raises its own."""
    with EdgeHost(SATELLITES, sleep_after_s=600, settings=settings()) as edge:
        assert status_of(edge, "one") is GrpcStatus.OK
        assert resource.prlimit(edge.pid, resource.RLIMIT_NOFILE) == (LIMIT, LIMIT)
        [keeper] = children_of(edge.pid)
        [satellite] = children_of(keeper)
        assert resource.prlimit(satellite, resource.RLIMIT_NOFILE) == (LIMIT // 2, LIMIT)


def test_old_strangers_go_when_there_is_no_descriptor_for_a_client() -> None:
    """As a leak would, or another program of this user that takes them. A client with a token is still let in."""
    with EdgeHost(SATELLITES, sleep_after_s=600, settings=settings()) as edge:
        assert status_of(edge, "one") is GrpcStatus.OK
        with Crowd(edge.port, 40):
            deadline = time.monotonic() + PATIENCE_S
            while accepted(edge.port) < 40:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(1.5)  # past the grace: a newcomer must not be able to evict another newcomer
            resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (open_files(edge.pid), 20_000))
            began = time.monotonic()
            assert status_of(edge, "one") is GrpcStatus.OK
            assert time.monotonic() - began < 10, "strangers go by their own deadline after 60 s"
            assert accepted(edge.port) > 20, "and no more of them than need be"
            resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (20_000, 20_000))
            assert any(record["message"] == "evicted" and record["limit"] == "descriptors" for record in edge.records())
        assert edge.stop() == 0


def test_a_limit_that_is_lowered_under_the_daemon_ends_nothing(manager: Manager) -> None:
    """As a leak would: no descriptor is left for anything at all."""
    with EdgeHost(SATELLITES, sleep_after_s=600, settings=settings(), environment=manager.environment()) as edge:
        build = client_of(edge, "one")
        assert build.unary("Echo", b"before") == b"before"
        began = time.monotonic()
        for soft in (open_files(edge.pid), 3):
            resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (soft, 20_000))
            with Crowd(edge.port, 20):
                deadline = time.monotonic() + 3 * WATCHDOG_S
                while time.monotonic() < deadline:
                    assert build.unary("Echo", b"meanwhile") == b"meanwhile"
                    time.sleep(0.05)
        manager.check(began)
        resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (20_000, 20_000))
        wait_status(edge, "two", GrpcStatus.OK)
        build.close()
        assert edge.stop() == 0


def test_a_daemon_without_a_descriptor_ends_when_it_is_told_to(manager: Manager) -> None:
    with EdgeHost(SATELLITES, sleep_after_s=600, drain_deadline_s=1, environment=manager.environment()) as edge:
        build = client_of(edge, "one")
        assert build.unary("Echo", b"before") == b"before"
        resource.prlimit(edge.pid, resource.RLIMIT_NOFILE, (3, 20_000))
        with Crowd(edge.port, 20):
            time.sleep(1)
            assert edge.stop() in (0, 3)
        build.close()


def test_limits_that_do_not_fit_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "bentpipe.toml"
    path.write_text('[[listener]]\naddress = "127.0.0.1:0"\n[limits]\nmax_connections = 1000\n')
    for command in (["check"], ["serve", "--config"]):
        done = subprocess.run(
            ["prlimit", f"--nofile={LIMIT // 2}:{LIMIT}", BENTPIPE, *command, path],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert "limits.max_connections = 1000" in done.stderr
        assert f"may open {LIMIT}" in done.stderr
        assert "LimitNOFILE=" in done.stderr
