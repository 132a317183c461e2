"""Renders the pages: Jinja2 with escaping everywhere, and every file read once at the start. Pure.

What the files were at the start counts until the end: an upgrade may replace them under a running daemon.
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources

import jinja2
import markupsafe

from bentpipe.daemon.admin.facts import HostFacts
from bentpipe.daemon.admin.look import SatelliteRow
from bentpipe.daemon.admin.viewer import Viewer
from bentpipe.daemon.api.activity import size, span
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.records.telling import Fields, Told, explain, held_s, number_of

PACKAGE = "bentpipe.daemon.admin"
BREAKS = re.compile(r"[/_.]")
STATIC_KINDS = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionRow:
    """A connection in a list."""

    id: str
    at: str
    at_iso: str
    satellite: str
    principal: str
    peer: str
    end: str
    held: str
    lasted: str
    is_open: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """A satellite's row in words."""

    key: SatelliteKey
    cells: Mapping[str, str]
    """As `cells_of` names them."""

    @property
    def title(self) -> str:
        """ORG/NAME."""
        return str(self.key)


def cells_of(row: SatelliteRow, viewer: Viewer) -> dict[str, str]:
    """What the row says, in the words of `bentpipe top`; and why a client would be refused now.

    The operator reads the reasons of clouds, everybody else what clients read.
    """
    activity = row.activity
    return {
        "state": activity.state,
        "for": span(activity.state_s),
        "held": str(activity.held),
        "connections": str(activity.connections),
        "up": size(activity.up_rate),
        "down": size(activity.down_rate),
        "builds": "" if activity.builds is None else str(activity.builds),
        "pressure": "" if activity.pressure_percent is None else f"{activity.pressure_percent:.0f} %",
        "trouble": row.trouble if viewer.sees_host else row.hint,
    }


def cell_id(row_title: str, cell: str) -> str:
    """The id of a cell's element."""
    return f"{row_title}:{cell}"


def shown(row: SatelliteRow, viewer: Viewer) -> Shown:
    """A row for this viewer."""
    return Shown(row.key, cells_of(row, viewer))


def connection_row(fields: Fields) -> ConnectionRow:
    """A connection's record in words."""
    told = Told(fields)
    at = datetime.datetime.fromtimestamp(number_of(fields, "at"), datetime.UTC)
    is_open = "ended_s" not in fields
    end = "open" if is_open else " ".join(filter(None, (told("end"), told("status"))))
    return ConnectionRow(
        told("id"),
        at.strftime("%Y-%m-%d %H:%M:%S"),
        at.isoformat(timespec="seconds"),
        told("satellite"),
        told("principal"),
        told("peer"),
        "waits" if is_open and "held_s" in fields and "leased_s" not in fields else end,
        f"{held_s(fields):.1f} s" if "held_s" in fields else "",
        span(number_of(fields, "open_s" if is_open else "ended_s")),
        is_open,
    )


class Pages:
    """All templates and static files."""

    def __init__(self) -> None:
        folder = resources.files(PACKAGE)
        templates = {each.name: each.read_text() for each in (folder / "templates").iterdir()}
        self.static = {each.name: each.read_bytes() for each in (folder / "static").iterdir()}
        self._environment = jinja2.Environment(
            loader=jinja2.DictLoader(templates),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals["cell_id"] = cell_id
        self._environment.filters["breakable"] = breakable
        for name in templates:
            self._environment.get_template(name)

    def render(self, template: str, viewer: Viewer | None, host: HostFacts | None, **values: object) -> bytes:
        """A page, or a part of one."""
        return self._environment.get_template(template).render(viewer=viewer, host=host, **values).encode()


def breakable(text: str) -> markupsafe.Markup:
    """Escape the text, and let a line break behind a slash, an underscore or a dot, before it breaks within a word."""
    return markupsafe.Markup(BREAKS.sub(r"\g<0><wbr>", str(markupsafe.escape(text))))


def lines_of(fields: Fields) -> list[str]:
    """What became of a connection, in the lines of `bentpipe why`."""
    return list(explain(fields))


def event(name: str, data: object) -> bytes:
    """A server-sent event (HTML standard, §9.2), with data as JSON in one line."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def visible(rows: Iterable[SatelliteRow], viewer: Viewer) -> list[Shown]:
    """The rows that this viewer may see."""
    return [shown(row, viewer) for row in rows if viewer.sees(row.key)]
