"""The composition root of the daemon: builds the parts, starts them in order, drains and stops them.

The tree of tasks: serve > {providers > satellites' processes, looks at EC2}, fleet > one nursery per satellite, hand-off,
sessions > one task per connection until hand-off, listeners, recorder, watchdog, signals.
"""

import collections
import contextlib
import dataclasses
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import trio

from bentpipe.config.load import load_config
from bentpipe.config.model import Config, ListenerSection, SatelliteTlsSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.edge.accounts import Accounts, account_limits_of
from bentpipe.daemon.edge.announcements import Announcements
from bentpipe.daemon.edge.arrival import Proxies
from bentpipe.daemon.edge.boot_id import SatelliteWitness
from bentpipe.daemon.edge.deadlines import Deadlines
from bentpipe.daemon.edge.handoff import HandOff
from bentpipe.daemon.edge.health import HealthBoard
from bentpipe.daemon.edge.identity import Identities
from bentpipe.daemon.edge.listener import Listener, bind
from bentpipe.daemon.edge.opening import Port
from bentpipe.daemon.edge.outcomes import Counters
from bentpipe.daemon.edge.session import REFUSAL_DEADLINE_S, Edge
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.ledger.recorder import Recorder
from bentpipe.daemon.model import SatelliteKey, SatelliteState, Transition
from bentpipe.daemon.providers.router import Providers
from bentpipe.daemon.service import sd
from bentpipe.daemon.service.certificates import CertificateReload
from bentpipe.daemon.service.control import ControlServer, open_control_socket
from bentpipe.daemon.service.cutting import cut_principal, cut_verb
from bentpipe.daemon.service.descriptors import raise_limit, share_out, soft_limit
from bentpipe.daemon.service.engine_watch import run_engine_watch, stuck_threads
from bentpipe.daemon.service.garbage import run_garbage, set_up_garbage
from bentpipe.daemon.service.log_handler import daemon_log, fill_standard_descriptors, log_statistics
from bentpipe.daemon.service.machines import places_of, providers_of
from bentpipe.daemon.service.metrics import MetricsServer, make_registry
from bentpipe.daemon.service.stores import Stores, open_stores
from bentpipe.daemon.service.tokens import run_token_refresh
from bentpipe.daemon.service.turns import TurnMeter
from bentpipe.daemon.tasks import Owner, contained, run_owned, start_owned
from bentpipe.native.engine import Engine, EngineOptions, Ktls, ktls_self_test
from bentpipe.native.tls import TlsClientContext, TlsError, TlsServerContext

log = logging.getLogger("bentpipe")

EXIT_OK = 0
EXIT_CRASHED = 1
"""A bug of ours; the log has its traceback."""
EXIT_CONFIG = 2
EXIT_CUT = 3
"""Drained, but connections were cut at the drain deadline."""

ABORT_DEADLINE_S = 5.0
"""For the ends of connections that were cut: the engine has them within a millisecond."""
REFUSAL_EACH_S = 0.005
"""What is allowed for each client that is refused at the drain: a crowd is refused a few at a time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon, for whoever runs it inside its own process (tests)."""

    addresses: tuple[tuple[str, int], ...]
    counters: Counters
    fleet: Fleet
    provider: Providers
    engine: Engine
    handoff: HandOff
    recorder: Recorder | None
    """None if no ledger is kept."""
    health: HealthBoard
    accounts: Accounts
    arrivals: collections.Counter[SatelliteState]
    """How often satellites came into each state."""
    turns: TurnMeter
    metrics_addresses: tuple[tuple[str, int], ...]
    reload_certificates: Callable[[], None]
    """Read the listeners' certificates again; what cannot be read is logged, and the old ones stay."""
    drain: trio.Event
    """Set it to begin the drain."""

    def log_statistics(self) -> None:
        """Write every counter to the log: on SIGUSR1, and at the end."""
        counters = self.counters
        log.info(
            "statistics",
            extra={
                "fields": {
                    "accepted": counters.accepted,
                    "accept_errors": counters.accept_errors,
                    "spliced": self.handoff.live,
                    "fleet": dataclasses.asdict(self.fleet.statistics()),
                    "provider_calls": {" ".join(key): count for key, count in self.provider.call_counts.items()},
                    "outcomes": {outcome.value: count for outcome, count in counters.ended.items()},
                    "refusals": dict(counters.refusals),
                    "malformed": dict(counters.malformed),
                    "answers": dict(counters.answers),
                    "splice_ends": {reason.name.lower(): count for reason, count in self.handoff.ended.items()},
                    "cut_by_operator": self.handoff.cut_by_operator,
                    "engine": dataclasses.asdict(self.engine.statistics()),
                    "engine_turns": [dataclasses.asdict(turns) for turns in self.engine.thread_turns()],
                    "engine_cpu_s": [round(used_s, 3) for used_s in self.engine.thread_cpu_s()],
                    "held_bytes": self.accounts.held_bytes,
                    "strangers": self.accounts.strangers,
                    "limits_reached": dict(self.accounts.reached + self.fleet.crowd.reached),
                    "log": dataclasses.asdict(log_statistics()),
                    "turns": dataclasses.asdict(self.turns.statistics()),
                    "ledger": dataclasses.asdict(self.recorder.statistics()) if self.recorder else None,
                }
            },
        )


