"""Runs a daemon's parts as one tree of tasks, drains it and stops it.

    run_daemon > data planes, if they are processes of their own
               > providers > satellites' processes, looks at EC2
               > fleet > one nursery a satellite
               > satellite authority, machine identities, enrolment
               > provisioning, registrar: satellites that are launched, registered or removed
               > reserve: machines that are launched ahead
               > hand-off, engine watch, deadlines, reload, certificate watch, coordination, control, metrics
               > recorder, rolling up of old days
               > tokens, signing key, OIDC keys
               > sessions > one task a connection until its hand-off
                          > listeners

Each task has an owner (`daemon/tasks.py`), so none of them can end another.
"""

import contextlib
import functools
import logging
from collections.abc import Callable

import trio

from bentpipe.daemon.edge.session import REFUSAL_DEADLINE_S
from bentpipe.daemon.records.record import LOST, PASSED_ON
from bentpipe.daemon.service import sd
from bentpipe.daemon.service.admin_sockets import place_of
from bentpipe.daemon.service.cutting import cut_revoked
from bentpipe.daemon.service.engine_watch import run_engine_watch
from bentpipe.daemon.service.metrics_server import MetricsServer
from bentpipe.daemon.service.parts import Daemon
from bentpipe.daemon.service.planes import PlaneUnusable
from bentpipe.daemon.service.statistics import log_daemon_statistics
from bentpipe.daemon.service.tokens import run_token_refresh
from bentpipe.daemon.tasks import Owner, contained, run_owned, start_owned

log = logging.getLogger("bentpipe")

ABORT_DEADLINE_S = 5.0
"""For the ends of connections that were cut: the engine has them within a millisecond."""
LEAVE_S = 0.5
"""For the goodbyes to clients of the control API and of health checks, before a control plane leaves its data plane."""
REFUSAL_EACH_S = 0.005
"""Time for each client that is refused at the drain, since many clients are refused a few at a time."""


async def run_daemon(daemon: Daemon, *, task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED) -> int:
    """Serve until the daemon's `drain` is set, then drain. Returns how many connections were cut.

    `task_status` is told once the ports are open. At the end nothing of the daemon is left: no process, socket or thread.
    """
    trio.lowlevel.add_instrument(daemon.turns)
    unusable: PlaneUnusable | None = None
    cut = 0
    try:
        async with trio.open_nursery() as nursery:
            try:
                await _start_parts(daemon, nursery)
            except PlaneUnusable as exc:
                unusable = exc  # raised below, and not in a group
                nursery.cancel_scope.cancel()
                await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as sessions:
                await _accept_until_drained(daemon, sessions, task_status)
                cut = await (_leave(daemon, sessions) if daemon.leave.is_set() else _drain(daemon, sessions))
            if daemon.planes is not None and not daemon.leave.is_set():
                await daemon.planes.wait_ended()
            with contained(Owner("drain", "statistics")):
                log_daemon_statistics(daemon)
            with contained(Owner("drain", "records")):
                daemon.edge.book.close_all(PASSED_ON if daemon.leave.is_set() else LOST)
            log.info("drained", extra={"fields": {"cut": cut}})
            nursery.cancel_scope.cancel()
    finally:
        await _close(daemon)
    if unusable is not None:
        raise unusable
    return cut


async def _start_parts(daemon: Daemon, nursery: trio.Nursery) -> None:
    """Start all parts except the listeners, and wait for those that other parts need."""
    edge, ports, stores = daemon.edge, daemon.ports, daemon.records.stores
    if daemon.planes is not None:
        # Before anything else: a client that is spliced already uses its satellite.
        await daemon.planes.start(edge, nursery)
        if daemon.recorder is not None:
            daemon.recorder.in_use = daemon.planes.adopted
    if daemon.recorder is not None:
        nursery.start_soon(run_owned, Owner("recorder"), daemon.recorder.run_recorder)
    if daemon.rolling is not None:
        nursery.start_soon(run_owned, Owner("recorder", "days"), daemon.rolling.run_rolling)
    account_parts = daemon.account_parts
    if stores.registry is not None and stores.accounts is not None:
        refresh = (stores.registry, stores.accounts, account_parts.admission, cut_revoked(edge.handoff))
        await nursery.start(start_owned, Owner("tokens"), run_token_refresh, *refresh)
    await account_parts.start(nursery)
    daemon.api_news.start(nursery)
    await nursery.start(start_owned, Owner("coordination"), stores.coordination.run)
    if daemon.planes is not None:
        await daemon.planes.enter_all(stores.coordination)
    if stores.check_fleet is not None:
        nursery.start_soon(run_owned, Owner("fleet check"), stores.check_fleet, daemon.config.ec2.fleet)
    if daemon.satellite_ca is not None:
        await daemon.satellite_ca.start(nursery, edge.fleet)
    await nursery.start(start_owned, Owner("providers"), daemon.provider.run)
    await nursery.start(start_owned, Owner("fleet"), edge.fleet.run)
    if daemon.provisioner is not None:
        await nursery.start(start_owned, Owner("provisioning"), daemon.provisioner.run_provisioning)
    if daemon.reserve is not None:
        nursery.start_soon(run_owned, Owner("reserve"), daemon.reserve.run_keeper)
    if daemon.registrar is not None:
        await nursery.start(start_owned, Owner("registrar"), daemon.registrar.run_registrar)
    daemon.records.connections.start(nursery)
    nursery.start_soon(run_owned, Owner("hand-off"), edge.handoff.run_handoff)
    if daemon.engine is not None:
        nursery.start_soon(run_owned, Owner("engine watch"), run_engine_watch, daemon.engine.threads)
    nursery.start_soon(run_owned, Owner("deadlines"), edge.greetings.run_deadlines)
    if edge.gatekeeper is not None:
        nursery.start_soon(run_owned, Owner("gates"), edge.gatekeeper.run_gates)
        nursery.start_soon(run_owned, Owner("gates", "tokens"), edge.gatekeeper.run_grants)
    nursery.start_soon(run_owned, Owner("reload"), daemon.reloader.run_reloads)
    nursery.start_soon(run_owned, Owner("satellite changes"), daemon.changes.run_changes)
    nursery.start_soon(run_owned, Owner("certificate watch"), daemon.certificate_watch.run_watch)
    if ports.control is not None:
        nursery.start_soon(run_owned, Owner("control"), ports.control.run_control)
    if ports.local_api is not None:
        nursery.start_soon(run_owned, Owner("local api"), ports.local_api.run_local_api)
    nursery.start_soon(run_owned, Owner("metrics"), MetricsServer(ports.metrics, daemon).run_metrics)
    nursery.start_soon(run_owned, Owner("page"), daemon.page.run_page, functools.partial(_serve_page, daemon))


