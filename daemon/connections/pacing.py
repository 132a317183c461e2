"""Keeps turns of the Trio thread short if many tasks have a costly step to do at once.

A turn runs every task that can run, and no client is read meanwhile: a thousand clients that are refused in the same instant
at a millisecond each would take a second. So a task calls `take_turn` before each step that a peer can make costly (a part
of a handshake, a read, a piece fed to h2). If the turn has lasted for less than TURN_BUDGET_S, the task goes on at once.
Else it waits for a later turn, in order. A turn then lasts for the budget and one step, or a few small ones.

There are two lines. A client in its greeting may be a caller with a token. Connections that are known to be strangers' (they
ask for health, or are being refused) wait in the second line, so that no caller waits for them, whatever they ask for.
"""

import time

import trio

TURN_BUDGET_S = 0.01
"""A fifth of what counts as a long turn. A refusal, a handshake or a greeting takes less than 1 ms, so a dozen of them
fit."""

LET_IN = 16
"""How many waiting tasks look again in a turn: those beyond the budget wait on."""


class _Line:
    """Tasks that wait for a turn with room, first come first served."""

    def __init__(self) -> None:
        self.lot = trio.lowlevel.ParkingLot()
        self.owed = False
        """Whether one task may go on whatever the turn has cost: one a turn, or the others could keep it out for ever."""


class _Pacer(trio.abc.Instrument):
    """The pacer of one run of Trio."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()
        self._first, self._last = _Line(), _Line()
        self._lets_in = False
        """Whether `_let_in` is called in the next turn. To ask for it wakes the thread up, by a system call."""

    def after_io_wait(self, timeout: float) -> None:
        """Trio calls this when a turn begins."""
        self._began_s = time.perf_counter()

    async def take_turn(self, *, last: bool) -> None:
        """Return at once if there is room and no task waits in front."""
        line = self._last if last else self._first
        if self._go_on(line) and not line.lot:
            return
        while True:
            self._let_in_soon()
            await line.lot.park()
            if line.owed:
                line.owed = False
                return
            if self._go_on(line):
                return

    def _go_on(self, line: _Line) -> bool:
        """Whether there is room in this turn, and the line in front is empty."""
        return time.perf_counter() - self._began_s < TURN_BUDGET_S and (line is self._first or not self._first.lot)

    def _let_in_soon(self) -> None:
        if not self._lets_in:
            self._lets_in = True
            trio.lowlevel.current_trio_token().run_sync_soon(self._let_in)

    def _let_in(self) -> None:
        self._lets_in = False
        for line, count in ((self._last, 1 if self._first.lot else LET_IN), (self._first, LET_IN)):
            line.owed = True
            line.lot.unpark(count=count)
        if self._first.lot or self._last.lot:
            self._let_in_soon()


_pacer: trio.lowlevel.RunVar[_Pacer] = trio.lowlevel.RunVar("bentpipe pacer")


async def take_turn(*, last: bool = False) -> None:
    """Call before a costly step. It is not a checkpoint if the step may be made at once; it can be cancelled while it waits.

    `last`: the step is for a stranger, and waits for all connections that may be callers', except one step a turn.
    """
    try:
        pacer = _pacer.get()
    except LookupError:
        pacer = _Pacer()
        _pacer.set(pacer)
        trio.lowlevel.add_instrument(pacer)
    await pacer.take_turn(last=last)
