"""Merges the starts (or stops) of a short window into one call, and finds the bad instance if the call fails.

EC2 carries out such a call for all of its instances or for none. If a call fails and one instance may be the cause, the
instances that AWS names are taken out, and the rest is sent again. If AWS names none, the batch is halved. Each call costs a
token, and a batch has a bounded number of calls.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio

from bentpipe.daemon.providers.ec2.errors import (
    NOT_PERMITTED,
    UNINTELLIGIBLE,
    Ec2Failure,
    FailureKind,
    PermitOver,
    failure_of,
)
from bentpipe.daemon.providers.permit import Permit, current_permit, permitted_by
from bentpipe.daemon.tasks import Decision, Owner, note_failure

WINDOW_S = 0.03
"""How long the first request waits for others. It is short beside the 16 s of a start, and enough for a crowd."""
BATCH = 100
"""Instances in one call. EC2 accepts more (its resource buckets hold 1,000), but all of them share one failure."""
SPLITTING_CALLS = 16
"""After this many calls of a batch no part is split any more: enough to find two or three bad instances in a hundred. If a
part fails then, all of it fails, as something that may work later, since most of its instances are not the cause."""

LEFT_OUT = ("EC2", UNINTELLIGIBLE, "the answer does not name the instance", FailureKind.RETRYABLE)

OF_ONE = frozenset(
    {
        FailureKind.WRONG_STATE,
        FailureKind.NOT_FOUND,
        FailureKind.NO_HIBERNATION,
        FailureKind.TOO_EARLY,
        FailureKind.CAPACITY,
        FailureKind.PERMISSION,  # policies often depend on the instance's tags
        FailureKind.PERMANENT,
    }
)
"""Failures that may have their cause in one instance."""


@dataclasses.dataclass(frozen=True, slots=True)
class StateChange:
    """The effect of a call on an instance: EC2's names of its state before and after."""

    before: str
    after: str


@dataclasses.dataclass(slots=True)
class _Wanted:
    permits: list[Permit] = dataclasses.field(default_factory=list)
    """The permits of the tasks that wait for it."""
    done: trio.Event = dataclasses.field(default_factory=trio.Event)
    outcome: StateChange | Ec2Failure | None = None

    @property
    def permitted(self) -> bool:
        """Whether a task still waits for it and may still send it."""
        return any(permit() for permit in list(self.permits))


class Batcher:
    """One kind of call. `take_turn` waits for a token; `send` uses it if `turn_taken`, else takes one of its own."""

    def __init__(
        self,
        take_turn: Callable[[], Awaitable[None]],
        send: Callable[[Sequence[str], bool], Awaitable[dict[str, StateChange]]],
    ) -> None:
        self._take_turn = take_turn
        self._send = send
        self._pending: dict[str, _Wanted] = {}
        self._came = trio.Event()

    async def add(self, instance_id: str) -> StateChange:
        """Make the instance part of the next call. Raises Ec2Failure.

        If the task is cancelled, or its permit ends, before the call is sent, the instance is taken out again, unless
        another task wants the same. That holds for every further call for the same request.
        """
        wanted = self._pending.setdefault(instance_id, _Wanted())
        permit = current_permit()
        wanted.permits.append(permit)
        self._came.set()
        try:
            await wanted.done.wait()
        finally:
            wanted.permits.remove(permit)
            if not wanted.permits and self._pending.get(instance_id) is wanted:
                del self._pending[instance_id]
        if isinstance(wanted.outcome, StateChange):
            return wanted.outcome
        if wanted.outcome is None:
            raise AssertionError("done without an outcome")
        raise wanted.outcome

    async def run_batches(self) -> None:
        """Make the calls, for ever."""
        while True:
            await self._came.wait()
            await trio.sleep(WINDOW_S)
            await self._take_turn()
            batch = {each: self._pending.pop(each) for each in list(self._pending)[:BATCH]}
            if not self._pending:
                self._came = trio.Event()
            if batch:
                await self._send_batch(batch)

    async def _send_batch(self, batch: dict[str, _Wanted]) -> None:
        parts = deque([list(batch)])
        calls = 0
        while parts:
            part = _take_permitted(batch, parts.popleft())
            if not part:
                continue
            try:
                with permitted_by(functools.partial(_are_permitted, batch, part)):
                    changes = await self._answered(part, turn_taken=calls == 0)
            except Ec2Failure as failure:
                failed, again = split(part, failure) if calls < SPLITTING_CALLS else (part, [])
                parts.extend(again)
                named = failure.named(failed)
                for each in failed:
                    _settle(batch[each], failure if len(failed) == 1 or each in named else shared(failure))
            else:
                for each in part:
                    _settle(batch[each], changes.get(each) or Ec2Failure(*LEFT_OUT))
            calls += 1

    async def _answered(self, part: Sequence[str], *, turn_taken: bool) -> dict[str, StateChange]:
        """Send the call. Any unusable answer raises Ec2Failure: a task waits for the outcome of each instance."""
        try:
            return await self._send(part, turn_taken)
        except Ec2Failure:
            raise
        except Exception as exc:
            note_failure(Owner("EC2 call", decision=Decision.GIVE_UP), exc)
            raise failure_of("EC2", exc) from exc


def _are_permitted(batch: Mapping[str, _Wanted], part: Sequence[str]) -> bool:
    return all(batch[each].permitted for each in part)


def _take_permitted(batch: dict[str, _Wanted], part: list[str]) -> list[str]:
    """The instances for which the call may be sent; the others have failed."""
    found = [each for each in part if batch[each].permitted]
    for each in part:
        if each not in found:
            _settle(batch[each], failure_of("EC2", PermitOver()))
    return found


def split(part: list[str], failure: Ec2Failure) -> tuple[list[str], list[list[str]]]:
    """Return the ids that have failed for good, and the groups of ids to send again."""
    if failure.code == NOT_PERMITTED:
        return [], [part]  # only some of them: those with a permit that is over are taken out
    if failure.kind not in OF_ONE or len(part) == 1:
        return part, []
    named = failure.named(part)
    if named:
        rest = [each for each in part if each not in named]
        return named, [rest] if rest else []
    middle = len(part) // 2
    return [], [part[:middle], part[middle:]]


def shared(failure: Ec2Failure) -> Ec2Failure:
    """The failure of a call for several instances, as each of them gets it: another instance may be the cause."""
    if failure.kind not in OF_ONE or failure.kind is FailureKind.CAPACITY:
        return failure
    return Ec2Failure(failure.api, failure.code, failure.message, FailureKind.RETRYABLE)


def _settle(wanted: _Wanted, outcome: StateChange | Ec2Failure) -> None:
    wanted.outcome = outcome
    wanted.done.set()
