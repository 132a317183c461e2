"""Takes over the clients that data planes have brought to satellites themselves: lease, place, record, ledger and limits.

All of it is done in the step in which ADMITTED is read. So a gate that is shut after it has no client that nobody knows.
"""

import logging
from collections.abc import Sequence

from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.edge.edge import Edge
from bentpipe.daemon.edge.handoff import Splice
from bentpipe.daemon.edge.plane import RemotePlane
from bentpipe.daemon.edge.plane_splicer import splice_id_of
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.snapshots import AdmittedRecord
from bentpipe.daemon.planes.splice_tag import SpliceTag, TagUnreadable
from bentpipe.daemon.records.record import Phase, Record
from bentpipe.native.engine import EndReason, SpliceCounters
from bentpipe.proto.first_settings import Announcement

log = logging.getLogger("bentpipe.edge")

PHASES = (Phase.GREETED, Phase.ADMITTED, Phase.DIALLED, Phase.FIRST_BYTE)
"""What `moments` of ADMITTED are, in this order."""


def record_of(edge: Edge, tag: SpliceTag, peer: str) -> Record:
    """Go on with the record of a splice that was made by another process, or by an earlier control plane."""
    record = edge.book.reopen(tag.connection_id, peer, tag.accepted_at)
    record.satellite, record.principal = tag.key, tag.principal
    return record


def take_admitted(edge: Edge, plane: RemotePlane, record: AdmittedRecord) -> None:
    """A data plane has admitted a client. Raises ProtocolBroken, and then the client is one that nobody may have."""
    try:
        tag = SpliceTag.decode(record.tag)
    except TagUnreadable as exc:
        raise ProtocolBroken("a client was admitted whose tag cannot be read") from exc
    if edge.gatekeeper is None:
        raise ProtocolBroken("a client was admitted, and nobody may be")
    edge.gatekeeper.take_admitted(plane, record, tag.key, tag.payer)
    place = edge.quotas.adopt(tag.host, tag.payer, tag.key, lent=True)
    edge.gatekeeper.top_up(plane, tag.payer)
    kept = record_of(edge, tag, record.peer)
    _write_down(kept, record)
    lease = edge.fleet.adopt(tag.key, tag.address)
    splice = Splice(tag.key, tag.principal, record.peer, lease, place, kept, tag.credentials)
    edge.counters.ended[Outcome.SPLICED] += 1
    edge.handoff.take_over(splice_id_of(plane, record.id), splice)
    if record.streams:
        edge.announcements.hear(tag.key, Announcement(record.streams, record.window_bytes))
    fields = {"id": kept.id, "satellite": str(tag.key), "principal": tag.principal, "peer": record.peer}
    fields["by"] = "data plane"
    if edge.identities.admits(tag.principal, tag.credentials, tag.key):
        log.info("spliced", extra={"fields": fields})
    else:
        # What it was admitted by was taken back while this record was on its way.
        edge.handoff.cut(lambda each: each is splice)
        log.warning("cut: what it was admitted by was taken back", extra={"fields": fields})


def _write_down(kept: Record, record: AdmittedRecord) -> None:
    accepted = kept.marks[Phase.ACCEPTED]
    for phase, moment_us in zip(PHASES, record.moments, strict=False):
        if moment_us:
            kept.marks[phase] = accepted + moment_us / 1e6
    kept.marks[Phase.LEASED] = kept.marks[Phase.ADMITTED]
    kept.up_bytes, kept.down_bytes = record.up, record.down
    kept.traceparent, kept.tracestate = record.traceparent, record.tracestate


def moved_of(up: int, down: int, moments: Sequence[int] = ()) -> SpliceCounters:
    """What a data plane tells of a splice. `moments` are those of ENDED."""
    first_us, last_us = moments[:2] if len(moments) >= 2 else (0, 0)
    return SpliceCounters(up, down, 0, last_us / 1e6, first_us / 1e6)


def reason_of_end(number: int) -> EndReason:
    """Why a splice has ended, by the number in ENDED."""
    try:
        return EndReason(number)
    except ValueError:  # of a later version
        return EndReason.CLOSED
