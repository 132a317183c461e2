"""`bentpipe why`: says what became of a connection, by its id, or of the newest connections of a satellite or a principal.

The running daemon is asked first, by its control socket: it also knows what is still open or not written yet. Without a
daemon the store is read.
"""

import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import click
import trio

from bentpipe.config.model import Config
from bentpipe.daemon.errors import BentpipeError, Source, StoreError
from bentpipe.daemon.records.contract import StoredRecord
from bentpipe.daemon.records.ids import host_part, parse_id, time_of
from bentpipe.daemon.records.record import Phase, Record
from bentpipe.daemon.service.connection_records import ConnectionRecords, host_name, open_records
from bentpipe.daemon.service.control import SERVICE_SOCKET, ControlError, Fields, Verb, ask
from bentpipe.daemon.service.installed import load_operators_config

NEWEST_MOST = 200
"""Of connections that are listed at once."""
UNREACHED = "no daemon answers"

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


class NoRecord(BentpipeError):
    """No such connection is known. The message is for the person who asked."""

    source = Source.OPERATOR


def why_verb(connections: ConnectionRecords) -> Verb:
    """Make the control socket's verb.

    It takes `{"id": ID}` or `{"newest": N, "satellite": "ORG/NAME", "principal": NAME}` (either may be ""), and answers
    `{"connections": [FIELDS, …]}`, each as `fields_of` makes it.
    """

    async def why(fields: Fields) -> Fields:
        try:
            match dict(fields):
                case {"id": str(text), **rest} if not rest:
                    found = await _find(connections, text)
                case {"newest": int(most), "satellite": str(satellite), "principal": str(principal), **rest} if (
                    not rest
                ):
                    found = await _newest(connections, min(most, NEWEST_MOST), satellite, principal)
                case _:
                    raise ControlError("why needs an id, or newest, satellite and principal")
        except StoreError as exc:
            raise ControlError(str(exc)) from exc
        return {"connections": found}

    return why


async def _find(connections: ConnectionRecords, text: str) -> list[dict[str, object]]:
    record = connections.book.find(text)
    if record is not None:
        return [_open_fields(record)]
    stored = await connections.writer.find(text) if connections.writer is not None else None
    return [fields_of(stored)] if stored is not None else []


async def _newest(connections: ConnectionRecords, most: int, satellite: str, principal: str) -> list[dict[str, object]]:
    wanted = [
        _open_fields(each)
        for each in connections.book.all_open()
        if satellite in ("", str(each.satellite or "")) and principal in ("", each.principal)
    ]
    if connections.writer is not None:
        wanted += [
            fields_of(each) for each in await connections.writer.newest(most, satellite=satellite, principal=principal)
        ]
    return sorted(wanted, key=lambda each: str(each["id"]), reverse=True)[:most]


def fields_of(record: StoredRecord) -> dict[str, object]:
    """A stored record's fields, and its host's name."""
    return {**record.fields, "host": record.host}


def _open_fields(record: Record) -> dict[str, object]:
    return {**record.fields(), "host": "", "open_s": round(trio.current_time() - record.marks[Phase.ACCEPTED], 3)}


def run_why(config_path: Path | None, text: str, *, as_json: bool) -> None:
    """Print what became of a connection. Raises NotAnId, NoRecord, ConfigErrors, ControlError, StoreError."""
    connection_id = parse_id(text)
    found = _ask(config_path, {"id": connection_id})
    if not found:
        raise NoRecord(_why_unknown(config_path, connection_id))
    click.echo(json.dumps(found[0], indent=2) if as_json else "\n".join(explain(found[0])))


def run_newest(config_path: Path | None, most: int, satellite: str, principal: str, *, as_json: bool) -> None:
    """List connections, the newest first. Raises as `run_why`."""
    for fields in _ask(config_path, {"newest": most, "satellite": satellite, "principal": principal}):
        click.echo(json.dumps(fields) if as_json else summary(fields))


def _config(config_path: Path | None) -> Config | None:
    return load_operators_config(config_path, check_files=False) if config_path is not None else None


