"""The last configuration with which the daemon has started, so that a mistake in the file does not keep the port shut.

It is for `bentpipe serve --last-good`, as the shipped unit runs it. A restart happens at night, by an upgrade or a crash,
hours after somebody edited a file. The daemon then says in its log, its status and its metrics that it does not run with
the files as they are.
"""

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import trio

from bentpipe.config.load import ConfigErrors, LoadedConfig, parse_config
from bentpipe.config.sources import Texts
from bentpipe.daemon.private_file import write_private
from bentpipe.daemon.service import sd
from bentpipe.daemon.service.parts import Daemon

log = logging.getLogger("bentpipe")

NAME = "last-good.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """The kept copy: the configuration, and when a daemon has begun to run with it."""

    loaded: LoadedConfig
    since: str


class LastGood:
    """The copy in the service's state directory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._writing = threading.Lock()

    @classmethod
    def of_service(cls, environment: Mapping[str, str] = os.environ) -> "LastGood | None":
        """None without a state directory (StateDirectory=, systemd.exec(5))."""
        folder = environment.get("STATE_DIRECTORY", "").partition(":")[0]
        return cls(Path(folder)) if folder else None

    def load(self) -> Kept | None:
        """Read the copy. Returns None if there is none, or if this version cannot use it any more."""
        try:
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._path.stat().st_mtime))
            return Kept(parse_config(Texts.loaded(self._path.read_bytes())), since)
        except (OSError, ValueError, ConfigErrors) as exc:
            log.warning("no last good configuration", extra={"fields": {"reason": str(exc)}})
            return None

    def keep(self, texts: Texts) -> None:
        """Write the copy in a thread: a disk that hangs must not delay the start. What fails is logged."""
        threading.Thread(target=self._write, args=(texts,), name="last good configuration", daemon=True).start()

    def _write(self, texts: Texts) -> None:
        try:
            with self._writing:
                write_private(self._path, texts.dumped())
        except OSError as exc:
            log.warning(
                "the configuration was not kept", extra={"fields": {"path": str(self._path), "error": str(exc)}}
            )


class Announced(trio.TaskStatus[Daemon]):
    """Passes on that the daemon has started. Then keeps its configuration, or says that it is not the file's."""

    def __init__(self, status: trio.TaskStatus[Daemon], last_good: LastGood | None, texts: Texts, problem: str) -> None:
        self._status = status
        self._last_good = last_good
        self._texts = texts
        self._problem = problem

    def started(self, value: Daemon | None = None) -> None:
        """Called once the daemon's ports are open."""
        if value is not None:
            self._status.started(value)
        if self._problem:
            sd.notify(f"STATUS={' '.join(self._problem.splitlines()[:2])}")
        elif self._last_good is not None:
            self._last_good.keep(self._texts)
