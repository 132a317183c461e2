"""Puts the page for operators together, and tells it of the host: what is wrong with it, its data planes, a few counters.

The counters are rows of the metrics' table, so that the page cannot say something else.
"""

import os
import time
from collections.abc import Iterator

from bentpipe.config.admin import AdminSection
from bentpipe.config.store import StoreSection
from bentpipe.daemon.admin.facts import AdminParts, HostFacts, PlaneFacts
from bentpipe.daemon.admin.history import History
from bentpipe.daemon.admin.server import AdminServer
from bentpipe.daemon.admin.site import Site
from bentpipe.daemon.admin.viewer import Viewers
from bentpipe.daemon.api.activity import span
from bentpipe.daemon.errors import StoreUnusable
from bentpipe.daemon.records.telling import RecordFinder
from bentpipe.daemon.service.connection_records import host_name
from bentpipe.daemon.service.ledger_reading import read_intervals, read_span
from bentpipe.daemon.service.metric import Snapshot
from bentpipe.daemon.service.metric_table import METRICS, VERSION
from bentpipe.daemon.service.parts import Daemon
from bentpipe.daemon.service.probes import READY
from bentpipe.daemon.service.stores import NO_STORE

COUNTERS = {
    "Connections now": "connections",
    "Spliced now": "splices",
    "Accepted": "connections_accepted",
    "Refused": "refusals",
    "Wakes": "wakes",
    "Task failures": "task_failures",
}
"""What the page calls a metric; if a metric has labels, all of them count together."""
_OF = {metric.name: metric for metric in METRICS}
INSIDE = "in this process"
OUTSIDE = "a process of its own"


def make_admin(daemon: Daemon, section: AdminSection) -> AdminServer:
    """Make the server; `section` is what the configuration has now."""
    accounts, connections = daemon.account_parts, daemon.records.connections
    began = time.monotonic()

    def now() -> AdminSection:
        return daemon.config.admin or section

    history = History(
        lambda since_us, until_us: read_span(_store_of(daemon), since_us, until_us),
        lambda since_us, until_us: read_intervals(_store_of(daemon), since_us, until_us),
        lambda: daemon.config.prices,
    )
    parts = AdminParts(
        fleet=daemon.fleet,
        handoff=daemon.handoff,
        operations=daemon.operations,
        finder=RecordFinder(connections.book, lambda: connections.writer),
        history=history,
        host=lambda: host_facts(daemon, time.monotonic() - began),
        drain=daemon.drain.set,
        counters=daemon.page.counters,
    )
    viewers = Viewers(accounts.authority, accounts.admission, lambda: now().operators)
    return AdminServer(daemon.ports.admin, Site(parts, viewers, now))


def _store_of(daemon: Daemon) -> StoreSection:
    """Where the ledger is. Raises StoreUnusable if the daemon keeps none."""
    if daemon.records.stores.ledger is None:
        raise StoreUnusable(NO_STORE)
    return daemon.config.store


def host_facts(daemon: Daemon, up_s: float) -> HostFacts:
    """The host now."""
    look = Snapshot(daemon)
    numbers = {"Up for": span(up_s)}
    for words, name in COUNTERS.items():
        numbers[words] = f"{sum(_OF[name].read(look).values()):.0f}"
    return HostFacts(
        host=host_name(daemon.config),
        version=VERSION,
        pid=os.getpid(),
        problems=tuple(_problems(daemon)),
        drain_deadline=span(daemon.config.daemon.drain_deadline_s),
        planes=tuple(_planes(daemon)),
        numbers=numbers,
    )


def _problems(daemon: Daemon) -> Iterator[str]:
    for check in READY:
        if problem := check.problem(daemon):
            yield problem
    current = daemon.current
    if current.problem:
        yield f"This is not the configuration of the file: {current.problem}"
    if current.last_failure:
        yield f"The last reload has changed nothing: {current.last_failure}"
    for key, waits in daemon.changes.pending.items():
        yield f"{key} is not as the configuration has it: that follows {waits}"


def _planes(daemon: Daemon) -> Iterator[PlaneFacts]:
    if daemon.planes is None:
        threads = len(daemon.engines.threads())
        yield PlaneFacts(f"engine, {threads} threads", INSIDE, os.getpid(), VERSION, "accepts", daemon.handoff.live)
        return
    for plane in daemon.planes.splicer:
        hello, told = plane.hello, plane.counters
        if hello is not None:
            state = "drains" if told.get("draining") else "accepts"
            yield PlaneFacts(hello.plane, OUTSIDE, hello.pid, hello.build, state, plane.spliced)
    if not any(True for _ in daemon.planes.splicer):
        yield PlaneFacts("none", OUTSIDE, 0, "", "gone: it is being started", 0)
