"""Whether a call that changes a machine may still be sent: whoever asks for it says so, and who sends it looks.

Several hosts may share a fleet, and each acts on a machine in its turn only (`daemon/coordination/contract.py`). Between the
wish and the request that carries it out lie queues, rate limits, repeats, merged calls and threads, some of which do not
end with the task that asked. So a permit goes with the call, through all of them: a context variable, which Trio hands on
to its tasks and threads. It is looked at in the last step before the bytes are sent.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

Permit = Callable[[], bool]
"""Whether the call may be sent in this very moment. Asked from any thread; never raises."""

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
    """The permit of the task or thread that asks; what nobody has bounded may be sent."""
    return _permit.get()
