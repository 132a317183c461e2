"""Users of satellites' own, and their private folders: which user is free, and what is deleted before it is free again.

Owns one folder in which each satellite has one of its own, that only its user may enter. The owner of that folder is the
record of which user belongs to which satellite. So it outlives the keeper, and a user is free only when all its files there
are gone. Deleting runs in a process of the satellite's user, which can harm nothing but the satellite's own files.
"""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import signal
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PRIVATE_MODE = 0o700
PARENT_MODE = 0o711
"""Satellites' users may pass through the folder that holds theirs, and not list it."""
TEMPORARY = "tmp"
"""In a private folder: TMPDIR."""
LOWEST_UID = 1000
"""Users below it are the system's (useradd's default for UID_MIN)."""
HIGHEST_UID = 2**32 - 3
"""2^32 - 1 means "no user" to the kernel, and the one below it is reserved by convention (nobody of 16 bits is 65534)."""
NOBODY = 65534
CAPABILITY_HEADER, CAPABILITY_VERSION_3 = struct.Struct("=Ii"), 0x20080522
NO_CAPABILITIES = bytes(24)
"""Effective, permitted and inheritable ones, 32 bits each, twice (capset(2))."""

_libc = ctypes.CDLL(None, use_errno=True)


class UidRange(NamedTuple):
    """The users that satellites get, both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def parse_uids(text: str) -> UidRange:
    """Read "FIRST-LAST". Raises ValueError."""
    first, dash, last = text.partition("-")
    if not dash or not first.strip().isdigit() or not last.strip().isdigit():
        raise ValueError(f'{text!r} is not a range of users; write it as "300000-300999"')
    found = UidRange(int(first), int(last))
    if not LOWEST_UID <= found.first <= found.last <= HIGHEST_UID:
        raise ValueError(f"users {found} must be between {LOWEST_UID} and {HIGHEST_UID}, the lower one first")
    if found.first <= NOBODY <= found.last:
        raise ValueError(f"users {found} must not include {NOBODY}, which is nobody")
    return found


def user_of(pid: int) -> int | None:
    """The real user of a process; None if it is gone or hidden."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("Uid:")), None)


