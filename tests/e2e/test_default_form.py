"""`bentpipe serve` whose configuration says nothing of the form: builds outlive it, and Ctrl-C ends all of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from beds.ports import free_port
from beds.programs import BENTPIPE
from bentpipe.config.load import load_config
from bentpipe.daemon.planes.sockets import plane_sockets
from bentpipe.daemon.service.host_rows import DataPlaneRow, HostLook
from bentpipe.daemon.service.plane_form import choose_form
from bentpipe.daemon.testbed.client import DemoClient
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost

DEADLINE_S = 60.0
CHUNK = b"x" * 1000
IMPATIENT = """
import sys
from bentpipe.daemon.service import plane_process
plane_process.ABANDONED_S = plane_process.PARKED_S = 0.5
from bentpipe.daemon.service.cli import main
main(prog_name="bentpipe")
"""
"""`bentpipe` whose data plane does not wait for long. `-c` is not passed on, so it is a `dataplane` itself."""


def wait(true: Callable[[], bool], words: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, words
        time.sleep(0.02)


def processes_with(path: Path) -> list[int]:
    """Those that name a file in their command line."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(path) in each.cmdline():
                found.append(each.pid)
    return found


def folder_of(config: Path) -> Path:
    folder = choose_form(load_config(config, check_files=False), config, is_service=False).folder
    assert folder is not None
    return folder


def top_of(folder: Path) -> HostLook:
    """What `bentpipe top` shows of the host by the daemon's Unix socket in a folder."""
    server = f"unix:{folder / 'api.sock'}"
    command: list[str | Path] = [BENTPIPE, "top", "--once", "--json", "--server", server, "--org", ORG]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)["host"]
    planes = tuple(DataPlaneRow(**each) for each in told.pop("data_planes"))
    return HostLook(data_planes=planes, **told)


def test_a_build_outlives_the_daemon_and_ctrl_c_ends_everything(tmp_path: Path) -> None:
    settings = f'[control]\npath = "{tmp_path / "control.sock"}"\n'
    with EdgeHost([DemoSatellite("sat")], sleep_after_s=600, data_plane="auto", settings=settings) as host:
        folder = folder_of(host.config_path)
        told = [r for r in host.records() if str(r.get("message")).startswith("connections live")]
        assert [(r["message"], r["planes"]) for r in told] == [
            ("connections live in a process of their own", str(folder))
        ]
        [plane] = host.data_planes()
        with DemoClient(host, "sat") as client:
            assert client.echo(CHUNK) == CHUNK
            wait(lambda: top_of(tmp_path).data_planes[0].spliced == 1, "the data plane has not counted it")
            with DemoClient(host, "sat") as second:
                wait(lambda: second.echo(CHUNK) == CHUNK and top_of(tmp_path).gates == 1, "no gate was opened")
            with DemoClient(host, "sat") as third:
                assert third.echo(CHUNK) == CHUNK
            wait(lambda: top_of(tmp_path).admitted > 0, "nobody was admitted by a snapshot")
            seen = top_of(tmp_path)
            assert (seen.by_snapshots, seen.data_planes[0].pid) == (True, plane)
            assert seen.connections.startswith("connections live in a process of their own")
            # The keeper and the satellite, too.
            parts = {plane, *(child.pid for child in psutil.Process(host.pid).children(recursive=True))}
            assert len(parts) > 2
            host.kill_and_start()
            assert client.echo(CHUNK) == CHUNK
        assert list(host.data_planes()) == [plane]
        assert host.found_again("sat")
        os.kill(host.pid, signal.SIGINT)
        assert host.wait() == 0
        wait(lambda: not any(map(psutil.pid_exists, parts)), "something of it runs on")
        assert not folder.exists()


def plain_config(folder: Path) -> Path:
    config = folder / "bentpipe.toml"
    config.write_text(
        f'[daemon]\ndrain_deadline = "1s"\n[store]\nkind = "none"\n[[listener]]\naddress = "127.0.0.1:{free_port()}"\n'
    )
    return config