def run_serve(config_path: Path) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns the exit code. Raises ConfigErrors, OSError, TlsError."""
    config = load_config(config_path)
    fill_standard_descriptors()
    with daemon_log(config.daemon.log_format, config.daemon.log_level):
        set_up_garbage()
        try:
            return trio.run(_run_with_signals, config)
        except (OSError, TlsError):
            raise  # it could not start: for the command line to say
        except Exception:
            log.critical("the daemon crashed", exc_info=True)
            return EXIT_CRASHED


async def _run_with_signals(config: Config) -> int:
    """The root. What `serve` itself raises ends the daemon, since it has no owner but this; nothing else can."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1) as signals:
        cut = 0
        cannot_start: OSError | TlsError | None = None
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                nonlocal cut, cannot_start
                try:
                    cut = await serve(config, task_status=started)
                except (OSError, TlsError) as exc:  # not in a group: raised before anything was started
                    cannot_start = exc
                nursery.cancel_scope.cancel()

            started = _Started()
            nursery.start_soon(run)

            def well() -> bool:
                return started.daemon is None or not stuck_threads(started.daemon.engine)

            nursery.start_soon(run_owned, Owner("watchdog"), sd.run_watchdog, well)
            nursery.start_soon(run_owned, Owner("garbage"), run_garbage)
            async for number in signals:
                name = signal.Signals(number).name
                with contained(Owner("signal", name)):
                    log.info("signal", extra={"fields": {"signal": name}})
                    _act_on(signal.Signals(number), started.daemon, nursery.cancel_scope)
    if cannot_start is not None:
        raise cannot_start
    return EXIT_CUT if cut else EXIT_OK


def _act_on(number: signal.Signals, daemon: Daemon | None, everything: trio.CancelScope) -> None:
    """Do what a signal asks for. A daemon that has not started yet has nobody to drain: it ends at once."""
    match number:
        case signal.SIGHUP if daemon is not None:
            daemon.reload_certificates()
        case signal.SIGUSR1 if daemon is not None:
            daemon.log_statistics()
        case signal.SIGTERM | signal.SIGINT if daemon is not None:
            daemon.drain.set()
        case signal.SIGTERM | signal.SIGINT:
            everything.cancel()
        case _:
            log.warning("not started yet: the signal is passed over", extra={"fields": {"signal": number.name}})


class _Started(trio.TaskStatus[Daemon]):
    """Keeps the daemon for the signal loop and tells systemd that it is ready."""

    def __init__(self) -> None:
        self.daemon: Daemon | None = None

    def started(self, value: Daemon | None = None) -> None:
        """Called by `serve` once its ports are open."""
        self.daemon = value
        sd.notify("READY=1")


