"""Makes the running daemon what a plan says. Nothing here can fail half-way: it only assigns what was made before.

Connections that are open keep what they have: the certificate they were shown, their place, their satellite.
"""

import dataclasses

from bentpipe.daemon.connections.deadlines import Deadlines
from bentpipe.daemon.connections.descriptors import Descriptors
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.greeters import Greeters
from bentpipe.daemon.connections.listener import Gate, Listener
from bentpipe.daemon.connections.quota_limits import quota_limits_of
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.edge.gatekeeper import Gatekeeper
from bentpipe.daemon.edge.health_connection import HealthChecks
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.provisioning import Provisioner
from bentpipe.daemon.fleet.registrar import Registrar
from bentpipe.daemon.fleet.reserve_keeper import ReserveKeeper
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.accounts import AccountParts
from bentpipe.daemon.service.admin_page import AdminPage
from bentpipe.daemon.service.api import Apis
from bentpipe.daemon.service.log_handler import change_log
from bentpipe.daemon.service.machines import Machines, addresses_of
from bentpipe.daemon.service.reload_open import ExchangedParts, ReadyParts
from bentpipe.daemon.service.reload_plan import Prepared, descriptors_of
from bentpipe.daemon.service.rolling import Rolling
from bentpipe.daemon.service.satellite_ca import SatelliteCa
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
    gatekeeper: Gatekeeper | None
    checks: HealthChecks
    apis: Apis
    account_parts: AccountParts
    fleet: Fleet
    provisioner: Provisioner | None
    reserve: ReserveKeeper | None
    registrar: Registrar | None
    type_tls: dict[tuple[str, str], SatelliteTls]
    changes: SatelliteChanges
    machines: Machines
    openable: ExchangedParts
    own_ports: set[int]
    """Ports on which this daemon listens: nobody may register a satellite there."""
    page: AdminPage
    rolling: Rolling | None
    satellite_ca: SatelliteCa | None


def apply(prepared: Prepared, opened: ReadyParts, parts: LiveParts) -> None:
    """Take over a configuration that `refusals` had nothing against, with what was opened for it."""
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
    if parts.gatekeeper is not None:
        parts.gatekeeper.follow(enabled=config.daemon.by_snapshots)
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
        parts.fleet.limit_registered()
    if parts.registrar is not None and config.registration is not None:
        parts.registrar.follow(config.registration, limits.max_registered_per_org)
    parts.machines.follow(config)
    if parts.satellite_ca is not None:
        parts.satellite_ca.follow(config)
    if parts.rolling is not None:
        parts.rolling.follow(config.store)
    parts.openable.records.follow(config, opened.records)
    _exchange_sockets(opened, parts)
    parts.page.follow(config.admin)
    parts.changes.follow(_wanted(prepared))


def _exchange_sockets(opened: ReadyParts, parts: LiveParts) -> None:
    before = parts.openable.ports.numbers
    opened.metrics.take()
    opened.admin.take()
    after = parts.openable.ports.numbers
    parts.own_ports.difference_update(before - after)
    parts.own_ports.update(after)


def _wanted(prepared: Prepared) -> dict[SatelliteKey, WantedSatellite]:
    proven = addresses_of(prepared.config).proven
    keys = {SatelliteKey(each.org, each.name): each for each in prepared.config.satellite}
    return {key: WantedSatellite(each, prepared.satellite_tls.get(key), key in proven) for key, each in keys.items()}
