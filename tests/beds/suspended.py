"""Processes that do nothing for a while."""

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def suspended(pid: int) -> Iterator[None]:
    """The process does nothing in the block, and goes on behind it if it is still there."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
