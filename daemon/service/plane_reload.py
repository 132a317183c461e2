"""Reads again what a data plane has from files: certificates of its listeners and of the satellites.

It reads in threads, since a disk that hangs must never delay a client. What cannot be read stays as it was.
"""

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from bentpipe.config.load import ConfigErrors, parse_config
from bentpipe.config.model import Config, ListenerSection
from bentpipe.config.sources import Texts
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.listener import Listener
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.dataplane.handover import name_of
from bentpipe.daemon.planes.bounds import CREDENTIALS
from bentpipe.daemon.planes.records import CredentialRecord
from bentpipe.daemon.service import sd
from bentpipe.daemon.service.certificate_files import look_at_shown
from bentpipe.daemon.service.certificate_watch import CertificateWatch
from bentpipe.daemon.service.credential_names import name_credentials
from bentpipe.daemon.tasks import Decision, Owner, run_owned
from bentpipe.native.tls import TlsError

log = logging.getLogger("bentpipe.dataplane")

READ_DEADLINE_S = 10.0
"""For the files of one listener, or of all satellites. If they are not read in this time, the old certificates stay."""
UNREADABLE = (ConfigErrors, OSError, TlsError)

T = TypeVar("T")


class NewerCredentials:
    """Credentials of the unit that are newer than those of this process's start. They are in memory alone."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}

    @property
    def paths(self) -> Mapping[str, Path]:
        """Where each can be read, by name."""
        return {name: Path(f"/proc/self/fd/{file}") for name, file in self._files.items()}

    def take(self, record: CredentialRecord) -> str:
        """Keep one, in the place of an older one. Returns what is wrong with it."""
        if record.name not in self._files and len(self._files) >= CREDENTIALS:
            return f"more than {CREDENTIALS} credentials"
        try:
            file = os.memfd_create(record.name, os.MFD_CLOEXEC)
            os.write(file, record.data)  # into memory: it takes all of it
        except (OSError, ValueError) as exc:
            return f"credential {record.name!r}: {exc}"
        if (known := self._files.setdefault(record.name, file)) != file:
            os.dup2(file, known, inheritable=False)  # the path stays what configurations that were read have
            os.close(file)
        return ""


class PlaneReload:
    """`config` is what `path` had at the start, and `trust` the satellites' TLS then, by the names that OPEN uses."""

    def __init__(
        self,
        path: Path,
        config: Config,
        listeners: Sequence[tuple[Listener, ListenerSection]],
        trust: dict[str, SatelliteTls],
        read_port: Callable[[ListenerSection], Port],
        read_trust: Callable[[Config], dict[str, SatelliteTls]],
    ) -> None:
        """`read_port` and `read_trust` block, and raise OSError, TlsError."""
        self._path = path
        self._config = config
        self.watch = CertificateWatch(lambda: self._config, look_at_shown, self._named)
        self._listeners = listeners
        self._trust = trust
        self._read_port, self._read_trust = read_port, read_trust
        self._credentials = NewerCredentials()
        self._asked = trio.Event()
        self._one_at_a_time = trio.Lock()
        # A thread that hangs keeps its place, so that further reloads do not start further threads.
        self._threads = {id(each): trio.CapacityLimiter(1) for each, _ in listeners}
        self._satellites_thread, self._config_thread = trio.CapacityLimiter(1), trio.CapacityLimiter(1)

    def find(self, name: str) -> SatelliteTls | None:
        """The TLS of the satellite of this name; None if the configuration has none."""
        return self._trust.get(name)

    def take_credential(self, record: CredentialRecord) -> str:
        """Keep a newer credential for this and later reloads. Returns what is wrong with it."""
        return self._credentials.take(record)

    def ask(self) -> None:
        """Read again, soon, as SIGHUP asks. What fails is in the log."""
        sd.notify_reloading()
        self._asked.set()

    async def run_reload(self) -> None:
        """Read again whenever a signal asks for it, for ever."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            await self.reload()

    async def reload(self) -> str:
        """Read everything again. Returns what could not be read and stays as it was, one sentence for each."""
        errors: list[str] = []
        async with self._one_at_a_time:
            sd.notify_reloading()
            try:
                await self._reload(errors)
            finally:
                sd.notify("READY=1")
        return "; ".join(errors)

    async def _reload(self, errors: list[str]) -> None:
        config, error = await self._read(self._config_thread, self._read_config)
        if config is None:
            log.error("configuration not read", extra={"fields": {"error": error}})
            errors.append(error)
        else:
            self._config = config
        sections = {name_of(each): each for each in self._config.listener}
        async with trio.open_nursery() as nursery:
            for listener, section in self._listeners:
                now = sections.get(name_of(section), section)
                owner = Owner("certificates", _address(listener), Decision.GIVE_UP)
                nursery.start_soon(run_owned, owner, self._reload_listener, listener, now, errors)
            if config is not None:
                owner = Owner("satellites' certificates", "", Decision.GIVE_UP)
                nursery.start_soon(run_owned, owner, self._reload_trust, config, errors)
        self.watch.ask()

    def _named(self, text: str) -> str:
        return name_credentials(text, self._credentials.paths)

    def _read_config(self) -> Config:
        return parse_config(Texts.read(self._path), check_files=False, instead=self._credentials.paths).config

    async def _reload_listener(self, listener: Listener, section: ListenerSection, errors: list[str]) -> None:
        read = functools.partial(self._read_port, section)
        port, error = await self._read(self._threads[id(listener)], read)
        fields = {"listener": _address(listener)}
        if port is None:
            log.error("certificate not reloaded", extra={"fields": {**fields, "error": error}})
            errors.append(f"listener {_address(listener)}: {error}")
        else:
            listener.port = port
            log.info("certificate reloaded", extra={"fields": fields})

    async def _reload_trust(self, config: Config, errors: list[str]) -> None:
        trust, error = await self._read(self._satellites_thread, functools.partial(self._read_trust, config))
        if trust is None:
            log.error("certificates of satellites not reloaded", extra={"fields": {"error": error}})
            errors.append(f"satellites: {error}")
        else:
            self._trust = trust
            log.info("certificates of satellites reloaded", extra={"fields": {"names": len(trust)}})

    async def _read(self, thread: trio.CapacityLimiter, read: Callable[[], T]) -> tuple[T | None, str]:
        """Read in a thread. Returns what was read, or why it could not be."""
        with trio.move_on_after(READ_DEADLINE_S):
            try:
                return await trio.to_thread.run_sync(read, limiter=thread, abandon_on_cancel=True), ""
            except UNREADABLE as exc:
                return None, self._named(str(exc))
        return None, f"no answer within {READ_DEADLINE_S:g} s: the disk hangs"


def _address(listener: Listener) -> str:
    return ":".join(map(str, listener.address))
