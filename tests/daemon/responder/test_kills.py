"""Steps that ran out of memory are counted once each; if the builds stall, one step is ended and the right one."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from beds.fake_machine import FakeMachine, pressure
from bentpipe.daemon.responder import kills
from bentpipe.daemon.responder.buildkit import BuildKitLook, Running
from bentpipe.daemon.responder.kills import KillsLook
from bentpipe.daemon.responder.looks import uptime_s
from bentpipe.daemon.responder.settings import ResponderSettings
from bentpipe.proto import responder_pb2 as pb

DEADLINE_S = 20.0


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(kills, "time", clock)
    return clock


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def make(machine: FakeMachine, refs: tuple[str, ...] = (), flavor: str = "moby", percent: int = 60) -> KillsLook:
    settings = ResponderSettings(memory_stall_percent=percent, memory_stall_s=20, buildkit_flavor=flavor)
    buildkit = BuildKitLook("/nowhere")
    running = Running()
    running.builds = [(0.0, ref) for ref in refs]
    buildkit.result = running
    return KillsLook(str(machine.root), str(machine.cgroup), settings, buildkit)


def seen(look: KillsLook) -> pb.Kills:
    assert look.error == ""
    return pb.Kills.FromString(look.section(uptime_s()))


def oom(machine: FakeMachine, count: int) -> None:
    machine.limit("memory.events", f"oom 1\noom_kill {count}\n")


def test_counters(machine: FakeMachine, clock: Clock) -> None:
    look = make(machine)
    look.look()
    found = seen(look)
    assert (found.machine_oom_kills, found.builds_oom_kills, found.pressure_kills) == (5, 0, 0)
    assert list(found.recent) == []


def test_kills_before_the_first_look_are_counted_and_not_told_as_news(machine: FakeMachine, clock: Clock) -> None:
    oom(machine, 3)
    look = make(machine)
    look.look()
    assert seen(look).builds_oom_kills == 3
    assert list(seen(look).recent) == []


def test_a_step_that_still_is_there(machine: FakeMachine, clock: Clock) -> None:
    look = make(machine, ("one",))
    machine.step("buildkit/a", 700)
    machine.step("buildkit/b", 900)
    look.look()
    oom(machine, 2)
    machine.step("buildkit/a", 100, kills=2)
    look.look()
    (kill,) = seen(look).recent
    assert (kill.number, kill.cause, kill.step, list(kill.build_refs)) == (1, pb.Kill.OOM, "a", ["one"])
    look.look()
    assert len(seen(look).recent) == 1


def test_a_step_that_has_gone_is_known_if_it_is_the_only_one(machine: FakeMachine, clock: Clock) -> None:
    look = make(machine)
    paths = [machine.step(f"buildkit/{name}", 700) for name in "abcd"]
    look.look()
    remove(paths[0])
    oom(machine, 1)
    look.look()
    assert [(kill.step, kill.memory_bytes) for kill in seen(look).recent] == [("a", 700)]
    remove(paths[1])
    remove(paths[2])
    oom(machine, 2)
    look.look()
    last = seen(look).recent[-1]
    assert (last.number, last.step, last.HasField("memory_bytes")) == (2, "", False)


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def stall(machine: FakeMachine, look: KillsLook, clock: Clock, share: float, seconds: int = 60) -> None:
    """Look once a second while the builds wait for memory for that share of the time."""
    total = 0.0
    for _ in range(seconds):
        machine.limit("memory.pressure", pressure(int(total), int(total)))
        look.look()
        assert look.error == ""
        clock.now += 1
        total += share * 1e6


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that the kernel's OOM killer has been called for: it ends them at once."""
    found: list[str] = []

    def run_out(path: str, _proc: str) -> None:
        assert (Path(path) / "memory.max").exists()
        found.append(Path(path).name)
        (Path(path) / "cgroup.events").write_text("populated 0\n")

    monkeypatch.setattr(kills, "_run_out", run_out)
    monkeypatch.setattr(kills, "start_thread", lambda target, _name: target())
    return found


def test_the_largest_step_is_ended_once_in_each_window(machine: FakeMachine, clock: Clock, ended: list[str]) -> None:
    look = make(machine, ("one", "two"))
    machine.step("buildkit/cache", 900, cache=800)
    machine.step("buildkit/hog", 700)
    machine.step("buildkit/small", 10)
    stall(machine, look, clock, 0.9, seconds=24)
    assert ended == ["hog"]
    found = seen(look)
    assert found.pressure_kills == 1
    (kill,) = found.recent
    assert (kill.cause, kill.step, kill.memory_bytes, list(kill.build_refs)) == (
        pb.Kill.PRESSURE,
        "hog",
        700,
        ["one", "two"],
    )


@pytest.mark.parametrize(("share", "percent"), [(0.59, 60), (1.0, 0), (0.0, 60)])
def test_less_is_not_a_stall(machine: FakeMachine, clock: Clock, ended: list[str], share: float, percent: int) -> None:
    look = make(machine, percent=percent)
    machine.step("buildkit/hog", 700)
    stall(machine, look, clock, share)
    assert ended == []
    assert seen(look).pressure_kills == 0


def test_a_short_stall_is_none(machine: FakeMachine, clock: Clock, ended: list[str]) -> None:
    look = make(machine)
    machine.step("buildkit/hog", 700)
    stall(machine, look, clock, 1.0, seconds=10)
    clock.now += 1
    stall(machine, look, clock, 0.0, seconds=30)
    assert ended == []


