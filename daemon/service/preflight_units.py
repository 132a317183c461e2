"""Compares a configuration with the units that serve it on this host: do they mean the same form, can satellites run?"""

from collections.abc import Iterator
from pathlib import Path

from bentpipe.config.model import Config
from bentpipe.daemon.service.concern import Concern
from bentpipe.daemon.service.installed import InstalledService

FORM, PLANES = "daemon.data_plane", "daemon.planes"
NEEDS_RIGHTS = ("chroot", "nsenter", "runuser", "setpriv", "su", "sudo", "unshare")
"""Programs that change users or make namespaces. The keeper's unit allows neither to satellites."""
ONE_PROCESS = (
    'bentpipe.service runs one process, and no data plane would come: write "inside", or go over to the units of two '
    "processes (docs/data-plane.md)"
)
TWO_PROCESSES = (
    'bentpipe.service runs the control plane alone, without the port and the key: write "process", or go back to the unit '
    "of one process (docs/data-plane.md)"
)
NO_PLANES = 'the two units share a folder only if it is given: write planes = "/run/bentpipe-planes"'
NO_RIGHTS = (
    "{program!r} would end at once: bentpipe-keeper.service lets no satellite change users or make namespaces. Leave it "
    "out: each satellite has a user and a cgroup of its own there"
)


def unit_concerns(config: Config, service: InstalledService) -> Iterator[Concern]:
    """Look at the form, and at the programs of local satellites. `service` is what serves this configuration."""
    if config.daemon.data_plane == "process" and not service.has_data_plane_unit:
        yield Concern(FORM, ONE_PROCESS, fatal=False)
    elif config.daemon.data_plane == "inside" and service.has_data_plane_unit:
        yield Concern(FORM, TWO_PROCESSES, fatal=False)
    elif service.has_data_plane_unit and config.daemon.planes is None:
        yield Concern(PLANES, NO_PLANES, fatal=False)
    tables = [
        *((f"satellite[{index}]", each) for index, each in enumerate(config.satellite)),
        *((f"machine_type[{index}]", each) for index, each in enumerate(config.machine_type)),
    ]
    for where, machine in tables:
        if machine.process is not None and (program := Path(machine.process.command[0]).name) in NEEDS_RIGHTS:
            yield Concern(f"{where}.process.command", NO_RIGHTS.format(program=program), fatal=False)
