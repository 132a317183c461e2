"""Makes the running daemon what a plan says. Nothing here can fail half-way: it only assigns what was made before.

Connections that are open keep what they have: the certificate they were shown, their place, their satellite.
"""

import dataclasses

from bentpipe.daemon.connections.deadlines import Deadlines
from bentpipe.daemon.connections.descriptors import Descriptors
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.listener import Gate, Listener
from bentpipe.daemon.connections.quotas import Quotas, quota_limits_of
from bentpipe.daemon.edge.greeters import Greeters
from bentpipe.daemon.edge.health_connection import HealthChecks
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.provisioning import Provisioner
from bentpipe.daemon.fleet.registrar import Registrar
from bentpipe.daemon.fleet.reserve_keeper import ReserveKeeper
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.accounts import AccountParts
from bentpipe.daemon.service.api import Apis
from bentpipe.daemon.service.log_handler import change_log
from bentpipe.daemon.service.machines import addresses_of
from bentpipe.daemon.service.reload_plan import Prepared, descriptors_of
from bentpipe.daemon.service.satellite_changes import SatelliteChanges, WantedSatellite


@dataclasses.dataclass(slots=True)
class LiveParts:
    """The parts that follow another configuration."""

    descriptors: Descriptors
    """As they are divided now."""
    listeners: tuple[tuple[str, Listener], ...]
    """Each with its name; the sockets of one listener share it."""
    gate: Gate
    quotas: Quotas
    greetings: Deadlines
    greeters: Greeters
    checks: HealthChecks
    apis: Apis
    account_parts: AccountParts
    fleet: Fleet
    provisioner: Provisioner | None
    reserve: ReserveKeeper | None
    registrar: Registrar | None
    type_tls: dict[tuple[str, str], SatelliteTls]
    changes: SatelliteChanges


def apply(prepared: Prepared, parts: LiveParts) -> None:
    """Take over a configuration that `refusals` had nothing against."""
    config = prepared.config
    change_log(config.daemon.log_format, config.daemon.log_level)
    for name, listener in parts.listeners:
        listener.port = prepared.ports[name]
    parts.descriptors = descriptors_of(config, parts.descriptors)
    parts.gate.admit_below_fd = parts.descriptors.admit_below
    limits = config.limits
    parts.quotas.change_limits(quota_limits_of(limits, parts.descriptors.connections))
    parts.greetings.seconds = limits.greeting_deadline_s
    parts.greeters.follow(config.daemon.greeting)
    parts.checks.stranger_age_s = limits.stranger_age_s
    parts.apis.follow(config)
    parts.account_parts.follow(config)
    parts.fleet.crowd.resize(limits.max_held, limits.max_held_per_principal)
    parts.fleet.change_limits(limits.max_held_per_satellite, config.budget)
    parts.type_tls.clear()
    parts.type_tls.update(prepared.type_tls)
    if parts.provisioner is not None:
        parts.provisioner.follow(config.machine_type, most_per_org=limits.max_launched_per_org)
    if parts.reserve is not None:
        parts.reserve.kinds = tuple(config.machine_type)
    if parts.registrar is not None:
        parts.registrar.limit(limits.max_registered_per_org)
        parts.fleet.limit_registered()
    parts.changes.follow(_wanted(prepared))


def _wanted(prepared: Prepared) -> dict[SatelliteKey, WantedSatellite]:
    proven = addresses_of(prepared.config).proven
    keys = {SatelliteKey(each.org, each.name): each for each in prepared.config.satellite}
    return {key: WantedSatellite(each, prepared.satellite_tls.get(key), key in proven) for key, each in keys.items()}
