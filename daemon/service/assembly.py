"""Builds the daemon of a configuration: each part gets its section and the parts that it works with. Starts nothing.

The steps that may fail for the operator to mend come first (descriptors, certificates, sockets), so that a daemon that
cannot start has touched nothing.
"""

import contextlib
import dataclasses
import functools
import logging
from pathlib import Path

import trio

from bentpipe.config.model import Config
from bentpipe.daemon.api.statuses import StateBoard
from bentpipe.daemon.connections.deadlines import Deadlines
from bentpipe.daemon.connections.descriptors import Descriptors, raise_limit, soft_limit
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.greeters import Greeters
from bentpipe.daemon.connections.listener import Gate
from bentpipe.daemon.connections.outcomes import ConnectionCounters
from bentpipe.daemon.connections.port import find_ktls, read_port
from bentpipe.daemon.connections.quota_limits import quota_limits_of
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.connections.satellite_tls import satellite_tls_of, type_tls_of
from bentpipe.daemon.edge.announcements import Announcements
from bentpipe.daemon.edge.dial import dial_here
from bentpipe.daemon.edge.edge import Edge
from bentpipe.daemon.edge.gate_facts import GateFinder, ListenerOwner
from bentpipe.daemon.edge.gatekeeper import Gatekeeper, valid_s_of
from bentpipe.daemon.edge.handoff import HandOff
from bentpipe.daemon.edge.health import HealthBoard
from bentpipe.daemon.edge.health_connection import HealthChecks
from bentpipe.daemon.edge.identity import Identities
from bentpipe.daemon.edge.questions import Questions
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.crowd import Crowd
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.gates import Gates, NoGates
from bentpipe.daemon.fleet.reader import ReadingContext
from bentpipe.daemon.fleet.reserve_giver import ReserveGiver
from bentpipe.daemon.fleet.whereabouts import KnownAddresses
from bentpipe.daemon.ids import machine_id_of
from bentpipe.daemon.ledger.recorder import Recorder
from bentpipe.daemon.model import Address, SatelliteKey, Transition
from bentpipe.daemon.providers.process.place import KeeperPlace
from bentpipe.daemon.providers.process.provider import PRIVATE
from bentpipe.daemon.providers.router import Providers
from bentpipe.daemon.service.accounts import AccountParts, make_accounts
from bentpipe.daemon.service.admin_page import AdminPage
from bentpipe.daemon.service.api import ApiNews, Satellites, make_apis, specs_of
from bentpipe.daemon.service.certificate_watch import CertificateWatch
from bentpipe.daemon.service.connection_records import ConnectionRecords, make_records
from bentpipe.daemon.service.control import RELOAD_DEADLINE_S, ControlServer
from bentpipe.daemon.service.current import Current
from bentpipe.daemon.service.cutting import cut_verb
from bentpipe.daemon.service.descriptors import share_out
from bentpipe.daemon.service.engine_priority import start_engine
from bentpipe.daemon.service.host_activity import host_activity
from bentpipe.daemon.service.machines import Machines, addresses_of, machines_of
from bentpipe.daemon.service.parts import Daemon, Records
from bentpipe.daemon.service.plane_engines import EngineReadings
from bentpipe.daemon.service.plane_form import PlaneForm
from bentpipe.daemon.service.planes import Planes, make_planes
from bentpipe.daemon.service.ports import (
    OpenPorts,
    open_ports,
    serve_ports,
)
from bentpipe.daemon.service.preflight_tls import look_at_all, look_at_own
from bentpipe.daemon.service.provisioning import SatelliteParts, make_provisioner
from bentpipe.daemon.service.readings import reading_of, responders_of
from bentpipe.daemon.service.registration import make_registrar
from bentpipe.daemon.service.reload import Reloader
from bentpipe.daemon.service.reload_apply import LiveParts
from bentpipe.daemon.service.reload_open import ExchangedParts
from bentpipe.daemon.service.reload_plan import RunningParts
from bentpipe.daemon.service.reserve import make_giver, make_reserve
from bentpipe.daemon.service.rolling import Rolling
from bentpipe.daemon.service.satellite_ca import SatelliteCa, make_keeper, make_satellite_ca
from bentpipe.daemon.service.satellite_changes import SatelliteChanges
from bentpipe.daemon.service.stores import Stores, open_stores
from bentpipe.daemon.service.user_data import UserDataMaker
from bentpipe.daemon.service.why import why_verb
from bentpipe.native.engine import Engine, Ktls

