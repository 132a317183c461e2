"""How the processes of one local satellite are held together, so that all of them are stopped, frozen or killed.

Owns: the two kinds of isolation as one interface, and the process group, which needs nothing of the host. The cgroup
is in `cgroup`. No waiting and no states of machines: every method acts at once; `local_machine` decides and waits.

What a process group cannot do and a cgroup can: hold a process that calls setsid or setpgid for itself. Such a one
outlives its satellite there. Neither is a wall against a hostile satellite of the daemon's own user.
"""

import enum
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bentpipe.daemon.model import MachineId

PROC = Path("/proc")

STOPPED_STATES = frozenset("TtZX")
"""proc(5): stopped by a signal, stopped by a tracer, zombie, dead. None of these runs."""
DEAD_STATES = frozenset("ZX")


class Isolation(enum.Enum):
    """Which of the two is in use; the value is what people are shown."""

    CGROUP = "cgroup v2"
    PROCESS_GROUP = "process group"


class Containment(Protocol):
    """The processes of one run of one satellite, from just before its spawn to its burial.

    The leader must not be reaped before the last call: a zombie keeps its number, so that no signal meant for this
    group can reach a stranger that got the number next. Methods raise OSError where the host refuses.
    """

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """Say what to execute so that `argv` runs contained from its first instruction."""
        ...

    def adopt(self, leader_pid: int) -> None:
        """Take note of the spawned leader, which leads a session and process group of its own."""
        ...

    def pids(self) -> list[int]:
        """List the living members."""
        ...

    def terminate(self) -> None:
        """Send SIGTERM to the leader's process group. A frozen one gets it when it is thawed."""
        ...

    def freeze(self) -> None:
        """Begin to freeze every member."""
        ...

    def is_frozen(self) -> bool:
        """Say whether no member can run."""
        ...

    def thaw(self) -> None:
        """Let every member run again."""
        ...

    def kill(self) -> None:
        """Send SIGKILL to every member, frozen or not."""
        ...

    def is_empty(self) -> bool:
        """Say whether no member lives (zombies do not count)."""
        ...

    def remove(self) -> None:
        """Give back what the host holds for it; called once it is empty."""
        ...


class Isolator(Protocol):
    """Makes containments of one kind."""

    @property
    def isolation(self) -> Isolation:
        """Say which kind."""
        ...

    @property
    def detail(self) -> str:
        """Where, or why not better: words for the operator."""
        ...

    def contain(self, machine_id: MachineId) -> Containment:
        """Prepare a containment for a new run of this machine. Raises OSError."""
        ...

    def close(self) -> None:
        """Give back what the host holds; every containment is empty by now."""
        ...


def signal_group(leader_pid: int, number: signal.Signals) -> None:
    """Signal a leader's process group; one that is gone is no error. Raises PermissionError."""
    try:
        os.killpg(leader_pid, number)
    except ProcessLookupError:
        return


class ProcessGroup:
    """Containment by process group: SIGSTOP, SIGCONT, SIGTERM, SIGKILL to all of it."""

    def __init__(self) -> None:
        self._leader_pid = 0

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """Nothing to add: the spawn itself makes the group (setsid in the child)."""
        return tuple(argv)

    def adopt(self, leader_pid: int) -> None:
        """Remember the group by its leader."""
        self._leader_pid = leader_pid

    def pids(self) -> list[int]:
        """Look through /proc: there is no cheaper way to list a group, and it is asked only at turning points."""
        found = []
        for entry in os.listdir(PROC):
            if entry.isdigit():
                state, group = _state_and_group(PROC / entry / "stat")
                if group == self._leader_pid and state not in DEAD_STATES:
                    found.append(int(entry))
        return found

    def terminate(self) -> None:
        """Send SIGTERM to the group."""
        signal_group(self._leader_pid, signal.SIGTERM)

    def freeze(self) -> None:
        """Send SIGSTOP: it cannot be caught, and a fork under way is restarted after it, so nobody slips out."""
        signal_group(self._leader_pid, signal.SIGSTOP)

    def is_frozen(self) -> bool:
        """Look at every thread: the state of a process in /proc is that of its first thread only."""
        for pid in self.pids():
            try:
                threads = os.listdir(PROC / str(pid) / "task")
            except FileNotFoundError:
                continue
            for thread in threads:
                state, _ = _state_and_group(PROC / str(pid) / "task" / thread / "stat")
                if state not in STOPPED_STATES:
                    return False
        return True

    def thaw(self) -> None:
        """Send SIGCONT to the group."""
        signal_group(self._leader_pid, signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL to the group; it works on stopped members too."""
        signal_group(self._leader_pid, signal.SIGKILL)

    def is_empty(self) -> bool:
        """Say whether nobody but zombies is left."""
        return not self.pids()

    def remove(self) -> None:
        """Nothing to give back."""


class ProcessGroups:
    """Makes process groups. `why` says why there is no cgroup."""

    isolation = Isolation.PROCESS_GROUP

    def __init__(self, why: str) -> None:
        self.detail = why

    def contain(self, machine_id: MachineId) -> ProcessGroup:
        """Prepare a group; it comes to be when the leader is spawned. The machine's name plays no part."""
        del machine_id
        return ProcessGroup()

    def close(self) -> None:
        """Nothing to give back."""


def _state_and_group(stat: Path) -> tuple[str, int]:
    """Read state and process group from a stat file of /proc; ("X", 0) once the process is gone."""
    try:
        text = stat.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return "X", 0
    # pid (name) state ppid pgrp ...: the name may hold blanks and brackets, the last bracket ends it.
    state, _parent, group = text.rpartition(")")[2].split(maxsplit=3)[:3]
    return state, int(group)
