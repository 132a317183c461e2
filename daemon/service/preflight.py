"""What `bentpipe check` finds beyond the file's own form: whether `serve` could start here, and what clients would see.

It looks at certificates, ports, programs, the store and the cloud's settings. It must never change anything, and never open
a port for longer than one look takes.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path

from bentpipe.config.model import Config
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.concern import Concern
from bentpipe.daemon.service.form_here import form_here
from bentpipe.daemon.service.installed import InstalledService
from bentpipe.daemon.service.preflight_ec2 import ec2_concerns
from bentpipe.daemon.service.preflight_host import host_concerns
from bentpipe.daemon.service.preflight_processes import process_concerns
from bentpipe.daemon.service.preflight_tls import tls_concerns
from bentpipe.daemon.service.preflight_units import unit_concerns

NEAR = 0.6
"""How much two names must be alike to be suggested (difflib's ratio)."""


def file_concerns(config: Config) -> Iterator[Concern]:
    """Find what is wrong or suspicious in the configuration and the files that it names, without a look at the host."""
    yield from tls_concerns(config)
    yield from _grant_concerns(config)


def find_concerns(
    config: Config, service: InstalledService | None = None, config_path: Path | None = None
) -> list[Concern]:
    """Find all that is wrong or suspicious, errors first. `service` is what serves this configuration on this host.

    `config_path` is its file, if it is looked at as `bentpipe serve` would read it.
    """
    found = {*file_concerns(config), *host_concerns(config), *process_concerns(config), *ec2_concerns(config)}
    if service is not None:
        found |= {*unit_concerns(config, service)}
    if config_path is not None and (warning := form_here(config, config_path, service).warning):
        found.add(Concern("daemon.data_plane", warning, fatal=False))
    return sorted(found, key=lambda each: (not each.fatal, each.where, each.message))


def _grant_concerns(config: Config) -> Iterator[Concern]:
    """Grants that no satellite of the file fits. With machine types a client may launch one later."""
    keys = [str(SatelliteKey(satellite.org, satellite.name)) for satellite in config.satellite]
    granted = [
        *((f"token[{i}].grants", token.grants) for i, token in enumerate(config.token)),
        *((f"certificate[{i}].grants", certificate.grants) for i, certificate in enumerate(config.certificate)),
        *((f"oidc_rule[{i}].grants", rule.grants) for i, rule in enumerate(config.oidc_rule)),
    ]
    for where, grants in granted if not config.machine_type else ():
        for grant in grants:
            prefix = grant.removesuffix("*")
            if any(key.startswith(prefix) if grant.endswith("*") else key == grant for key in keys):
                continue
            near = difflib.get_close_matches(grant, keys, n=1, cutoff=NEAR)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield Concern(where, f"{grant!r} fits no satellite of this file{hint}", fatal=False)
