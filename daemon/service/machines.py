"""Builds the providers that the configuration asks for, and routes each satellite's machine to its own. Starts nothing."""

import collections

from bentpipe.config.model import Config
from bentpipe.daemon.fleet.whereabouts import KnownAddresses
from bentpipe.daemon.ids import machine_id_of, satellite_tag
from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.providers.process.provider import ProcessProvider
from bentpipe.daemon.providers.router import Providers, RunnableProvider


def addresses_of(config: Config) -> KnownAddresses:
    """Find the satellites that TLS identifies: those with a server name that no other satellite in the file has."""
    names = {
        SatelliteKey(each.org, each.name): each.tls.server_name.lower()
        for each in config.satellite
        if each.tls is not None and each.tls.server_name is not None
    }
    counts = collections.Counter(names.values())
    return KnownAddresses(proven=frozenset(key for key, name in names.items() if counts[name] == 1))


def providers_of(config: Config, soft_files: int | None = None) -> Providers:
    """Build one provider of each kind that is used. `soft_files`: see ProcessProvider."""
    routes: dict[MachineId, RunnableProvider] = {}
    keys = [SatelliteKey(each.org, each.name) for each in config.satellite]
    sections = list(zip(keys, config.satellite, strict=True))
    processes = {machine_id_of(key): each.process for key, each in sections if each.process is not None}
    if processes:
        routes |= dict.fromkeys(processes, ProcessProvider(processes, soft_files=soft_files))
    if any(each.ec2 is not None for each in config.satellite):
        # Imported here, because boto3 costs a third of a second and 50 MB, which a daemon without EC2 need not pay.
        from bentpipe.daemon.providers.ec2.entry import Ec2Machine
        from bentpipe.daemon.providers.ec2.provider import Ec2Provider

        machines = {
            machine_id_of(key): Ec2Machine(satellite_tag(key), each.ec2)
            for key, each in sections
            if each.ec2 is not None
        }
        routes |= dict.fromkeys(machines, Ec2Provider(config.ec2, machines))
    return Providers(routes)
