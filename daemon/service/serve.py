"""The way into the daemon: from a configuration to an exit code (`run_serve`), or inside a running Trio (`serve`).

The daemon is built by `assembly.py`, run by `running.py`, and told of signals by `signals.py`.
"""

import logging
from pathlib import Path

import trio

from bentpipe.config.load import load_config
from bentpipe.config.model import Config
from bentpipe.daemon.service.assembly import assemble
from bentpipe.daemon.service.garbage import set_up_garbage
from bentpipe.daemon.service.log_handler import daemon_log, fill_standard_descriptors
from bentpipe.daemon.service.parts import Daemon
from bentpipe.daemon.service.running import run_daemon
from bentpipe.daemon.service.signals import run_with_signals
from bentpipe.native.tls import TlsError

__all__ = ["EXIT_CRASHED", "EXIT_CUT", "EXIT_OK", "Daemon", "run_serve", "serve"]

log = logging.getLogger("bentpipe")

EXIT_OK = 0
EXIT_CRASHED = 1
"""A bug of bentpipe; the log has its traceback."""
EXIT_CUT = 3
"""Drained, but connections were cut at the drain deadline."""


def run_serve(config_path: Path) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns the exit code. Raises ConfigErrors, OSError, TlsError."""
    config = load_config(config_path)
    fill_standard_descriptors()
    with daemon_log(config.daemon.log_format, config.daemon.log_level):
        set_up_garbage()
        try:
            cut = trio.run(run_with_signals, lambda started: serve(config, task_status=started))
        except (OSError, TlsError):
            raise  # it could not start: the command line says why
        except Exception:
            log.critical("the daemon crashed", exc_info=True)
            return EXIT_CRASHED
        return EXIT_CUT if cut else EXIT_OK


async def serve(config: Config, *, task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED) -> int:
    """Serve until the daemon's `drain` is set, then drain. Returns how many connections were cut.

    Raises OSError (a port is taken, TooFewDescriptors) or TlsError (a bad certificate) before anything is started.
    """
    return await run_daemon(assemble(config), task_status=task_status)
