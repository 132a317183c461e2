"""Where records are kept, so that `bentpipe why ID` can tell of connections that are long over.

`tests/beds/contracts/records.py` tests these laws:

1. A record is found by its id, on every host that uses the same store, until it is removed by age or number.
2. What is kept is bounded, by number or by age. The newest stay.
3. Writing the same records again changes nothing, so that a call that failed half-way can be repeated.
4. A row that cannot be read is as if it were not there.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from bentpipe.daemon.store.malformed import MalformedRow, text_of, whole_of

FIELD_CHARS = 1_000
"""Characters of one field that are kept: errors have words of peers and of clouds."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it is kept: its fields as `Record.fields` makes them, and the host that made it."""

    id: str
    at_us: int
    """The end, in microseconds since the epoch."""
    host: str
    satellite: str
    principal: str
    fields: Mapping[str, object]

    def to_json(self) -> str:
        """The fields as text, each of bounded length."""
        cut = {name: value[:FIELD_CHARS] if isinstance(value, str) else value for name, value in self.fields.items()}
        return json.dumps(cut, default=str, separators=(",", ":"))


def read_record(row: tuple[object, ...]) -> StoredRecord:
    """Read (id, at_us, host, satellite, principal, fields as JSON). Raises MalformedRow, ValueError."""
    connection_id, at_us, host, satellite, principal, text = row
    fields = json.loads(text_of(text, "fields"))
    if not isinstance(fields, dict):
        raise MalformedRow("fields is not a JSON object")
    return StoredRecord(
        text_of(connection_id, "id"),
        whole_of(at_us, "at_us"),
        text_of(host, "host"),
        text_of(satellite, "satellite"),
        text_of(principal, "principal"),
        fields,
    )


class RecordStore(Protocol):
    """Keeps records. Every method raises StoreError, or StoreUnusable if another attempt would fail too."""

    async def check(self) -> None:
        """Open it, and find out whether records can be kept there."""
        ...

    def bound(self, keep: int, keep_s: float) -> None:
        """From the next `add` on: keep so many, for so long. A store that is bounded by age alone takes no number."""
        ...

    async def add(self, records: Sequence[StoredRecord]) -> None:
        """Keep them, and remove what is over the bounds."""
        ...

    async def find(self, connection_id: str) -> StoredRecord | None:
        """The record of this id; None if there is none."""
        ...

    async def newest(self, most: int, *, satellite: str = "", principal: str = "") -> list[StoredRecord]:
        """The newest first; only those of a satellite or a principal, if one is given."""
        ...

    async def aclose(self) -> None:
        """Close files and connections. No method may be called afterwards."""
        ...