def test_below_the_common_limit_only_a_step_that_stalls_itself_is_ended(
    machine: FakeMachine, clock: Clock, ended: list[str]
) -> None:
    """A step with a limit of its own stalls, and a larger one only sleeps."""
    machine.limit("memory.current", f"{1 << 29}\n")
    look = make(machine)
    machine.step("buildkit/sleeper", 900)
    machine.step("buildkit/reader", 950, cache=900, full_avg10=95.0)
    path = machine.step("buildkit/limited", 50, full_avg10=95.0)
    for limited in (path, machine.cgroup / "buildkit/reader"):
        (limited / "memory.max").write_text("60\n")
    stall(machine, look, clock, 1.0, seconds=22)
    assert ended == ["limited"]


def test_builds_that_only_read_much_are_not_ended(machine: FakeMachine, clock: Clock, ended: list[str]) -> None:
    """All memory is in use, but half of it is page cache."""
    machine.limit("memory.stat", f"inactive_file {1 << 28}\nactive_file {1 << 28}\n")
    look = make(machine)
    machine.step("buildkit/reader", 1 << 30, cache=1 << 29, full_avg10=95.0)
    stall(machine, look, clock, 1.0)
    assert ended == []


def test_without_a_limit_the_machine_s_memory_is_the_limit(
    machine: FakeMachine, clock: Clock, ended: list[str]
) -> None:
    machine.limit("memory.max", "max\n")
    look = make(machine)
    machine.step("buildkit/hog", 700)
    stall(machine, look, clock, 1.0, seconds=21)
    assert ended == ["hog"]
    machine.write("proc/meminfo", f"MemTotal: {1 << 30} kB\n")
    stall(machine, look, clock, 1.0)
    assert ended == ["hog"]


def test_without_a_step_nothing_is_ended(machine: FakeMachine, clock: Clock, ended: list[str]) -> None:
    look = make(machine)
    stall(machine, look, clock, 1.0)
    assert ended == []


def test_our_own_kill_is_not_counted_twice(machine: FakeMachine, clock: Clock, ended: list[str]) -> None:
    look = make(machine)
    path = machine.step("buildkit/hog", 700)
    stall(machine, look, clock, 1.0, seconds=21)
    assert ended == ["hog"]
    oom(machine, 4)
    remove(path)
    look.look()
    found = seen(look)
    assert found.builds_oom_kills == 4
    assert [kill.cause for kill in found.recent] == [pb.Kill.PRESSURE]


def test_the_step_s_files_are_written(machine: FakeMachine) -> None:
    """The kernel's files say what was asked for: the whole step, by the OOM killer, and after 5 s by cgroup.kill."""
    path = machine.step("buildkit/hog", 700)
    machine.limit("buildkit/hog/cgroup.procs", "71\n")
    machine.limit("buildkit/hog/inner/cgroup.procs", "72\n73\n")
    for process in ("71", "72"):  # 73 has ended
        machine.write(f"proc/{process}/oom_score_adj", "-1000")
    look = make(machine)
    look.look()
    (step,) = look._steps.values()
    before = time.monotonic()
    look._end(step)
    assert time.monotonic() - before >= kills.GENTLE_S
    assert (path / "memory.oom.group").read_text().strip() == "1"
    assert (path / "memory.max").read_text().strip().startswith("0")
    assert (path / "cgroup.kill").read_text() == "1"
    for process in ("71", "72"):
        assert (machine.root / "proc" / process / "oom_score_adj").read_text().startswith("1000")


def test_for_earthly_the_runc_of_that_step_is_killed_first(
    machine: FakeMachine, clock: Clock, ended: list[str]
) -> None:
    sleeper = "import time; time.sleep(600)"
    commands = [["runc", "--log", "x", "run", "--bundle", "b", name] for name in ("hog", "other")] + [["cat", "hog"]]
    commands.append(["python3", "-IS", "/usr/local/lib/bentpipe/runtime", "run", "--bundle", "b", "hog"])
    processes = [subprocess.Popen([sys.executable, "-c", sleeper]) for _ in commands]
    try:
        for process, command in zip(processes, commands, strict=True):
            machine.write(f"proc/{process.pid}/cmdline", "\0".join(command) + "\0")  # the pids are real
        machine.step("buildkit/hog", 700)
        look = make(machine, flavor="earthly")
        stall(machine, look, clock, 1.0, seconds=21)
        assert processes[0].wait(DEADLINE_S) == -9
        assert ended == ["hog"]
        assert [process.poll() for process in processes[1:]] == [None, None, None]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_many_kills_are_bounded(machine: FakeMachine, clock: Clock) -> None:
    look = make(machine, tuple(f"ref{number}" for number in range(20)))
    look.look()
    for number in range(1, 31):
        oom(machine, number)
        look.look()
    found = seen(look)
    assert [kill.number for kill in found.recent] == list(range(15, 31))
    assert all(len(kill.build_refs) == 8 for kill in found.recent)


def test_a_wait_ends_at_once_if_a_kill_is_counted(machine: FakeMachine) -> None:
    """On a real kernel poll wakes; a plain file never does, and then the wait is a second."""
    look = make(machine)
    look.look()
    thread = threading.Thread(target=look.wait)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
