"""The process of `bentpipe dataplane`: builds the data plane of a configuration, runs it, drains it.

It must never import the fleet, the store, a provider or the API: tests/daemon/dataplane/test_process.py looks at what the
process has loaded.
"""

import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import logging
import math
import secrets
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import trio

from bentpipe.config.load import load_config
from bentpipe.config.model import Config, ListenerSection
from bentpipe.daemon.connections.deadlines import Deadlines
from bentpipe.daemon.connections.descriptors import ENGINE_THREAD_FDS, divide, engine_threads, raise_limit
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.greeters import Greeters
from bentpipe.daemon.connections.listener import Door, Gate, Listener, defer_accept, listen_for
from bentpipe.daemon.connections.outcomes import ConnectionCounters
from bentpipe.daemon.connections.port import Port, find_ktls, read_port
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.connections.satellite_tls import satellite_tls_of, type_tls_of
from bentpipe.daemon.dataplane.counted import counters_record
from bentpipe.daemon.dataplane.handover import HandoverServer, TakenListeners, name_of, place_number, take_listeners
from bentpipe.daemon.dataplane.plane import DataPlane, PlaneActions
from bentpipe.daemon.dataplane.plane_socket import PlaneSocket
from bentpipe.daemon.dataplane.seat import SeatServer
from bentpipe.daemon.dataplane.trusts import Trusts
from bentpipe.daemon.dataplane.unoffered import UnofferedEnds
from bentpipe.daemon.planes.bounds import FIRST_BYTES, PARKED_CLIENTS, PARKED_S
from bentpipe.daemon.planes.records import LISTENER_COUNTERS, PORT_COUNTERS, LimitsRecord
from bentpipe.daemon.planes.snapshots import boot_us
from bentpipe.daemon.planes.sockets import make_private_folder, plane_socket_path
from bentpipe.daemon.records.book import Book
from bentpipe.daemon.service import sd
from bentpipe.daemon.service.engine_priority import give_way_to_engine, start_engine
from bentpipe.daemon.service.engine_watch import run_engine_watch, stuck_threads
from bentpipe.daemon.service.garbage import run_garbage, set_up_garbage
from bentpipe.daemon.service.log_handler import daemon_log, fill_standard_descriptors
from bentpipe.daemon.service.plane_form import planes_folder, remove_own
from bentpipe.daemon.service.plane_reload import PlaneReload
from bentpipe.daemon.tasks import Owner, contained, run_owned
from bentpipe.native.engine import Engine, Ktls
from bentpipe.native.joiner import Joiner
from bentpipe.native.opener import Opener

log = logging.getLogger("bentpipe.dataplane")

EXIT_OK, EXIT_CUT = 0, 3
"""3: drained, but connections were cut at the deadline."""

BASE_FDS = 96
"""What the process needs besides connections, twice: Python, Trio, control planes, certificates, names, systemd."""
COUNT_S = 1.0
"""Between two COUNTERS records."""
ABORT_DEADLINE_S = 5.0
DRAINED_LOOK_S = 0.2
ABANDONED_S = 600.0
"""Without a control plane: then a data plane that has no connections ends, unless systemd runs it. Somebody who starts the
daemon again after a crash does so earlier; and a data plane that nobody needs must not keep the ports for ever."""
NOBODY_COMES = '[daemon] data_plane is "inside": no control plane would come to a data plane of this configuration'


def digest_of(config: Config) -> bytes:
    """SHA-256 of what both planes must know alike: listeners and the satellites' TLS."""
    parts = [section.model_dump_json() for section in (*config.listener, *config.satellite, *config.machine_type)]
    return hashlib.sha256("\n".join(parts).encode()).digest()


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    """What could fail for reasons that the operator must mend."""

    config: Config
    ktls: Ktls
    ports: tuple[tuple[int, ListenerSection, Port, socket.socket], ...]
    config_path: Path
    trust: dict[str, SatelliteTls]
    """The satellites', by the names that OPEN uses."""
    engine: Engine
    opener: Opener
    joiner: Joiner
    quotas: Quotas
    descriptors: int
    """How many connections they allow."""
    admit_below_fd: int
    control: PlaneSocket
    taken: TakenListeners
    handover: HandoverServer