async def serve(config: Config, *, task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED) -> int:
    """Serve until the daemon's `drain` is set, then drain. Returns how many connections were cut.

    Raises OSError (a port is taken, TooFewDescriptors) or TlsError (a bad certificate) before anything is started.
    """
    given = soft_limit()
    descriptors = share_out(config, raise_limit())
    ktls = _ktls(config)
    ports = [_port(section, ktls) for section in config.listener]
    satellite_tls = {
        SatelliteKey(section.org, section.name): (
            _trust(section.tls, ktls),
            section.tls.server_name,
        )
        for section in config.satellite
        if section.tls is not None
    }
    sockets, metrics_sockets, control_socket = _open_sockets(config)
    engine = Engine(
        EngineOptions(
            threads=config.engine.threads,
            splice=config.engine.splice if descriptors.pipes else "off",
            pipes=descriptors.pipes,
            ktls=ktls,
            idle_timeout_s=config.engine.idle_timeout_s,
            half_closed_timeout_s=config.engine.half_closed_timeout_s,
        )
    )
    log.info("descriptors", extra={"fields": dataclasses.asdict(descriptors)})
    provider = providers_of(config, given if given < descriptors.limit else None)
    handoff = HandOff(engine)
    stores = open_stores(config.store)
    recorder = _recorder(config, stores)
    admission = Admission(config.token)

    arrivals: collections.Counter[SatelliteState] = collections.Counter()

    def observe(transition: Transition) -> None:
        _log_transition(transition)
        arrivals[transition.after] += 1
        health.change()
        if recorder is not None:
            recorder.record_nowait(transition)

    announcements = Announcements()
    fleet = Fleet(
        config.satellite,
        provider,
        observe,
        max_held=config.limits.max_held_per_satellite,
        max_held_in_all=config.limits.max_held,
        max_held_per_principal=config.limits.max_held_per_principal,
        budget=config.budget,
        coordination=stores.coordination,
        registry=stores.registry,
        witness=SatelliteWitness(satellite_tls, announcements.hear).ask,
        places=places_of(config),
    )
    health = HealthBoard(fleet)
    identities = Identities(admission, Certificates(config.certificate))
    edge = Edge(
        fleet=fleet,
        identities=identities,
        health=health,
        handoff=handoff,
        counters=Counters(),
        accounts=Accounts(
            account_limits_of(config.limits, descriptors.connections),
            trio.current_time,
            lambda: identities.principal_count,
        ),
        satellite_tls=satellite_tls,
        greetings=Deadlines(config.limits.greeting_deadline_s),
        announcements=announcements,
        stranger_age_s=config.limits.stranger_age_s,
        admit_below_fd=descriptors.admit_below,
    )
    listeners = [Listener(sock, port, edge) for port, opened in zip(ports, sockets, strict=True) for sock in opened]
    owners = [section for section, opened in zip(config.listener, sockets, strict=True) for _ in opened]
    reload = CertificateReload(list(zip(listeners, owners, strict=True)), lambda section: _port(section, ktls))
    control = ControlServer(control_socket, {"cut": cut_verb(handoff, fleet)}) if control_socket is not None else None

    def reload_certificates() -> None:
        reload.ask()
        # Whoever sends SIGHUP has done something: what only people can mend may be mended.
        fleet.reset()

    daemon = Daemon(
        tuple(listener.address for listener in listeners),
        edge.counters,
        fleet,
        provider,
        engine,
        handoff,
        recorder,
        health,
        edge.accounts,
        arrivals,
        TurnMeter(),
        tuple(sock.getsockname()[:2] for sock in metrics_sockets),
        reload_certificates,
        trio.Event(),
    )
    trio.lowlevel.add_instrument(daemon.turns)
    try:
        async with trio.open_nursery() as nursery:
            if recorder is not None:
                nursery.start_soon(run_owned, Owner("recorder"), recorder.run_recorder)
            if stores.registry is not None:
                tokens = (run_token_refresh, stores.registry, admission, cut_principal(handoff))
                await nursery.start(start_owned, Owner("tokens"), *tokens)
            await nursery.start(start_owned, Owner("coordination"), stores.coordination.run)
            if stores.check_fleet is not None:
                nursery.start_soon(run_owned, Owner("fleet check"), stores.check_fleet, config.ec2.fleet)
            await nursery.start(start_owned, Owner("providers"), provider.run)
            await nursery.start(start_owned, Owner("fleet"), fleet.run)
            nursery.start_soon(run_owned, Owner("hand-off"), handoff.run_handoff)
            nursery.start_soon(run_owned, Owner("engine watch"), run_engine_watch, engine)
            nursery.start_soon(run_owned, Owner("deadlines"), edge.greetings.run_deadlines)
            nursery.start_soon(run_owned, Owner("certificates"), reload.run_reload)
            if control is not None:
                nursery.start_soon(run_owned, Owner("control"), control.run_control)
            metrics = MetricsServer(metrics_sockets, make_registry(daemon))
            nursery.start_soon(run_owned, Owner("metrics"), metrics.run_metrics)
            cut = await _serve_until_drained(config, daemon, listeners, task_status)
            nursery.cancel_scope.cancel()
    finally:
        if control is not None:
            control.close()
        with contextlib.suppress(KeyError):  # Trio has removed one that failed
            trio.lowlevel.remove_instrument(daemon.turns)
        with trio.CancelScope(shield=True):
            await provider.aclose()
        engine.close()
    return cut


