"""How many descriptors this process may open, and what they are for: connections, pipes, and a reserve for all else.

The control plane needs descriptors at any time: for a look at the store, a satellite's process, a name to resolve, a call of
the cloud. If clients took the last one, the daemon would go on half dead. So connections may take the limit of the process
(RLIMIT_NOFILE, which is raised to its hard limit) less the reserve. Pipes get what is left. Without a pipe, bytes are
copied.
"""

from bentpipe.config.model import Config
from bentpipe.daemon.connections.descriptors import ENGINE_THREAD_FDS, Descriptors, divide, engine_threads
from bentpipe.daemon.fleet.reader import READINGS_AT_ONCE

SATELLITE_FDS = 3
"""The satellite's process, its output, and a connection that checks whether it listens or asks it how it woke."""
READING_FDS = READINGS_AT_ONCE
"""Connections to responders, if any satellite has one."""
DYNAMODB_FDS = 48
"""Three clients of eight threads, each with a connection and a name that is being resolved."""
EC2_FDS = 12
"""Four threads, each with a connection and a name, and the instance's metadata service."""
BASE_FDS = 128
"""Twice what all else needs: Python and Trio 10, SQLite 10, a spawn 8, scrapes 8, certificates, /proc, names, systemd 10."""


def share_out(config: Config, limit: int) -> Descriptors:
    """Divide `limit` descriptors. Raises TooFewDescriptors, with a message for the operator."""
    reserve = (
        BASE_FDS
        + engine_threads(config) * ENGINE_THREAD_FDS
        + len(config.listener)
        + len(config.satellite) * SATELLITE_FDS
        + (READING_FDS if any(each.responder is not None for each in config.machines) else 0)
        + (DYNAMODB_FDS if config.store.kind == "dynamodb" else 0)
        + (EC2_FDS if any(each.ec2 is not None for each in config.machines) else 0)
    )
    return divide(config, limit, reserve)
