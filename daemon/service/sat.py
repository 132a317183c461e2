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
from rich.table import Table

from bentpipe.daemon.api.client import Server, call
from bentpipe.daemon.api.compute import SERVICE_PATH
from bentpipe.proto import compute_pb2 as pb

STATUS_PREFIX = "SATELLITE_STATUS_"


@dataclasses.dataclass(frozen=True, slots=True)
class Asker:
    """A daemon's API, an org, and whether the answers are for a program."""

    server: Server
    org: str
    as_json: bool


def run_list(asker: Asker) -> None:
    """Print every satellite of the org that the token may use. Raises ApiError."""
    request = pb.ListSatellitesRequest(org_id=asker.org)
    [answer] = call(asker.server, SERVICE_PATH + "ListSatellites", request, pb.ListSatellitesResponse)
    if asker.as_json:
        click.echo(json.dumps([_plain(each) for each in answer.instances], indent=2))
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    for heading in ("name", "state", "platform", "size", "last used"):
        table.add_column(heading, overflow="fold")
    for each in answer.instances:
        table.add_row(each.name, _state(each.status), each.platform, each.size, _moment(each, each.last_used))
    Console().print(table)


def run_inspect(asker: Asker, name: str) -> None:
    """Print one satellite. Raises ApiError."""
    request = pb.GetSatelliteRequest(org_id=asker.org, name=name)
    [answer] = call(asker.server, SERVICE_PATH + "GetSatellite", request, pb.GetSatelliteResponse)
    if asker.as_json:
        click.echo(json.dumps(_plain(answer), indent=2))
        return
    rows = {
        "satellite": answer.id,
        "state": _state(answer.status),
        "platform": answer.platform,
        "size": answer.size,
        "address": answer.satellite_address,
        "last used": _moment(answer, answer.last_used),
    }
    width = max(map(len, rows))
    for heading, value in rows.items():
        click.echo(f"{heading:{width}}  {value}".rstrip())


def run_wake(asker: Asker, name: str) -> None:
    """Wake a satellite, and print its states until it is awake. Raises ApiError."""
    request = pb.WakeSatelliteRequest(org_id=asker.org, name=name)
    _follow(asker, name, call(asker.server, SERVICE_PATH + "WakeSatellite", request, pb.WakeSatelliteResponse))


def run_sleep(asker: Asker, name: str) -> None:
    """Put a satellite to sleep, and print its states until it sleeps. Raises ApiError."""
    request = pb.SleepSatelliteRequest(org_id=asker.org, name=name)
    _follow(asker, name, call(asker.server, SERVICE_PATH + "SleepSatellite", request, pb.SleepSatelliteResponse))


Stated = pb.WakeSatelliteResponse | pb.SleepSatelliteResponse


def _follow(asker: Asker, name: str, answers: Iterator[Stated]) -> None:
    """Print each state once, with the seconds since the beginning; a repetition only shows that the daemon is there."""
    began, last = time.monotonic(), ""
    for answer in answers:
        state, after_s = _state(answer.status), time.monotonic() - began
        if asker.as_json:
            click.echo(json.dumps({"state": state, "after_s": round(after_s, 3)}))
        elif state != last:
            click.echo(f"{name}: {state} ({after_s:.1f} s)")
        last = state


def _state(status: pb.SatelliteStatus) -> str:
    return pb.SatelliteStatus.Name(status).removeprefix(STATUS_PREFIX).lower()


def _moment(message: pb.GetSatelliteResponse | pb.ListSatellitesResponse.SatelliteInstance, at: Timestamp) -> str:
    if not message.HasField("last_used"):
        return ""
    return datetime.datetime.fromtimestamp(at.seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _plain(message: Message) -> dict[str, object]:
    """The message's fields by the names of proto/compute.proto, and the state as people read it."""
    plain: dict[str, object] = MessageToDict(message, preserving_proto_field_name=True)
    plain["status"] = str(plain.get("status", STATUS_PREFIX + "UNKNOWN")).removeprefix(STATUS_PREFIX).lower()
    return plain