def _ask(config_path: Path | None, request: Fields) -> list[dict[str, object]]:
    config = _config(config_path)
    path = (config.control.socket_path() if config is not None else None) or SERVICE_SOCKET
    try:
        found = ask(path, "why", request)["connections"]
    except ControlError as exc:
        if config is None or not str(exc).startswith(UNREACHED):
            raise
        return trio.run(_read, config, request)
    assert isinstance(found, list)
    return found


async def _read(config: Config, request: Fields) -> list[dict[str, object]]:
    store = open_records(config, read_only=True)
    if store is None:
        raise NoRecord(
            "no records are kept: [store] or [records] in the configuration says so; the log has a line for each"
        )
    try:
        if "id" in request:
            stored = await store.find(str(request["id"]))
            return [fields_of(stored)] if stored is not None else []
        most = request["newest"]
        assert isinstance(most, int)
        newest = await store.newest(most, satellite=str(request["satellite"]), principal=str(request["principal"]))
        return [fields_of(each) for each in newest]
    finally:
        await store.aclose()


def _why_unknown(config_path: Path | None, connection_id: str) -> str:
    config = _config(config_path)
    words = f"no connection {connection_id} is known here; it was accepted at {_time(time_of(connection_id))}"
    if config is not None and host_part(host_name(config)) != connection_id.split("-")[1]:
        return f"{words}, by another host: this one's ids have {host_part(host_name(config))} in the middle"
    return f"{words}. It may be too old, or one of many strangers' of which only some are kept; look into the log, too"


def _time(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(fields: Fields, name: str) -> float:
    value = fields.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def summary(fields: Fields) -> str:
    """One line for a list: id, time, satellite, principal, how it ended, for how long it was held and lasted."""
    held = f" held {_held_s(fields):.1f} s" if "held_s" in fields else ""
    lasted = _number(fields, "ended_s" if "ended_s" in fields else "open_s")
    told = _Told(fields)
    end = " ".join(filter(None, (told("end"), told("status"))))
    who, target = told("principal") or told("peer"), told("satellite") or "-"
    return f"{told('id')}  {_time(_number(fields, 'at'))}  {target}  {who}  {end}{held} {lasted:.1f} s"


def _held_s(fields: Fields) -> float:
    until = next((fields[name] for name in ("leased_s", "ended_s", "open_s") if name in fields), 0.0)
    return (float(until) if isinstance(until, int | float) else 0.0) - _number(fields, "held_s")


def explain(fields: Fields) -> Iterable[str]:
    """The lines that tell a person what became of a connection."""
    told = _Told(fields)
    host = f" on {told('host')}" if told("host") else ""
    yield f"connection {told('id')}{host}"
    who = told("principal") or "nobody known"
    target = f", for satellite {told('satellite')}" if told("satellite") else ""
    yield f"  from {told('peer')}, of {who}{target}"
    yield f"  accepted at {_time(_number(fields, 'at'))}"
    for phase, words in sorted(PHASE_WORDS.items(), key=lambda each: _number(fields, each[0].field)):
        name = phase.field
        if name in fields:
            yield f"    {_number(fields, name):+10.3f} s  {words}{_more(phase, told)}"
    if "ended_s" not in fields:
        yield f"    {_number(fields, 'open_s'):+10.3f} s  it is still open"
        return
    status = f" with status {told('status')}" if told("status") else ""
    yield f"    {_number(fields, 'ended_s'):+10.3f} s  {told('reason')}{status}"
    if told("error"):
        yield f"  reason: {told('error')}"
    if "held_s" in fields:
        yield f"  it waited {_held_s(fields):.1f} s for its satellite"
    yield f"  bytes: {told('up_bytes')} from the client, {told('down_bytes')} to it"


def _more(phase: Phase, told: "_Told") -> str:
    if phase is Phase.LEASED and told("woken_by"):
        return f", woken for {told('woken_by')}"
    return f" as {told('principal')}" if phase is Phase.ADMITTED else ""


class _Told:
    """The fields as printable text: peers and clouds choose some of it, and a terminal must not obey it."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def __call__(self, name: str) -> str:
        text = str(self._fields.get(name, ""))
        return text if text.isprintable() else text.encode("unicode_escape").decode()
