"""How the descriptors of a process that has connections are divided: connections, pipes, and a reserve for all else.

Connections may take the limit of the process (RLIMIT_NOFILE, which is raised to its hard limit) less the reserve. Pipes get
what is left. Without a pipe, bytes are copied.
"""

import dataclasses
import os
import resource
from pathlib import Path

from bentpipe.config.model import Config
from bentpipe.daemon.connections.quotas import CONNECTION_FDS
from bentpipe.native.engine import PIPES_A_THREAD

LEAST_CONNECTIONS = 2
"""The lowest `limits.max_connections`: one stranger, and one client with a token."""
PIPE_FDS = 2
ENGINE_THREAD_FDS = 2
"""The thread's epoll and its eventfd."""
PIPES_SHARE = 4
"""One in this many descriptors is kept for pipes if the configuration does not say how many connections there may be."""
FALLBACK_LIMIT = 1 << 20
"""The limit if neither RLIMIT_NOFILE nor the kernel gives a number (proc(5), nr_open: the kernel's default)."""


class TooFewDescriptors(OSError):
    """The configured limits do not fit into the limit of the process."""


@dataclasses.dataclass(frozen=True, slots=True)
class Descriptors:
    """How the descriptors are divided."""

    limit: int
    connections: int
    """How many connections there may be."""
    pipes: int
    """Pipes in each thread of the engine; 0: none."""
    reserve: int

    @property
    def admit_below(self) -> int:
        """The kernel gives the lowest free number (open(2)): from this one on the reserve would be touched."""
        return self.limit - self.reserve


def hard_limit() -> int:
    """The value to which this process can raise RLIMIT_NOFILE."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        return hard
    try:
        return int(Path("/proc/sys/fs/nr_open").read_text())
    except (OSError, ValueError):
        return FALLBACK_LIMIT


def soft_limit() -> int:
    """The present RLIMIT_NOFILE: before `raise_limit`, the one with which this process was started."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_limit() -> int:
    """Raise RLIMIT_NOFILE to its hard limit. Returns what it is then. Children inherit it, see providers/spawn.py."""
    hard = hard_limit()
    soft, kernel_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, kernel_hard))
    except (OSError, ValueError):  # a sandbox may forbid it: then the soft limit stays
        return soft
    return hard


def engine_threads(config: Config) -> int:
    """How many threads the engine has."""
    return config.engine.threads or os.cpu_count() or 1


def divide(config: Config, limit: int, reserve: int) -> Descriptors:
    """Divide `limit` descriptors. Raises TooFewDescriptors, with a message for the operator."""
    threads = engine_threads(config)
    free = limit - reserve
    wanted = config.limits.max_connections
    pipes = threads * PIPES_A_THREAD * PIPE_FDS if config.engine.splice != "off" else 0
    if "max_connections" in config.limits.model_fields_set:
        fits = free // CONNECTION_FDS
        if wanted > fits:
            raise TooFewDescriptors(_words(limit, reserve, wanted, fits))
        connections = wanted
    else:
        kept = max(0, min(pipes, free // PIPES_SHARE, free - LEAST_CONNECTIONS * CONNECTION_FDS))
        connections = min(wanted, (free - kept) // CONNECTION_FDS)
        if connections < LEAST_CONNECTIONS:
            raise TooFewDescriptors(_words(limit, reserve, LEAST_CONNECTIONS, 0))
    left = max(free - connections * CONNECTION_FDS, 0)
    return Descriptors(limit, connections, min(pipes, left) // (threads * PIPE_FDS), reserve)


def _words(limit: int, reserve: int, wanted: int, fits: int) -> str:
    needed = reserve + wanted * CONNECTION_FDS
    what = (
        f"limits.max_connections = {wanted} needs {needed} file descriptors ({CONNECTION_FDS} for each connection, and "
        f"{reserve} for the daemon and its satellites), and this process may open {limit} (the hard limit of RLIMIT_NOFILE)"
    )
    less = f"set limits.max_connections to {fits} or less, or " if fits >= LEAST_CONNECTIONS else ""
    return f"{what}: {less}let it open more (LimitNOFILE={needed} in the unit, ulimit -Hn {needed} in a shell)"
