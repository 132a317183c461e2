"""Satellites in cgroups of their own: the cgroup v2 freezer, cgroup.kill, and the cleaning up after a keeper that died.

Owns `bentpipe-<pid>/` under the keeper's own cgroup (with systemd: Delegate=yes), and in it one folder for each satellite
that has processes. It never touches a cgroup outside that one. It enables no controller, so the rule "no processes in inner
cgroups" does not apply. The kernel's Documentation/admin-guide/cgroup-v2.rst is the reference. `freezer` does the same with
version 1.
"""

import contextlib
import errno
import fcntl
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from bentpipe.daemon.keeper.containment import Isolation, signal_group

FOLDER_PATTERN = re.compile(r"^bentpipe-[0-9]+(-[0-9]+)?$")

NEEDED_FILES = ("cgroup.procs", "cgroup.events", "cgroup.freeze", "cgroup.kill")
"""cgroup.freeze is in Linux 5.2, cgroup.kill in 5.14; on an older kernel the process group is better."""

OWN = "@keeper"
"""The folder of the keeper itself: names of satellites have no such character."""

SWEEP_DEADLINE_S = 5.0
"""The most time for the processes of a dead keeper to die of SIGKILL."""

SWEEP_PAUSE_S = 0.005
"""Between looks whether they are dead. cgroup.events can announce it, but only to poll(POLLPRI) or inotify."""


def find_own_cgroup(mountinfo: str, own: str) -> Path | None:
    """Find the folder of our own v2 cgroup, from the text of /proc/self/mountinfo and of /proc/self/cgroup.

    Works for a unified and for a hybrid hierarchy (v2 mounted beside v1). None: this process sees no v2.
    """
    path = next((line.removeprefix("0::") for line in own.splitlines() if line.startswith("0::")), None)
    return None if path is None else find_mounted(mountinfo, path, lambda kind, _: kind == "cgroup2")


def find_mounted(mountinfo: str, path: str, is_it: Callable[[str, Sequence[str]], bool]) -> Path | None:
    """Find where the cgroup `path` is, in the first hierarchy whose kind and options `is_it` accepts."""
    for line in mountinfo.splitlines():
        fields, dash, mounted = line.partition(" - ")
        if not dash:
            continue
        kind, *_, options = mounted.split()
        if not is_it(kind, options.split(",")):
            continue
        root, mount_point = (_unescape(field) for field in fields.split()[3:5])
        with contextlib.suppress(ValueError):
            inside = PurePosixPath(path).relative_to(root)
            if ".." not in inside.parts:
                return Path(mount_point) / inside
    return None