def _trust_of(config: Config, ktls: Ktls) -> dict[str, SatelliteTls]:
    """By the names that OPEN uses."""
    satellites = {tls.trust: tls for tls in satellite_tls_of(config, ktls).values()}
    types = {tls.trust: tls for tls in type_tls_of(config, ktls).values()}
    return satellites | types


def _open(config: Config, path_of_config: Path, folder: Path) -> _Opened:
    """Raises OSError, TlsError."""
    limit = raise_limit()
    threads = engine_threads(config)
    reserve = BASE_FDS + 2 * threads * ENGINE_THREAD_FDS + len(config.listener)
    descriptors = divide(config, limit, reserve)
    ktls = find_ktls(config)
    spoken = [read_port(section, ktls) for section in config.listener]
    trust = _trust_of(config, ktls)
    with contextlib.ExitStack() as opened:
        make_private_folder(folder)
        path = plane_socket_path(folder, secrets.token_hex(4))
        engine = start_engine(config, descriptors, ktls)
        opened.callback(engine.close)
        give_way_to_engine(config)  # after the engine's threads, before the others, which inherit it
        opener = Opener(threads, FIRST_BYTES)
        opened.callback(opener.close)
        joiner = Joiner()
        opened.callback(joiner.close)
        taken = take_listeners(folder)
        opened.callback(taken.give_up)
        ports = _listen(config, spoken, taken, opened)
        handover = HandoverServer(folder, path.name, [(name_of(section), sock) for _, section, _, sock in ports])
        make_private_folder(folder)  # again: a data plane that ended meanwhile may have removed it
        control = PlaneSocket(path)
        taken.close_unused([sock for _, _, _, sock in ports])
        opened.pop_all()
    quotas = Quotas(plane_limits(config, descriptors.connections), trio.current_time)
    return _Opened(
        *(config, ktls, ports, path_of_config, trust, engine, opener, joiner, quotas),
        *(descriptors.connections, descriptors.admit_below, control, taken, handover),
    )


def _listen(
    config: Config, spoken: Sequence[Port], taken: TakenListeners, opened: contextlib.ExitStack
) -> tuple[tuple[int, ListenerSection, Port, socket.socket], ...]:
    """Use the sockets that systemd or an older data plane has passed, and open the others. Raises OSError."""
    passed = sd.listen_sockets()
    ports = []
    for index, (section, port) in enumerate(zip(config.listener, spoken, strict=True)):
        known = [defer_accept(sock, section) for sock in taken.sockets.get(name_of(section), [])]
        if section.systemd is not None and section.systemd in passed:
            known = []
        for sock in known or listen_for(section, passed):
            if section.address is not None and not known:
                opened.enter_context(sock)
            ports.append((index, section, port, sock))
    return tuple(ports)


def plane_limits(config: Config, connections: int) -> QuotaLimits:
    """The limits of clients that no control plane has heard of yet. It limits all others itself."""
    clients = max(1, min(PARKED_CLIENTS, connections - 1))
    return QuotaLimits(
        strangers=clients,
        strangers_bytes=config.limits.bytes_for_strangers,
        per_prefix=min(config.limits.max_connections_per_address, clients),
        admitted=connections,
    )


