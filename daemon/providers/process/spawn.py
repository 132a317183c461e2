"""From a satellite's section to a running child: its port, command line, environment and descriptors.

Owns all steps between the configuration and exec. Knows nothing of states. Everything here is short and synchronous, and
must be called on the Trio thread: see `spawn`.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

import trio

from bentpipe.config.model import ProcessSection
from bentpipe.daemon.errors import ProviderError, ProviderPermanent, ProviderRetryable
from bentpipe.daemon.model import Address
from bentpipe.daemon.ports import PortReservation, reserve_port
from bentpipe.daemon.providers.process.containment import Containment

INHERITED = ("PATH", "HOME", "LANG")
"""The part of the daemon's environment that a satellite gets. Other variables may hold credentials, or belong to the daemon
alone: with NOTIFY_SOCKET, WATCHDOG_PID and LISTEN_FDS a satellite would speak to systemd in the daemon's name."""

DIE_WITH_PARENT = ("--pdeathsig", "KILL", "--")
"""setpriv(1) options: the kernel kills the child when the daemon dies without having stopped it."""

SOFT_FILES = "--nofile={}:"
"""prlimit(1) option: only the soft limit of open files. The daemon raises its own. A program that uses select(2) must not
have a descriptor above 1,023, so satellites get the limit that the daemon was started with."""

PASSING_ERRNOS = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.EINTR})
"""Failures to spawn that may not happen a moment later."""


class Child:
    """A spawned leader. Owns its pidfd, and the duty to reap it."""

    def __init__(self, popen: subprocess.Popen[bytes], pid_fd: int) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._pid_fd = pid_fd

    async def wait_exit(self) -> None:
        """Return as soon as the leader is dead; it stays a zombie."""
        await trio.lowlevel.wait_readable(self._pid_fd)

    def abandon(self) -> None:
        """Kill and reap the leader, which has just been spawned, because a later step failed."""
        self._popen.kill()
        self.reap()

    def reap(self) -> int:
        """Reap the dead leader. Returns its status as subprocess does: -N for signal N. Call once."""
        try:
            os.close(self._pid_fd)
        finally:
            status = self._popen.wait()
        return status


async def find_setpriv() -> tuple[str, ...]:
    """Find the wrapper that makes a command die with the daemon: a setpriv(1) that knows --pdeathsig. Empty if none."""
    path = shutil.which("setpriv")
    if path is None:
        return ()
    # Busybox has a setpriv without this option.
    done = await trio.run_process([path, *DIE_WITH_PARENT, "/bin/sh", "-c", ":"], check=False, capture_stderr=True)
    return (path, *DIE_WITH_PARENT) if done.returncode == 0 else ()


async def find_prlimit(soft_files: int) -> tuple[str, ...]:
    """Find the wrapper that gives a command this soft limit of open files: a prlimit(1) that works. Empty if none.

    It sets the limit before the command's first instruction, because a program may read its limit when it starts.
    """
    path = shutil.which("prlimit")
    if path is None:
        return ()
    command = (path, SOFT_FILES.format(soft_files))
    done = await trio.run_process([*command, "/bin/sh", "-c", ":"], check=False, capture_stderr=True)
    return command if done.returncode == 0 else ()


def pick_port(host: str, taken: Collection[int]) -> PortReservation:
    """Reserve a free port that is not in `taken`. Raises ProviderRetryable, ProviderPermanent.

    A process that is not ours may still get the port before the satellite binds it. Then the satellite exits with its own
    message, and the next client that wants it starts it again. No client is sent to the other process: see `listening`.
    """
    try:
        return reserve_port(host, taken)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ProviderRetryable(f"no free port on {host}") from error
        raise _provider_error(f"cannot open a port on {host}", error) from error


def build_environment(section: ProcessSection, own: Mapping[str, str]) -> dict[str, str]:
    """Build a satellite's environment: a few of the daemon's variables, and those of its section."""
    inherited = {name: own[name] for name in INHERITED if name in own}
    return {"PATH": os.defpath, **inherited, **section.environment}


def resolve_command(section: ProcessSection, address: Address, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Fill in address and program path. Raises ProviderPermanent if there is no such program or folder.

    The daemon checks this itself because the command runs in wrappers, whose exec errors come too late and are unclear.
    """
    if section.directory is not None and not section.directory.is_dir():
        raise ProviderPermanent(f"cannot start: no such directory: {section.directory}")
    program, *arguments = (
        argument.replace("{port}", str(address.port)).replace("{host}", address.host) for argument in section.command
    )
    if "/" in program:
        path = Path(section.directory or ".").absolute() / program
        if not path.exists():
            raise ProviderPermanent(f"cannot start: no such program: {path}")
        if not path.is_file() or not os.access(path, os.X_OK):
            raise ProviderPermanent(f"cannot start: not an executable file: {path}")
        return (str(path), *arguments)
    found = shutil.which(program, path=environment["PATH"])
    if found is None:
        raise ProviderPermanent(f"cannot start: no program {program!r} in {environment['PATH']}")
    return (found, *arguments)


def spawn(
    section: ProcessSection, address: Address, containment: Containment, wrappers: tuple[str, ...]
) -> tuple[Child, int]:
    """Start the command, contained. Returns the child and the reading end of its output; the caller owns both.

    `wrappers` are a command line in front of it: what `find_setpriv` and `find_prlimit` have found.

    Raises ProviderPermanent or ProviderRetryable; then nothing is left running.

    Must run on the Trio thread, which is the main one: the kernel sends the parent-death signal when the THREAD that
    forked ends, so a spawn in a worker thread (as trio.lowlevel.open_process does) would be killed with the idle
    worker. It blocks for the vfork and exec only, a millisecond or two.
    """
    environment = build_environment(section, os.environ)
    command = resolve_command(section, address, environment)
    try:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise _provider_error("cannot start", error) from error
    try:
        child = _spawn_with(containment.wrap((*wrappers, *command)), section.directory, environment, write_fd)
    except BaseException as error:
        os.close(read_fd)
        if isinstance(error, OSError):
            raise _provider_error("cannot start", error) from error
        raise
    finally:
        os.close(write_fd)
    containment.adopt(child.pid)
    return child, read_fd


def _spawn_with(argv: tuple[str, ...], directory: Path | None, environment: dict[str, str], output_fd: int) -> Child:
    # A session of its own, not only a process group: the hang-up of the daemon's terminal must not reach a satellite, and
    # the kernel would send SIGHUP to a stopped group whose parent dies in the same session.
    popen = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output_fd,
        stderr=output_fd,
        cwd=directory,
        env=environment,
        start_new_session=True,
        close_fds=True,
    )
    try:
        return Child(popen, os.pidfd_open(popen.pid))
    except BaseException:
        popen.kill()
        popen.wait()
        raise


def _provider_error(what: str, error: OSError) -> ProviderError:
    kind = ProviderRetryable if error.errno in PASSING_ERRNOS else ProviderPermanent
    return kind(f"{what}: {error}")
