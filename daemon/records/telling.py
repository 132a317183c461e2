"""Tells people what became of connections: finds their records, open or kept, and says in words what is in them."""

import dataclasses
import datetime
from collections.abc import Callable, Iterable, Mapping

import trio

from bentpipe.daemon.records.book import Book
from bentpipe.daemon.records.contract import StoredRecord
from bentpipe.daemon.records.record import Phase, Record
from bentpipe.daemon.records.writer import RecordWriter

Fields = Mapping[str, object]
"""Of a connection, as `Record.fields` names them, and its `host`. `open_s` is the age, in seconds, of one that is open."""

PHASE_WORDS: Mapping[Phase, str] = {
    Phase.GREETED: "its first request was complete",
    Phase.ADMITTED: "it was admitted",
    Phase.HELD: "it was held: its satellite had to be woken, or looked at",
    Phase.LEASED: "its satellite was awake",
    Phase.DIALLED: "the satellite accepted its connection",
    Phase.FIRST_BYTE: "the satellite's first byte came",
    Phase.SPLICED: "client and satellite were joined",
    Phase.LAST_BYTE: "the last byte was delivered",
}


@dataclasses.dataclass(frozen=True, slots=True)
class RecordFinder:
    """Finds connections: those that are open, and those that are kept. `find_writer` returns None while none are kept."""

    book: Book
    find_writer: Callable[[], RecordWriter | None]

    async def find(self, connection_id: str) -> Fields | None:
        """The connection of this id; None if none is known. Raises StoreError."""
        record = self.book.find(connection_id)
        if record is not None:
            return open_fields(record)
        writer = self.find_writer()
        stored = await writer.find(connection_id) if writer is not None else None
        return None if stored is None else fields_of(stored)

    async def newest(self, most: int, *, satellite: str = "", principal: str = "") -> list[Fields]:
        """The newest first, open ones among them; only those of a satellite or a principal, if one is given.

        Raises StoreError.
        """
        wanted: list[Fields] = [
            open_fields(each)
            for each in self.book.all_open()
            if satellite in ("", str(each.satellite or "")) and principal in ("", each.principal)
        ]
        writer = self.find_writer()
        if writer is not None:
            stored = await writer.newest(most, satellite=satellite, principal=principal)
            wanted += [fields_of(each) for each in stored]
        return sorted(wanted, key=lambda each: str(each["id"]), reverse=True)[:most]


def fields_of(record: StoredRecord) -> Fields:
    """A stored record's fields, and its host's name."""
    return {**record.fields, "host": record.host}


def open_fields(record: Record) -> Fields:
    """An open connection's fields."""
    return {**record.fields(), "host": "", "open_s": round(trio.current_time() - record.marks[Phase.ACCEPTED], 3)}


def time_text(at_s: float) -> str:
    """A moment in ISO 8601, UTC, to the millisecond."""
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def number_of(fields: Fields, name: str) -> float:
    """A field that is a number; 0 if it is missing."""
    value = fields.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def summary(fields: Fields) -> str:
    """One line for a list: id, time, satellite, principal, how it ended, for how long it was held and lasted."""
    held = f" held {held_s(fields):.1f} s" if "held_s" in fields else ""
    lasted = number_of(fields, "ended_s" if "ended_s" in fields else "open_s")
    told = Told(fields)
    end = " ".join(filter(None, (told("end"), told("status"))))
    who, target = told("principal") or told("peer"), told("satellite") or "-"
    return f"{told('id')}  {time_text(number_of(fields, 'at'))}  {target}  {who}  {end}{held} {lasted:.1f} s"


def held_s(fields: Fields) -> float:
    """For how long it was held, in seconds; it was."""
    until = next((fields[name] for name in ("leased_s", "ended_s", "open_s") if name in fields), 0.0)
    return (float(until) if isinstance(until, int | float) else 0.0) - number_of(fields, "held_s")


def explain(fields: Fields) -> Iterable[str]:
    """The lines that tell a person what became of a connection."""
    told = Told(fields)
    host = f" on {told('host')}" if told("host") else ""
    yield f"connection {told('id')}{host}"
    who = told("principal") or "nobody known"
    target = f", for satellite {told('satellite')}" if told("satellite") else ""
    yield f"  from {told('peer')}, of {who}{target}"
    yield f"  accepted at {time_text(number_of(fields, 'at'))}"
    for phase, words in sorted(PHASE_WORDS.items(), key=lambda each: number_of(fields, each[0].field)):
        name = phase.field
        if name in fields:
            yield f"    {number_of(fields, name):+10.3f} s  {words}{_more(phase, told)}"
    if "ended_s" not in fields:
        yield f"    {number_of(fields, 'open_s'):+10.3f} s  it is still open"
        return
    status = f" with status {told('status')}" if told("status") else ""
    yield f"    {number_of(fields, 'ended_s'):+10.3f} s  {told('reason')}{status}"
    if told("error"):
        yield f"  reason: {told('error')}"
    if "held_s" in fields:
        yield f"  it waited {held_s(fields):.1f} s for its satellite"
    yield f"  bytes: {told('up_bytes')} from the client, {told('down_bytes')} to it"


def _more(phase: Phase, told: "Told") -> str:
    if phase is Phase.LEASED and told("woken_by"):
        return f", woken for {told('woken_by')}"
    return f" as {told('principal')}" if phase is Phase.ADMITTED else ""


class Told:
    """The fields as printable text: peers and clouds choose some of it, and a terminal must not obey it."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def __call__(self, name: str) -> str:
        """One field; "" if it is missing."""
        text = str(self._fields.get(name, ""))
        return text if text.isprintable() else text.encode("unicode_escape").decode()
