"""The record of what a launch has asked a cloud for, so that an answer that is lost never leads to a second machine.

A launch may have several alternatives, each with a token of its own. While nobody knows whether the cloud has carried out
one of them, no other may be tried. So the provider writes each attempt down before it makes the call, and notes a refusal
after it. The caller keeps the record for one launch token, over restarts and for all hosts, and gives it by a context
variable, as `permit` does.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """A call that launches a machine, of which nobody knows yet that it was refused."""

    alternative: str
    """Which alternative was asked for, by its name; "" if the configuration has none."""
    at_us: int
    """When it was last called without an answer, in microseconds since the epoch."""


class LaunchRecord(Protocol):
    """The open attempt of one launch token; there is one at most. Every method raises ProviderRetryable."""

    @property
    def open(self) -> Attempt | None:
        """The attempt whose outcome is not known; None if every attempt so far was refused, or there was none."""
        ...

    async def write(self, attempt: Attempt | None) -> None:
        """Replace the open attempt. Raises if another host has done so meanwhile."""
        ...


class UnsharedRecord:
    """`LaunchRecord` that only this process keeps."""

    def __init__(self) -> None:
        self.open: Attempt | None = None

    async def write(self, attempt: Attempt | None) -> None:
        """See LaunchRecord."""
        self.open = attempt


_record: contextvars.ContextVar[LaunchRecord | None] = contextvars.ContextVar("bentpipe_launch_record", default=None)


@contextlib.contextmanager
def recorded_by(record: LaunchRecord) -> Iterator[None]:
    """Give the launch inside the block this record."""
    token = _record.set(record)
    try:
        yield
    finally:
        _record.reset(token)


def current_record() -> LaunchRecord:
    """The record of the launch under way. Without one, nothing was tried before."""
    return _record.get() or UnsharedRecord()
