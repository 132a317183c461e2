"""The first process of an emulated machine. Everything that the machine runs ends with it.

`python -I -S machine_init.py ARGV...` starts the machine's command. Standard input is a socket, whose other end the emulator
holds: the machine's power. One byte goes there when the command has been started. When the socket ends, all processes of the
machine are killed. That happens also if the emulator dies, in whatever way.

This process is a child subreaper (PR_SET_CHILD_SUBREAPER(2const)): a process whose parent has ended becomes its child. So
all that the machine runs descends from it, in whatever process group or session.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.002
"""Between looks at processes that have got a signal and have not acted on it yet."""
PARENT_FIELD, STATE_FIELD = 1, 0
"""Of /proc/PID/stat, after the process's name (proc_pid_stat(5))."""
DEAD_STATES, STOPPED_STATES = frozenset("ZX"), frozenset("TtZX")


def descendants(ancestor: int) -> dict[int, str]:
    """The states of the living processes below `ancestor`, by their ids."""
    children: dict[int, list[int]] = {}
    states = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{name}/stat", "rb") as file:
                # The name of a process may have blanks and brackets; the last bracket ends it.
                fields = file.read().rpartition(b")")[2].split()
                children.setdefault(int(fields[PARENT_FIELD]), []).append(int(name))
                states[int(name)] = fields[STATE_FIELD].decode()
    found: dict[int, str] = {}
    parents = [ancestor]
    while parents:
        for pid in children.get(parents.pop(), ()):
            parents.append(pid)
            if states[pid] not in DEAD_STATES:
                found[pid] = states[pid]
    return found


def _signal_all(pids: dict[int, str], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def freeze(init: int) -> None:
    """Stop all processes of a machine, and return when none of them can run."""
    while running := {pid: state for pid, state in descendants(init).items() if state not in STOPPED_STATES}:
        _signal_all(running, signal.SIGSTOP)
        time.sleep(POLL_S)


def thaw(init: int) -> None:
    """Let all of them run again."""
    _signal_all(descendants(init), signal.SIGCONT)


class _Init:
    """Starts the command, takes the exit statuses of whatever ends, and kills all at the end."""

    def __init__(self, argv: list[str]) -> None:
        self._running = True
        self._leader = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True).pid
        signal.signal(signal.SIGCHLD, self._reap)
        self._reap()

    def _reap(self, *_signal: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._running &= pid != self._leader

    def kill_all(self) -> None:
        """Return when no process is left."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self._running:
            # At once: to search /proc takes a while, in which a client may still be served.
            os.killpg(self._leader, signal.SIGKILL)
        while left := descendants(os.getpid()):
            _signal_all(left, signal.SIGKILL)
            time.sleep(POLL_S)
            self._reap()


def main() -> int:
    """Run the machine until its power ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    argv = sys.argv[1:]
    # If this process is killed, at least the command is too.
    if setpriv := shutil.which("setpriv"):
        argv = [setpriv, "--pdeathsig", "KILL", *argv]
    init = _Init(argv)
    power = sys.stdin.fileno()
    os.write(power, b"\0")
    # A reset: the emulator has closed its end and has not read the byte.
    with contextlib.suppress(ConnectionResetError):
        while os.read(power, 1):
            pass
    init.kill_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
