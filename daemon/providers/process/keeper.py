"""The daemon's side of the keeper: finds it or starts it, and finds it again when the connection ends.

Owns the connection, and the knowledge of which processes the keeper has. What the machines do about it is `machine`'s.
"""

import errno
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import trio

from bentpipe.daemon.errors import ProviderError, ProviderRetryable
from bentpipe.daemon.keeper.build import build_of_files
from bentpipe.daemon.keeper.program import READY
from bentpipe.daemon.keeper.protocol import Field, Kind, Message, Tag
from bentpipe.daemon.providers.process.kept import KeptProcess
from bentpipe.daemon.providers.process.link import AWAY, CALL_DEADLINE_S, KeeperLink, KeeperLost, connect, hello_fields
from bentpipe.daemon.providers.process.place import KeeperPlace
from bentpipe.daemon.providers.process.starting import forget_child, read_ready, spawn_keeper
from bentpipe.daemon.tasks import Decision, Owner, contained, run_owned

log = logging.getLogger("bentpipe.providers.process")

FIRST_PAUSE_S, MOST_PAUSE_S = 0.05, 10.0
"""Before the next connection after one that has ended, doubling while none can be made."""
MOST_EXITS = 1000
"""Of processes that nobody knows yet: as many as could be started at once, and more."""
RENEW_S = 30.0
"""For a keeper to become the installed program, which it tries out first."""
END_DEADLINE_S = 10.0
"""For a keeper that has nothing to keep to end."""
READER = Owner("keeper reader", decision=Decision.GIVE_UP)
"""What it fails by ends the connection, and a new one is made."""

Synced = Callable[[Sequence[tuple[KeptProcess, Message]]], None]
"""Called after each connection with every satellite that the keeper has, when calls are possible."""


