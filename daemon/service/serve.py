"""The way into the daemon: from a configuration to an exit code (`run_serve`), or inside a running Trio (`serve`).

The daemon is built by `assembly.py`, run by `running.py`, and told of signals by `signals.py`.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import trio

from bentpipe.config.load import ConfigErrors, LoadedConfig, parse_config
from bentpipe.config.model import Config
from bentpipe.config.sources import Texts
from bentpipe.daemon.providers.process.place import KeeperPlace
from bentpipe.daemon.providers.process.provider import PRIVATE
from bentpipe.daemon.service.assembly import assemble
from bentpipe.daemon.service.garbage import set_up_garbage
from bentpipe.daemon.service.last_good import Announced, LastGood
from bentpipe.daemon.service.log_handler import daemon_log, fill_standard_descriptors
from bentpipe.daemon.service.machines import keeper_place_of
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


def run_serve(config_path: Path, keeper_socket: Path | None = None, *, use_last_good: bool = False) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns the exit code. Raises ConfigErrors, OSError, TlsError.

    `keeper_socket` is that of a keeper which something else starts and ends.

    With `use_last_good`, a daemon that cannot start with the file starts with the configuration of its last start.
    """
    last_good = LastGood.of_service() if use_last_good else None
    try:
        loaded = parse_config(Texts.read(config_path))
        place = keeper_place_of(loaded.config, config_path, keeper_socket)
        return _run(loaded, place, lambda started: Announced(started, last_good, loaded.texts, ""))
    except (ConfigErrors, OSError, TlsError) as exc:
        kept = last_good.load() if last_good is not None else None
        if kept is None:
            raise
        problem = f"runs with the configuration of {kept.since}, because of mistakes in {config_path}:\n{exc}"
    place = keeper_place_of(kept.loaded.config, config_path, keeper_socket)
    return _run(kept.loaded, place, lambda started: Announced(started, None, kept.loaded.texts, problem), problem)


def _run(
    loaded: LoadedConfig,
    place: KeeperPlace,
    announce: Callable[[trio.TaskStatus[Daemon]], trio.TaskStatus[Daemon]],
    problem: str = "",
) -> int:
    config = loaded.config
    fill_standard_descriptors()
    with daemon_log(config.daemon.log_format, config.daemon.log_level):
        set_up_garbage()
        for line in problem.splitlines():
            log.error("not the configuration of the file", extra={"fields": {"reason": line}})
        try:
            cut = trio.run(
                run_with_signals,
                lambda started: serve(
                    config,
                    task_status=announce(started),
                    problem=problem,
                    place=place,
                    config_path=loaded.texts.path,
                ),
            )
        except (OSError, TlsError):
            raise  # it could not start: the command line says why
        except Exception:
            log.critical("the daemon crashed", exc_info=True)
            return EXIT_CRASHED
        return EXIT_CUT if cut else EXIT_OK


async def serve(
    config: Config,
    *,
    task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED,
    problem: str = "",
    place: KeeperPlace = PRIVATE,
    config_path: Path | None = None,
) -> int:
    """Serve until the daemon's `drain` is set, then drain. Returns how many connections were cut.

    `problem` says why this is not the configuration that the operator wanted, if so. `place` is where the keeper of local
    satellites is; by default they end with this. `config_path` is the configuration's file, for a data plane of its own.
    Raises OSError (a port is taken, TooFewDescriptors) or TlsError (a bad certificate) before anything is started.
    """
    return await run_daemon(assemble(config, problem, place, config_path), task_status=task_status)
