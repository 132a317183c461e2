"""The composition root of the daemon: builds the parts, starts them in order, drains and stops them.

The tree of tasks: serve > {provider > satellites' processes}, fleet > one nursery per satellite, hand-off,
sessions > one task per connection until hand-off, listeners, watchdog, signals.
"""

import dataclasses
import logging
import signal
import socket
from pathlib import Path

import trio

from bentpipe.config.load import load_config
from bentpipe.config.model import Config, ListenerSection
from bentpipe.daemon.edge.admission import Admission
from bentpipe.daemon.edge.handoff import HandOff
from bentpipe.daemon.edge.health import HealthBoard
from bentpipe.daemon.edge.identity import Certificates, Identities
from bentpipe.daemon.edge.listener import Connections, Listener, bind
from bentpipe.daemon.edge.opening import Port
from bentpipe.daemon.edge.outcomes import Counters
from bentpipe.daemon.edge.session import REFUSAL_DEADLINE_S, Edge
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.model import MachineId, SatelliteKey, Transition
from bentpipe.daemon.providers.process import ProcessProvider
from bentpipe.daemon.service import sd
from bentpipe.daemon.service.log import set_up_logging
from bentpipe.native.engine import Engine, EngineOptions
from bentpipe.native.tls import TlsClientContext, TlsServerContext

log = logging.getLogger("bentpipe")

EXIT_OK = 0
EXIT_CONFIG = 2
EXIT_CUT = 3
"""Drained, but connections were cut at the drain deadline."""


@dataclasses.dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon, for whoever runs it inside its own process (tests)."""

    addresses: tuple[tuple[str, int], ...]
    counters: Counters
    fleet: Fleet
    engine: Engine
    handoff: HandOff
    health: HealthBoard
    drain: trio.Event
    """Set it to begin the drain."""


def run_serve(config_path: Path) -> int:
    """Run the daemon until SIGTERM or SIGINT. Returns the exit code. Raises ConfigErrors, OSError, TlsError."""
    config = load_config(config_path)
    set_up_logging(config.daemon.log_format, config.daemon.log_level)
    return trio.run(_run_with_signals, config)


async def _run_with_signals(config: Config) -> int:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        cut = 0
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                nonlocal cut
                cut = await serve(config, task_status=started)
                nursery.cancel_scope.cancel()

            started = _Started()
            nursery.start_soon(run)
            nursery.start_soon(sd.run_watchdog)
            async for number in signals:
                log.info("signal", extra={"fields": {"signal": signal.Signals(number).name}})
                await started.wait()
                if started.daemon is not None:
                    started.daemon.drain.set()
    return EXIT_CUT if cut else EXIT_OK


class _Started(trio.TaskStatus[Daemon]):
    """Keeps the daemon for the signal loop and tells systemd that it is ready."""

    def __init__(self) -> None:
        self.daemon: Daemon | None = None
        self._ready = trio.Event()

    def started(self, value: Daemon | None = None) -> None:
        """Called by `serve` once its ports are open."""
        self.daemon = value
        self._ready.set()
        sd.notify("READY=1")

    async def wait(self) -> None:
        """Return when the daemon is ready."""
        await self._ready.wait()


async def serve(config: Config, *, task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED) -> int:
    """Serve until the daemon's `drain` is set, then drain. Returns how many connections were cut.

    Raises OSError (a port is taken) or TlsError (a bad certificate) before anything is started.
    """
    ports = [_port(section) for section in config.listener]
    satellite_tls = {
        SatelliteKey(section.org, section.name): (
            TlsClientContext(ca=section.tls.ca, certificate=section.tls.certificate, key=section.tls.key),
            section.tls.server_name,
        )
        for section in config.satellite
        if section.tls is not None
    }
    sockets = _open_sockets(config)
    engine = Engine(
        EngineOptions(
            threads=config.engine.threads,
            splice=config.engine.splice,
            idle_timeout_s=config.engine.idle_timeout_s,
            half_closed_timeout_s=config.engine.half_closed_timeout_s,
        )
    )
    provider = ProcessProvider(
        {
            MachineId(f"{section.org}.{section.name}"): section.process
            for section in config.satellite
            if section.process is not None
        }
    )
    handoff = HandOff(engine)
    fleet = Fleet(
        config.satellite,
        provider,
        lambda transition: _tell_transition(transition, health),
        max_held=config.limits.max_held_per_satellite,
    )
    health = HealthBoard(fleet)
    edge = Edge(
        fleet=fleet,
        identities=Identities(Admission(config.token), Certificates(config.certificate)),
        health=health,
        handoff=handoff,
        counters=Counters(),
        satellite_tls=satellite_tls,
        greeting_deadline_s=config.limits.greeting_deadline_s,
    )
    connections = Connections(config.limits.max_connections, config.limits.max_connections_per_address)
    listeners = [
        Listener(sock, port, edge, connections) for port, opened in zip(ports, sockets, strict=True) for sock in opened
    ]
    daemon = Daemon(
        tuple(listener.address for listener in listeners), edge.counters, fleet, engine, handoff, health, trio.Event()
    )
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(provider.run)
            await nursery.start(fleet.run)
            nursery.start_soon(handoff.run_handoff)
            cut = await _serve_until_drained(config, daemon, listeners, task_status)
            nursery.cancel_scope.cancel()
    finally:
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
                accepting.start_soon(listener.run_listener, sessions)
            for host, port in daemon.addresses:
                log.info("listening", extra={"fields": {"host": host, "port": port}})
            task_status.started(daemon)
            await daemon.drain.wait()
            accepting.cancel_scope.cancel()
        sd.notify("STOPPING=1")
        log.info("draining", extra={"fields": {"spliced": daemon.handoff.live}})
        daemon.health.drain()
        daemon.fleet.drain()
        with trio.move_on_after(config.daemon.drain_deadline_s):
            await daemon.handoff.wait_none()
        cut = daemon.handoff.abort_all()
        await daemon.handoff.wait_none()
        # Refusals still have to be read by their clients.
        sessions.cancel_scope.deadline = trio.current_time() + REFUSAL_DEADLINE_S
    log.info("drained", extra={"fields": {"cut": cut}})
    return cut


def _port(section: ListenerSection) -> Port:
    if section.tls is None:
        return Port()
    context = TlsServerContext(section.tls.certificate, section.tls.key, client_ca=section.tls.client_ca)
    return Port(context, section.tls.satellite_domain)


def _open_sockets(config: Config) -> list[list[socket.socket]]:
    """Open each listener's sockets. Raises OSError, with none left open."""
    passed = sd.listen_sockets()
    opened: list[list[socket.socket]] = []
    try:
        for section in config.listener:
            if section.address is not None:
                opened.append(bind(*section.address))
            elif section.systemd in passed:
                opened.append(passed[section.systemd])
            else:
                raise OSError(f"listener: systemd passed no socket named {section.systemd!r}, only {sorted(passed)}")
    except OSError:
        for sock in (sock for group in opened for sock in group):
            sock.close()
        raise
    return opened


def _tell_transition(transition: Transition, health: HealthBoard) -> None:
    health.change()
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
