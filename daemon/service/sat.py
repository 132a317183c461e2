"""`bentpipe sat`: satellites as the control API of a daemon has them, seen and commanded from any machine."""

import dataclasses
import datetime
import json
import time
from collections.abc import Iterator

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bentpipe.daemon.api.activity import STATUS_PREFIX, state_of
from bentpipe.daemon.api.client import Server, call
from bentpipe.daemon.api.compute import SERVICE_PATH
from bentpipe.daemon.api.operations import OPERATIONS_PATH
from bentpipe.daemon.service.reserve_rows import reserve_rows
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto import operations_pb2

CHANGE_S = 180.0
"""For an answer about a machine that is launched, changed or removed: its cloud may be slow, and calls are repeated."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asker:
    """A daemon's API, an org, and whether the answers are for a program."""

    server: Server
    org: str
    as_json: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What is to change of a satellite; what is empty stays."""

    size: str = ""
    version: str = ""
    drop_cache: bool = False


Instance = pb.ListSatellitesResponse.SatelliteInstance


def satellites_of(asker: Asker) -> list[tuple[Instance, str]]:
    """Every satellite of the org that the token may use, each with its state in words. Raises ControlApiError."""
    request = pb.ListSatellitesRequest(org_id=asker.org)
    [answer] = call(asker.server, SERVICE_PATH + "ListSatellites", request, pb.ListSatellitesResponse)
    return [(each, state_of(each.status)) for each in answer.instances]


def run_list(asker: Asker) -> None:
    """Print every satellite of the org that the token may use. Raises ControlApiError."""
    found = satellites_of(asker)
    if asker.as_json:
        click.echo(json.dumps([_plain(each) for each, _ in found], indent=2))
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("name", "state", "platform", "size", "last used"):
        table.add_column(heading, overflow="fold")
    for each, state in found:
        table.add_row(each.name, state, each.platform, each.size, _moment(each, each.last_used))
    Console().print(table)
    request = operations_pb2.GetActivityRequest(org_id=asker.org)
    [answer] = call(asker.server, OPERATIONS_PATH + "GetActivity", request, operations_pb2.GetActivityResponse)
    for reserve in reserve_rows(answer):
        click.echo(reserve.words)


def run_inspect(asker: Asker, name: str) -> None:
    """Print one satellite. Raises ControlApiError."""
    request = pb.GetSatelliteRequest(org_id=asker.org, name=name)
    [answer] = call(asker.server, SERVICE_PATH + "GetSatellite", request, pb.GetSatelliteResponse)
    reading = _reading_of(asker, name)
    if asker.as_json:
        told = {} if reading is None else {"reading": MessageToDict(reading, preserving_proto_field_name=True)}
        click.echo(json.dumps(_plain(answer) | told, indent=2))
        return
    rows = {
        "satellite": answer.id,
        "state": state_of(answer.status),
        "platform": answer.platform,
        "size": answer.size,
        "address": answer.satellite_address,
        "last used": _moment(answer, answer.last_used),
        **({} if reading is None else _reading_rows(reading)),
    }
    width = max(map(len, rows))
    for heading, value in rows.items():
        click.echo(f"{heading:{width}}  {value}".rstrip())


def _reading_of(asker: Asker, name: str) -> operations_pb2.Reading | None:
    """What the satellite's responder has told; None if it has none, or if the satellite is not operational."""
    request = operations_pb2.GetActivityRequest(org_id=asker.org)
    [answer] = call(asker.server, OPERATIONS_PATH + "GetActivity", request, operations_pb2.GetActivityResponse)
    found = (each.reading for each in answer.satellites if each.name == name and each.HasField("reading"))
    return next(found, None)


def _reading_rows(reading: operations_pb2.Reading) -> dict[str, str]:
    waits = f"{reading.cpu_percent:.0f} % cpu, {reading.memory_percent:.0f} % memory, {reading.io_percent:.0f} % io"
    return {
        "condition": reading.condition,
        "builds": str(reading.builds) if reading.HasField("builds") else "unknown",
        "pressure": waits,
        "cache disk": f"{reading.disk_used_percent:.0f} % used" if reading.HasField("disk_used_percent") else "unknown",
        "out of memory": f"{reading.oom_kills} kills since its boot",
        "up": f"{reading.uptime_s:.0f} s",
    }


