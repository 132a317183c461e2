"""Coordination over rows that several hosts share: see `coordination` for the rules, `turn` for the clocks.

One table says what the store knows of this host's use of each satellite; every step that changes it for a satellite
holds that satellite's lock.
"""

import collections
import contextlib
import enum
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from bentpipe.daemon.coordination.contract import IN_USE_HERE, InUse, Turn
from bentpipe.daemon.coordination.host_life import HostLife
from bentpipe.daemon.coordination.rows import Rows
from bentpipe.daemon.coordination.turn import RENEWALS, SharedTurn, Watch, boot_clock
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.tasks import Decision, Owner, run_owned

log = logging.getLogger("bentpipe.store")

POLLS = 20
"""In a lease, by whoever waits for it to end."""
POLL_LIMIT_S = 0.5
"""Between looks at most: a held client feels it."""
START_DEADLINE_S = 5.0
"""For the first sign of life: a daemon starts without the store, and catches up with it."""
CLOSE_DEADLINE_S = 5.0
"""For giving everything back at the end; what is not given back expires."""


class Use(enum.Enum):
    """What the store knows of this host's use of one satellite; one that is not in the table is not used."""

    ENTERING = enum.auto()
    """The step is under way, or the first look at the machine."""
    ENTERED = enum.auto()
    UNENTERED = enum.auto()
    """In use though the store could not be told; told as soon as it can be."""
    LAPSED = enum.auto()
    """Entered by a stay that may be dead: to be entered again before the next use."""
    LEAVING = enum.auto()
    """Not in use; the store may not know yet."""


UNSETTLED = (Use.UNENTERED, Use.LAPSED, Use.LEAVING)


