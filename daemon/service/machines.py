"""Builds the providers that the configuration asks for, and routes each satellite's machine to its own. Starts nothing."""

import collections
import dataclasses
import errno
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from bentpipe.config.ec2_machine import SatelliteEc2Section
from bentpipe.config.model import Config, MachineSection, SatelliteSection
from bentpipe.daemon.fleet.whereabouts import KnownAddresses
from bentpipe.daemon.ids import machine_id_of, satellite_tag
from bentpipe.daemon.keeper.users import parse_uids
from bentpipe.daemon.model import MachineId, SatelliteKey
from bentpipe.daemon.providers.process.place import KeeperPlace, keeper_socket_of
from bentpipe.daemon.providers.process.provider import PRIVATE, ProcessProvider
from bentpipe.daemon.providers.registered import RegisteredProvider
from bentpipe.daemon.providers.router import Providers, RunnableProvider
from bentpipe.daemon.service.user_data import UserDataMaker

if TYPE_CHECKING:
    from bentpipe.daemon.providers.ec2.entry import Ec2Machine
    from bentpipe.daemon.providers.ec2.provider import Ec2Provider


def addresses_of(config: Config) -> KnownAddresses:
    """Find the satellites that TLS identifies: those with a server name that nothing else in the file has, and those whose
    machines have certificates of the daemon's own authority.

    A satellite that is launched at run time has its type's server name, which is not its own.
    """
    names = {
        SatelliteKey(each.org, each.name): each.tls.server_name.lower()
        for each in config.satellite
        if each.tls is not None and each.tls.server_name is not None
    }
    shared = [each.tls.server_name.lower() for each in config.machine_type if each.tls and each.tls.server_name]
    counts = collections.Counter((*names.values(), *shared))
    issued = {SatelliteKey(each.org, each.name) for each in config.satellite if each.has_issued_tls}
    return KnownAddresses(proven=issued | {key for key, name in names.items() if counts[name] == 1})


@dataclasses.dataclass(frozen=True, slots=True)
class Machines:
    """The providers, and those of each kind that get machines at run time. None: no machine is of that kind."""

    providers: Providers
    processes: ProcessProvider | None
    ec2: "Ec2Provider | None"
    registered: RegisteredProvider | None
    user_data: UserDataMaker | None = None

    def add(self, section: SatelliteSection, *, is_configured: bool) -> None:
        """Let the provider that the section names know the machine of one more satellite.

        `is_configured`: whether the configuration names the satellite; else the registry does.
        """
        key = SatelliteKey(section.org, section.name)
        machine_id = machine_id_of(key)
        if section.process is not None and self.processes is not None:
            self.processes.add(machine_id, section.process, is_configured=is_configured)
            self.providers.add(machine_id, self.processes)
        if section.ec2 is not None and self.ec2 is not None:
            self.ec2.add(machine_id, _ec2_machine_of(section, section.ec2, self.user_data))
            self.providers.add(machine_id, self.ec2)

    def follow(self, config: Config) -> None:
        """Other rates and times hold for what the providers do from now on."""
        if self.ec2 is not None:
            self.ec2.follow(config.ec2)
        if self.registered is not None and config.registration is not None:
            self.registered.follow(config.registration.offline_after_s)

    def lacks(self, section: MachineSection) -> str:
        """The provider that a machine needs and that was not made at the start; "" if there is one."""
        if section.process is not None and self.processes is None:
            return "process"
        return "ec2" if section.ec2 is not None and self.ec2 is None else ""

    def forget(self, key: SatelliteKey) -> None:
        """Let no provider know the satellite's machine any more."""
        machine_id = machine_id_of(key)
        self.providers.forget(machine_id)
        if self.processes is not None:
            self.processes.forget(machine_id)
        if self.ec2 is not None:
            self.ec2.forget(machine_id)


def keeper_place_of(config: Config, config_path: Path, external: Path | None) -> KeeperPlace:
    """Where the keeper of local satellites is: at the `external` socket, or where each daemon of this file finds it.

    Raises OSError if no socket can be there, or the users are not a valid range.
    """
    section = config.processes
    if external is not None:
        return KeeperPlace(external.absolute(), is_external=True)
    if not any(each.process is not None for each in config.machines):
        return PRIVATE
    try:
        uids = "" if section.uids is None else str(parse_uids(section.uids))
    except ValueError as error:
        raise OSError(errno.EINVAL, f"[processes] uids: {error}") from error
    socket = keeper_socket_of(config_path)
    return KeeperPlace(socket, uids=uids, directory=section.directory.absolute(), outlive_s=section.outlive_s)


def machines_of(
    config: Config,
    soft_files: int | None = None,
    user_data: UserDataMaker | None = None,
    place: KeeperPlace = PRIVATE,
) -> Machines:
    """Build one provider of each kind that is used. `soft_files` and `place`: see ProcessProvider."""
    process_provider: ProcessProvider | None = None
    ec2_provider: Ec2Provider | None = None
    routes: dict[MachineId, RunnableProvider] = {}
    keys = [SatelliteKey(each.org, each.name) for each in config.satellite]
    sections = list(zip(keys, config.satellite, strict=True))
    processes = {machine_id_of(key): each.process for key, each in sections if each.process is not None}
    if any(each.process is not None for each in config.machines):
        process_provider = ProcessProvider(processes, place=place, soft_files=soft_files)
        routes |= dict.fromkeys(processes, process_provider)
    if any(each.ec2 is not None for each in config.machines):
        ec2_provider = _ec2_provider_of(config, user_data)
        routes |= dict.fromkeys((machine_id_of(key) for key, each in sections if each.ec2 is not None), ec2_provider)
    registration = config.registration
    registered = RegisteredProvider(registration.offline_after_s) if registration is not None else None
    used = [each for each in (process_provider, ec2_provider, registered) if each is not None]
    return Machines(Providers(routes, used), process_provider, ec2_provider, registered, user_data)


def _ec2_provider_of(config: Config, user_data: UserDataMaker | None) -> "Ec2Provider":
    # Imported here, because boto3 costs a third of a second and 50 MB, which a daemon without EC2 need not pay.
    from bentpipe.daemon.providers.ec2.provider import Ec2Provider

    machines = {}
    for each in config.satellite:
        if each.ec2 is not None:
            machine_id = machine_id_of(SatelliteKey(each.org, each.name))
            machines[machine_id] = _ec2_machine_of(each, each.ec2, user_data)
    provider = Ec2Provider(config.ec2, machines)
    if user_data is not None:
        provider.reserve.user_data = user_data.make_spare
    provider.reserve.sections.update(
        {(each.size, each.platform): each.ec2 for each in config.machine_type if each.ec2 is not None}
    )
    return provider


def _ec2_machine_of(
    section: SatelliteSection, ec2: SatelliteEc2Section, user_data: UserDataMaker | None
) -> "Ec2Machine":
    from bentpipe.daemon.providers.ec2.entry import Ec2Machine

    key = SatelliteKey(section.org, section.name)
    if user_data is None:
        return Ec2Machine(satellite_tag(key), ec2)
    whole, own = (functools.partial(make, section) for make in (user_data.make, user_data.make_own))
    return Ec2Machine(satellite_tag(key), ec2, whole, own)
