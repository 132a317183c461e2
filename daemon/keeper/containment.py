"""Keeps the processes of one local satellite together, so that all of them can be stopped, frozen or killed.

Owns the interface of the kinds of isolation, and the process group, which needs nothing of the host. The cgroups are in
`cgroup` and `freezer`. No waiting and no states of machines: every method acts at once; the daemon decides and waits.

A process group cannot hold a process that calls setsid or setpgid for itself. If the satellite has a user of its own, such a
process is found by its user. Otherwise it outlives its satellite. A cgroup can hold it. None of them protects against a
hostile satellite that runs as the daemon's own user.
"""

import contextlib
import enum
import errno
import os
import signal
from pathlib import Path
from typing import Protocol

from bentpipe.daemon.keeper.users import kill_all_of, user_of

PROC = Path("/proc")

STOPPED_STATES = frozenset("TtZX")
"""proc(5): stopped by a signal, stopped by a tracer, zombie, dead. None of these runs."""
DEAD_STATES = frozenset("ZX")
INIT = 1
"""A process that everybody sees, unless /proc hides what others own (proc(5), hidepid)."""


class Isolation(enum.Enum):
    """Which kind is in use; the value is its name for people."""

    CGROUP = "cgroup v2"
    FREEZER = "cgroup v1 freezer"
    PROCESS_GROUP = "process group"


class Containment(Protocol):
    """The processes of one run of one satellite, from just before its spawn until all of them are gone.

    The leader must not be reaped before the last call: a zombie keeps its process id. So a signal for this group cannot
    reach another process that got the id next. Methods raise OSError if the host refuses.
    """

    @property
    def folder(self) -> Path | None:
        """Its cgroup; None if it has none."""
        ...

    def open_entrance(self) -> int | None:
        """Open a file to which a process writes "0" to get in; None if `adopt` is enough. The caller closes it."""
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
        """Send SIGKILL to every member, frozen or not. May have to be repeated until it is empty."""
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

    def contain(self, name: str, uid: int | None) -> Containment:
        """Prepare a containment for a new run of this satellite, whose user is `uid` if it is its own. Raises OSError."""
        ...

    def resume(self, name: str, uid: int | None, leader_pid: int) -> Containment:
        """The containment of a run that an earlier program of this process has begun."""
        ...

    @property
    def lock(self) -> tuple[Path, int] | None:
        """Its folder and the descriptor that locks it, for the next program of this process; None if it has none."""
        ...

    def close(self) -> None:
        """Remove what the host keeps; every containment is empty by now."""
        ...


def signal_group(leader_pid: int, number: signal.Signals) -> None:
    """Signal a leader's process group; does nothing if it is gone. Raises PermissionError."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader_pid, number)


def signal_process(pid: int, number: signal.Signals) -> None:
    """Signal a process; does nothing if it is gone. Raises PermissionError."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class ProcessGroup:
    """Containment by process group, and by user if the satellite has its own: SIGSTOP, SIGCONT, SIGTERM, SIGKILL."""

    folder = None

    def __init__(self, uid: int | None = None) -> None:
        self._leader_pid = 0
        self._uid = uid

    def open_entrance(self) -> None:
        """Nothing to open: the spawn itself makes the group (setsid in the child)."""

    def adopt(self, leader_pid: int) -> None:
        """Remember the group by its leader."""
        self._leader_pid = leader_pid

    def pids(self) -> list[int]:
        """Search /proc: there is no cheaper way to list a group, and it is called only when the state changes."""
        found = []
        for entry in os.listdir(PROC):
            if entry.isdigit():
                state, group = _state_and_group(PROC / entry / "stat")
                if state not in DEAD_STATES and (group == self._leader_pid or self._has_user(int(entry))):
                    found.append(int(entry))
        return found

    def terminate(self) -> None:
        """Send SIGTERM to the group."""
        signal_group(self._leader_pid, signal.SIGTERM)

    def freeze(self) -> None:
        """Send SIGSTOP: a process cannot catch it, and a fork in progress is restarted after it, so no process escapes."""
        self._signal_all(signal.SIGSTOP)

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
        self._signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL to the group; it works on stopped members too."""
        signal_group(self._leader_pid, signal.SIGKILL)
        if self._uid is not None:
            kill_all_of(self._uid)

    def is_empty(self) -> bool:
        """Return whether only zombies are left."""
        return not self.pids()

    def remove(self) -> None:
        """Do nothing: the host keeps nothing."""

    def _signal_all(self, number: signal.Signals) -> None:
        signal_group(self._leader_pid, number)
        if self._uid is not None:
            for pid in self.pids():
                signal_process(pid, number)

    def _has_user(self, pid: int) -> bool:
        return self._uid is not None and user_of(pid) == self._uid


class ProcessGroups:
    """Makes process groups. `why` says why there is no cgroup."""

    isolation = Isolation.PROCESS_GROUP

    def __init__(self, why: str) -> None:
        self.detail = why

    def contain(self, name: str, uid: int | None) -> ProcessGroup:
        """Prepare a group, which the spawn of the leader makes. The satellite's name is not used. Raises OSError."""
        del name
        if uid is not None and user_of(INIT) is None:
            words = (
                "there is no cgroup, and /proc hides other users' processes (ProtectProc=): it could not be ended whole"
            )
            raise OSError(errno.EPERM, words)
        return ProcessGroup(uid)

    def resume(self, name: str, uid: int | None, leader_pid: int) -> ProcessGroup:
        """See Isolator."""
        found = self.contain(name, uid)
        found.adopt(leader_pid)
        return found

    @property
    def lock(self) -> None:
        """See Isolator."""
        return None

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