@contextlib.contextmanager
def started(*arguments: str | Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command of bentpipe. At the end it is killed, if it still runs."""
    with log.open("ab") as file, subprocess.Popen(arguments, stderr=file, stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_in_the_middle_of_the_start_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    config, log = plain_config(tmp_path), tmp_path / "log"
    with started(BENTPIPE, "serve", "--config", config, log=log) as process:
        wait(lambda: "data plane started" in log.read_text(), "no data plane was started")
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 0
    wait(lambda: not processes_with(config), "a data plane runs on")


def test_a_second_daemon_of_the_file_is_refused_and_one_of_another_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    config, other = plain_config(tmp_path), plain_config(tmp_path / "other")
    log, second, elsewhere = tmp_path / "log", tmp_path / "second", tmp_path / "elsewhere"
    with started(BENTPIPE, "serve", "--config", config, log=log) as first:
        wait(lambda: "serving" in log.read_text(), "it does not serve")
        with started(BENTPIPE, "serve", "--config", config, log=second) as refused:
            assert refused.wait(DEADLINE_S) == 2
        assert "another control plane" in second.read_text()
        with started(BENTPIPE, "serve", "--config", other, log=elsewhere) as beside:
            wait(lambda: "serving" in elsewhere.read_text(), "it does not serve")
            beside.terminate()
            assert beside.wait(DEADLINE_S) == 0
        assert first.poll() is None
        first.terminate()
        assert first.wait(DEADLINE_S) == 0
    assert not folder_of(config).exists()


def test_a_data_plane_that_nobody_needs_ends(tmp_path: Path) -> None:
    config, log = plain_config(tmp_path), tmp_path / "log"
    folder = folder_of(config)
    with started(sys.executable, "-P", "-c", IMPATIENT, "dataplane", "--config", config, log=log) as plane:
        wait(lambda: bool(list(plane_sockets(folder))) or plane.poll() is not None, "no data plane")
        assert plane.wait(DEADLINE_S) == 0
    assert "no control plane has come" in log.read_text()
    assert not folder.exists()


def test_a_data_plane_that_is_a_unit_waits(tmp_path: Path) -> None:
    config, log = plain_config(tmp_path), tmp_path / "log"
    code = IMPATIENT
    environment = {**os.environ, "SYSTEMD_EXEC_PID": ""}
    command = ["sh", "-c", 'SYSTEMD_EXEC_PID=$$ exec "$@"', "sh", sys.executable, "-P", "-c", code]
    with (
        log.open("wb") as file,
        subprocess.Popen([*command, "dataplane", "--config", config], stderr=file, env=environment) as plane,
    ):
        try:
            wait(lambda: "kernel's queue" in log.read_text() or plane.poll() is not None, "it never gives up accepting")
            assert plane.poll() is None
            assert "this ends" not in log.read_text()
        finally:
            plane.terminate()
            assert plane.wait(DEADLINE_S) == 0


def test_what_an_earlier_data_plane_holds_is_told(tmp_path: Path) -> None:
    """The file says "inside" now, but connections of an earlier daemon may still go on in their process."""
    config, log = plain_config(tmp_path), tmp_path / "log"
    with started(BENTPIPE, "serve", "--config", config, log=log) as first:
        wait(lambda: "serving" in log.read_text(), "it does not serve")
        first.kill()
        first.wait()
        config.write_text(config.read_text().replace("[daemon]", '[daemon]\ndata_plane = "inside"'))
        inside = tmp_path / "inside"
        with started(BENTPIPE, "serve", "--config", config, log=inside) as refused:
            assert refused.wait(DEADLINE_S) == 2
        assert "a data plane of an earlier daemon still runs" in inside.read_text()
        assert "Address already in use" in inside.read_text()
        config.write_text(config.read_text().replace("inside", "auto"))
        with started(BENTPIPE, "serve", "--config", config, log=tmp_path / "again") as again:
            wait(lambda: "serving" in (tmp_path / "again").read_text(), "it does not serve")
            again.terminate()
            assert again.wait(DEADLINE_S) == 0


def test_a_file_that_can_be_read_once_is_served_inside(tmp_path: Path) -> None:
    config, log = plain_config(tmp_path), tmp_path / "log"
    with started("bash", "-c", 'exec "$0" serve --config <(cat "$1")', BENTPIPE, config, log=log) as process:
        wait(lambda: "listening" in log.read_text(), "it does not serve")
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert "no file has the configuration" in log.read_text()