def run_wake(asker: Asker, name: str) -> None:
    """Wake a satellite, and print its states until it is awake. Raises ControlApiError."""
    request = pb.WakeSatelliteRequest(org_id=asker.org, name=name)
    _follow(asker, name, call(asker.server, SERVICE_PATH + "WakeSatellite", request, pb.WakeSatelliteResponse))


def run_sleep(asker: Asker, name: str) -> None:
    """Put a satellite to sleep, and print its states until it sleeps. Raises ControlApiError."""
    request = pb.SleepSatelliteRequest(org_id=asker.org, name=name)
    _follow(asker, name, call(asker.server, SERVICE_PATH + "SleepSatellite", request, pb.SleepSatelliteResponse))


Stated = pb.WakeSatelliteResponse | pb.SleepSatelliteResponse


def _follow(asker: Asker, name: str, answers: Iterator[Stated]) -> None:
    """Print each state once, with the seconds since the beginning; a repetition only shows that the daemon is there.

    A terminal shows the state and the time under way, too, and keeps the lines of the states alone.
    """
    began, last, console = time.monotonic(), "", Console(soft_wrap=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    hidden = asker.as_json or not console.is_terminal
    progress = Progress(*columns, console=console, transient=True, disable=hidden)
    under_way = progress.add_task(name, total=None)
    try:
        progress.start()
        for answer in answers:
            state, after_s = state_of(answer.status), time.monotonic() - began
            if asker.as_json:
                click.echo(json.dumps({"state": state, "after_s": round(after_s, 3)}))
            elif state != last:
                console.print(f"{name}: {state} ({after_s:.1f} s)", markup=False, highlight=False)
                progress.update(under_way, description=f"{name}: {state}")
            last = state
    finally:
        progress.stop()
        if not hidden:
            console.show_cursor()  # a signal in the middle of the start leaves it hidden


def run_launch(asker: Asker, name: str, size: str, platform: str, *, wake: bool) -> None:
    """Make a satellite; with `wake` also wait until it is awake. Raises ControlApiError."""
    request = pb.LaunchSatelliteRequest(org_id=asker.org, name=name, size=size, platform=platform)
    path = SERVICE_PATH + "LaunchSatellite"
    [answer] = call(asker.server, path, request, pb.LaunchSatelliteResponse, silence_s=CHANGE_S)
    _tell(asker, f"{name}: {state_of(answer.status)}", {"state": state_of(answer.status)})
    if wake:
        run_wake(asker, name)


def run_update(asker: Asker, name: str, change: Change) -> None:
    """Change a satellite that was launched. Raises ControlApiError."""
    request = pb.UpdateSatelliteRequest(
        org_id=asker.org, name=name, size=change.size, version=change.version, drop_cache=change.drop_cache
    )
    list(call(asker.server, SERVICE_PATH + "UpdateSatellite", request, pb.UpdateSatelliteResponse, silence_s=CHANGE_S))
    _tell(asker, f"{name}: updated", {"updated": name})


def run_remove(asker: Asker, name: str, *, force: bool) -> None:
    """Remove a satellite that was launched. Raises ControlApiError."""
    request = pb.DeleteSatelliteRequest(org_id=asker.org, name=name, force=force)
    list(call(asker.server, SERVICE_PATH + "DeleteSatellite", request, pb.DeleteSatelliteResponse, silence_s=CHANGE_S))
    _tell(asker, f"{name}: removed", {"removed": name})


def run_cut(asker: Asker, name: str) -> None:
    """End the connections of a satellite on the host that is asked. Raises ControlApiError."""
    request = operations_pb2.CutConnectionsRequest(org_id=asker.org, name=name)
    path = OPERATIONS_PATH + "CutConnections"
    [answer] = call(asker.server, path, request, operations_pb2.CutConnectionsResponse)
    _tell(asker, f"{name}: {answer.cut} connections cut", {"cut": answer.cut})


def _tell(asker: Asker, words: str, plain: dict[str, object]) -> None:
    click.echo(json.dumps(plain) if asker.as_json else words)


def _moment(message: pb.GetSatelliteResponse | Instance, at: Timestamp) -> str:
    if not message.HasField("last_used"):
        return ""
    return datetime.datetime.fromtimestamp(at.seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _plain(message: Message) -> dict[str, object]:
    """The message's fields by the names of proto/compute.proto, and the state as people read it."""
    plain: dict[str, object] = MessageToDict(message, preserving_proto_field_name=True)
    plain["status"] = str(plain.get("status", STATUS_PREFIX + "UNKNOWN")).removeprefix(STATUS_PREFIX).lower()
    return plain
