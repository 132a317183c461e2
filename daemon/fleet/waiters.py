"""Clients that wait for a lease, as the satellite's tasks hold them: who they are, and what their wait came to."""

import dataclasses

from bentpipe.daemon.errors import BentpipeError
from bentpipe.daemon.fleet.batched_release import UsheredEvent
from bentpipe.daemon.fleet.crowd import Seat
from bentpipe.daemon.fleet.lease import Lease


@dataclasses.dataclass(slots=True)
class Waiter:
    """One client. `done` is set once there is a lease or an error."""

    who: str
    since: float
    done: UsheredEvent
    held: bool = False
    seat: Seat | None = None
    lease: Lease | None = None
    error: BentpipeError | None = None


def lease_of(waiter: Waiter) -> Lease:
    """What the wait came to. Raises its error, anew for each waiter: many share one."""
    if waiter.error is not None:
        raise type(waiter.error)(str(waiter.error), peer_hint=waiter.error.peer_hint) from waiter.error
    if waiter.lease is None:
        raise AssertionError("done without lease or error")
    return waiter.lease