class PlaneProcess:
    """All parts of the data plane."""

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        config = opened.config
        self._counters = ConnectionCounters()
        self._greetings = Deadlines(config.limits.greeting_deadline_s)
        self._door = Door()
        self._drain = trio.Event()
        self._parked = Quotas(plane_limits(config, opened.descriptors), trio.current_time)
        """Of clients that have said something, until they are offered. `opened.quotas` are for those that have not."""
        self._drain_until = math.inf
        self._places = {f"{LISTENER_COUNTERS}{at}": place_number(each) for at, each in enumerate(config.listener)}
        """Where the listeners are: see LISTENER_COUNTERS."""
        self._seated_at = math.inf
        """When a control plane sat last, or this process began; infinite before that."""
        actions = PlaneActions(
            self._limit,
            lambda record: self._files.take_credential(record),
            lambda: self._files.reload(),
            self.drain,
            self._tell_counters,
        )
        self._plane = DataPlane(
            *(opened.engine, opened.opener, opened.joiner, self._counters, self._greetings, self._parked),
            *(Trusts(lambda name: self._files.find(name), opened.ktls), actions, Greeters(config.daemon.greeting)),
        )
        self._unoffered = UnofferedEnds(self._plane.reports)
        book = Book({"control plane": self._unoffered.note})
        gate = Gate(opened.quotas, self._counters, book, opened.admit_below_fd, self._door)
        self._most_clients = plane_limits(config, opened.descriptors).strangers
        self._listeners = [
            Listener(sock, port, gate, self._plane.openings.beginning(index)) for index, _, port, sock in opened.ports
        ]
        sections = [section for _, section, _, _ in opened.ports]
        self._files = PlaneReload(
            opened.config_path,
            config,
            list(zip(self._listeners, sections, strict=True)),
            opened.trust,
            lambda section: read_port(section, opened.ktls),
            lambda now: _trust_of(now, opened.ktls),
        )
        build = importlib.metadata.version("bentpipe")
        name = opened.control.path.name
        self._seat = SeatServer(self._plane, opened.control, name, build, digest_of(config))

    # -- what the control plane may ask ------------------------------------------------------------------------------

    def _limit(self, limits: LimitsRecord) -> None:
        if limits.greeting_ms:
            self._greetings.seconds = limits.greeting_ms / 1000
        self._opened.opener.limit(limits.handshakes_per_s)
        most = self._most_clients
        self._opened.quotas.limit_strangers(min(limits.clients or most, most), limits.per_prefix)
        self._parked.limit_strangers(most, limits.per_prefix)

    def drain(self, deadline_s: float | None) -> None:
        """Accept no more; end when the last connection has ended, or at the deadline. A later call changes the deadline."""
        self._drain_until = math.inf if deadline_s is None else trio.current_time() + deadline_s
        if deadline_s is not None:
            sd.notify("STOPPING=1")  # not without a deadline: systemd would begin to count TimeoutStopSec=
        self._drain.set()

    # -- tasks -------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until drained. Returns how many connections were cut."""
        opened, plane = self._opened, self._plane
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_owned, Owner("engine watch"), run_engine_watch, plane.threads)
                nursery.start_soon(run_owned, Owner("splice ends"), plane.joined.run_ends)
                nursery.start_soon(run_owned, Owner("clients"), plane.line.run_line)
                nursery.start_soon(run_owned, Owner("room"), plane.streams.run_room)
                nursery.start_soon(run_owned, Owner("admissions"), plane.admissions.run_admissions)
                nursery.start_soon(run_owned, Owner("deadlines"), self._greetings.run_deadlines)
                nursery.start_soon(run_owned, Owner("certificates"), self._files.run_reload)
                nursery.start_soon(run_owned, Owner("certificate watch"), self._files.watch.run_watch)
                nursery.start_soon(run_owned, Owner("counters"), self._count)
                nursery.start_soon(run_owned, Owner("door"), self._keep_door)
                nursery.start_soon(run_owned, Owner("seat"), self._seat.run_seats)
                nursery.start_soon(run_owned, Owner("garbage"), run_garbage)
                owner = Owner("watchdog")
                nursery.start_soon(run_owned, owner, sd.run_watchdog, lambda: not stuck_threads(plane.threads()))
                nursery.start_soon(run_owned, Owner("signals"), self._obey_signals)
                nursery.start_soon(run_owned, Owner("handover"), self._hand_over)
                async with trio.open_nursery() as sessions:
                    sessions.start_soon(run_owned, Owner("openings"), plane.openings.run_openings)
                    sessions.start_soon(run_owned, Owner("streams"), plane.streams.run_news)
                    await self._accept_until_drained(sessions)
                    cut = await self._wait_drained()
                    sessions.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
        finally:
            self._seat.leave()
            opened.control.close()
            opened.handover.close()
            remove_own(opened.control.path.parent)
            opened.engine.close()
        return cut

    async def _accept_until_drained(self, sessions: trio.Nursery) -> None:
        async with trio.open_nursery() as accepting:
            for listener in self._listeners:
                owner = Owner("listener", str(listener.address))
                accepting.start_soon(run_owned, owner, listener.run_listener, sessions)
                log.info("listening", extra={"fields": dict(zip(("host", "port"), listener.address, strict=True))})
            log.info("data plane", extra={"fields": {"socket": str(self._opened.control.path)}})
            sd.notify("READY=1")
            await trio.lowlevel.checkpoint()  # the listeners accept from here on
            self._opened.taken.confirm()
            await self._drain.wait()
            self._opened.handover.close()
            accepting.cancel_scope.cancel()

    async def _wait_drained(self) -> int:
        plane = self._plane
        log.info("draining", extra={"fields": {"connections": plane.connections}})
        while plane.connections or (plane.joined.ends_waiting_for_seat and not self._is_left):
            if trio.current_time() >= self._drain_until:
                break
            await trio.sleep(DRAINED_LOOK_S)
        cut = len(plane.joined)
        plane.joined.end_all()
        with trio.move_on_after(ABORT_DEADLINE_S):
            await plane.joined.wait_none()
        log.info("drained", extra={"fields": {"cut": cut}})
        self._tell_counters()  # what was counted since the last time
        return cut

    @property
    def _is_left(self) -> bool:
        """Whether no control plane comes any more: if everything is being stopped, the control plane has gone first."""
        return math.isfinite(self._drain_until) and trio.current_time() - self._seated_at > PARKED_S

    async def _hand_over(self) -> None:
        with contextlib.suppress(trio.ClosedResourceError):  # it drains already
            await self._opened.handover.run_handover()
            log.info("a newer data plane has taken the listening sockets")
            self.drain(None)

    def _tell_counters(self) -> None:
        sockets = [sock for _, _, _, sock in self._opened.ports if sock.fileno() >= 0 and sock.family != socket.AF_UNIX]
        listening = {f"{PORT_COUNTERS}{number}": int(sock.getsockname()[1]) for number, sock in enumerate(sockets)}
        listening |= self._places
        reached = self._opened.quotas.reached + self._parked.reached
        parts = (self._plane, self._counters, reached, self._opened.engine, listening, self._files.watch.ends)
        untold = self._unoffered.untold
        self._plane.reports.send(counters_record(*parts, draining=self._drain.is_set(), untold=untold))

    async def _count(self) -> None:
        while True:
            await trio.sleep(COUNT_S)
            if self._seat.is_taken:
                self._tell_counters()

    async def _keep_door(self) -> None:
        """While no control plane comes, new clients wait in the kernel's queue, not here."""
        self._seated_at = trio.current_time()
        while True:
            await trio.sleep(COUNT_S)
            if self._seat.is_taken:
                self._seated_at = trio.current_time()
            if self._seat.is_taken or self._plane.tables.may_admit(boot_us()):
                self._door.open()
            elif trio.current_time() - self._seated_at > PARKED_S and self._door.is_open:
                self._door.shut()
                log.warning("no control plane comes: new clients wait in the kernel's queue")
            away_s = trio.current_time() - self._seated_at
            if away_s > ABANDONED_S and not self._drain.is_set() and self._is_abandoned():
                fields = {"away_s": round(away_s)}
                log.warning(
                    "no control plane has come, and no client is connected: this ends", extra={"fields": fields}
                )
                self.drain(0)

    def _is_abandoned(self) -> bool:
        """Whether nothing needs this process. One that is a unit of systemd waits for its control plane."""
        return not self._plane.connections and not sd.is_service()

    async def _obey_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1) as signals:
            async for number in signals:
                name = signal.Signals(number).name
                with contained(Owner("signal", name)):
                    log.info("signal", extra={"fields": {"signal": name}})
                    if number in (signal.SIGTERM, signal.SIGINT):
                        self.drain(self._opened.config.daemon.drain_deadline_s)
                    elif number == signal.SIGHUP:
                        self._files.ask()


def run_data_plane(config_path: Path, planes: Path | None = None) -> int:
    """Run a data plane until it is drained. `planes` is the folder of its socket by the command line.

    Returns the exit code. Raises ConfigErrors, OSError, TlsError.
    """
    config = load_config(config_path, check_files=False)  # what it needs is read at once, and said in words
    if config.daemon.data_plane == "inside":
        raise OSError(errno.EINVAL, NOBODY_COMES)
    folder = planes_folder(config, config_path, planes)
    fill_standard_descriptors()
    with daemon_log(config.daemon.log_format, config.daemon.log_level):
        set_up_garbage()
        return EXIT_CUT if trio.run(_main, config, config_path, folder) else EXIT_OK


async def _main(config: Config, config_path: Path, folder: Path) -> int:
    return await PlaneProcess(_open(config, config_path, folder)).run()
