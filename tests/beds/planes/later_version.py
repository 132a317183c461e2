"""Runs `bentpipe` as a later version of the protocol between the planes would speak: `python later_version.py serve …`.

It speaks one version more than this one, says more in each record than this one knows, and sends a record that this one
has never heard of: what table.py allows a later version. So an upgrade to it and back is one between neighbours.
"""

from bentpipe.daemon.planes import codec, table
from bentpipe.daemon.planes import records as r

LATER_TLV, LATER_KIND = 200, 99
MORE = b"said by a later version"

table.NEWEST_VERSION += 1
_encode = codec.encode_record


def encode_record(record: r.Record) -> bytes:
    """What this version writes, with a field more; a PING or PONG is followed by a record of a kind that is new."""
    written = _encode(record)
    kind, flags, length, about = table.RECORD_HEADER.unpack_from(written)
    more = table.TLV_HEADER.pack(LATER_TLV, len(MORE)) + MORE
    header = table.RECORD_HEADER.pack(kind, flags, length + len(more), about)
    found = header + written[table.RECORD_HEADER.size :] + more
    if isinstance(record, r.PingRecord | r.PongRecord):
        found += table.RECORD_HEADER.pack(LATER_KIND, 0, len(MORE), r.LINK_ID) + MORE
    return found


codec.encode_record = encode_record

if __name__ == "__main__":
    # Only now: these modules take names out of the two that were changed.
    from bentpipe.daemon.service.cli import main

    main(prog_name="bentpipe")
