"""The processes of emulated machines: all of a machine's end, freeze and thaw with it."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beds.machines.emulator_calls import DEADLINE_S, post
from bentpipe.daemon.testbed.ec2_emulator.clock import ManualClock
from bentpipe.daemon.testbed.ec2_emulator.control import Control
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

PROGRAM = (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.ec2_emulator.main")
TREE = """
import os, sys, time
FOLDER = sys.argv[1]
def child(name, of_its_own):
    if os.fork():
        return
    if of_its_own:
        os.setsid()
        if os.fork():
            os._exit(0)
    stay(name)
def stay(name):
    with open(f"{FOLDER}/{name}.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{FOLDER}/{name}.new", f"{FOLDER}/{name}")
    while True:
        time.sleep(600)
child("beside", False)
child("away", True)
stay("leader") if len(sys.argv) < 3 else None
"""
"""Leaves its process id, and those of a child in its process group and of an orphan in another session. With a second
argument the leader ends at once."""
NAMES = ("leader", "beside", "away")
POLL_S = 0.01


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-ISc", TREE, str(folder), *arguments]


def pid_fds(folder: Path, names: tuple[str, ...] = NAMES) -> dict[str, int]:
    """Descriptors of the processes, when all of them run. They are readable once their process is dead (pidfd_open(2))."""
    deadline = time.monotonic() + DEADLINE_S
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < deadline, os.listdir(folder)
        time.sleep(POLL_S)
    found = {name: os.pidfd_open(int((folder / name).read_text())) for name in names}
    for name in names:
        (folder / name).unlink()
    return found


def await_deaths(fds: dict[str, int]) -> None:
    for name, fd in fds.items():
        readable, _, _ = select.select([fd], [], [], DEADLINE_S)
        os.close(fd)
        assert readable, f"{name} has outlived its machine"


def states(fds: dict[str, int]) -> set[str]:
    """How the processes are, as letters of proc_pid_stat(5)."""
    found = set()
    for fd in fds.values():
        [line] = [line for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if line.startswith("Pid:")]
        found.add(Path(f"/proc/{line.split()[1]}/stat").read_text().rpartition(")")[2].split()[0])
    return found


def await_states(fds: dict[str, int], wanted: set[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while states(fds) != wanted:
        assert time.monotonic() < deadline, states(fds)
        time.sleep(POLL_S)


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    with Emulator(ManualClock(), machine_command=command(tmp_path)) as emulator:
        yield emulator


def started(emulator: Emulator) -> str:
    instance_id = emulator.control.add_instance(hibernation=True)
    emulator.control.others_start(instance_id=instance_id)
    assert emulator.control.advance_to_next()
    return instance_id


def test_no_process_of_a_machine_outlives_the_emulator(tmp_path: Path) -> None:
    with Emulator(ManualClock(), machine_command=command(tmp_path)) as emulator:
        started(emulator)
        fds = pid_fds(tmp_path)
    await_deaths(fds)


def test_processes_that_their_leader_has_left_end_too(tmp_path: Path) -> None:
    with Emulator(ManualClock(), machine_command=command(tmp_path, "brief")) as emulator:
        started(emulator)
        fds = pid_fds(tmp_path, ("beside", "away"))
        assert states(fds) == {"S"}, "a machine has power until EC2 takes it"
    await_deaths(fds)


def test_a_machine_that_is_frozen_ends_with_the_emulator(tmp_path: Path) -> None:
    with Emulator(ManualClock(), machine_command=command(tmp_path)) as emulator:
        instance_id = started(emulator)
        fds = pid_fds(tmp_path)
        emulator.control.others_stop(instance_id=instance_id, hibernate=True)
        assert emulator.control.advance_to_next()
        await_states(fds, {"T"})
    await_deaths(fds)


@pytest.mark.parametrize("end", [Control.others_stop, Control.others_terminate], ids=["stop", "terminate"])
def test_they_end_with_their_instance(emulator: Emulator, tmp_path: Path, end: Callable[..., None]) -> None:
    instance_id = started(emulator)
    fds = pid_fds(tmp_path)
    end(emulator.control, instance_id=instance_id)
    assert emulator.control.advance_to_next()
    await_deaths(fds)


def test_they_freeze_and_thaw_together(emulator: Emulator, tmp_path: Path) -> None:
    instance_id = started(emulator)
    fds = pid_fds(tmp_path)
    emulator.control.others_stop(instance_id=instance_id, hibernate=True)
    assert emulator.control.advance_to_next()
    await_states(fds, {"T"})
    emulator.control.others_start(instance_id=instance_id)
    assert emulator.control.advance_to_next()
    await_states(fds, {"S"})
    for fd in fds.values():
        os.close(fd)


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
def test_they_end_with_an_emulator_that_is_killed(tmp_path: Path, frozen: bool) -> None:
    argv = [*PROGRAM, "--manual", "--machine-command", *command(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        hand = f"{json.loads(program.stdout.readline())['url']}/control"
        instance_id = str(post(f"{hand}/add_instance", hibernation=True))
        post(f"{hand}/others_start", instance_id=instance_id)
        post(f"{hand}/advance_to_next")
        fds = pid_fds(tmp_path)
        if frozen:
            post(f"{hand}/others_stop", instance_id=instance_id, hibernate=True)
            post(f"{hand}/advance_to_next")
            await_states(fds, {"T"})
        program.send_signal(signal.SIGKILL)
    await_deaths(fds)
