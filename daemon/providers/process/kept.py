"""One run of a local satellite as the daemon knows it: a process whose parent is the keeper.

Every call asks the keeper. It stays valid over a new connection to the same keeper, and knows when the process has ended or
was lost with its keeper.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import trio

from bentpipe.daemon.keeper.cgroup import Cgroup
from bentpipe.daemon.keeper.containment import ProcessGroup
from bentpipe.daemon.keeper.protocol import Field, Flag, Kind, Message, Tag
from bentpipe.daemon.providers.process.link import CALL_DEADLINE_S

SIGNAL_STATUS = 256
"""See Tag.STATUS."""

Ask = Callable[[Kind, Iterable[Field], float | None], Awaitable[Message]]
"""See KeeperClient.call."""


@dataclasses.dataclass(slots=True, eq=False)
class KeptProcess:
    """The processes of one run. Every method raises ProviderError if the keeper refuses or is away."""

    ask: Ask
    name: str
    birth: str
    """Never the same for two runs."""
    pid: int
    uid: int | None
    """Its user, if that is its own."""
    cgroup: Path | None
    exited: trio.Event = dataclasses.field(default_factory=trio.Event)
    """Set when its first process has ended, or it was lost."""
    status: int = 0
    """As subprocess has it: -N for signal N."""
    is_lost: bool = False
    """Its keeper has died, and it with its keeper."""

    @classmethod
    def of(cls, ask: Ask, told: Message) -> "KeptProcess":
        """Make one from what the keeper tells of a satellite. Raises Malformed."""
        cgroup = told.text(Tag.CGROUP)
        found = cls(
            ask,
            told.name(),
            told.text(Tag.BIRTH),
            told.value(Tag.PID) or 0,
            told.value(Tag.UID),
            Path(cgroup) if cgroup else None,
        )
        if (status := told.value(Tag.STATUS)) is not None:
            found.note_exit(status)
        return found

    def note_exit(self, status: int) -> None:
        """Its first process has ended; `status` is the wire's."""
        self.status = SIGNAL_STATUS - status if status > SIGNAL_STATUS else status
        self.exited.set()

    def lose(self) -> None:
        """It was lost with its keeper."""
        self.is_lost = True
        self.exited.set()

    def members(self) -> list[int]:
        """Its living processes, as far as this user may see them."""
        if self.cgroup is not None:
            return Cgroup(self.cgroup).pids()
        group = ProcessGroup(self.uid)
        group.adopt(self.pid)
        return group.pids()

    async def end(self) -> None:
        """Send SIGTERM to its group, and thaw it."""
        await self._call(Kind.END)

    async def freeze(self) -> None:
        """Begin to freeze it."""
        await self._call(Kind.FREEZE)

    async def thaw(self) -> None:
        """Let it run again."""
        await self._call(Kind.THAW)

    async def kill(self) -> None:
        """Send SIGKILL to all of it."""
        await self._call(Kind.KILL)

    async def look(self) -> Flag:
        """How its processes are now."""
        return Flag((await self._call(Kind.LOOK)).value(Tag.FLAGS) or 0)

    async def tail(self) -> bytes:
        """The last that it has printed."""
        return (await self._call(Kind.READ)).get(Tag.OUTPUT) or b""

    async def wait_output(self, offset: int) -> tuple[int, bytes]:
        """Wait until it has printed more than `offset` bytes. Returns where the new part begins, and that part."""
        fields: list[Field] = [(Tag.NAME, self.name), (Tag.OFFSET, offset), (Tag.WAIT, 1)]
        answer = await self.ask(Kind.READ, fields, None)
        return answer.value(Tag.OFFSET) or 0, answer.get(Tag.OUTPUT) or b""

    async def release(self) -> None:
        """Let the keeper forget it: no process of it lives."""
        await self._call(Kind.RELEASE)

    async def _call(self, kind: Kind) -> Message:
        return await self.ask(kind, [(Tag.NAME, self.name)], CALL_DEADLINE_S)