def _unescape(field: str) -> str:
    """Undo mountinfo's octal escapes (blank, tab, newline, backslash)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


class Cgroup:
    """Containment by cgroup: no process can fork out of it, and frozen processes cannot notice that they were frozen."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leader_pid = 0

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._folder

    def open_entrance(self) -> int:
        """Open cgroup.procs: the process moves itself before it becomes the command, so all that it forks is inside.

        If the keeper moved it after the spawn, that would race with its first fork. Python cannot call
        clone3(CLONE_INTO_CGROUP).
        """
        return os.open(self._folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def adopt(self, leader_pid: int) -> None:
        """Remember the leader, for SIGTERM."""
        self._leader_pid = leader_pid

    def pids(self) -> list[int]:
        """Read the members, also those in cgroups that the satellite itself has made."""
        found: list[int] = []
        for folder, _, _ in os.walk(self._folder):
            with contextlib.suppress(OSError):  # a nested cgroup may go away meanwhile
                found += map(int, (Path(folder) / "cgroup.procs").read_text().split())
        return found

    def terminate(self) -> None:
        """Send SIGTERM to the leader's process group, as a terminal would; processes that remain get SIGKILL later."""
        signal_group(self._leader_pid, signal.SIGTERM)

    def freeze(self) -> None:
        """Begin to freeze."""
        (self._folder / "cgroup.freeze").write_text("1")

    def is_frozen(self) -> bool:
        """Ask the kernel whether all are frozen."""
        return self._event("frozen")

    def thaw(self) -> None:
        """Undo the freezing."""
        (self._folder / "cgroup.freeze").write_text("0")

    def kill(self) -> None:
        """Kill all, frozen or not, and all that they fork meanwhile. Does nothing if the cgroup is gone."""
        with contextlib.suppress(FileNotFoundError):
            (self._folder / "cgroup.kill").write_text("1")

    def is_empty(self) -> bool:
        """Ask the kernel whether no process lives here; zombies do not count."""
        try:
            return not self._event("populated")
        except FileNotFoundError:
            return True

    def remove(self) -> None:
        """Remove the folder and the folders that the satellite has made in it. Raises OSError (EBUSY: not empty)."""
        for folder, _, _ in os.walk(self._folder, topdown=False):
            os.rmdir(folder)

    def _event(self, name: str) -> bool:
        return f"{name} 1" in (self._folder / "cgroup.events").read_text().splitlines()


class CgroupTree:
    """The keeper's own part of the hierarchy, with a lock on its folder while the keeper lives.

    The lock, not the number in the name, distinguishes a living keeper's folder from a dead one's: numbers are used again,
    and in another container they mean other processes. The kernel releases the lock with the process, however that ends.
    """

    isolation = Isolation.CGROUP
    kind: type[Cgroup] = Cgroup
    needed: tuple[str, ...] = NEEDED_FILES

    def __init__(self, parent: Path, lock: tuple[Path, int] | None = None) -> None:
        """Sweep what dead keepers have left, make and lock the folder, and enter it. Raises OSError if it cannot.

        With the `lock` of an earlier program of this process, go on in its folder.
        """
        self._parent = parent
        if lock is not None:
            self.swept = []
            self._folder, self._lock_fd = lock
            self.detail = str(self._folder)
            return
        self.swept = sweep_stale(parent, self.kind)
        self._folder, self._lock_fd = _make_locked(parent)
        try:
            self._try_out()
        except OSError:
            self.close()
            raise
        self.detail = str(self._folder)

    def contain(self, name: str, uid: int | None) -> Cgroup:
        """Make a cgroup for a new run. Raises OSError (EBUSY: processes of the last run are still dying)."""
        del uid
        folder = self._folder / name
        try:
            folder.mkdir()
        except FileExistsError:  # the last run could not be killed or removed; try again
            left = self.kind(folder)
            left.kill()
            left.remove()
            folder.mkdir()
        return self.kind(folder)

    def resume(self, name: str, uid: int | None, leader_pid: int) -> Cgroup:
        """See Isolator."""
        del uid
        found = self.kind(self._folder / name)
        found.adopt(leader_pid)
        return found

    @property
    def lock(self) -> tuple[Path, int]:
        """See Isolator."""
        return self._folder, self._lock_fd

    def close(self) -> None:
        """Leave and remove the empty folders; the next keeper cleans up the rest."""
        with contextlib.suppress(OSError):
            _enter(self._parent)
        for child in (*_children(self._folder), self._folder):
            with contextlib.suppress(OSError):
                child.rmdir()
        os.close(self._lock_fd)

    def _try_out(self) -> None:
        """Move this process into a cgroup of its own: that may fail although mkdir works."""
        own = self._folder / OWN
        own.mkdir()
        if missing := [name for name in self.needed if not (own / name).exists()]:
            raise FileNotFoundError(errno.ENOENT, f"this kernel's cgroups lack {', '.join(missing)}")
        _enter(own)


def _enter(folder: Path) -> None:
    (folder / "cgroup.procs").write_text("0")


def _children(folder: Path) -> list[Path]:
    return [child for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []


def _make_locked(parent: Path) -> tuple[Path, int]:
    """Make a folder that no living keeper has locked, and lock it. Raises OSError."""
    number = 0
    while True:
        # A second one in one process (tests) finds the first name taken.
        folder = parent / (f"bentpipe-{os.getpid()}-{number}" if number else f"bentpipe-{os.getpid()}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        if (lock_fd := _lock(folder)) is not None:
            return folder, lock_fd
        # Between mkdir and lock another keeper has cleaned it up as a dead keeper's: make it again.


def _lock(folder: Path) -> int | None:
    """Lock a folder; None if a keeper holds it or it is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(folder)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def sweep_stale(parent: Path, kind: type[Cgroup] = Cgroup) -> list[str]:
    """Kill the processes that dead keepers have left under `parent`. Returns the folders removed. Blocks for that long.

    Touches only folders whose name is ours and that no keeper has locked, and only the cgroups inside them.
    """
    removed = []
    for folder in _children(parent):
        if not FOLDER_PATTERN.match(folder.name) or (lock_fd := _lock(folder)) is None:
            continue
        try:
            left = [kind(child) for child in _children(folder)]
            deadline = time.monotonic() + SWEEP_DEADLINE_S
            for cgroup in left:
                cgroup.kill()
                while not cgroup.is_empty() and time.monotonic() < deadline:
                    time.sleep(SWEEP_PAUSE_S)
                    cgroup.kill()
            with contextlib.suppress(OSError):  # processes that do not die stay for the next keeper
                for cgroup in left:
                    cgroup.remove()
                folder.rmdir()
                removed.append(folder.name)
        finally:
            os.close(lock_fd)
    return removed
