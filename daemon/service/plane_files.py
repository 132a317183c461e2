"""Has data planes read their files again: certificates, and the satellites' sections of the configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from bentpipe.daemon.edge.plane import PLANE_GONE, RemotePlane
from bentpipe.daemon.planes.bounds import CREDENTIAL_BYTES
from bentpipe.daemon.planes.records import LINK_ID, CredentialRecord, Record, ReloadRecord
from bentpipe.daemon.planes.table import RECORD_NUMBERS
from bentpipe.daemon.tasks import Decision, Owner, run_owned

RELOAD_S = 15.0
"""For a plane to read its files again: longer than it waits for a disk itself."""


async def reload_planes(planes: Sequence[RemotePlane], credentials: Mapping[str, Path]) -> list[str]:
    """Returns what they could not read, one sentence for each plane.

    `credentials` are files of credentials that are newer than those of the planes' start, by name.
    """
    records = [CredentialRecord(LINK_ID, name, path.read_bytes()) for name, path in credentials.items()]
    if any(len(record.data) > CREDENTIAL_BYTES for record in records):
        return [f"a credential has over {CREDENTIAL_BYTES} bytes, which a data plane does not take"]
    found: list[str] = []
    async with trio.open_nursery() as nursery:
        for plane in planes:
            owner = Owner("data plane", "reload", Decision.GIVE_UP)
            nursery.start_soon(run_owned, owner, _reload_one, plane, records, found)
    return found


async def _reload_one(plane: RemotePlane, credentials: Sequence[Record], found: list[str]) -> None:
    for record in credentials:
        plane.send_nowait(record)
    words = f"no answer in {RELOAD_S:g} s"
    with trio.move_on_after(RELOAD_S):
        words = await plane.ask(ReloadRecord(LINK_ID), RECORD_NUMBERS[ReloadRecord])
    if words and words != PLANE_GONE:  # its successor has read the files as they are now
        pid = plane.hello.pid if plane.hello is not None else 0
        found.append(f"data plane, process {pid}: {words}")