log = logging.getLogger("bentpipe")


@dataclasses.dataclass(frozen=True, slots=True)
class _Resources:
    """What the daemon opens and reads before its parts are made: what can fail for reasons that the operator must mend."""

    descriptors: Descriptors
    ktls: Ktls
    satellite_tls: dict[SatelliteKey, SatelliteTls]
    type_tls: dict[tuple[str, str], SatelliteTls]
    stores: Stores
    account_parts: AccountParts
    ports: OpenPorts
    engine: Engine | None
    satellite_ca: SatelliteCa | None
    machines: Machines
    user_data: UserDataMaker
    connections: ConnectionRecords


def _open_resources(config: Config, place: KeeperPlace, planes: Planes | None) -> _Resources:
    given = soft_limit()
    descriptors = share_out(config, raise_limit())
    ktls = find_ktls(config)
    spoken = [] if planes is not None else [read_port(section, ktls) for section in config.listener]
    read_by = ktls if planes is None else None
    satellite_tls, type_tls = satellite_tls_of(config, read_by), type_tls_of(config, read_by)
    stores = open_stores(config.store, outlives=planes is not None)
    if planes is not None:
        planes.note.share(stores.coordination)
    account_parts = make_accounts(config, stores)
    connections = make_records(config)
    keeper = make_keeper(config)
    ports = open_ports(config, spoken)
    engine = start_engine(config, descriptors, ktls) if planes is None else None
    log.info("descriptors", extra={"fields": dataclasses.asdict(descriptors)})
    satellite_ca = (
        None if keeper is None else make_satellite_ca(config, keeper, stores, satellite_tls, ktls, ports.enrolment)
    )
    user_data = UserDataMaker(satellite_ca)
    machines = machines_of(config, given if given < descriptors.limit else None, user_data, place)
    return _Resources(
        *(descriptors, ktls, satellite_tls, type_tls, stores, account_parts, ports, engine, satellite_ca, machines),
        user_data,
        connections,
    )


