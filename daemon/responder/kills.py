"""Counts steps that ran out of memory, and ends one if the builds stall on memory and the kernel ends nothing.

At memory.max the kernel may reclaim for ever instead of calling its OOM killer. `full` of the builds' memory.pressure shows
it: the time in which every task waited for memory. The kernel's OOM killer ends the step then, too: a memory.max of zero
calls it. BuildKit then tells its client "cannot allocate memory", since memory.events counts a kill (moby 0.16 and later).
For Earthly's fork the step's `runc` is killed first: the runtime beside it then tells the client that memory ran out.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import select
import signal
import time
from typing import Optional

from bentpipe.daemon.responder.buildkit import BuildKitLook
from bentpipe.daemon.responder.looks import WARNING, Look, log, milliseconds, start_thread, uptime_s
from bentpipe.daemon.responder.machine import (
    MAX_CGROUPS,
    Step,
    find_steps,
    read_held_bytes,
    read_number,
    read_stall_us,
    read_step,
    read_table,
    read_text,
)
from bentpipe.daemon.responder.settings import ResponderSettings
from bentpipe.daemon.responder.wire import Fields, encode_fields

MAX_KILLS = 16
"""The newest kills that are reported one by one."""
MAX_REFS = 8
HELD_SHARE = 0.8
"""Of memory.max. A cgroup that holds less has room for page cache: it stalls since it reads more than that, and goes on."""
KILLABLE = "1000"
"""The highest oom_score_adj (proc(5))."""
GENTLE_S = 5.0
"""For the kernel's OOM killer to end a step, before cgroup.kill does."""
POLL_S = 0.1
EVENT_PAUSE_S = 0.02
RUNTIME = "/usr/local/lib/bentpipe/runtime"
MAX_PROCESSES_READ = 65536
OOM, PRESSURE = 1, 2
"""Kill.Cause."""


class Kill:
    """A step that was ended for its memory."""

    def __init__(self, number: int, cause: int, step: Step | None, refs: list[str]) -> None:
        self.number, self.cause, self.step, self.refs = number, cause, step, refs
        self.at = uptime_s()

    def encode(self, now: float) -> bytes:
        """Kill."""
        name, memory = (self.step.name, self.step.memory_bytes) if self.step else ("", None)
        age_ms = milliseconds(now - self.at)
        return encode_fields([(1, self.number), (2, age_ms), (3, self.cause), (4, name), (5, memory), (6, self.refs)])


