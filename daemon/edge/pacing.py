"""Keeps turns of the Trio thread short when many have something costly to do at once.

A turn runs every task that can run, and nobody is read meanwhile: a thousand clients that are refused in the same instant
at a millisecond each are a second. So each step that a peer can make costly (a part of a handshake, a read, a piece fed to
h2) takes its turn first: while the turn has lasted for less than TURN_BUDGET_S it goes on at once, else it waits for one of
those to come, in order. A turn is then the budget and one step, or a few small ones, longer at the most.
"""

import time

import trio

TURN_BUDGET_S = 0.01
"""A fifth of what is counted as a long turn; a refusal, a handshake or a greeting is below 1 ms, so a dozen of them."""

LET_IN = 16
"""How many of those who wait look again in a turn: what is over the budget waits on."""


class _Pacer(trio.abc.Instrument):
    """Of one run of Trio."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()
        self._lot = trio.lowlevel.ParkingLot()
        self._owed = 0
        """How many may go on whatever the turn has cost: one a turn, or others could keep them out for ever."""

    def after_io_wait(self, timeout: float) -> None:
        """Trio calls this when a turn begins."""
        self._began_s = time.perf_counter()

    def go_on(self) -> bool:
        """Whether there is room in this turn."""
        return time.perf_counter() - self._began_s < TURN_BUDGET_S

    @property
    def crowded(self) -> bool:
        """Whether others wait already."""
        return bool(self._lot)

    async def wait(self) -> None:
        """Wait for a turn with room."""
        while True:
            trio.lowlevel.current_trio_token().run_sync_soon(self._let_in, idempotent=True)
            await self._lot.park()
            if self._owed:
                self._owed = 0
                return
            if self.go_on():
                return

    def _let_in(self) -> None:
        self._owed = 1
        self._lot.unpark(count=LET_IN)
        if self._lot:
            trio.lowlevel.current_trio_token().run_sync_soon(self._let_in, idempotent=True)


_pacer: trio.lowlevel.RunVar[_Pacer] = trio.lowlevel.RunVar("bentpipe pacer")


async def take_turn() -> None:
    """Call before a costly step. No checkpoint if the step may be made at once; may be cancelled only while it waits."""
    try:
        pacer = _pacer.get()
    except LookupError:
        pacer = _Pacer()
        _pacer.set(pacer)
        trio.lowlevel.add_instrument(pacer)
    if pacer.crowded or not pacer.go_on():
        await pacer.wait()