def assemble(
    current: Current, form: PlaneForm, place: KeeperPlace = PRIVATE, config_path: Path | None = None
) -> Daemon:
    """Build the daemon. `form` is where connections live, `place` where the keeper of local satellites is.

    `config_path` is the file from which a data plane of its own reads the configuration. Raises OSError (a taken port, a bad
    key, TooFewDescriptors) or TlsError (a bad certificate).
    """
    config = current.config
    log.log(logging.WARNING if form.warning else logging.INFO, form.where, extra={"fields": form.fields})
    planes = make_planes(config, config_path, form)
    opened = _open_resources(config, place, planes)
    stores, machines, satellite_tls = opened.stores, opened.machines, opened.satellite_tls
    account_parts, satellite_ca = opened.account_parts, opened.satellite_ca
    addresses = addresses_of(config)
    records = Records(stores, _recorder_of(config, stores), opened.connections)
    announcements = Announcements()
    news = ApiNews()
    engines: EngineReadings
    if planes is None:
        assert opened.engine is not None
        engines = opened.engine
    else:
        engines = planes.engines
    identities = Identities(account_parts.admission, account_parts.certificates)
    quotas = _quotas_of(config, opened.descriptors, identities)
    gatekeeper = None if planes is None else _gatekeeper_of(config, opened, addresses, quotas, announcements)
    handoff = HandOff(opened.engine, news.reservations.connected, None if planes is None else planes.splicer)
    responders = responders_of(config)
    dials = dial_here if planes is None else planes.splicer.attempt
    questions = Questions(satellite_tls, responders, announcements.hear, dials)
    giver = make_giver(config, stores, machines, opened.user_data)
    health, fleet = _fleet_of(
        *(config, machines.providers, addresses, records, giver),
        *(questions, reading_of(questions, handoff), news.states, planes),
        NoGates() if gatekeeper is None else gatekeeper,
    )
    counters = ConnectionCounters()
    specs = {SatelliteKey(section.org, section.name): specs_of(section) for section in config.satellite}
    issued = None if satellite_ca is None else satellite_ca.issued
    parts = SatelliteParts(
        *(machines, satellite_tls, opened.type_tls, responders, specs, news.reservations, handoff),
        *(issued, addresses.proven, giver),
    )
    provisioner = make_provisioner(config, fleet, stores, parts)
    own_ports: set[int] = set() if planes is None else planes.ports
    own_ports.update(opened.ports.numbers)
    registrar = make_registrar(config, fleet, stores, parts, opened.ktls, own_ports)
    reserve = make_reserve(config, fleet, stores, machines, opened.user_data, giver, records.recorder)
    satellites = Satellites(fleet, handoff, specs, provisioner, registrar, health, reserve)
    apis = make_apis(
        *(config, satellites, account_parts.authority, counters, news),
        functools.partial(host_activity, form, planes, gatekeeper, counters),
    )
    checks = HealthChecks(health, identities, counters, config.limits.stranger_age_s)
    edge = Edge(
        fleet=fleet,
        identities=identities,
        services=(checks,),
        api=apis.served,
        book=opened.connections.book,
        handoff=handoff,
        counters=counters,
        quotas=quotas,
        satellite_tls=satellite_tls,
        greetings=Deadlines(config.limits.greeting_deadline_s),
        announcements=announcements,
        greeters=Greeters(config.daemon.greeting),
        planes=None if planes is None else planes.splicer,
        gatekeeper=gatekeeper,
    )
    gate = Gate(edge.quotas, counters, edge.book, opened.descriptors.admit_below)
    has = {SatelliteKey(section.org, section.name): section for section in config.satellite}
    changes = SatelliteChanges(fleet, parts, has)
    live = LiveParts(
        descriptors=opened.descriptors,
        listeners=(),
        gate=gate,
        quotas=edge.quotas,
        greetings=edge.greetings,
        greeters=edge.greeters,
        gatekeeper=gatekeeper,
        checks=checks,
        apis=apis,
        account_parts=account_parts,
        fleet=fleet,
        provisioner=provisioner,
        reserve=reserve,
        registrar=registrar,
        type_tls=opened.type_tls,
        changes=changes,
        machines=machines,
        openable=ExchangedParts(opened.ports, opened.connections),
        own_ports=own_ports,
        page=AdminPage(config.admin),
        rolling=None if stores.rolled is None else Rolling(stores.rolled, config.store),
        satellite_ca=satellite_ca,
    )
    running = RunningParts(fleet, machines, provisioner, reserve, changes, live, serves_listeners=planes is None)
    look = look_at_all if planes is None else look_at_own
    watch = CertificateWatch(lambda: current.config, look, lambda text: reloader.named(text))
    reloader = _reloader_of(current, running, live, opened.ktls, watch, planes)
    control = _control_of(opened, reloader, edge)
    ports = serve_ports(opened.ports, edge, gate, control, apis.local)
    live.listeners = tuple(zip(opened.ports.client_names, ports.listeners, strict=True))
    return Daemon(
        planes=planes,
        current=current,
        reloader=reloader,
        changes=changes,
        edge=edge,
        health=health,
        account_parts=account_parts,
        api=apis.served,
        operations=apis.operations,
        api_news=news,
        engine=opened.engine,
        engines=engines,
        provider=machines.providers,
        processes=machines.processes,
        records=records,
        provisioner=provisioner,
        reserve=reserve,
        satellite_ca=satellite_ca,
        certificate_watch=watch,
        registrar=registrar,
        ports=ports,
        page=live.page,
        rolling=live.rolling,
    )


