"""What the parts of a page show to a viewer: satellites, waiting clients, connections. It knows no HTML and no address."""

from collections.abc import Awaitable, Callable, Mapping

from bentpipe.daemon.admin.facts import AdminParts
from bentpipe.daemon.admin.history import SPANS
from bentpipe.daemon.admin.look import Looker
from bentpipe.daemon.admin.pages import ConnectionRow, connection_row, visible
from bentpipe.daemon.admin.past import past_page
from bentpipe.daemon.admin.viewer import Viewer
from bentpipe.daemon.errors import StoreError

NEWEST = 20
"""Connections in a list of the overview."""
NEWEST_MOST = 200
"""Connections in a list of their own."""

Values = Mapping[str, object]
"""What a template shows, by name."""


class Content:
    """Asks the daemon's parts, and leaves out what a viewer may not see."""

    def __init__(self, parts: AdminParts, looker: Looker) -> None:
        self._parts = parts
        self._looker = looker

    async def satellites(self, viewer: Viewer, satellite: str) -> Values:
        """The rows of all satellites, or of one."""
        rows = visible((await self._looker.look()).rows, viewer)
        return {"rows": [row for row in rows if satellite in ("", row.title)]}

    async def held(self, viewer: Viewer, satellite: str) -> Values:
        """The clients that wait, for any satellite or for one."""
        held = (await self._looker.look()).held
        meant = [each for each in held if viewer.sees_connection(each) and satellite in ("", each["satellite"])]
        return {"held": list(map(connection_row, meant)), "one": bool(satellite)}

    async def newest(self, viewer: Viewer, satellite: str, principal: str, most: int) -> list[ConnectionRow]:
        """The newest connections that the viewer may see. Raises StoreError."""
        asked = most if viewer.sees_host else NEWEST_MOST
        found = await self._parts.finder.newest(asked, satellite=satellite, principal=principal)
        return [connection_row(each) for each in found if viewer.sees_connection(each)][:most]

    async def last(self, viewer: Viewer, satellite: str) -> Values:
        """The last connections, to any satellite or to one."""
        shown: list[ConnectionRow] = []
        problem = ""
        try:
            shown = await self.newest(viewer, satellite, "", NEWEST)
        except StoreError as exc:
            problem = str(exc) if viewer.sees_host else "the store does not answer"
        return {"connections": shown, "problem": problem, "one": bool(satellite)}

    async def host(self, viewer: Viewer, satellite: str) -> Values:
        """It is in every page."""
        return {}

    async def past(self, viewer: Viewer, span: str) -> Values:
        """What the ledger says of a span. Raises StoreError."""
        return {"past": past_page(await self._parts.history.read(span), viewer), "span": span, "spans": SPANS}

    async def overview(self, viewer: Viewer, satellite: str = "") -> Values:
        """All parts, of all satellites or of one."""
        found: dict[str, object] = {"satellite": satellite}
        for make in PARTS.values():
            found |= await make(self, viewer, satellite)
        return found


PARTS: Mapping[str, Callable[[Content, Viewer, str], Awaitable[Values]]] = {
    "host": Content.host,
    "satellites": Content.satellites,
    "held": Content.held,
    "connections": Content.last,
}
"""The parts of the overview that a page asks for again when they are old."""