def become(uid: int) -> None:
    """Turn this process into one of a satellite's user, with its own group alone and no capability. There is no way back."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _drop_capabilities()
    if os.getresuid() != (uid, uid, uid):  # kill(-1) of another user would be a catastrophe
        raise OSError(errno.EPERM, f"still user {os.getuid()}")


def _drop_capabilities() -> None:
    """Raises OSError. The kernel takes them only from a process that was root. A keeper with those of its unit would keep
    them, and with CAP_KILL its kill(-1) reaches every process of the host."""
    header = ctypes.create_string_buffer(CAPABILITY_HEADER.pack(CAPABILITY_VERSION_3, 0))
    if _libc.capset(header, NO_CAPABILITIES) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def run_as(uid: int, work: Callable[[], object]) -> int:
    """Fork a process of this user that does `work`. Returns its pid; its exit status is 0, or an errno. Raises OSError."""
    pid = os.fork()
    if pid:
        return pid
    status = errno.ECHILD
    try:
        become(uid)
        work()
        status = 0
    except OSError as error:
        status = error.errno or errno.EIO
    finally:
        os._exit(status)


def kill_all_of(uid: int) -> None:
    """Kill every process of a user, also those that fork meanwhile. Raises OSError.

    kill(2) with -1 means all that the caller may signal, except itself: it is sent by a process of that user.
    """
    pid = run_as(uid, _kill_all)
    os.waitpid(pid, 0)


def _kill_all() -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


class Users:
    """The private folders in one folder, which is locked while this lives."""

    def __init__(self, directory: Path, uids: UidRange, lock_fd: int | None = None) -> None:
        """Make and lock the folder, and try whether this process may change its user. Raises OSError.

        With the `lock_fd` of an earlier program of this process, go on in its folder.
        """
        self.uids = uids
        self.directory = directory
        if lock_fd is not None:
            self._lock_fd = lock_fd
            return
        directory.mkdir(mode=PARENT_MODE, parents=True, exist_ok=True)
        self._lock_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._lock_fd).st_mode & 0o777 != PARENT_MODE:
                os.fchmod(self._lock_fd, PARENT_MODE)
            _, status = os.waitpid(run_as(uids.first, _try_out), 0)
            if code := os.waitstatus_to_exitcode(status):
                raise OSError(code, f"a process cannot become user {uids.first}: {os.strerror(code)}")
        except BlockingIOError as error:
            os.close(self._lock_fd)
            raise OSError(errno.EBUSY, f"another keeper has its satellites in {directory}") from error
        except OSError:
            os.close(self._lock_fd)
            raise

    def claim(self, name: str) -> tuple[Path, int]:
        """The private folder of a satellite and its user; both are made if it has none. Raises OSError, with words."""
        folder = self.directory / name
        uid = self._owner(folder)
        if uid is not None and uid not in range(self.uids.first, self.uids.last + 1):
            words = f"{folder} belongs to user {uid}, who is not one of {self.uids}: remove the folder"
            raise OSError(errno.EPERM, words)
        if uid is None:
            uid = self._free_uid()
            folder.mkdir(mode=PRIVATE_MODE, exist_ok=True)
            os.chown(folder, uid, uid, follow_symlinks=False)
        else:
            kill_all_of(uid)  # what its last run has left
        return folder, uid

    def sweep(self) -> None:
        """Kill what a dead keeper's satellites have left. Raises OSError."""
        for uid in self._owners():
            if uid in range(self.uids.first, self.uids.last + 1):
                kill_all_of(uid)

    def begin_removal(self, name: str) -> int | None:
        """Begin to delete a satellite's files. Returns the process that does it; None if there are none. Raises OSError."""
        folder = self.directory / name
        uid = self._owner(folder)
        if uid is None or uid not in range(self.uids.first, self.uids.last + 1):
            return None
        kill_all_of(uid)
        return run_as(uid, lambda: delete_contents(folder))

    def finish_removal(self, name: str) -> None:
        """Remove the empty folder; its user is free then. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            (self.directory / name).rmdir()

    @property
    def lock_fd(self) -> int:
        """What locks the folder, for the next program of this process."""
        return self._lock_fd

    def close(self) -> None:
        """Let another keeper use the folder."""
        os.close(self._lock_fd)

    def _owner(self, folder: Path) -> int | None:
        """Who owns a private folder; None if there is none, or one that was not finished."""
        try:
            found = folder.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(found.st_mode):
            raise OSError(errno.ENOTDIR, f"{folder} is not a folder: remove it")
        return None if found.st_uid == os.geteuid() else found.st_uid

    def _owners(self) -> Iterator[int]:
        for entry in os.scandir(self.directory):
            with contextlib.suppress(FileNotFoundError):
                yield entry.stat(follow_symlinks=False).st_uid

    def _free_uid(self) -> int:
        """A user that owns no folder here and no process. Chosen at random, so that one is used again as late as can be."""
        taken = set(self._owners())
        count = self.uids.last - self.uids.first + 1
        start = int.from_bytes(os.urandom(8)) % count
        for offset in range(count):
            uid = self.uids.first + (start + offset) % count
            if uid not in taken and not _has_process(uid):
                return uid
        raise OSError(errno.ENOSPC, f"all users of {self.uids} are taken; {self.directory} has the satellites of each")


def _has_process(uid: int) -> bool:
    """Whether a process of this user lives. A process of that user looks, since /proc may hide those of others from us
    (proc(5), hidepid). Raises OSError."""
    _, status = os.waitpid(run_as(uid, _find_no_other), 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, errno.EBUSY):
        raise OSError(code, f"the processes of user {uid} cannot be listed: {os.strerror(abs(code))}")
    return code == errno.EBUSY


def _find_no_other() -> None:
    """Raises OSError (EBUSY) if this process is not its user's only one."""
    others = (int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid())
    if any(user_of(pid) == os.getuid() for pid in others):
        raise OSError(errno.EBUSY, f"another process of user {os.getuid()} lives")


def _try_out() -> None:
    """Nothing: that the process has come here is the answer."""


def delete_contents(folder: Path) -> None:
    """Delete all that is in a folder, however deep: what is in a subfolder is moved up before the subfolder is removed.

    So no path gets long and nothing recurses, whatever the satellite has made. Raises OSError.
    """
    os.chdir(folder)
    names = map(_REMOVED.format, itertools.count())
    while _delete_some(names):
        pass


_REMOVED = ".removed-{}"


def _delete_some(names: Iterator[str]) -> bool:
    """Delete what one pass over the present folder shows, and move up what is inside. Returns whether it showed anything."""
    shown = False
    with os.scandir(".") as entries:
        for entry in entries:
            shown = True
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name)
                continue
            os.chmod(entry.name, PRIVATE_MODE)
            with os.scandir(entry.name) as inside:
                for inner in inside:
                    if inner.is_dir(follow_symlinks=False):
                        os.chmod(inner.path, PRIVATE_MODE)
                        # The satellite may have given such a name to something of its own.
                        os.rename(inner.path, next(name for name in names if not os.path.lexists(name)))
                    else:
                        os.unlink(inner.path)
            _remove_if_empty(entry.name)
    return shown


def _remove_if_empty(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # the next pass shows what this one has not
            raise