class SharedCoordination:
    """See Coordination. `host` is for people: what tells hosts apart is made anew by each."""

    def __init__(
        self,
        rows: Rows,
        host: str,
        *,
        lease_s: float,
        host_expiry_s: float,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._rows = rows
        self._lease_s = lease_s
        self._expiry_s = host_expiry_s
        self._clock = clock
        self._uses: dict[SatelliteKey, Use] = {}
        self._locks: dict[SatelliteKey, trio.Lock] = collections.defaultdict(trio.Lock)
        self._turns: set[SharedTurn] = set()
        self._life = HostLife(rows, host, expiry_s=host_expiry_s, clock=clock, lapsed=self._lapsed)
        self._kicked = trio.Event()
        self._failing = ""

    # -- the satellites' side ----------------------------------------------------------------------------------------

    def is_entered(self, key: SatelliteKey) -> bool:
        """See Coordination."""
        use = self._uses.get(key)
        return use is Use.UNENTERED or (use is Use.ENTERED and self._life.is_good())

    def is_registered(self, key: SatelliteKey) -> bool:
        """Whether the store knows of the use, and nobody can have struck it out."""
        return self._uses.get(key) is Use.ENTERED and self._life.is_good()

    async def enter(self, key: SatelliteKey, look: Callable[[], Awaitable[None]]) -> None:
        """See Coordination."""
        async with self._locks[key]:
            if self.is_entered(key):
                return
            # If this comes to nothing, others may still use it by an entry that lapsed.
            use = Use.LAPSED if self._uses.get(key) in (Use.ENTERED, Use.LAPSED) else Use.LEAVING
            self._uses[key] = Use.ENTERING
            try:
                while True:
                    stay = await self._enter_row(key)
                    await look()
                    if stay is None or self._is_current(stay):
                        break
                use = Use.UNENTERED if stay is None else Use.ENTERED
            finally:
                self._uses[key] = use
                if use is not Use.ENTERED:
                    self._kicked.set()

    def leave_nowait(self, key: SatelliteKey) -> None:
        """See Coordination."""
        if self._uses.get(key) in (Use.ENTERED, Use.UNENTERED, Use.LAPSED):
            self._uses[key] = Use.LEAVING
            self._kicked.set()

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
        watch = Watch()
        row = await self._rows.read(key)
        while True:
            if not row.version or watch.unchanged_s("", row.version, self._clock()) >= self._lease_s:
                sent, version = self._clock(), uuid.uuid4().hex
                before = row.owner
                written = await self._rows.take(key, owner=self._life.stay, seen=row.version, version=version)
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
            # From here on an arrival enters anew, and so waits behind the lock or the closed row.
            self._uses[turn.key] = Use.LEAVING
            self._kicked.set()
            while (row := await turn.close_row(self._life.stay)) is not None:
                if turn.over:
                    raise InUse(f"another host acts on {turn.key} now")
                others = row.stays - {self._life.stay}
                dead = await self._life.dead_among(others)
                if dead != others:
                    with contextlib.suppress(StoreError):  # then the next sign of life tries again
                        await self._settle_one(turn.key, Use.LEAVING)
                    hosts = ", ".join(sorted(stay.partition("/")[0] for stay in others - dead))
                    raise InUse(f"{turn.key} is in use at {hosts}")
                await self._rows.leave(turn.key, dead)
            del self._uses[turn.key]

    async def _enter_row(self, key: SatelliteKey) -> str | None:
        """Enter as soon as the row is open. Returns the stay that has entered; None if the store fails."""
        watch = Watch()
        try:
            while True:
                if not self._life.is_good():
                    await self._life.beat()
                stay = self._life.stay
                written = await self._rows.enter(key, stay)
                if written.done:
                    if self._is_current(stay):
                        self._works()
                        return stay
                elif watch.unchanged_s("", written.row.version, self._clock()) >= self._lease_s:
                    async with self.acting(key):
                        pass  # whoever closed it is gone: having the turn has opened it
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
                nursery.start_soon(run_owned, Owner("signs of life"), self._run_beats)
                nursery.start_soon(run_owned, Owner("settling"), self._run_settling)
                nursery.start_soon(run_owned, Owner("renewals"), self._run_renewals)
        finally:
            with trio.move_on_after(CLOSE_DEADLINE_S, shield=True):
                await self._give_back()

    async def _run_beats(self) -> None:
        while True:
            await trio.sleep(self._expiry_s / RENEWALS)
            if await self._try_beat():
                self._kicked.set()

    async def _run_settling(self) -> None:
        while True:
            await self._kicked.wait()
            self._kicked = trio.Event()
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
        # What fails is renewed by the next, or it ends by itself.
        with trio.move_on_after(self._lease_s / RENEWALS), contextlib.suppress(StoreError):
            if not turn.over:
                await turn.renew()

    async def _try_beat(self) -> bool:
        try:
            await self._life.beat()
        except StoreError as exc:
            self._fails(exc)
            return False
        self._works()
        return True

    async def _settle(self) -> None:
        """Tell the store what it does not know yet; the next sign of life tries again. Raises StoreError."""
        for key in list(self._uses):
            # What is locked is being changed by somebody who sees to it, or kicks us again.
            if self._uses[key] in UNSETTLED and not self._locks[key].locked():
                async with self._locks[key]:
                    await self._settle_one(key, self._uses[key])
        if not any(use in (Use.LAPSED, Use.UNENTERED) for use in self._uses.values()):
            await self._life.bury_old()

    async def _settle_one(self, key: SatelliteKey, use: Use) -> None:
        stay = self._life.stay
        if use is Use.LEAVING:
            await self._rows.leave(key, frozenset({stay}))
            del self._uses[key]
        elif use in (Use.LAPSED, Use.UNENTERED):
            written = await self._rows.enter(key, stay)
            # Whoever used it may have left meanwhile: that needs no lock.
            if written.done and self._uses[key] is use and self._is_current(stay):
                self._uses[key] = Use.ENTERED

    async def _give_back(self) -> None:
        for key in self._uses:
            self._uses[key] = Use.LEAVING
        with contextlib.suppress(StoreError):
            await self._settle()
            await self._life.end()

    def _is_current(self, stay: str) -> bool:
        return stay == self._life.stay and self._life.is_good()

    def _lapsed(self) -> None:
        for key, use in self._uses.items():
            if use is Use.ENTERED:
                self._uses[key] = Use.LAPSED

    def _poll_s(self) -> float:
        return min(self._lease_s / POLLS, POLL_LIMIT_S)

    def _fails(self, exc: StoreError) -> None:
        if str(exc) != self._failing:
            log.error("coordination fails; nobody is put to sleep", extra={"fields": {"error": str(exc)}})
        self._failing = str(exc)

    def _works(self) -> None:
        if self._failing:
            log.warning("coordination works again")
        self._failing = ""
