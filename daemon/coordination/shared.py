"""Coordination over rows that several hosts share: see `contract` for the rules, `turn` for the clocks.

The table `_uses` has, for each satellite, what the store knows of this host's use of it. A step that changes an entry of the
table holds that satellite's lock.
"""

import collections
import contextlib
import enum
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import trio

from bentpipe.daemon.coordination.contract import IN_USE_HERE, InUse, Turn
from bentpipe.daemon.coordination.liveness import Liveness
from bentpipe.daemon.coordination.rows import Rows
from bentpipe.daemon.coordination.turn import RENEWALS, SharedTurn, VersionWatch, boot_clock
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.tasks import Decision, Owner, run_owned

log = logging.getLogger("bentpipe.store")

POLLS = 20
"""Looks in one lease, by a host that waits for the turn."""
POLL_LIMIT_S = 0.5
"""Longest time between two looks: a held client waits for it."""
START_DEADLINE_S = 5.0
"""For the first heartbeat. If the store does not answer, the daemon starts nevertheless and catches up later."""
CLOSE_DEADLINE_S = 5.0
"""For giving everything back at the end. What is not given back expires."""


class Use(enum.Enum):
    """What the store knows of this host's use of a satellite. A satellite that is not in the table is not used."""

    ENTERING = enum.auto()
    """The step is under way, or the look at the machine that follows it."""
    ENTERED = enum.auto()
    UNENTERED = enum.auto()
    """In use, but the store could not be told. It is told as soon as it answers."""
    LAPSED = enum.auto()
    """Entered by an incarnation that may be dead. The host enters again before the next use."""
    LEAVING = enum.auto()
    """Not in use, but the store may not know that yet."""


UNSETTLED = (Use.UNENTERED, Use.LAPSED, Use.LEAVING)


