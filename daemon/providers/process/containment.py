"""Keeps the processes of one local satellite together, so that all of them can be stopped, frozen or killed.

Owns the interface of the two kinds of isolation, and the process group, which needs nothing of the host. The cgroup is in
`cgroup`. No waiting and no states of machines: every method acts at once; `machine` decides and waits.

A process group cannot hold a process that calls setsid or setpgid for itself; such a process outlives its satellite. A
cgroup can. Neither protects against a hostile satellite that runs as the daemon's own user.
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
    """Which of the two is in use; the value is its name for people."""

    CGROUP = "cgroup v2"
    PROCESS_GROUP = "process group"


class Containment(Protocol):
    """The processes of one run of one satellite, from just before its spawn until all of them are gone.

    The leader must not be reaped before the last call: a zombie keeps its process id. So a signal for this group cannot
    reach another process that got the id next. Methods raise OSError if the host refuses.
    """

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """Return what to execute so that `argv` runs contained from its first instruction."""
        ...

    def adopt(self, leader_pid: int) -> None:
        """Note the spawned leader, which leads a session and process group of its own."""
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
        """Return whether no member can run."""
        ...

    def thaw(self) -> None:
        """Let every member run again."""
        ...

    def kill(self) -> None:
        """Send SIGKILL to every member, frozen or not."""
        ...

    def is_empty(self) -> bool:
        """Return whether no member lives (zombies do not count)."""
        ...

    def remove(self) -> None:
        """Remove what the host keeps for it; called when it is empty."""
        ...


class Isolator(Protocol):
    """Makes containments of one kind."""

    @property
    def isolation(self) -> Isolation:
        """Which kind."""
        ...

    @property
    def detail(self) -> str:
        """For the operator: where it is, or why it is not the better kind."""
        ...

    def contain(self, machine_id: MachineId) -> Containment:
        """Prepare a containment for a new run of this machine. Raises OSError."""
        ...

    def close(self) -> None:
        """Remove what the host keeps; every containment is empty by now."""
        ...


def signal_group(leader_pid: int, number: signal.Signals) -> None:
    """Signal a leader's process group; does nothing if it is gone. Raises PermissionError."""
    try:
        os.killpg(leader_pid, number)
    except ProcessLookupError:
        return


class ProcessGroup:
    """Containment by process group: SIGSTOP, SIGCONT, SIGTERM, SIGKILL to all of it."""

    def __init__(self) -> None:
        self._leader_pid = 0

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """Return the command as it is: the spawn itself makes the group (setsid in the child)."""
        return tuple(argv)

    def adopt(self, leader_pid: int) -> None:
        """Remember the group by its leader."""
        self._leader_pid = leader_pid

    def pids(self) -> list[int]:
        """Search /proc: there is no cheaper way to list a group, and it is called only when the state changes."""
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
        """Send SIGSTOP: a process cannot catch it, and a fork in progress is restarted after it, so no process escapes."""
        signal_group(self._leader_pid, signal.SIGSTOP)

    def is_frozen(self) -> bool:
        """Check every thread: the state of a process in /proc is that of its first thread only."""
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
        """Return whether only zombies are left."""
        return not self.pids()

    def remove(self) -> None:
        """Do nothing: the host keeps nothing."""


class ProcessGroups:
    """Makes process groups. `why` says why there is no cgroup."""

    isolation = Isolation.PROCESS_GROUP

    def __init__(self, why: str) -> None:
        self.detail = why

    def contain(self, machine_id: MachineId) -> ProcessGroup:
        """Prepare a group, which the spawn of the leader makes. The machine's name is not used."""
        del machine_id
        return ProcessGroup()

    def close(self) -> None:
        """Do nothing: the host keeps nothing."""


def _state_and_group(stat: Path) -> tuple[str, int]:
    """Read state and process group from a stat file of /proc; ("X", 0) if the process is gone."""
    try:
        text = stat.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return "X", 0
    # pid (name) state ppid pgrp ...: the name may have blanks and brackets; the last bracket ends it.
    state, _parent, group = text.rpartition(")")[2].split(maxsplit=3)[:3]
    return state, int(group)
