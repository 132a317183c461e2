"""Looks at this host: are the ports free or already ours, can the store be written, is there room for the sockets."""

import contextlib
import errno
import ipaddress
import os
import sqlite3
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from bentpipe.config.model import Config
from bentpipe.daemon.connections.listener import bind
from bentpipe.daemon.keeper.containment import PROC
from bentpipe.daemon.providers.process.listening import has_socket
from bentpipe.daemon.service.concern import Concern
from bentpipe.daemon.sock_diag import find_listener

NO_OPENTELEMETRY = "OpenTelemetry is not installed: pip install 'bentpipe[traces]'"
UNWRITABLE = "{} cannot be written by user {}: chown it to the user that runs the daemon, or check as that user"
MADE_BY_SYSTEMD = ("STATE_DIRECTORY", "RUNTIME_DIRECTORY")
"""The variables of folders that systemd makes before it starts the service (systemd.exec(5))."""
HINTS = {
    errno.EACCES: "; a port below 1024 needs CAP_NET_BIND_SERVICE, or a socket unit",
    errno.EADDRNOTAVAIL: "; no interface of this host has this address (ip address)",
}
"""What to do if a port cannot be opened."""
OURS = frozenset({"serve", "dataplane"})
"""The commands of bentpipe that listen at the ports of a configuration."""
LOCKED_S = 1.0
"""How long to wait for a store that another process is writing to."""


def host_concerns(config: Config) -> Iterator[Concern]:
    """Look at ports, the store and the control socket's folder."""
    for index, listener in enumerate(config.listener):
        if listener.address is not None:
            yield from _port_concerns(f"listener[{index}].address", *listener.address)
    if config.metrics.address is not None:
        yield from _port_concerns("metrics.address", *config.metrics.address)
    if config.admin is not None and config.admin.address is not None:
        yield from _port_concerns("admin.address", *config.admin.address)
    if config.satellite_ca is not None:
        yield from _port_concerns("satellite_ca.address", *config.satellite_ca.address)
    if config.traces.endpoint is not None and find_spec("opentelemetry") is None:
        yield Concern("traces.endpoint", NO_OPENTELEMETRY, fatal=True)
    path = config.store.ledger_path()
    if path is not None:
        yield from _store_concerns(path)
    socket_path = config.control.socket_path()
    if socket_path is not None:
        yield from _folder_concerns("control.path", socket_path.parent)
    page_path = config.admin.socket_path() if config.admin is not None else None
    if page_path is not None:
        yield from _folder_concerns("admin.path", page_path.parent)


def _port_concerns(where: str, host: str, port: int) -> Iterator[Concern]:
    try:
        for sock in bind(host, port):
            sock.close()
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            yield Concern(where, f"{exc.strerror or exc}{HINTS.get(exc.errno or 0, '')}", fatal=True)
            return
        owner = _owner_of(host, port)
        if owner is None:
            yield Concern(where, f"a process that this user may not see listens on port {port}", fatal=False)
        elif owner.is_systemd:
            words = f"systemd listens on port {port} already; if that is bentpipe.socket, set systemd = NAME instead"
            yield Concern(where, words, fatal=True)
        elif not owner.is_ours:
            yield Concern(where, f"process {owner.pid} ({owner.name}) listens on port {port} already", fatal=True)


class _Owner:
    """The process that has a listening socket."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        self.name = (PROC / str(pid) / "comm").read_text().strip()
        self.is_systemd = pid == 1
        self.is_ours = not OURS.isdisjoint(words) and any("bentpipe" in word for word in words)


def _owner_of(host: str, port: int) -> _Owner | None:
    """The process that a connection to `host` would reach; None if it cannot be told."""
    try:
        found = find_listener(ipaddress.ip_address(host or "::"), port)
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    inode, _ = found
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if has_socket(int(folder.name), {inode}):
                return _Owner(int(folder.name))
        except OSError:  # not ours to see, or gone
            continue
    return None


def _store_concerns(path: Path) -> Iterator[Concern]:
    where = "store.path"
    if not path.exists():
        yield from _folder_concerns(where, path.parent)
        return
    # SQLite makes a reader of a writer whose file is read-only, so it does not tell; its journal needs the folder.
    for each in (path, path.parent):
        if not os.access(each, os.W_OK):
            yield Concern(where, UNWRITABLE.format(each, os.geteuid()), fatal=True)
            return
    try:
        opened = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=LOCKED_S, isolation_level=None)
        with contextlib.closing(opened) as store:
            store.execute("BEGIN IMMEDIATE")
            store.execute("ROLLBACK")
    except sqlite3.OperationalError as exc:
        if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            return  # another process is writing to it, so it can be written
        yield Concern(where, f"{path} cannot be written: {exc}", fatal=True)
    except sqlite3.DatabaseError as exc:
        yield Concern(where, f"{path} is not a SQLite file: {exc}", fatal=True)


def _folder_concerns(where: str, folder: Path) -> Iterator[Concern]:
    if not folder.exists() and str(folder) in map(os.environ.get, MADE_BY_SYSTEMD):
        return
    if not folder.is_dir():
        yield Concern(
            where, f"there is no folder {folder}; make it, owned by the user that runs the daemon", fatal=True
        )
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield Concern(where, UNWRITABLE.format(folder, os.geteuid()), fatal=True)