def _reloader_of(
    current: Current,
    running: RunningParts,
    live: LiveParts,
    ktls: Ktls,
    watch: CertificateWatch,
    planes: Planes | None,
) -> Reloader:
    def reset() -> None:
        running.fleet.reset()
        if planes is not None:
            planes.follow(current.config)

    reload_planes = None if planes is None else planes.reload
    return Reloader(current, running, live, ktls, watch, reset=reset, planes=reload_planes)


def _control_of(opened: _Resources, reloader: Reloader, edge: Edge) -> ControlServer | None:
    """The control socket's server; None without that socket."""
    if opened.ports.control is None:
        return None
    verbs = {
        "cut": cut_verb(edge.handoff, edge.fleet),
        "reload": reloader.verb,
        "why": why_verb(opened.connections),
    }
    return ControlServer(opened.ports.control, verbs, {"reload": RELOAD_DEADLINE_S})


def _quotas_of(config: Config, descriptors: Descriptors, identities: Identities) -> Quotas:
    limits = quota_limits_of(config.limits, descriptors.connections)
    return Quotas(limits, trio.current_time, lambda: identities.principal_count)


def _gatekeeper_of(
    config: Config, opened: _Resources, addresses: KnownAddresses, quotas: Quotas, announcements: Announcements
) -> Gatekeeper:
    processes = opened.machines.processes

    def find_listener(key: SatelliteKey, address: Address) -> ListenerOwner | None:
        found = None if processes is None else processes.listener_nowait(machine_id_of(key), address)
        return None if found is None else ListenerOwner(*found)

    return Gatekeeper(
        GateFinder(opened.satellite_tls, addresses.proven, find_listener),
        opened.account_parts.admission,
        quotas,
        announcements,
        enabled=config.daemon.by_snapshots,
        valid_s=valid_s_of(config.store.host_expiry_s if config.store.kind == "dynamodb" else None),
    )


def _recorder_of(config: Config, stores: Stores) -> Recorder | None:
    if stores.ledger is None:
        return None
    return Recorder(stores.ledger, [SatelliteKey(section.org, section.name) for section in config.satellite])


def _fleet_of(
    config: Config,
    provider: Providers,
    addresses: KnownAddresses,
    records: Records,
    reserve: ReserveGiver | None,
    questions: Questions,
    reading: ReadingContext | None,
    states: StateBoard,
    planes: Planes | None,
    gates: Gates,
) -> tuple[HealthBoard, Fleet]:
    """Build the satellites, and their health for health checks. Each change of state is logged, counted and recorded."""

    def observe(transition: Transition) -> None:
        _log_transition(transition)
        records.arrivals[transition.after] += 1
        records.connections.measures.note_transition(transition)
        health.change()
        states.observe(transition)
        if records.recorder is not None:
            records.recorder.record_nowait(transition)

    limits = config.limits
    context = FleetContext(
        provider,
        observe,
        crowd=Crowd(limits.max_held, limits.max_held_per_principal),
        addresses=addresses,
        coordination=records.stores.coordination,
        registry=records.stores.registry,
        reserve=reserve,
        read_boot_info=questions.boot_info,
        reading=reading,
        noting_stop=contextlib.nullcontext if planes is None else planes.note.noting_stop,
        gates=gates,
    )
    fleet = Fleet(config.satellite, context, max_held=limits.max_held_per_satellite, budget=config.budget)
    health = HealthBoard(fleet)
    return health, fleet


def _log_transition(transition: Transition) -> None:
    fields = {
        "satellite": str(transition.key),
        "before": transition.before.value,
        "after": transition.after.value,
        "at": round(transition.at, 6),
        "cause": transition.cause,
    }
    log.info("satellite", extra={"fields": fields})
