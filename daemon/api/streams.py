"""Streams of a satellite's states: what Wake, Sleep and Reserve tell their callers while they wait.

Each state is sent as it comes, and the same one again after an interval without a change, so that no proxy on the way
takes the silence for an end. FAILED is never sent: the Earthly CLI shows its own words for it, and the reason is lost.
"""

import dataclasses
from collections.abc import Callable

import trio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from bentpipe.daemon.api.call import Call, Stalled
from bentpipe.daemon.api.statuses import STATUS, StateWatch
from bentpipe.daemon.edge.unless import beside
from bentpipe.daemon.errors import BentpipeError, SleepRefused, WakeFailed
from bentpipe.daemon.fleet.lease import Lease
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteState
from bentpipe.proto.compute_pb2 import SatelliteStatus

S = SatelliteState

INTERVAL_S, LEAST_INTERVAL_S, MOST_INTERVAL_S = 10.0, 1.0, 60.0
"""Time between repetitions of a state, if the caller asks for no other. The Earthly CLI prints a line for each."""

ON_THE_WAY_UP: dict[SatelliteState, SatelliteStatus] = {
    S.UNKNOWN: STATUS[S.STARTING],
    S.SLEEP: STATUS[S.SLEEP],
    S.CREATING: STATUS[S.STARTING],
    S.STARTING: STATUS[S.STARTING],
    S.STOPPING: STATUS[S.STOPPING],
    S.UPDATING: STATUS[S.UPDATING],
}
"""The states for a caller that waits for OPERATIONAL. The CLI has no words for UNKNOWN and CREATING."""

Respond = Callable[[SatelliteStatus], Message]
"""Makes a method's answer of a status."""


def interval_of(asked: Duration) -> float:
    """The seconds between repetitions: as asked within bounds, or INTERVAL_S if nothing was asked."""
    asked_s = asked.seconds + asked.nanos / 1e9
    return min(max(asked_s, LEAST_INTERVAL_S), MOST_INTERVAL_S) if asked_s > 0 else INTERVAL_S


@dataclasses.dataclass(frozen=True, slots=True)
class StateStream:
    """A caller that is told a satellite's states."""

    call: Call
    satellite: Satellite
    watch: StateWatch
    """Of the satellite, from before its state was looked at first."""
    respond: Respond
    interval_s: float
    """Between repetitions of one state."""
    check: Callable[[], object]
    """Raises BentpipeError if the caller may not see the satellite any more."""

    async def send(self, status: SatelliteStatus) -> None:
        """Tell a state. Raises what `check` raises, and Stalled."""
        self.check()
        await self.call.send(self.respond(status))

    @property
    def waited_s(self) -> float:
        """How long the caller has waited."""
        return trio.current_time() - self.call.began


async def stream_wake(stream: StateStream, settle: Callable[[Lease], None]) -> None:
    """Wake a satellite and tell its states until it is operational, then OPERATIONAL. Raises BentpipeError, Stalled.

    `settle` is called in the step in which the lease is granted, and takes it if it is to last. The caller is told before
    its own deadline if there is no end to wait for.
    """
    call, satellite = stream.call, stream.satellite
    first = satellite.state  # before the wake changes it

    async def tell() -> None:
        state, told = first, None
        while True:
            status = ON_THE_WAY_UP.get(state)
            if status is not None and status is not told:
                await stream.send(status)
            told = status
            with trio.move_on_after(stream.interval_s):
                state = await stream.watch.next()
                continue
            told = None  # it is time to repeat it

    async def wake() -> None:
        with trio.move_on_at(call.tell_by) as patience:
            async with satellite.lease(call.access.name, since=call.began, tell_by=call.tell_by) as lease:
                stream.check()
                settle(lease)
        if patience.cancelled_caught:
            words = f"the satellite is {satellite.state.value} after {stream.waited_s:.0f} s; its wake goes on"
            raise WakeFailed(words)

    await beside(tell, wake, (BentpipeError, Stalled))
    await stream.send(STATUS[S.OPERATIONAL])


async def stream_sleep(stream: StateStream) -> None:
    """Put a satellite to sleep and tell its states until it is asleep. Raises BentpipeError (SleepRefused), Stalled."""
    call, state = stream.call, stream.satellite.state
    if state is S.OPERATIONAL:
        stream.satellite.ask_to_sleep()
    while True:
        if state not in (S.OPERATIONAL, S.STOPPING, S.SLEEP):
            raise SleepRefused(f"the satellite is {state.value}, so it cannot be put to sleep now")
        await stream.send(STATUS[state])
        if state is S.SLEEP:
            return
        with trio.move_on_at(min(trio.current_time() + stream.interval_s, call.tell_by)):
            before, state = state, await stream.watch.next()
            if before is S.STOPPING and state is S.OPERATIONAL:
                raise SleepRefused("the satellite stays awake: somebody came, or its machine could not be stopped")
            continue
        if trio.current_time() >= call.tell_by:
            raise SleepRefused(
                f"the satellite is {state.value} after {stream.waited_s:.0f} s; it goes on falling asleep"
            )
