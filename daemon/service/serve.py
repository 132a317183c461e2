"""The way into the daemon: from a configuration to an exit code (`run_serve`), or inside a running Trio (`serve`).

The daemon is built by `assembly.py`, run by `running.py`, and told of signals by `signals.py`.
"""

import dataclasses
import logging
from pathlib import Path

import trio

from bentpipe.config.load import ConfigErrors, LoadedConfig, parse_config
from bentpipe.config.model import Config
from bentpipe.config.sources import Texts
from bentpipe.daemon.providers.process.place import KeeperPlace
from bentpipe.daemon.providers.process.provider import PRIVATE
from bentpipe.daemon.service.assembly import assemble
from bentpipe.daemon.service.current import ConfigOrigin, Current, keep_nothing
from bentpipe.daemon.service.garbage import set_up_garbage
from bentpipe.daemon.service.last_good import Announced, LastGood
from bentpipe.daemon.service.log_handler import daemon_log, fill_standard_descriptors
from bentpipe.daemon.service.machines import keeper_place_of
from bentpipe.daemon.service.own_files import read_own_files
from bentpipe.daemon.service.parts import Daemon
from bentpipe.daemon.service.plane_folder import planes_folder
from bentpipe.daemon.service.running import run_daemon
from bentpipe.daemon.service.signals import run_with_signals
from bentpipe.daemon.service.take_over import end_hung_control_planes
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
        return _run(_Start(config_path, loaded, place, last_good))
    except (ConfigErrors, OSError, TlsError) as exc:
        kept = last_good.load() if last_good is not None else None
        if kept is None:
            raise
        problem = f"runs with the configuration of {kept.since}, because of mistakes in {config_path}:\n{exc}"
    place = keeper_place_of(kept.loaded.config, config_path, keeper_socket)
    return _run(_Start(config_path, kept.loaded, place, last_good, problem))


@dataclasses.dataclass(frozen=True, slots=True)
class _Start:
    """What a daemon is started with. `problem` says why it is not the configuration of the file."""

    path: Path
    loaded: LoadedConfig
    place: KeeperPlace
    last_good: LastGood | None
    problem: str = ""

    @property
    def origin(self) -> ConfigOrigin:
        """What a reload reads again."""
        return ConfigOrigin(self.path, self.loaded, keep_nothing if self.last_good is None else self.last_good.keep)

    def announced(self, status: trio.TaskStatus[Daemon]) -> Announced:
        """Tell `status` that the daemon has started, and keep a good configuration."""
        return Announced(status, None if self.problem else self.last_good, self.loaded.texts, self.problem)


def _run(start: _Start) -> int:
    config = start.loaded.config
    fill_standard_descriptors()
    read_own_files()
    with daemon_log(config.daemon.log_format, config.daemon.log_level):
        set_up_garbage()
        for line in start.problem.splitlines():
            log.error("not the configuration of the file", extra={"fields": {"reason": line}})
        if config.daemon.data_plane == "process":
            end_hung_control_planes(planes_folder(config, start.path))
        try:
            cut = trio.run(
                run_with_signals,
                lambda started: serve(
                    config,
                    task_status=start.announced(started),
                    problem=start.problem,
                    place=start.place,
                    origin=start.origin,
                    config_path=start.path,
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
    origin: ConfigOrigin | None = None,
) -> int:
    """Serve until the daemon's `drain` is set, then drain. Returns how many connections were cut.

    `problem` says why this is not the configuration that the operator wanted, if so. `place` is where the keeper of local
    satellites is; by default they end with this. `config_path` is the configuration's file, for a data plane of its own.
    `origin` is what a reload reads again; without it a reload reads the certificates alone. Raises OSError (a port is taken,
    TooFewDescriptors) or TlsError (a bad certificate) before anything is started.
    """
    return await run_daemon(assemble(Current(config, problem, origin), place, config_path), task_status=task_status)