async def _serve_page(daemon: Daemon) -> None:
    # Imported here: a daemon without the page needs no templates.
    from bentpipe.daemon.service.admin import make_admin

    if daemon.config.admin is not None:
        await make_admin(daemon, daemon.config.admin).run_admin()


async def _accept_until_drained(daemon: Daemon, sessions: trio.Nursery, task_status: trio.TaskStatus[Daemon]) -> None:
    async with trio.open_nursery() as accepting:
        for listener in daemon.ports.listeners:
            accepting.start_soon(run_owned, Owner("listener", str(listener.address)), listener.run_listener, sessions)
        if daemon.planes is not None:
            daemon.planes.serve(sessions)  # its log has said where it listens
            log.info("serving", extra={"fields": {"spliced": daemon.handoff.live}})
        else:
            for host, port in daemon.addresses:
                log.info("listening", extra={"fields": {"host": host, "port": port}})
        for host, port in daemon.metrics_addresses:
            log.info("metrics", extra={"fields": {"host": host, "port": port}})
        for sock in daemon.ports.admin.all:
            log.info("page", extra={"fields": {"at": place_of(sock)}})
        daemon.accepting.set()
        task_status.started(daemon)
        await daemon.drain.wait()
        accepting.cancel_scope.cancel()


async def _leave(daemon: Daemon, sessions: trio.Nursery) -> int:
    """End what only this process can answer, and leave everything else to the next control plane. Cuts nothing."""
    assert daemon.planes is not None
    sd.notify("STOPPING=1")
    log.info("leaving", extra={"fields": {"spliced": daemon.handoff.live}})
    for step in (daemon.api.drain, daemon.drain_local_api, daemon.health.leave):
        with contained(Owner("leave", step.__qualname__)):
            step()
    await trio.sleep(LEAVE_S)
    if daemon.recorder is not None:
        daemon.recorder.in_use = daemon.handoff.satellites
    with contained(Owner("leave", "records")):
        daemon.edge.book.close_all(PASSED_ON)  # of the held and the spliced: the next control plane goes on with them
    daemon.planes.leave()
    sessions.cancel_scope.cancel()
    return 0


async def _drain(daemon: Daemon, sessions: trio.Nursery) -> int:
    """Refuse the held clients, let splices end until the deadline, and cut the rest. Returns how many were cut."""
    handoff = daemon.handoff
    sd.notify("STOPPING=1")
    log.info("draining", extra={"fields": {"spliced": handoff.live}})
    steps: tuple[Callable[[], None], ...] = (
        daemon.api.drain,
        daemon.drain_local_api,
        daemon.health.drain,
        daemon.fleet.drain,
    )
    for step in steps:
        with contained(Owner("drain", step.__qualname__)):
            step()
    if daemon.planes is not None:
        daemon.planes.drain(daemon.config.daemon.drain_deadline_s)
    with trio.move_on_after(daemon.config.daemon.drain_deadline_s):
        await handoff.wait_none()
    cut = handoff.live
    daemon.records.stores.coordination.drained()
    with contained(Owner("drain", "cut")):
        handoff.abort_all()
    with trio.move_on_after(ABORT_DEADLINE_S):
        await handoff.wait_none()
    # Refusals still have to be read by their clients.
    each_s = REFUSAL_EACH_S * len(sessions.child_tasks)
    sessions.cancel_scope.deadline = trio.current_time() + REFUSAL_DEADLINE_S + each_s
    return cut


async def _close(daemon: Daemon) -> None:
    with contained(Owner("records")):  # after a failure of the daemon itself
        daemon.edge.book.close_all()
    if daemon.ports.control is not None:
        daemon.ports.control.close()
    if daemon.ports.local_api is not None:
        daemon.ports.local_api.close()
    for sockets in (daemon.ports.metrics, daemon.ports.admin):
        with contained(Owner("sockets")):
            sockets.close()
    with contextlib.suppress(KeyError):  # Trio has removed one that failed
        trio.lowlevel.remove_instrument(daemon.turns)
    with trio.CancelScope(shield=True):
        await daemon.provider.aclose()
    if daemon.engine is not None:
        daemon.engine.close()
    with trio.CancelScope(shield=True), contained(Owner("records")):
        await daemon.records.connections.aclose()
