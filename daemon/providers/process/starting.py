"""Starts a keeper's process from the daemon: in a session of its own, with nothing of the daemon's but two variables."""

import os
import sys
from collections.abc import Sequence

import trio

from bentpipe.daemon.keeper.program import READY

START_DEADLINE_S = 20.0
"""From the start of a keeper until it listens: Python starts in 40 ms, and a dead keeper's satellites are killed first."""
READ_BYTES = 4096
ENVIRONMENT = ("PATH", "LANG")
"""The part of the daemon's environment that the keeper gets: satellites of the same user can read it."""
MODULE = "bentpipe.daemon.keeper"


def spawn_keeper(arguments: Sequence[str]) -> tuple[int, int]:
    """Start a keeper. Returns its pid, and the reading end of its output for `read_ready`. Raises OSError."""
    command = [sys.executable, "-I", "-m", MODULE, *arguments]
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    ready_fd, output = os.pipe2(os.O_CLOEXEC)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        *((os.POSIX_SPAWN_DUP2, output, fd) for fd in (1, 2)),
    ]
    try:
        # A session of its own: a signal for the daemon's terminal or group is not for the keeper.
        pid = os.posix_spawn(sys.executable, command, environment, file_actions=actions, setsid=True)
    except OSError:
        os.close(ready_fd)
        raise
    finally:
        os.close(output)
    return pid, ready_fd


async def read_ready(fd: int) -> bytes:
    """Read what a keeper prints until it listens or ends: READY, or why it cannot. Takes and closes `fd`."""
    os.set_blocking(fd, False)
    told = b""
    try:
        with trio.move_on_after(START_DEADLINE_S):
            while not told.endswith(READY):
                await trio.lowlevel.wait_readable(fd)
                data = os.read(fd, READ_BYTES)
                if not data:
                    break
                told = (told + data)[-READ_BYTES:]
    finally:
        os.close(fd)
    return told


def forget_child(pid: int) -> None:
    """Reap a child that is dead. It may have been reaped already."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return
