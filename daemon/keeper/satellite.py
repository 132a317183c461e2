"""One run of a satellite, as the keeper has it: from its spawn until the daemon has taken its exit status."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from bentpipe.daemon.keeper.child import FAILURE, Spawned
from bentpipe.daemon.keeper.containment import Containment
from bentpipe.daemon.keeper.loop import Loop
from bentpipe.daemon.keeper.output import PAUSE_S, Output
from bentpipe.daemon.keeper.protocol import OUTPUT_BYTES, Field, Flag, Tag
from bentpipe.daemon.keeper.state import KeptRun

SIGNAL_STATUS = 256
"""Added to the number of the signal that has ended a process: its status on the wire."""

Waiter = Callable[[list[Field]], None]
"""Answers a READ that waits."""


class KeptSatellite:
    """Owns the leader, which stays a zombie until `release`, its pipe and its containment."""

    def __init__(
        self,
        loop: Loop,
        identity: tuple[str, str],
        spawned: Spawned,
        containment: Containment,
        kept: tuple[bytes, int, int | None, Path | None],
    ) -> None:
        """`identity`: name and birth. `kept`: note, grace in ms, user of its own, private folder."""
        self.name, self.birth = identity
        self.note, self.grace_ms, self.uid, self.home = kept
        self.spawned = spawned
        self.containment = containment
        self.output = Output(spawned.output_fd)
        self.status: int | None = None
        self.waiter: tuple[int, Waiter] | None = None
        """The offset from which on a READ waits, and its answer."""
        self._ending = self._freezing = False
        self._loop = loop

    def watch(
        self, started: Callable[["KeptSatellite", bytes], None], exited: Callable[["KeptSatellite"], None]
    ) -> None:
        """Begin to watch it. `started` is called once: with b"" when the command runs, or with a FAILURE."""

        def ready(_: int) -> None:
            self._loop.forget(self.spawned.failure_fd)
            data = os.read(self.spawned.failure_fd, FAILURE.size)
            os.close(self.spawned.failure_fd)
            started(self, data)

        self._loop.watch(self.spawned.failure_fd, ready)
        self._watch_end(exited)
        self._loop.watch(self.spawned.output_fd, self._read)

    def _watch_end(self, exited: Callable[["KeptSatellite"], None]) -> None:
        def ended(_: int) -> None:
            self._loop.forget(self.spawned.pid_fd)
            self._note_exit()
            exited(self)

        self._loop.watch(self.spawned.pid_fd, ended)

    @classmethod
    def resumed(cls, loop: Loop, state: KeptRun, containment: Containment) -> "KeptSatellite":
        """Go on with one that an earlier program of this process had."""
        spawned = Spawned(state.pid, state.pid_fd, -1 if state.output_fd is None else state.output_fd, -1)
        kept = state.note, state.grace_ms, state.uid, state.home
        found = cls(loop, (state.name, state.birth), spawned, containment, kept)
        found.output = Output(state.output_fd, state.output, state.output_end)
        found.status, found._ending, found._freezing = state.status, state.is_ending, state.is_freezing
        return found

    def watch_on(self, exited: Callable[["KeptSatellite"], None]) -> None:
        """Watch one that was resumed."""
        if self.status is None:
            self._watch_end(exited)
        self._go_on()

    def state(self) -> KeptRun:
        """What `resumed` needs."""
        spawned, output = self.spawned, self.output
        return KeptRun(
            *(self.name, self.birth, self.note, self.grace_ms, self.uid, self.home, spawned.pid, spawned.pid_fd),
            *(output.fd, output.kept, output.end, self.status, self._ending, self._freezing),
        )

    def fields(self) -> list[Field]:
        """What a daemon is told of it. Raises OSError."""
        found: list[Field] = [
            (Tag.NAME, self.name),
            (Tag.BIRTH, self.birth),
            (Tag.PID, self.spawned.pid),
            (Tag.NOTE, self.note),
            (Tag.GRACE_MS, self.grace_ms),
            (Tag.FLAGS, int(self.flags())),
        ]
        if self.uid is not None:
            found.append((Tag.UID, self.uid))
        if self.home is not None:
            found.append((Tag.FOLDER, str(self.home)))
        if self.containment.folder is not None:
            found.append((Tag.CGROUP, str(self.containment.folder)))
        if self.status is not None:
            found.append((Tag.STATUS, self.status))
        return found

    def flags(self) -> Flag:
        """How it is now. Raises OSError."""
        empty = self.containment.is_empty()
        found = Flag.EMPTY if empty else Flag(0)
        found |= Flag.ENDING if self._ending else Flag(0)
        found |= Flag.FREEZING if self._freezing else Flag(0)
        found |= Flag.EXITED if self.status is not None else Flag(0)
        if self._freezing and not empty and self.containment.is_frozen():
            found |= Flag.FROZEN
        return found

    def end(self) -> None:
        """SIGTERM, then a thaw: so a frozen satellite ends at once instead of going on with its work. Raises OSError."""
        self._ending, self._freezing = True, False
        try:
            self.containment.terminate()
        finally:
            self.containment.thaw()

    def freeze(self) -> None:
        """Begin to freeze. Raises OSError."""
        self._freezing = True
        self.containment.freeze()

    def thaw(self) -> None:
        """Let it run again. Raises OSError."""
        self._freezing = False
        self.containment.thaw()

    def kill(self) -> None:
        """SIGKILL to all. Raises OSError."""
        self.containment.kill()

    def answer_waiter(self) -> None:
        """Answer the READ that waits, if there is something new, or never will be."""
        if self.waiter is None:
            return
        offset, answer = self.waiter
        if self.output.end > offset or self.status is not None:
            self.waiter = None
            answer(self.output_fields(offset))

    def output_fields(self, offset: int | None) -> list[Field]:
        """The answer to a READ."""
        begin, data = self.output.since(offset, OUTPUT_BYTES)
        return [(Tag.OFFSET, begin), (Tag.OUTPUT, data)]

    def release(self) -> None:
        """Reap the dead leader, and let go of all. Call once. Raises OSError if the containment cannot be removed."""
        self._loop.forget(self.spawned.output_fd)
        self._loop.forget(self.spawned.pid_fd)
        with contextlib.suppress(OSError):
            self.output.finish()
        os.close(self.spawned.pid_fd)
        os.waitpid(self.spawned.pid, 0)
        self.containment.remove()

    def _note_exit(self) -> None:
        # The pidfd is readable, so this does not wait. The zombie stays, and with it the process id.
        found = os.waitid(os.P_PID, self.spawned.pid, os.WEXITED | os.WNOWAIT)
        if found is None:
            raise ChildProcessError(f"{self.name}: no exit status")
        exited = found.si_code == os.CLD_EXITED
        self.status = found.si_status if exited else SIGNAL_STATUS + found.si_status
        self.output.drain()
        self.answer_waiter()

    def _read(self, _: int) -> None:
        fd = self.spawned.output_fd
        try:
            full = self.output.read()
        except BlockingIOError:
            return
        self.answer_waiter()
        if full is None:
            self._loop.forget(fd)
        elif full:
            self._loop.forget(fd)
            self._loop.later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self.output.is_open:
            self._loop.watch(self.spawned.output_fd, self._read)
