"""From a request to a running process: what happens between fork and exec, and how a failure in between is told.

Owns the order of the steps. The keeper has one thread, so Python may run between fork and exec. Nothing here waits: whether
the exec has worked is told by a pipe, which the kernel closes at the exec.
"""

import ctypes
import os
import resource
import signal
import struct
from pathlib import Path
from typing import NamedTuple

from bentpipe.daemon.keeper.users import PRIVATE_MODE, TEMPORARY, become

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 38, 47
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
"""prctl(2)."""
PRIVATE_UMASK = 0o077
FAILURE = struct.Struct("=iB")
"""What a child tells that cannot exec: its errno, and the step."""
STEPS = ("enter its cgroup", "set its limits", "become its user", "enter its folder", "be executed")
FAILED = 127

_libc = ctypes.CDLL(None, use_errno=True)


class Command(NamedTuple):
    """What is to be executed, and as whom."""

    arguments: tuple[bytes, ...]
    """The first one is the program's path."""
    environment: dict[bytes, bytes]
    folder: bytes
    """Its working directory; empty: its private folder, or the keeper's own."""
    soft_files: int | None
    """The soft limit of open files; None: the keeper's."""
    uid: int | None
    """A user of its own; None: the keeper's."""
    home: Path | None
    """Its private folder, if it has a user of its own."""


class Spawned(NamedTuple):
    """A child that is about to exec. Its owner has all descriptors, and reaps it."""

    pid: int
    pid_fd: int
    output_fd: int
    failure_fd: int
    """At its end the child has become the command; before that may come a FAILURE."""


def prctl(option: int, value: int, third: int = 0) -> None:
    """Call prctl(2). Raises OSError."""
    if _libc.prctl(option, value, third, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def spawn(command: Command, entrance_fd: int | None) -> Spawned:
    """Start a command. `entrance_fd`, borrowed, is its cgroup's (see Containment). Raises OSError: nothing runs then."""
    fds: list[int] = []
    try:
        fds += os.pipe2(os.O_CLOEXEC)
        fds += os.pipe2(os.O_CLOEXEC)
        fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        output_fd, output, failure_fd, failure, nothing = fds
        keeper = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_child(command, keeper, entrance_fd, (nothing, output, failure))
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    for fd in (output, failure, nothing):
        os.close(fd)
    try:
        pid_fd = os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(output_fd)
        os.close(failure_fd)
        raise
    for fd in (output_fd, failure_fd):
        os.set_blocking(fd, False)
    return Spawned(pid, pid_fd, output_fd, failure_fd)


def _run_child(command: Command, keeper: int, entrance_fd: int | None, fds: tuple[int, int, int]) -> None:
    """Become the command; never returns."""
    nothing, output, failure = fds
    step = 0
    try:
        # A session of its own, not only a process group: the hang-up of a terminal must not reach a satellite.
        os.setsid()
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for at, fd in enumerate((nothing, output, output)):
            os.dup2(fd, at)
        if entrance_fd is not None:
            os.write(entrance_fd, b"0")
        step = 1
        _limit(command)
        step = 2
        if command.uid is not None:
            os.umask(PRIVATE_UMASK)
            become(command.uid)
            # A set-user-ID program or one with capabilities gives it no more than it has.
            prctl(PR_SET_NO_NEW_PRIVS, 1)
        # Satellites end with their keeper. After the user's change, which clears it.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:  # it died before the kernel was asked
            os._exit(FAILED)
        step = 3
        environment = _enter_folder(command)
        step = 4
        os.execve(command.arguments[0], command.arguments, environment)
    except OSError as error:
        os.write(failure, FAILURE.pack(error.errno or 0, step))
    finally:
        os._exit(FAILED)


def _limit(command: Command) -> None:
    if command.soft_files is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        soft = command.soft_files if hard == resource.RLIM_INFINITY else min(command.soft_files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    # The unit may let the engine's threads have a priority that is not for builds.
    for limit in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
        resource.setrlimit(limit, (0, 0))


def _enter_folder(command: Command) -> dict[bytes, bytes]:
    """Change the working directory. Returns the environment, to which the private folder adds HOME and TMPDIR."""
    environment = command.environment
    if command.home is not None:
        home = bytes(command.home)
        temporary = os.path.join(home, TEMPORARY.encode())
        os.chdir(home)
        if not os.path.isdir(temporary):
            os.mkdir(temporary, PRIVATE_MODE)
        environment = {b"HOME": home, b"TMPDIR": temporary, **environment}
    if command.folder:
        os.chdir(command.folder)
    return environment
