"""Satellites that are processes: killed by somebody, not there yet, silent, or with a stranger on their port."""

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import trio

from beds.hosts import one_satellite
from beds.hosts.one_satellite import COMMAND, KEY, call
from beds.peers.clients import CallError
from bentpipe.daemon.service.serve import Daemon

DEADLINE_S = 30.0


def daemon_of(
    folder: Path, command: tuple[str, ...], more: str = "", process: str = ""
) -> contextlib.AbstractAsyncContextManager[Daemon]:
    return one_satellite.daemon_of(folder, f"{more}\n[satellite.process]\ncommand = {json.dumps(command)}\n{process}\n")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def leaders(mark: str) -> list[int]:
    """Children of this process's keeper with `mark` in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = parent_of(int(entry.name))
                if parent_of(parent) == os.getpid() and mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV], ids=lambda each: each.name)
async def test_killed_by_somebody_it_is_started_for_the_next(how: signal.Signals, tmp_path: Path) -> None:
    async with daemon_of(tmp_path, COMMAND) as daemon:
        assert await call(daemon) == b"hello"
        (pid,) = leaders("bentpipe.daemon.testbed.satellite")
        os.kill(pid, how)
        # A server that was asked to end may still take a call, and cancel it.
        while leaders("bentpipe.daemon.testbed.satellite"):
            await trio.sleep(0.01)
        assert await call(daemon) == b"hello"
        assert daemon.fleet.get(KEY).wakes == 2


async def test_what_never_listens_is_told_with_what_it_printed(tmp_path: Path) -> None:
    command = ("sh", "-c", "echo cache: waiting for a lock; exec sleep 600", "{port}")
    async with daemon_of(tmp_path, command, 'hold_limit = "3s"') as daemon:
        with pytest.raises(CallError) as caught:
            await call(daemon)
    assert "the satellite was not ready after 3 s" in caught.value.details
    assert "nothing listens on port " in caught.value.details
    assert "the satellite printed: cache: waiting for a lock" in caught.value.details


async def test_a_stranger_on_its_port_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        command = ("sh", "-c", "exec sleep 600")
        async with daemon_of(tmp_path, command, 'hold_limit = "3s"', f"port = {port}") as daemon:
            with pytest.raises(CallError) as caught:
                await call(daemon)
    assert f"another process than the satellite's listens on port {port}" in caught.value.details
    assert "the satellite printed nothing" in caught.value.details


async def test_a_program_that_is_away_while_it_is_installed_anew(tmp_path: Path) -> None:
    program = tmp_path / "builder"
    program.touch(0o755)
    async with daemon_of(tmp_path, (str(program), "{port}")) as daemon:
        program.unlink()
        with pytest.raises(CallError, match="there is no program at") as caught:
            await call(daemon)
        assert "the next attempt is possible in" in caught.value.details
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m bentpipe.daemon.testbed.satellite "$1"\n')
        program.chmod(0o755)
        await trio.sleep(16.0)
        assert await call(daemon) == b"hello"