class SharedCoordination:
    """See Coordination. `host` is a name for people: hosts are told apart by their incarnations."""

    def __init__(
        self,
        rows: Rows,
        host: str,
        *,
        lease_s: float,
        host_expiry_s: float,
        clock: Callable[[], float] = boot_clock,
        survives_s: float = 0.0,
    ) -> None:
        """`survives_s`: see Liveness. Then nothing is given back at the end, unless `drained` was called."""
        self._gives_back = not survives_s
        self._rows = rows
        self._lease_s = lease_s
        self._expiry_s = host_expiry_s
        self._clock = clock
        self._uses: dict[SatelliteKey, Use] = {}
        self._locks: dict[SatelliteKey, trio.Lock] = collections.defaultdict(trio.Lock)
        self._turns: set[SharedTurn] = set()
        self._liveness = Liveness(
            rows, host, expiry_s=host_expiry_s, clock=clock, lapsed=self._lapsed, survives_s=survives_s
        )
        self._to_settle = trio.Event()
        self._failing = ""

    # -- an earlier process, and a later one -------------------------------------------------------------------------

    @property
    def stays(self) -> tuple[str, ...]:
        """See Coordination."""
        return self._liveness.stays

    def announce_by(self, announce: Callable[[], Awaitable[None]]) -> None:
        """See Coordination."""
        self._liveness.announce = announce

    def succeed(self, stays: Iterable[str]) -> None:
        """See Coordination."""
        self._liveness.inherit(stays)
        self._to_settle.set()

    def drained(self) -> None:
        """See Coordination."""
        self._gives_back = True

    # -- the satellites' side ----------------------------------------------------------------------------------------

    def is_entered(self, key: SatelliteKey) -> bool:
        """See Coordination."""
        use = self._uses.get(key)
        return use is Use.UNENTERED or (use is Use.ENTERED and self._liveness.is_good())

    def is_registered(self, key: SatelliteKey) -> bool:
        """Whether the store knows of the use, and no host can have deleted it."""
        return self._uses.get(key) is Use.ENTERED and self._liveness.is_good()

    async def enter(self, key: SatelliteKey, look: Callable[[], Awaitable[None]]) -> None:
        """See Coordination."""
        async with self._locks[key]:
            if self.is_entered(key):
                return
            # If entering fails, clients that came before may still use the satellite by an entry that lapsed.
            use = Use.LAPSED if self._uses.get(key) in (Use.ENTERED, Use.LAPSED) else Use.LEAVING
            self._uses[key] = Use.ENTERING
            try:
                while True:
                    incarnation = await self._enter_row(key)
                    await look()
                    if incarnation is None or self._is_current(incarnation):
                        break
                use = Use.UNENTERED if incarnation is None else Use.ENTERED
            finally:
                self._uses[key] = use
                if use is not Use.ENTERED:
                    self._to_settle.set()

    def leave_nowait(self, key: SatelliteKey) -> None:
        """See Coordination."""
        if self._uses.get(key) in (Use.ENTERED, Use.UNENTERED, Use.LAPSED):
            self._uses[key] = Use.LEAVING
            self._to_settle.set()

    @contextlib.asynccontextmanager
    async def acting(self, key: SatelliteKey) -> AsyncIterator[Turn]:
        """See Coordination."""
        turn = await self._take(key)
        self._turns.add(turn)
        try:
            yield turn
        finally:
            self._turns.discard(turn)
            with trio.move_on_after(self._lease_s, shield=True), contextlib.suppress(StoreError):
                await turn.release()

    # -- steps -------------------------------------------------------------------------------------------------------

    async def _take(self, key: SatelliteKey) -> SharedTurn:
        watch = VersionWatch()
        row = await self._rows.read(key)
        while True:
            if not row.version or watch.unchanged_s("", row.version, self._clock()) >= self._lease_s:
                sent, version = self._clock(), uuid.uuid4().hex
                before = row.owner
                written = await self._rows.take(
                    key, owner=self._liveness.incarnation, seen=row.version, version=version
                )
                row = written.row
                if written.done:
                    if before:
                        fields = {"satellite": str(key), "from": before, "epoch": row.epoch}
                        log.warning("turn taken over", extra={"fields": fields})
                    return SharedTurn(
                        *(self._rows, key, row),
                        sent=sent,
                        lease_s=self._lease_s,
                        clock=self._clock,
                        close=self._close,
                    )
            else:
                await trio.sleep(self._poll_s())
                row = await self._rows.read(key)

    async def _close(self, turn: SharedTurn, is_used: Callable[[], bool]) -> None:
        async with self._locks[turn.key]:
            if is_used():
                raise InUse(IN_USE_HERE)
            # A client that comes from now on must enter again, so it waits for the lock or for the closed row.
            self._uses[turn.key] = Use.LEAVING
            self._to_settle.set()
            while (row := await turn.close_row(self._liveness.incarnation)) is not None:
                if turn.over:
                    raise InUse(f"another host acts on {turn.key} now")
                others = row.entered - {self._liveness.incarnation}
                dead = await self._liveness.dead_among(others)
                if dead != others:
                    with contextlib.suppress(StoreError):  # then the next heartbeat tries again
                        await self._settle_one(turn.key, Use.LEAVING)
                    hosts = ", ".join(sorted(incarnation.partition("/")[0] for incarnation in others - dead))
                    raise InUse(f"{turn.key} is in use at {hosts}")
                await self._rows.leave(turn.key, dead)
            del self._uses[turn.key]

    async def _enter_row(self, key: SatelliteKey) -> str | None:
        """Enter as soon as the row is open. Returns the incarnation that has entered; None if the store fails."""
        watch = VersionWatch()
        try:
            while True:
                if not self._liveness.is_good():
                    await self._liveness.beat()
                incarnation = self._liveness.incarnation
                written = await self._rows.enter(key, incarnation)
                if written.done:
                    if self._is_current(incarnation):
                        self._works()
                        return incarnation
                elif watch.unchanged_s("", written.row.version, self._clock()) >= self._lease_s:
                    async with self.acting(key):
                        pass  # the host that closed it is gone: taking the turn has opened the row
                else:
                    await trio.sleep(self._poll_s())
        except StoreError as exc:
            self._fails(exc)
            return None

    # -- the host's life ---------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See Coordination."""
        try:
            async with trio.open_nursery() as nursery:
                with trio.move_on_after(START_DEADLINE_S) as first:
                    await self._try_beat()
                if first.cancelled_caught:
                    self._fails(StoreError(f"no answer within {START_DEADLINE_S:g} s"))
                task_status.started()
                nursery.start_soon(run_owned, Owner("heartbeats"), self._run_beats)
                nursery.start_soon(run_owned, Owner("settling"), self._run_settling)
                nursery.start_soon(run_owned, Owner("renewals"), self._run_renewals)
        finally:
            if self._gives_back:
                with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
                    await self._give_back()

    async def _run_beats(self) -> None:
        while True:
            await trio.sleep(self._expiry_s / RENEWALS)
            if await self._try_beat():
                self._to_settle.set()

    async def _run_settling(self) -> None:
        while True:
            await self._to_settle.wait()
            self._to_settle = trio.Event()
            try:
                await self._settle()
            except StoreError as exc:
                self._fails(exc)

    async def _run_renewals(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self._lease_s / RENEWALS)
                for turn in self._turns:
                    owner = Owner("renewal", str(turn.key), Decision.GIVE_UP)
                    nursery.start_soon(run_owned, owner, self._renew, turn)

    async def _renew(self, turn: SharedTurn) -> None:
        # If it fails, the next renewal may do; otherwise the turn ends by itself.
        with trio.move_on_after(self._lease_s / RENEWALS), contextlib.suppress(StoreError):
            if not turn.over:
                await turn.renew()

    async def _try_beat(self) -> bool:
        try:
            await self._liveness.beat()
        except StoreError as exc:
            self._fails(exc)
            return False
        self._works()
        return True

    async def _settle(self) -> None:
        """Tell the store what it does not know yet. The next heartbeat tries again. Raises StoreError."""
        for key in list(self._uses):
            # A step that holds the lock settles the satellite itself, or asks for settling again.
            if self._uses[key] in UNSETTLED and not self._locks[key].locked():
                async with self._locks[key]:
                    await self._settle_one(key, self._uses[key])
        if not any(use in (Use.LAPSED, Use.UNENTERED) for use in self._uses.values()):
            await self._liveness.expire_old()

    async def _settle_one(self, key: SatelliteKey, use: Use) -> None:
        incarnation = self._liveness.incarnation
        if use is Use.LEAVING:
            await self._rows.leave(key, frozenset({incarnation}))
            del self._uses[key]
        elif use in (Use.LAPSED, Use.UNENTERED):
            written = await self._rows.enter(key, incarnation)
            # The last client may have left meanwhile: leaving takes no lock.
            if written.done and self._uses[key] is use and self._is_current(incarnation):
                self._uses[key] = Use.ENTERED

    async def _give_back(self) -> None:
        for key in self._uses:
            self._uses[key] = Use.LEAVING
        with contextlib.suppress(StoreError):
            await self._settle()
            await self._liveness.end()

    def _is_current(self, incarnation: str) -> bool:
        return incarnation == self._liveness.incarnation and self._liveness.is_good()

    def _lapsed(self) -> None:
        for key, use in self._uses.items():
            if use is Use.ENTERED:
                self._uses[key] = Use.LAPSED

    def _poll_s(self) -> float:
        return min(self._lease_s / POLLS, POLL_LIMIT_S)

    def _fails(self, exc: StoreError) -> None:
        if str(exc) != self._failing:
            log.error("coordination fails; no satellite is put to sleep", extra={"fields": {"error": str(exc)}})
        self._failing = str(exc)

    def _works(self) -> None:
        if self._failing:
            log.warning("coordination works again")
        self._failing = ""
