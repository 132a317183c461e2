"""What a reload opens before it changes anything: sockets of metrics and page, the store of records, a tracer.

The old ones are in force meanwhile. If one of the new ones cannot be opened, the others are closed again, and nothing has
changed.
"""

import contextlib
import dataclasses
from collections.abc import AsyncIterator

from bentpipe.config.model import Config
from bentpipe.daemon.connections.listening_sockets import SocketExchange
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.service.admin_sockets import admin_places, open_admin_place
from bentpipe.daemon.service.connection_records import ConnectionRecords, RecordsChange
from bentpipe.daemon.service.ports import OpenPorts, metrics_places, open_metrics_place
from bentpipe.daemon.service.reload_plan import Prepared, Unfit


@dataclasses.dataclass(frozen=True, slots=True)
class ExchangedParts:
    """The parts of the running daemon whose sockets and files a reload may exchange."""

    ports: OpenPorts
    records: ConnectionRecords


@dataclasses.dataclass(slots=True)
class ReadyParts:
    """What is open for another configuration, to be taken, or closed."""

    metrics: SocketExchange
    admin: SocketExchange
    records: RecordsChange

    taken: bool = False

    @contextlib.asynccontextmanager
    async def closed_unless_taken(self) -> AsyncIterator[None]:
        """Close all at the end of the block, unless it is `taken` by then."""
        try:
            yield
        finally:
            if not self.taken:
                self.metrics.let_go()
                self.admin.let_go()
                await self.records.aclose()


async def open_for(prepared: Prepared, parts: ExchangedParts, *, dry_run: bool) -> ReadyParts:
    """Open what the configuration needs and the daemon has not open yet. Raises Unfit, with nothing left open."""
    config = prepared.config
    with contextlib.ExitStack() as undo:
        metrics = _open_metrics(config, parts)
        undo.callback(metrics.let_go)
        admin = _open_admin(config, parts)
        undo.callback(admin.let_go)
        try:
            records = await parts.records.prepare(config, prepared.tracer, dry_run=dry_run)
        except StoreError as exc:
            raise Unfit([f"records.keep: {exc}"]) from exc
        undo.pop_all()
    return ReadyParts(metrics, admin, records)


def _open_metrics(config: Config, parts: ExchangedParts) -> SocketExchange:
    try:
        return parts.ports.metrics.prepare(metrics_places(config), open_metrics_place)
    except OSError as exc:
        raise Unfit([f"metrics.address: {exc.strerror or exc}"]) from exc


def _open_admin(config: Config, parts: ExchangedParts) -> SocketExchange:
    try:
        return parts.ports.admin.prepare(admin_places(config.admin), open_admin_place)
    except OSError as exc:
        raise Unfit([f"admin: {exc.strerror or exc}"]) from exc
