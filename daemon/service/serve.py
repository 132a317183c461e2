"""The way into the daemon: from a configuration to an exit code (`run_serve`), or inside a running Trio (`serve`).

The daemon is built by `assembly.py`, run by `running.py`, and told of signals by `signals.py`.
"""

import contextlib
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
from bentpipe.daemon.service.plane_form import PlaneForm, choose_form, planes_folder
from bentpipe.daemon.service.plane_start import live_planes, stop_planes
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


def run_serve(
    config_path: Path, keeper_socket: Path | None = None, planes: Path | None = None, *, use_last_good: bool = False
) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns the exit code. Raises ConfigErrors, OSError, TlsError.

    `keeper_socket` is that of a keeper, and `planes` the folder of a data plane, which something else starts and ends.

    With `use_last_good`, a daemon that cannot start with the file starts with the configuration of its last start.
    """
    last_good = LastGood.of_service() if use_last_good else None
    try:
        loaded = parse_config(Texts.read(config_path), keys_elsewhere=planes is not None)
        place = keeper_place_of(loaded.config, config_path, keeper_socket)
        form = choose_form(loaded.config, config_path, planes)
        return _run(_Start(config_path, loaded, place, form, last_good))
    except (ConfigErrors, OSError, TlsError) as exc:
        kept = last_good.load() if last_good is not None else None
        if kept is None:
            raise
        problem = f"runs with the configuration of {kept.since}, because of mistakes in {config_path}:\n{exc}"
    place = keeper_place_of(kept.loaded.config, config_path, keeper_socket)
    form = choose_form(kept.loaded.config, config_path, planes)
    return _run(_Start(config_path, kept.loaded, place, form, last_good, problem))


@dataclasses.dataclass(frozen=True, slots=True)
class _Start:
    """What a daemon is started with. `problem` says why it is not the configuration of the file."""

    path: Path
    loaded: LoadedConfig
    place: KeeperPlace
    form: PlaneForm
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
        folder = start.form.folder
        if folder is not None:
            end_hung_control_planes(folder)
        else:
            _look_for_left_planes(config, start.path)
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
                    form=start.form,
                ),
                lambda: _stop_early(start.form),
            )
        except (OSError, TlsError):
            raise  # it could not start: the command line says why
        except Exception:
            log.critical("the daemon crashed", exc_info=True)
            return EXIT_CRASHED
        return EXIT_CUT if cut else EXIT_OK


def _stop_early(form: PlaneForm) -> None:
    """Stop everything before the daemon has started: its data planes too, unless something else stops them."""
    if form.folder is not None and not form.is_external:
        stop_planes(form.folder)


def _look_for_left_planes(config: Config, config_path: Path) -> None:
    """One of an earlier daemon of this file may have the ports, with connections that should not be cut."""
    with contextlib.suppress(OSError):
        for path in live_planes(planes_folder(config, config_path)):
            log.warning("a data plane of an earlier daemon still runs", extra={"fields": {"socket": str(path)}})


async def serve(
    config: Config,
    *,
    task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED,
    problem: str = "",
    place: KeeperPlace = PRIVATE,
    config_path: Path | None = None,
    form: PlaneForm | None = None,
    origin: ConfigOrigin | None = None,
) -> int:
    """Serve until the daemon's `drain` is set, then drain. Returns how many connections were cut.

    `problem` says why this is not the configuration that the operator wanted, if so. `place` is where the keeper of local
    satellites is; by default they end with this. `config_path` is the configuration's file, for a data plane of its own, and
    `form` where connections live, by default what `choose_form` says. `origin` is what a reload reads again; without it a
    reload reads the certificates alone. Raises OSError (a port is taken, TooFewDescriptors) or TlsError (a bad certificate)
    before anything is started.
    """
    form = form or choose_form(config, config_path)
    return await run_daemon(
        assemble(Current(config, problem, origin), form, place, config_path), task_status=task_status
    )