class KillsLook(Look[tuple[int, Optional[int]]]):
    """Counts kills, and ends a step if need be. Its result: processes killed on the machine, and in the builds' cgroup."""

    name = "kills"

    def __init__(self, root: str, cgroup: str, settings: ResponderSettings, builds: BuildKitLook) -> None:
        super().__init__()
        self._proc = os.path.join(root, "proc")
        self._cgroup = cgroup
        self._settings, self._builds = settings, builds
        self._steps: dict[str, Step] = {}
        self._counted: int | None = None
        self._stalls: collections.deque[tuple[float, int]] = collections.deque()
        self._numbered = self._pressure_kills = 0
        self._recent: collections.deque[Kill] = collections.deque(maxlen=MAX_KILLS)
        self._ours: collections.deque[str] = collections.deque(maxlen=MAX_KILLS)
        """Steps that we have ended: the kernel's count of them is not a second kill."""

    def read(self) -> tuple[int, int | None]:
        """Raises OSError, ValueError."""
        machine = read_table(os.path.join(self._proc, "vmstat")).get("oom_kill", 0)
        builds = self._count_builds()
        found = (read_step(path) for path in find_steps(self._cgroup))
        steps = {step.path: step for step in found if step}
        if self._counted is not None and builds is not None and builds > self._counted:
            self._note_oom(steps)
        self._counted, self._steps = builds, steps
        if self._settings.memory_stall_percent and self._stalled():
            self._stalls.clear()
            victim = self._victim()
            if victim:
                self._end(victim)
        return machine, builds

    def wait(self) -> None:
        """Wait for a second, or for a change of memory.events: a step that was killed is gone some milliseconds later."""
        try:
            file = os.open(os.path.join(self._cgroup, "memory.events"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            super().wait()
            return
        try:
            os.pread(file, 4096, 0)
            poll = select.poll()
            poll.register(file, select.POLLPRI)
            until = time.monotonic() + self.period_s
            while time.monotonic() < until and poll.poll((until - time.monotonic()) * 1000):
                if self._count_builds() != self._counted:
                    return
                os.pread(file, 4096, 0)
                time.sleep(EVENT_PAUSE_S)  # at the limit the file changes all the time
        finally:
            os.close(file)

    def fields(self, result: tuple[int, int | None], now: float) -> Fields:
        """Kills."""
        recent = [each.encode(now) for each in list(self._recent)]
        return [(2, result[0]), (3, result[1]), (4, self._pressure_kills), (5, recent)]

    def _count_builds(self) -> int | None:
        try:
            return read_table(os.path.join(self._cgroup, "memory.events")).get("oom_kill")
        except FileNotFoundError:  # the root has no such file
            return None

    def _note_oom(self, steps: dict[str, Step]) -> None:
        """Find the steps in which the kernel has killed since the last look."""
        before = self._steps
        grown = [
            step for path, step in steps.items() if step.oom_kills > (before[path].oom_kills if path in before else 0)
        ]
        found = grown or [step for path, step in before.items() if path not in steps]
        others = [step for step in found if step.path not in self._ours]
        if grown:
            for step in others:
                self._record(OOM, step)
        elif len(others) == len(found):  # it has ended already, and is known if no other step has
            self._record(OOM, found[0] if len(found) == 1 else None)

    def _record(self, cause: int, step: Step | None) -> None:
        self._numbered += 1
        kill = Kill(self._numbered, cause, step, self._builds.refs()[:MAX_REFS])
        self._recent.append(kill)
        what = "the kernel killed for memory" if cause == OOM else "ended, since the builds stalled on memory:"
        name = f"step {step.name} of {step.memory_bytes} bytes" if step else "a step that has ended"
        log(WARNING, f"kills: {what} {name}; builds that ran: {' '.join(kill.refs) or 'not known'}")

    def _stalled(self) -> bool:
        """Whether the builds waited for memory for the settings' share of the settings' time."""
        total_us = read_stall_us(os.path.join(self._cgroup, "memory.pressure"))
        if total_us is None:
            return False
        now, window_s = time.monotonic(), self._settings.memory_stall_s
        self._stalls.append((now, total_us))
        while len(self._stalls) > 2 and now - self._stalls[1][0] >= window_s:
            self._stalls.popleft()
        since, first_us = self._stalls[0]
        if now - since < window_s:
            return False
        return total_us - first_us >= (now - since) * 1e6 * self._settings.memory_stall_percent / 100

    def _victim(self) -> Step | None:
        """The step that holds the most; None if memory is not what is missing."""
        steps = list(self._steps.values())
        if not self._holds_its_limit(self._cgroup, self._machine_bytes()):
            steps = [step for step in steps if self._stalls_itself(step) and self._holds_its_limit(step.path, None)]
        return max(steps, key=lambda step: step.memory_bytes, default=None)

    def _machine_bytes(self) -> int:
        return read_table(os.path.join(self._proc, "meminfo"))["MemTotal"] << 10

    def _holds_its_limit(self, cgroup: str, otherwise: int | None) -> bool:
        """`otherwise` is the limit of a cgroup that has none of its own, if there is one."""
        try:
            limit = read_number(os.path.join(cgroup, "memory.max")) or otherwise
            return limit is not None and read_held_bytes(cgroup) >= limit * HELD_SHARE
        except OSError:  # the step has ended
            return False

    def _stalls_itself(self, step: Step) -> bool:
        try:
            text = read_text(os.path.join(step.path, "memory.pressure"))
        except OSError:
            return False
        avg10 = text.partition("full avg10=")[2].partition(" ")[0]
        return float(avg10 or 0) >= self._settings.memory_stall_percent

    def _end(self, step: Step) -> None:
        """End the whole step, so that its client reads that it ran out of memory."""
        self._record(PRESSURE, step)
        self._pressure_kills += 1
        self._ours.append(step.path)
        if self._settings.buildkit_flavor == "earthly":
            for process in self._runc_processes(step.name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        # The write returns when the kernel has reclaimed or killed, which may take long: another thread waits for it.
        start_thread(lambda: _run_out(step.path, self._proc), "run-out")
        until = time.monotonic() + GENTLE_S
        while time.monotonic() < until:
            if not _populated(step.path):
                return
            time.sleep(POLL_S)
        try:
            _write(step.path, "cgroup.kill", "1")
        except OSError as exc:
            log(WARNING, f"kills: step {step.name} cannot be ended: {exc}")

    def _runc_processes(self, container: str) -> list[int]:
        found = []
        for name in os.listdir(self._proc)[:MAX_PROCESSES_READ]:
            if not name.isdigit():
                continue
            try:
                words = read_text(os.path.join(self._proc, name, "cmdline"), 65536).split("\0")
            except OSError:
                continue
            # The runtime beside runc must live: it tells the client.
            if RUNTIME not in words and container in words and ("run" in words or "exec" in words):
                found.append(int(name))
        return found


def _write(folder: str, name: str, text: str) -> None:
    file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def _run_out(cgroup: str, proc: str) -> None:
    """Have the kernel's OOM killer end all of a cgroup, also processes that have inherited protection from it (-1000)."""
    try:
        for folder, _, _ in itertools.islice(os.walk(cgroup), MAX_CGROUPS):
            for process in read_text(os.path.join(folder, "cgroup.procs")).split():
                with contextlib.suppress(OSError):  # it has ended
                    _write(os.path.join(proc, process), "oom_score_adj", KILLABLE)
        _write(cgroup, "memory.oom.group", "1")
        _write(cgroup, "memory.max", "0")
    except OSError as exc:
        log(WARNING, f"kills: {cgroup} cannot be limited: {exc}")


def _populated(cgroup: str) -> bool:
    try:
        return bool(read_table(os.path.join(cgroup, "cgroup.events")).get("populated"))
    except OSError:
        return False
