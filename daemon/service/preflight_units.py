"""Compares a configuration with the units that serve it on this host: do they mean the same form, can satellites run?"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bentpipe.config.model import Config
from bentpipe.daemon.service.certificate_files import pairs_of
from bentpipe.daemon.service.concern import Concern
from bentpipe.daemon.service.installed import PLANE_UNIT, UNIT, InstalledService

FORM, PLANES = "daemon.data_plane", "daemon.planes"
NEEDS_RIGHTS = ("chroot", "nsenter", "runuser", "setpriv", "su", "sudo", "unshare")
"""Programs that change users or make namespaces. The keeper's unit allows neither to satellites."""
ONE_PROCESS = (
    "bentpipe.service runs one process, and no data plane would come: remove the key, or go over to the units of two "
    "processes (docs/two-processes.md)"
)
TWO_PROCESSES = (
    "bentpipe.service runs the control plane alone, without the port and the key: remove the key, or go back to the unit "
    "of one process (docs/two-processes.md)"
)
NO_PLANES = (
    "the two units meet in no folder: give --planes /run/bentpipe-planes to both commands, as the shipped units do, or "
    'write planes = "/run/bentpipe-planes"'
)
NO_NETLINK = (
    "RestrictAddressFamilies= lacks AF_NETLINK, or PrivateUsers= is on, so the data plane cannot see whose process listens "
    "on a port: clients of local satellites wait while the control plane is away. Add AF_NETLINK, and set PrivateUsers=no"
)
MISPLACED = (
    "credential {name!r} is in a drop-in of bentpipe.service, and the data plane, which needs it, would not start: move the "
    "drop-in to /etc/systemd/system/" + PLANE_UNIT + ".d/"
)
NO_FILE = (
    "LoadCredential={name}:{path} names a file that is missing, and systemd would not start the unit: give the file, or "
    "take the line back by a drop-in with an empty LoadCredential= (docs/certificates.md)"
)
NO_RIGHTS = (
    "{program!r} would end at once: bentpipe-keeper.service lets no satellite change users or make namespaces. Leave it "
    "out: each satellite has a user and a cgroup of its own there"
)


def unit_concerns(config: Config, service: InstalledService) -> Iterator[Concern]:
    """Look at the form, at credentials, and at the programs of local satellites. `service` serves this configuration."""
    if config.daemon.data_plane == "process" and not service.has_data_plane_unit:
        yield Concern(FORM, ONE_PROCESS, fatal=False)
    elif config.daemon.data_plane == "inside" and service.has_data_plane_unit:
        yield Concern(FORM, TWO_PROCESSES, fatal=service.planes is not None)
    elif service.has_data_plane_unit and config.daemon.planes is None and service.planes is None:
        yield Concern(PLANES, NO_PLANES, fatal=False)
    is_local = any(each.process is not None for each in config.machines)
    if is_local and config.daemon.by_snapshots and service.has_data_plane_unit and not service.plane_sees_listeners:
        yield Concern(PLANE_UNIT, NO_NETLINK, fatal=False)
    yield from _missing_credentials(service)
    if service.has_data_plane_unit:
        yield from _misplaced_credentials(config, service)
    tables = [
        *((f"satellite[{index}]", each) for index, each in enumerate(config.satellite)),
        *((f"machine_type[{index}]", each) for index, each in enumerate(config.machine_type)),
    ]
    for where, machine in tables:
        if machine.process is not None and (program := Path(machine.process.command[0]).name) in NEEDS_RIGHTS:
            yield Concern(f"{where}.process.command", NO_RIGHTS.format(program=program), fatal=False)


def _missing_credentials(service: InstalledService) -> Iterator[Concern]:
    """systemd refuses to start a unit that lacks one (systemd.exec(5), exit status 243)."""
    for name, path in service.credentials.items():
        with contextlib.suppress(PermissionError):  # this user cannot tell
            try:
                path.stat()
            except (FileNotFoundError, NotADirectoryError):
                unit = PLANE_UNIT if name in service.plane_credentials else UNIT
                yield Concern(unit, NO_FILE.format(name=name, path=path), fatal=True)


def _misplaced_credentials(config: Config, service: InstalledService) -> Iterator[Concern]:
    """Those that only the control plane's unit gets, and that a listener or a satellite's section names."""
    misplaced = {path: name for name, path in service.credentials.items() if name not in service.plane_credentials}
    pairs = [
        pair
        for index, listener in enumerate(config.listener)
        if listener.tls is not None
        for pair in pairs_of(f"listener[{index}].tls", listener.tls)
    ]
    named = [(f"{where}.{key}", getattr(pair, key)) for where, pair in pairs for key in ("certificate", "key")]
    named += [
        (f"satellite[{index}].tls.{key}", getattr(each.tls, key))
        for index, each in enumerate(config.satellite)
        if each.tls is not None
        for key in ("ca", "certificate", "key")
    ]
    for where, path in named:
        if path in misplaced:
            yield Concern(where, MISPLACED.format(name=misplaced[path]), fatal=False)
