"""The two tasks that feed a satellite's machine from outside: the provider's looks, and the wall clock."""

from collections.abc import Callable, Sequence

import trio

from bentpipe.config.model import KeepAwakeSection
from bentpipe.daemon.errors import MachineNotFound, ProviderError, ProviderRetryable
from bentpipe.daemon.fleet.machine.messages import KeepAwake, Renew, Seen, Unseen
from bentpipe.daemon.fleet.machine.rules import LOOK_AGAIN_FIRST_S, LOOK_AGAIN_MOST_S, RENEW_AT, backed_off
from bentpipe.daemon.fleet.schedule import is_kept_awake, next_change
from bentpipe.daemon.model import Machine, MachineId, MachineState
from bentpipe.daemon.providers.base import Provider
from bentpipe.daemon.providers.series import Series

CALENDAR_S = 60.0
"""Longest time between looks at the calendar: somebody may set the wall clock."""
RENEWAL_S = 3600.0
"""The same for a satellite without hours: only its hibernation can grow too old. If it may not last for days, the calendar
is looked at twice in the time that RENEW_AT leaves."""


async def run_watch(
    provider: Provider,
    machine_id: MachineId,
    look_deadline_s: float,
    feed: Callable[[Seen | Unseen], None],
    series: Series,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Feed every look at the machine, for ever. It counts as started with the first look, or the first failure to get it.

    While the provider cannot answer, the last look stays valid.
    """
    seen: Machine | None = None
    failures = 0
    started = False
    while True:
        try:
            if seen is None:
                seen = await first_look(provider, machine_id, look_deadline_s)
            else:
                seen = await provider.wait_changed(seen)
        except ProviderError as exc:
            series.told(exc, trio.current_time())
            failures += 1
            feed(Unseen(exc))
        else:
            series.told(None, trio.current_time())
            failures = 0
            feed(Seen(seen))
        if not started:
            started = True
            task_status.started()
        if failures:
            await trio.sleep(backed_off(LOOK_AGAIN_FIRST_S, LOOK_AGAIN_MOST_S, failures - 1))


async def first_look(provider: Provider, machine_id: MachineId, deadline_s: float) -> Machine:
    """The machine now. A machine that does not exist is TERMINATED. Raises ProviderError."""
    with trio.move_on_after(deadline_s):
        try:
            return await provider.describe(machine_id)
        except MachineNotFound as exc:
            return Machine(machine_id, MachineState.TERMINATED, reason=str(exc), hint=exc.peer_hint)
    raise ProviderRetryable(f"the provider has not answered a look at the machine in {deadline_s:g} s")


class Calendar:
    """Runs `run_calendar` for one satellite, also after its hours have changed."""

    def __init__(
        self,
        sections: Sequence[KeepAwakeSection],
        hibernation_limit_s: float,
        wall: Callable[[], float],
        look: Callable[[], Machine | None],
        feed: Callable[[KeepAwake | Renew], None],
    ) -> None:
        self._sections = tuple(sections)
        self._rest = (hibernation_limit_s, wall, look, feed)
        self._scope = trio.CancelScope()

    def change(self, sections: Sequence[KeepAwakeSection]) -> None:
        """These are its hours from now on."""
        if tuple(sections) != self._sections:
            self._sections = tuple(sections)
            self._scope.cancel()

    async def run_calendar(self) -> None:
        """Feed for ever."""
        while True:
            with trio.CancelScope() as self._scope:
                await run_calendar(self._sections, *self._rest)


async def run_calendar(
    sections: Sequence[KeepAwakeSection],
    hibernation_limit_s: float,
    wall: Callable[[], float],
    look: Callable[[], Machine | None],
    feed: Callable[[KeepAwake | Renew], None],
) -> None:
    """Feed the inputs that depend on the wall clock (time.time() seconds), for ever."""
    kept: bool | None = None  # it is unknown what was fed before
    longest_s = min(CALENDAR_S if sections else RENEWAL_S, hibernation_limit_s * (1 - RENEW_AT) / 2)
    while True:
        now = wall()
        wanted = is_kept_awake(sections, now)
        if wanted is not kept:
            kept = wanted
            feed(KeepAwake(kept))
        if _is_due_for_renewal(look(), hibernation_limit_s, now):
            feed(Renew())
        # A rounding may miss the change itself; then it is seen a moment later.
        until_change_s = max(next_change(sections, now) - now, 0.001)
        await trio.sleep(min(until_change_s, longest_s))


def _is_due_for_renewal(machine: Machine | None, limit_s: float, now: float) -> bool:
    if machine is None or machine.state is not MachineState.HIBERNATED or machine.asleep_since is None:
        return False
    return now >= machine.asleep_since + RENEW_AT * limit_s
