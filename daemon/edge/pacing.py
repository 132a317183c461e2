"""Keeps turns of the Trio thread short when many have something costly to do at once.

A turn runs every task that can run, and nobody is read meanwhile: a thousand clients that are refused in the same instant
at a millisecond each are a second. So each step that a peer can make costly (a part of a handshake, a read, a piece fed to
h2) takes its turn first: while the turn has lasted for less than TURN_BUDGET_S it goes on at once, else it waits for one of
those to come, in order. A turn is then the budget and one step, or a few small ones, longer at the most.

There are two lines. Who is in its greeting may be a caller with a token; what is done for strangers who are known to be
none (they ask for health, or are refused) comes after that, so that however much they ask for nobody else waits for it.
"""

import time

import trio

TURN_BUDGET_S = 0.01
"""A fifth of what is counted as a long turn; a refusal, a handshake or a greeting is below 1 ms, so a dozen of them."""

LET_IN = 16
"""How many of those who wait look again in a turn: what is over the budget waits on."""


class _Line:
    """Of those who wait for a turn with room, first come first let in."""

    def __init__(self) -> None:
        self.lot = trio.lowlevel.ParkingLot()
        self.owed = False
        """Whether one may go on whatever the turn has cost: one a turn, or others could keep them out for ever."""


class _Pacer(trio.abc.Instrument):
    """Of one run of Trio."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()
        self._first, self._last = _Line(), _Line()

    def after_io_wait(self, timeout: float) -> None:
        """Trio calls this when a turn begins."""
        self._began_s = time.perf_counter()

    async def take_turn(self, *, last: bool) -> None:
        """Return at once if there is room and nobody before."""
        line = self._last if last else self._first
        if self._go_on(line) and not line.lot:
            return
        while True:
            trio.lowlevel.current_trio_token().run_sync_soon(self._let_in, idempotent=True)
            await line.lot.park()
            if line.owed:
                line.owed = False
                return
            if self._go_on(line):
                return

    def _go_on(self, line: _Line) -> bool:
        """Whether there is room in this turn, and nobody of the other line before this one."""
        return time.perf_counter() - self._began_s < TURN_BUDGET_S and (line is self._first or not self._first.lot)

    def _let_in(self) -> None:
        for line, count in ((self._last, 1 if self._first.lot else LET_IN), (self._first, LET_IN)):
            line.owed = True
            line.lot.unpark(count=count)
        if self._first.lot or self._last.lot:
            trio.lowlevel.current_trio_token().run_sync_soon(self._let_in, idempotent=True)


_pacer: trio.lowlevel.RunVar[_Pacer] = trio.lowlevel.RunVar("bentpipe pacer")


async def take_turn(*, last: bool = False) -> None:
    """Call before a costly step. No checkpoint if the step may be made at once; may be cancelled only while it waits.

    `last`: it is for somebody who is no caller with a token, and waits for all who may be one, but for one step a turn.
    """
    try:
        pacer = _pacer.get()
    except LookupError:
        pacer = _Pacer()
        _pacer.set(pacer)
        trio.lowlevel.add_instrument(pacer)
    await pacer.take_turn(last=last)