async def _serve_until_drained(
    config: Config, daemon: Daemon, listeners: list[Listener], task_status: trio.TaskStatus[Daemon]
) -> int:
    async with trio.open_nursery() as sessions:
        async with trio.open_nursery() as accepting:
            for listener in listeners:
                accepting.start_soon(
                    run_owned, Owner("listener", str(listener.address)), listener.run_listener, sessions
                )
            for host, port in daemon.addresses:
                log.info("listening", extra={"fields": {"host": host, "port": port}})
            for host, port in daemon.metrics_addresses:
                log.info("metrics", extra={"fields": {"host": host, "port": port}})
            task_status.started(daemon)
            await daemon.drain.wait()
            accepting.cancel_scope.cancel()
        sd.notify("STOPPING=1")
        log.info("draining", extra={"fields": {"spliced": daemon.handoff.live}})
        for drain in (daemon.health.drain, daemon.fleet.drain):
            with contained(Owner("drain", drain.__qualname__)):
                drain()
        with trio.move_on_after(config.daemon.drain_deadline_s):
            await daemon.handoff.wait_none()
        cut = daemon.handoff.live
        with contained(Owner("drain", "cut")):
            daemon.handoff.abort_all()
        with trio.move_on_after(ABORT_DEADLINE_S):
            await daemon.handoff.wait_none()
        # Refusals still have to be read by their clients.
        each_s = REFUSAL_EACH_S * len(sessions.child_tasks)
        sessions.cancel_scope.deadline = trio.current_time() + REFUSAL_DEADLINE_S + each_s
    with contained(Owner("drain", "statistics")):
        daemon.log_statistics()
    log.info("drained", extra={"fields": {"cut": cut}})
    return cut


def _ktls(config: Config) -> Ktls:
    encrypted = any(each.tls for each in config.listener) or any(each.tls for each in config.satellite)
    if config.engine.ktls == "off" or not encrypted:
        return Ktls.NONE
    usable, words = ktls_self_test()
    log.info("kTLS", extra={"fields": {"spliced": str(usable), "found": words}})
    return usable


def _trust(section: SatelliteTlsSection, ktls: Ktls) -> TlsClientContext:
    """What a satellite is trusted by. Raises TlsError, naming the file."""
    context = TlsClientContext(ca=section.ca, certificate=section.certificate, key=section.key)
    if ktls:
        context.enable_ktls()
    return context


def _port(section: ListenerSection, ktls: Ktls) -> Port:
    """Read a listener's certificates. Raises TlsError, naming the file."""
    proxies = Proxies(section.proxy_protocol.networks if section.proxy_protocol is not None else ())
    if section.tls is None:
        return Port(proxies=proxies, one_request=section.one_request_per_connection)
    context = TlsServerContext(section.tls.certificate, section.tls.key, client_ca=section.tls.client_ca)
    if ktls:
        context.enable_ktls()
    for more in section.tls.more:
        context.add(TlsServerContext(more.certificate, more.key))
    return Port(context, section.tls.satellite_domain, proxies, section.one_request_per_connection)


def _open_sockets(config: Config) -> tuple[list[list[socket.socket]], list[socket.socket], socket.socket | None]:
    """Open each listener's sockets, those for metrics, and the control socket. Raises OSError, with none left open."""
    passed = sd.listen_sockets()
    opened: list[list[socket.socket]] = []
    metrics: list[socket.socket] = []
    control_path = config.control.socket_path()
    try:
        for section in config.listener:
            if section.address is not None:
                opened.append(bind(*section.address))
            elif section.systemd in passed:
                opened.append(passed[section.systemd])
            else:
                raise OSError(f"listener: systemd passed no socket named {section.systemd!r}, only {sorted(passed)}")
        if config.metrics.address is not None:
            metrics = bind(*config.metrics.address)
        control = open_control_socket(control_path) if control_path is not None else None
    except OSError:
        for sock in (sock for group in (*opened, metrics) for sock in group):
            sock.close()
        raise
    return opened, metrics, control


def _recorder(config: Config, stores: Stores) -> Recorder | None:
    if stores.ledger is None:
        return None
    return Recorder(stores.ledger, [SatelliteKey(section.org, section.name) for section in config.satellite])


def _log_transition(transition: Transition) -> None:
    log.info(
        "satellite",
        extra={
            "fields": {
                "satellite": str(transition.key),
                "before": transition.before.value,
                "after": transition.after.value,
                "at": round(transition.at, 6),
                "cause": transition.cause,
            }
        },
    )