class KeeperClient:
    """A keeper, over all connections to it. `run` must run while any other method is used."""

    def __init__(self, place: KeeperPlace, isolation: str | None = None) -> None:
        self._place = place
        self._isolation = isolation
        self._link: KeeperLink | None = None
        self._kept: dict[tuple[str, str], KeptProcess] = {}
        self._exits: dict[tuple[str, str], int] = {}
        """How processes have ended that nobody here knows yet, by name and birth. Oldest first, MOST_EXITS of them."""
        self._pid: int | None = None
        """Of a keeper that this process has started, until it is reaped."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._ending = False
        self._is_renewing = False
        """The keeper is about to become the installed program."""
        self._build = build_of_files()
        self._renewed: set[tuple[int | None, str]] = set()
        """Keepers that were asked to become the installed program: process and build."""
        self.problem = ""
        """Why there is no connection, if the last attempt has failed."""
        self.hello: Message | None = None
        """What the keeper says of itself; None before the first connection."""

    @property
    def has_users(self) -> bool:
        """Whether satellites are to have users of their own."""
        return self.hello is not None and bool(self.hello.text(Tag.UIDS))

    async def call(
        self, kind: Kind, fields: Iterable[Field] = (), deadline_s: float | None = CALL_DEADLINE_S
    ) -> Message:
        """See KeeperLink.call."""
        if self._link is None:
            await trio.lowlevel.checkpoint()
            raise ProviderRetryable(f"{AWAY}: {self.problem}" if self.problem else AWAY)
        return await self._link.call(kind, fields, deadline_s)

    async def spawn(self, fields: Iterable[Field]) -> KeptProcess:
        """Start a satellite. Raises ProviderError."""
        return self._know(await self.call(Kind.SPAWN, fields))[0]

    async def remove(self, name: str) -> None:
        """Delete a satellite's private folder, if it has one. Raises ProviderError."""
        await self.call(Kind.REMOVE, [(Tag.NAME, name)], None)

    async def run(self, synced: Synced, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay connected until cancelled or `stop`. Has started when the first attempt to connect has worked or failed.

        If the keeper dies, its satellites have died with it: they are lost, and a new keeper is started.
        """
        pause_s = FIRST_PAUSE_S
        self._ending = False
        while True:
            try:
                link = await self._open()
            except OSError as error:
                self.problem = error.strerror or str(error)
                log.error(AWAY, extra={"fields": {"error": self.problem}})
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_PAUSE_S)
                continue
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run_owned, READER, link.run_reader, self._told)
                    if await self._greet(link, synced):
                        pause_s = FIRST_PAUSE_S
                    if not self._is_renewing:
                        task_status.started()
                        task_status = trio.TASK_STATUS_IGNORED
            finally:
                self._link = None
                link.close()
            if self._ending:
                return
            if self._is_renewing:
                self._is_renewing = False
                continue
            log.error("the connection to the keeper of local satellites has ended")
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_PAUSE_S)

    async def _greet(self, link: KeeperLink, synced: Synced) -> bool:
        """Take the seat, and learn what the keeper has. Returns whether calls are possible now."""
        try:
            self.hello = await link.call(Kind.HELLO, hello_fields())
            self._is_renewing = await self._renew(link, self.hello)
            if self._is_renewing:
                return True
            found = [self._know(each) for each in await _list(link)]
        except ProviderError as error:
            self.problem = str(error)
            log.error("the keeper of local satellites refuses", extra={"fields": {"error": self.problem}})
            link.close()
            return False
        self._lose_all_but(found)
        self.problem = ""
        self._link = link
        synced(found)
        return True

    async def _renew(self, link: KeeperLink, hello: Message) -> bool:
        """Have a keeper of another build become the installed program. Returns whether it does: this connection ends then.

        It is asked once. One that cannot, or that is of another installation, stays as it is: both sides speak with it.
        """
        keeper = hello.value(Tag.PID), hello.text(Tag.BUILD)
        if hello.text(Tag.BUILD) == self._build or keeper in self._renewed:
            return False
        self._renewed.add(keeper)
        fields: dict[str, object] = {"keeper": keeper[0], "build": keeper[1], "installed": self._build}
        try:
            await link.call(Kind.RENEW, (), RENEW_S)
        except KeeperLost:
            raise
        except ProviderError as error:
            fields["reason"] = str(error)
            log.warning("the keeper of local satellites stays of another version", extra={"fields": fields})
            return False
        log.info("the keeper of local satellites becomes the installed program", extra={"fields": fields})
        return True

    async def stop(self) -> None:
        """End the keeper, which has nothing to keep any more, and wait for it. Raises ProviderError."""
        self._ending = True
        await self.call(Kind.STOP)

    async def aclose(self) -> None:
        """Reap a keeper that this process has started, after `stop`. One that was not told to end is killed."""
        if self._pid is not None:
            await self._reap(self._pid)
        if self._folder is not None:
            with contained(Owner("process cleaning up")):
                self._folder.cleanup()

    def _know(self, told: Message) -> tuple[KeptProcess, Message]:
        process = KeptProcess.of(self.call, told)
        # It may have ended before the task that has started it runs again.
        if (status := self._exits.pop((process.name, process.birth), None)) is not None:
            process.note_exit(status)
        known = self._kept.setdefault((process.name, process.birth), process)
        if process.exited.is_set() and not known.exited.is_set():
            known.status = process.status
            known.exited.set()
        return known, told

    def _lose_all_but(self, found: Sequence[tuple[KeptProcess, Message]]) -> None:
        living = {(process.name, process.birth) for process, _ in found}
        for key in [each for each in self._kept if each not in living]:
            self._kept.pop(key).lose()

    def _told(self, message: Message) -> None:
        if message.kind == Kind.TROUBLE:
            log.warning("the keeper tells", extra={"fields": {"words": message.text(Tag.WORDS)}})
        elif message.kind == Kind.EXITED:
            key, status = (message.name(), message.text(Tag.BIRTH)), message.value(Tag.STATUS) or 0
            process = self._kept.get(key)
            if process is not None:
                process.note_exit(status)
                return
            self._exits[key] = status
            while len(self._exits) > MOST_EXITS:
                del self._exits[next(iter(self._exits))]

    def forget(self, process: KeptProcess) -> None:
        """Know a process no more: it was released or lost."""
        self._kept.pop((process.name, process.birth), None)

    async def _open(self) -> KeeperLink:
        """Connect to the keeper, or to one that is started now. Raises OSError."""
        path = self._place.socket or self._private_socket()
        try:
            return KeeperLink(await connect(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if self._place.is_external:
                raise OSError(error.errno, f"no keeper listens at {path}") from error
        await self._start(path)
        return KeeperLink(await connect(path))

    def _private_socket(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="bentpipe-keeper-")
        return Path(self._folder.name) / "keeper.sock"

    async def _start(self, path: Path) -> None:
        """Start a keeper, and wait until it listens. Raises OSError."""
        if self._pid is not None:
            await self._reap(self._pid)  # the one before it
        self._pid, ready_fd = spawn_keeper(self._place.arguments(path, self._isolation))
        told = await read_ready(ready_fd)
        if not told.endswith(READY):
            await self._reap(self._pid)
            words = told.decode(errors="replace").strip() or "it does not come to listen"
            raise OSError(errno.ECHILD, f"the keeper of local satellites cannot start: {words}")

    async def _reap(self, pid: int) -> None:
        """Wait for a keeper that is ending, END_DEADLINE_S at most; then kill it."""
        pid_fd = os.pidfd_open(pid)
        try:
            with trio.move_on_after(END_DEADLINE_S) as scope:
                await trio.lowlevel.wait_readable(pid_fd)
            if scope.cancelled_caught:
                log.error("the keeper of local satellites does not end", extra={"fields": {"pid": pid}})
                os.kill(pid, signal.SIGKILL)
        finally:
            os.close(pid_fd)
        forget_child(pid)
        self._pid = None


async def _list(link: KeeperLink) -> list[Message]:
    """Every satellite that the keeper has. Raises ProviderError."""
    found: list[Message] = []
    while True:
        fields: list[Field] = [(Tag.NAME, found[-1].name())] if found else []
        told = await link.call(Kind.NEXT, fields)
        if not told.fields:
            return found
        found.append(told)
