"""`bentpipe why`: says what became of a connection, by its id, or of the newest connections of a satellite or a principal.

The running daemon is asked first, by its control socket: it also knows what is still open or not written yet. Without a
daemon the store is read.
"""

import json
from pathlib import Path

import click
import trio

from bentpipe.config.model import Config
from bentpipe.daemon.errors import BentpipeError, Source, StoreError
from bentpipe.daemon.records.ids import host_part, parse_id, time_of
from bentpipe.daemon.records.telling import Fields, RecordFinder, explain, fields_of, summary, time_text
from bentpipe.daemon.service.connection_records import ConnectionRecords, host_name, open_records
from bentpipe.daemon.service.control import SERVICE_SOCKET, ControlError, Verb, ask
from bentpipe.daemon.service.installed import load_operators_config

NEWEST_MOST = 200
"""Of connections that are listed at once."""
UNREACHED = "no daemon answers"


class NoRecord(BentpipeError):
    """No such connection is known. The message is for the person who asked."""

    source = Source.OPERATOR


def why_verb(connections: ConnectionRecords) -> Verb:
    """Make the control socket's verb.

    It takes `{"id": ID}` or `{"newest": N, "satellite": "ORG/NAME", "principal": NAME}` (either may be ""), and answers
    `{"connections": [FIELDS, …]}`, each as `fields_of` makes it.
    """

    finder = RecordFinder(connections.book, lambda: connections.writer)

    async def why(fields: Fields) -> Fields:
        try:
            match dict(fields):
                case {"id": str(text), **rest} if not rest:
                    known = await finder.find(text)
                    found = [] if known is None else [known]
                case {"newest": int(most), "satellite": str(satellite), "principal": str(principal), **rest} if (
                    not rest
                ):
                    most = min(most, NEWEST_MOST)
                    found = await finder.newest(most, satellite=satellite, principal=principal)
                case _:
                    raise ControlError("why needs an id, or newest, satellite and principal")
        except StoreError as exc:
            raise ControlError(str(exc)) from exc
        return {"connections": found}

    return why


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


def _ask(config_path: Path | None, request: Fields) -> list[Fields]:
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


async def _read(config: Config, request: Fields) -> list[Fields]:
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
    words = f"no connection {connection_id} is known here; it was accepted at {time_text(time_of(connection_id))}"
    if config is not None and host_part(host_name(config)) != connection_id.split("-")[1]:
        return f"{words}, by another host: this one's ids have {host_part(host_name(config))} in the middle"
    return f"{words}. It may be too old, or one of many strangers' of which only some are kept; look into the log, too"
