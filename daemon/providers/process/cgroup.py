"""Satellites in cgroups of their own: the cgroup v2 freezer, cgroup.kill, and the cleaning up after a daemon that died.

Owns `bentpipe-<pid>/` under the daemon's own cgroup (with systemd: Delegate=yes), and in it one folder for each satellite
that has processes. It never touches a cgroup outside the daemon's own. It enables no controller, so the rule "no processes
in inner cgroups" does not apply. The kernel's Documentation/admin-guide/cgroup-v2.rst is the reference.
"""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import trio

from bentpipe.daemon.ids import folder_name
from bentpipe.daemon.model import MachineId
from bentpipe.daemon.providers.process.containment import Isolation, signal_group

FOLDER_PATTERN = re.compile(r"^bentpipe-[0-9]+(-[0-9]+)?$")

ENTER_SCRIPT = 'echo $$ > "$0" && exec "$@"'
"""Run by /bin/sh with cgroup.procs as $0 and the command as $@.

The process moves itself before it becomes the command, so each process that the command forks is inside. If the daemon moved
it after the spawn, that would race with its first fork. Popen's preexec_fn runs Python between fork and exec, which can
deadlock in a process with threads. Python cannot call clone3(CLONE_INTO_CGROUP). The text is constant: path and command are
arguments, so the shell interprets nothing in them.
"""

NEEDED_FILES = ("cgroup.procs", "cgroup.events", "cgroup.freeze", "cgroup.kill")
"""cgroup.freeze is in Linux 5.2, cgroup.kill in 5.14; on an older kernel the process group is better."""

PROBE_DEADLINE_S = 5.0
"""The most time for the trial process that enters a cgroup at start-up; it takes milliseconds."""

SWEEP_DEADLINE_S = 5.0
"""The most time for the processes of a dead daemon to die of SIGKILL."""

POLL_FIRST_S = 0.001
POLL_MOST_S = 0.02
"""Bounds of the interval between checks of something that usually happens within a millisecond or two.

cgroup.events can announce its changes, but only to poll(POLLPRI) or inotify: to epoll the file is always readable, and
Python has no inotify. Freezing and dying are short, so a few checks cost less than either.
"""


async def wait_until(check: Callable[[], bool]) -> None:
    """Return when `check` returns True; it is called at growing intervals. The caller sets the deadline."""
    interval_s = POLL_FIRST_S
    while not check():
        await trio.sleep(interval_s)
        interval_s = min(2 * interval_s, POLL_MOST_S)


def find_own_cgroup(mountinfo: str, own: str) -> Path | None:
    """Find the folder of our own v2 cgroup, from the text of /proc/self/mountinfo and of /proc/self/cgroup.

    Works for a unified and for a hybrid hierarchy (v2 mounted beside v1). None: this process sees no v2.
    """
    path = next((line.removeprefix("0::") for line in own.splitlines() if line.startswith("0::")), None)
    if path is None:
        return None
    for line in mountinfo.splitlines():
        fields, dash, kind = line.partition(" - ")
        if not dash or kind.split()[0] != "cgroup2":
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

    def wrap(self, argv: Sequence[str]) -> tuple[str, ...]:
        """Make the process enter the cgroup, then become the command; see ENTER_SCRIPT."""
        return ("/bin/sh", "-c", ENTER_SCRIPT, str(self._folder / "cgroup.procs"), *argv)

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
    """The daemon's own part of the hierarchy, with a lock on its folder while the daemon lives.

    The lock, not the number in the name, distinguishes a living daemon's folder from a dead one's: numbers are used again,
    and in another container they mean other processes. The kernel releases the lock with the process, however that ends.
    """

    isolation = Isolation.CGROUP

    def __init__(self, parent: Path) -> None:
        """Make and lock the folder, and test it. Raises OSError if cgroups cannot be used under `parent`."""
        self._folder, self._lock_fd = _make_locked(parent)
        try:
            self._try_out()
        except OSError:
            self.close()
            raise
        self.detail = str(self._folder)

    def contain(self, machine_id: MachineId) -> Cgroup:
        """Make a cgroup for a new run of this machine. Raises OSError (EBUSY: processes of the last run are still dying)."""
        folder = self._folder / folder_name(machine_id)
        try:
            folder.mkdir()
        except FileExistsError:  # the last run could not be killed or removed; try again
            left = Cgroup(folder)
            left.kill()
            left.remove()
            folder.mkdir()
        return Cgroup(folder)

    def close(self) -> None:
        """Remove the empty folders; the next daemon cleans up the rest."""
        for child in (*_children(self._folder), self._folder):
            with contextlib.suppress(OSError):
                child.rmdir()
        os.close(self._lock_fd)

    def _try_out(self) -> None:
        """Move a trial process into a cgroup: that may fail although mkdir works."""
        trial = self._folder / "trial"
        trial.mkdir()
        if missing := [name for name in NEEDED_FILES if not (trial / name).exists()]:
            raise FileNotFoundError(f"this kernel's cgroups lack {', '.join(missing)}")
        try:
            done = subprocess.run(
                Cgroup(trial).wrap(("/bin/sh", "-c", ":")),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=PROBE_DEADLINE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError("a process that was to enter a cgroup hangs") from error
        if done.returncode:
            raise PermissionError(f"cannot move a process into {trial}: {done.stderr.decode(errors='replace').strip()}")
        trial.rmdir()


def _children(folder: Path) -> list[Path]:
    return [child for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []


def _make_locked(parent: Path) -> tuple[Path, int]:
    """Make a folder that no living daemon has locked, and lock it. Raises OSError."""
    number = 0
    while True:
        # A second provider in one process (tests) finds the first name taken.
        folder = parent / (f"bentpipe-{os.getpid()}-{number}" if number else f"bentpipe-{os.getpid()}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        if (lock_fd := _lock(folder)) is not None:
            return folder, lock_fd
        # Between mkdir and lock another daemon has cleaned it up as a dead daemon's: make it again.


def _lock(folder: Path) -> int | None:
    """Lock a folder; None if a daemon holds it or it is gone."""
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


async def sweep_stale(parent: Path) -> list[str]:
    """Kill the processes that dead daemons have left under `parent`. Returns the folders removed.

    Touches only folders whose name is ours and that no daemon has locked, and only the cgroups inside them.
    """
    removed = []
    for folder in _children(parent):
        if not FOLDER_PATTERN.match(folder.name) or (lock_fd := _lock(folder)) is None:
            continue
        try:
            left = [Cgroup(child) for child in _children(folder)]
            for cgroup in left:
                cgroup.kill()
            with trio.move_on_after(SWEEP_DEADLINE_S):
                for cgroup in left:
                    await wait_until(cgroup.is_empty)
            with contextlib.suppress(OSError):  # processes that do not die stay for the next daemon
                for cgroup in left:
                    cgroup.remove()
                folder.rmdir()
                removed.append(folder.name)
        finally:
            os.close(lock_fd)
    return removed
