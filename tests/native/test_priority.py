"""The engine threads' priority: what the kernel holds, not what was asked for."""

import ctypes
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bentpipe.native.engine import Engine, EngineOptions, Leg, Priority, ThreadPriority

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}[os.uname().machine]
ATTRIBUTES = struct.Struct("=IIQiIQQQ")
SLICE_NS = 100_000
SLICES = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 12)
DEADLINE_S = 20.0


def attributes(tid: int) -> tuple[int, int]:
    """The policy of a thread and its slice in nanoseconds, as the kernel has them (sched_getattr(2))."""
    buffer = ctypes.create_string_buffer(ATTRIBUTES.size)
    assert ctypes.CDLL(None, use_errno=True).syscall(SCHED_GETATTR, tid, buffer, ATTRIBUTES.size, 0) == 0
    _size, policy, _flags, _nice, _priority, runtime, _deadline, _period = ATTRIBUTES.unpack(buffer.raw)
    return policy, runtime


def engine_threads() -> list[int]:
    tasks = Path("/proc/self/task")
    return [int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().startswith("bp-engine")]


def has_realtime() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True


FLOWS = 4


class Flow:
    """A spliced connection through which another program's bytes flow as fast as they can."""

    def __init__(self, engine: Engine) -> None:
        client, client_far = socket.socketpair()
        satellite, satellite_far = socket.socketpair()
        with client_far, satellite_far:
            self._programs = (
                subprocess.Popen(["cat", "/dev/zero"], stdout=client_far.fileno()),
                subprocess.Popen(["cat"], stdin=satellite_far.fileno(), stdout=subprocess.DEVNULL),
            )
        engine.splice(Leg(client.detach(), None), Leg(satellite.detach(), None))

    def end(self) -> None:
        for program in self._programs:
            program.kill()
            program.wait()


def wait_for_policy(tid: int, policy: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while attributes(tid)[0] != policy:
        assert time.monotonic() < deadline, f"policy {attributes(tid)}"
        time.sleep(0.02)


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    made: list[Engine] = []
    yield made
    for engine in made:
        engine.close()


@pytest.mark.skipif(not SLICES, reason="no slices before Linux 6.12")
def test_every_thread_gets_its_slice(engines: list[Engine]) -> None:
    engines.append(Engine(EngineOptions(threads=3, priority=Priority.SLICE)))
    assert engines[0].thread_priorities() == (ThreadPriority(Priority.SLICE, 0),) * 3
    assert [attributes(tid) for tid in engine_threads()] == [(os.SCHED_OTHER, SLICE_NS)] * 3
    assert attributes(os.getpid())[1] != SLICE_NS


def test_a_normal_thread_is_left_as_it_is(engines: list[Engine]) -> None:
    engines.append(Engine(EngineOptions(threads=1, priority=Priority.NORMAL)))
    assert engines[0].thread_priorities() == (ThreadPriority(Priority.NORMAL, 0),)
    assert [attributes(tid) for tid in engine_threads()] == [attributes(os.getpid())]


REFUSED = """
import resource
from bentpipe.native.engine import Engine, EngineOptions, Priority
engine = Engine(EngineOptions(threads=1, priority=Priority.REALTIME))
[held] = engine.thread_priorities()
print(held.held.name, held.error)
engine.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take its privilege away by capsh")
def test_without_the_right_to_realtime_a_thread_gets_the_next_best() -> None:
    """An unprivileged user with RLIMIT_RTPRIO 0, as under the unit."""
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-P", "-c", REFUSED],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0)),
        check=False,
    )
    held, error = done.stdout.split() if done.returncode == 0 else pytest.fail(done.stderr)
    assert (held, int(error)) == ("SLICE" if SLICES else "NORMAL", 1)


@pytest.mark.skipif(not has_realtime(), reason="this process may not use SCHED_RR")
def test_a_busy_thread_leaves_realtime_and_returns_when_calm(engines: list[Engine]) -> None:
    """Programs that never wait keep the thread busy: as SCHED_RR it would starve its core. A silent connection stays."""
    engine = Engine(EngineOptions(threads=1, splice="off", priority=Priority.REALTIME))
    engines.append(engine)
    assert engine.thread_priorities() == (ThreadPriority(Priority.REALTIME, 0),)
    [tid] = engine_threads()
    assert attributes(tid)[0] == os.SCHED_RR
    (client, client_far), (satellite, satellite_far) = socket.socketpair(), socket.socketpair()
    engine.splice(Leg(client.detach(), None), Leg(satellite.detach(), None))
    flows = [Flow(engine) for _ in range(FLOWS)]
    try:
        wait_for_policy(tid, os.SCHED_OTHER)
        assert engine.thread_priorities()[0].held is not Priority.REALTIME
    finally:
        for flow in flows:
            flow.end()
    with client_far, satellite_far:
        wait_for_policy(tid, os.SCHED_RR)
    assert engine.thread_priorities()[0].held is Priority.REALTIME


GIVING_WAY = """
import os, threading
from bentpipe.native.engine import Engine, EngineOptions, Priority, give_way

engine = Engine(EngineOptions(threads=1, priority=Priority.SLICE))
give_way()
give_way()
names = {int(task): open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")}
[spliced] = [task for task, name in names.items() if name.startswith("bp-engine")]
later = []
thread = threading.Thread(target=lambda: later.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
thread.start()
thread.join()
print(os.getpriority(os.PRIO_PROCESS, spliced), os.getpriority(os.PRIO_PROCESS, os.getpid()), *later)
os.nice(5)
give_way()
print(os.getpriority(os.PRIO_PROCESS, os.getpid()))
engine.close()
"""


def test_a_thread_gives_way_with_those_that_it_starts_and_the_engines_before_it_do_not() -> None:
    """In a process of its own: a nice value cannot be lowered again."""
    told = subprocess.run(
        [sys.executable, "-P", "-c", GIVING_WAY], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    given_way = max(mine, 10)
    assert told == [str(mine), str(given_way), str(given_way), str(min(given_way + 5, 19))]
