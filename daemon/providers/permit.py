"""Whether a call that changes a machine may still be sent: the caller gives a permit, and the sender checks it.

Several hosts may share a fleet, and each acts on a machine in its turn only (`daemon/coordination/contract.py`). A call
passes queues, rate limits, repeats, merged calls and threads before it is sent, and some of them do not end with the
caller's task. So the permit goes with the call: it is a context variable, which Trio passes on to tasks and threads. The
sender checks it in the last step before the bytes are sent.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

Permit = Callable[[], bool]
"""Returns whether the call may be sent now. Called from any thread; never raises."""

_permit: contextvars.ContextVar[Permit] = contextvars.ContextVar("bentpipe_permit", default=lambda: True)


@contextlib.contextmanager
def permitted_by(permit: Permit) -> Iterator[None]:
    """Give the calls inside the block this permit."""
    token = _permit.set(permit)
    try:
        yield
    finally:
        _permit.reset(token)


def current_permit() -> Permit:
    """The permit of the calling task or thread. Without one every call may be sent."""
    return _permit.get()
