"""An upgrade of the keeper: the process becomes the program that is installed now, by execve(2), with all its satellites.

    idle ─▶ try out the installed program with the state, in a child ─▶ idle ─▶ execve
     └── busy: look again          └── it fails: go on as before, and say why

Nothing is asked of the program that runs now but to write its state: `state`. Requests that were sent and not read by the
moment of the execve are lost with the connection, as with a keeper that is away for a moment: daemons ask again.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from bentpipe.daemon.keeper.child import PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_CAP_AMBIENT_RAISE, prctl
from bentpipe.daemon.keeper.loop import Loop
from bentpipe.daemon.keeper.protocol import WORDS_BYTES
from bentpipe.daemon.keeper.state import KeeperState, write_state

MODULE = "bentpipe.daemon.keeper"
STATE, CHECK = "state", "check"
"""Arguments of the program, with the descriptor of a state: go on with it, or only say whether that would work."""
IDLE_S, LOOK_S = 5.0, 0.02
"""How long to wait for a moment in which nothing is being started or removed, and between two looks."""
CHECK_S = 20.0
"""For the installed program to read the state: Python starts in 40 ms, on a busy host in seconds."""
HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""They wait while there is no handler. By default they would end the process, and its satellites with it."""

Told = Callable[[str], None]
"""Called once: with "" just before the execve, or with the reason why there is none."""


class Renewal:
    """`state` returns what is to be handed on, or None if something is being started or removed."""

    def __init__(
        self, loop: Loop, arguments: list[str], state: Callable[[], KeeperState | None], failed: Callable[[str], None]
    ) -> None:
        """`arguments` are those of the program, without a state. `failed` is told if the execve itself fails."""
        self._loop = loop
        self._failed = failed
        self._command = [sys.executable, "-I", "-m", MODULE, *arguments]
        self._state = state
        self._told: Told | None = None
        self._looks = 0

    def begin(self, told: Told) -> None:
        """Try it, once at a time."""
        if self._told is not None:
            told("it is being done already")
            return
        self._told = told
        self._looks = int(IDLE_S / LOOK_S)
        self._when_idle(self._check)

    def _end(self, words: str) -> None:
        if self._told is not None:
            told, self._told = self._told, None
            told(words[:WORDS_BYTES])

    def _when_idle(self, then: Callable[[KeeperState], None]) -> None:
        try:
            state = self._state()
            if state is not None:
                then(state)
            elif self._looks > 0:
                self._looks -= 1
                self._loop.later(LOOK_S, lambda: self._when_idle(then))
            else:
                self._end(f"satellites were being started or removed all the time, for {IDLE_S:g} s")
        except OSError as error:
            self._end(f"this program goes on: {error.strerror or error}")

    def _check(self, state: KeeperState) -> None:
        """Let the installed program read the state. It may be broken, or older than this one."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        file = write_state(state)
        try:
            os.set_inheritable(file, True)
            actions = [(os.POSIX_SPAWN_DUP2, writing, fd) for fd in (1, 2)]
            pid = os.posix_spawn(
                sys.executable, [*self._command, f"{CHECK}={file}"], dict(os.environ), file_actions=actions
            )
        finally:
            os.close(file)
            os.close(writing)
        pid_fd = os.pidfd_open(pid)
        is_over = False

        def ended(_: int) -> None:
            nonlocal is_over
            is_over = True
            self._loop.forget(pid_fd)
            os.close(pid_fd)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.set_blocking(reading, False)
            said = b""
            with contextlib.suppress(BlockingIOError):
                said = os.read(reading, WORDS_BYTES)
            os.close(reading)
            if code:
                words = said.decode(errors="replace").strip() or f"it ends with {code}"
                self._end(f"the installed program cannot go on with the satellites: {words}")
            else:
                self._when_idle(self._become)

        def late() -> None:
            if not is_over:
                os.kill(pid, signal.SIGKILL)  # not reaped yet: it is that process

        self._loop.watch(pid_fd, ended)
        self._loop.later(CHECK_S, late)

    def _become(self, state: KeeperState) -> None:
        file = write_state(state)
        inherited = [*state.descriptors, file]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        try:
            for fd in inherited:
                os.set_inheritable(fd, True)
            keep_capabilities()
            self._end("")
            os.execv(sys.executable, [*self._command, f"{STATE}={file}"])
        except OSError as error:
            for fd in inherited:
                os.set_inheritable(fd, False)
            os.close(file)
            drop_capabilities()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._failed(f"not renewed: {error.strerror or error}")


def drop_capabilities() -> None:
    """No program that this one starts has more rights than a satellite."""
    with contextlib.suppress(OSError):  # a kernel without ambient capabilities gives satellites none
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def keep_capabilities() -> None:
    """Let the next program of this process have the capabilities that this one has (capabilities(7)).

    A unit gives them as ambient ones, and this program takes that back at once, so that no satellite has them. Root has them
    anyway.
    """
    held = {}
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in ("CapPrm", "CapInh"):
                held[name] = int(value, 16)
    both = held.get("CapPrm", 0) & held.get("CapInh", 0)
    for number in range(both.bit_length()):
        if both >> number & 1:
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
