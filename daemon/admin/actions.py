"""What may be done from the page: each action with the right that it takes, its words, and the doing.

Every action is logged with the principal's name. What takes time (a wake, the sleep after a drain) goes on in a task.
"""

import dataclasses
import enum
import logging
import secrets
from collections.abc import Awaitable, Callable

import trio

from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.admin.facts import AdminParts
from bentpipe.daemon.admin.viewer import Viewer
from bentpipe.daemon.edge.handoff import Pending, Splice
from bentpipe.daemon.errors import BentpipeError, SleepRefused
from bentpipe.daemon.fleet.machine.words import NOT_OURS
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.tasks import Decision, Owner, run_owned

log = logging.getLogger("bentpipe.admin")

TASKS = 64
"""Wakes and drains under way at once that were asked for here."""
LOOK_S, ASK_AGAIN_S = 1.0, 30.0
"""Of a drain: between looks whether the satellite is unused by now, and until it is asked to sleep again."""
NOTICES = 64
"""Outcomes that are kept until their page is shown."""
DRAINED_WORDS = "the satellite takes no clients now: its operator has drained it on this edge host"


class PageAction(enum.Enum):
    """What can be done to a satellite. The value is its address below the satellite's."""

    WAKE = "wake"
    SLEEP = "sleep"
    DRAIN = "drain"
    ADMIT = "admit"
    CUT = "cut"


@dataclasses.dataclass(frozen=True, slots=True)
class ActionWords:
    """`scope` is the right that it takes. `question` is asked first; without one it is done at once."""

    scope: Scope
    button: str
    question: str = ""


WORDS: dict[PageAction, ActionWords] = {
    PageAction.WAKE: ActionWords(Scope.USE, "Wake"),
    PageAction.SLEEP: ActionWords(
        Scope.MANAGE, "Put to sleep", "It goes to sleep now, if nobody uses it. The next client wakes it again."
    ),
    PageAction.DRAIN: ActionWords(
        Scope.MANAGE,
        "Drain",
        "This host refuses its new clients and those that wait. Clients that are connected may finish; then it is put to "
        "sleep. That holds until clients are let in again, or until the daemon is restarted.",
    ),
    PageAction.ADMIT: ActionWords(Scope.MANAGE, "Let clients in again"),
    PageAction.CUT: ActionWords(
        Scope.MANAGE,
        "Cut connections",
        "Its connections on this host end at once, with whatever builds on them, and clients that wait are refused. They "
        "may connect again.",
    ),
}


def offered(satellite: Satellite, viewer: Viewer) -> list[tuple[str, ActionWords]]:
    """The actions that make sense for a satellite now, and that the viewer may do: address and words."""
    closed = satellite.retirement.is_closed
    state = satellite.state
    found = []
    for action, words in WORDS.items():
        fits = {
            PageAction.WAKE: satellite.rules.owned and state is not SatelliteState.OPERATIONAL and not closed,
            PageAction.SLEEP: satellite.rules.owned and state is SatelliteState.OPERATIONAL,
            PageAction.DRAIN: not closed,
            PageAction.ADMIT: closed,
            PageAction.CUT: True,
        }
        if fits[action] and viewer.may(words.scope, satellite.key):
            found.append((action.value, words))
    return found


class Actions:
    """Does them. `start` gives it the nursery of what takes time."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts
        self._nursery: trio.Nursery | None = None
        self._under_way: set[tuple[PageAction, SatelliteKey]] = set()
        self._notices: dict[str, str] = {}

    def start(self, nursery: trio.Nursery) -> None:
        """From now on actions can be done."""
        self._nursery = nursery

    def keep_notice(self, words: str) -> str:
        """Keep the outcome of an action for the page that is shown next. Returns its id."""
        while len(self._notices) >= NOTICES:
            del self._notices[next(iter(self._notices))]
        notice = secrets.token_urlsafe(12)
        self._notices[notice] = words
        return notice

    def notice(self, notice: str) -> str:
        """The outcome that was kept; "" if there is none any more."""
        return self._notices.get(notice, "")

    def do(self, action: PageAction, satellite: Satellite, viewer: Viewer) -> str:
        """Do it, and say in words what came of it."""
        try:
            words = self._do(action, satellite, viewer)
        except SleepRefused as exc:
            words = f"Not done: {exc.peer_hint}"
        _note(action.value, str(satellite.key), viewer, words)
        return words

    def _do(self, action: PageAction, satellite: Satellite, viewer: Viewer) -> str:
        key = satellite.key
        match action:
            case PageAction.WAKE:
                if not satellite.rules.owned:
                    raise SleepRefused(NOT_OURS)
                self._spawn(action, satellite, lambda: self._wake(satellite, viewer.name))
                return "The wake was asked for. The state above follows it."
            case PageAction.SLEEP:
                if not satellite.rules.owned:
                    raise SleepRefused(NOT_OURS)
                satellite.ask_to_sleep()
                return "It goes to sleep."
            case PageAction.DRAIN:
                satellite.retirement.close(DRAINED_WORDS)
                self._spawn(action, satellite, lambda: self._put_to_sleep(satellite))
                return "It takes no more clients on this host, and will sleep when nobody uses it."
            case PageAction.ADMIT:
                satellite.retirement.reopen()
                return "It takes clients again."
            case PageAction.CUT:
                count = self._parts.handoff.cut(lambda each: each.key == key)
                return f"{count} connections and waiting clients were cut."

    def cut_one(self, connection_id: str, viewer: Viewer) -> str:
        """Cut one spliced connection, and say what came of it."""

        def is_meant(each: Splice | Pending) -> bool:
            return isinstance(each, Splice) and each.record.id == connection_id

        count = self._parts.handoff.cut(is_meant)
        words = "The connection was cut." if count else "Not done: it is not joined with a satellite, or over already."
        _note("cut", connection_id, viewer, words)
        return words

    def drain_host(self, viewer: Viewer) -> str:
        """Begin the drain of the daemon."""
        words = "The daemon drains: it takes no more clients, and ends."
        _note("drain host", "", viewer, words)
        self._parts.drain()
        return words

    def _spawn(self, action: PageAction, satellite: Satellite, work: Callable[[], Awaitable[None]]) -> None:
        mark = action, satellite.key
        if self._nursery is None or mark in self._under_way or len(self._under_way) >= TASKS:
            return

        async def run() -> None:
            try:
                await work()
            finally:
                self._under_way.discard(mark)

        self._under_way.add(mark)
        self._nursery.start_soon(run_owned, Owner("admin action", str(satellite.key), Decision.GIVE_UP), run)

    async def _wake(self, satellite: Satellite, who: str) -> None:
        try:
            async with satellite.lease(who):
                pass  # it stays awake for its usual time
        except BentpipeError as exc:
            fields = {"satellite": str(satellite.key), "principal": who, "error": str(exc)}
            log.warning("a wake from the page has failed", extra={"fields": fields})

    async def _put_to_sleep(self, satellite: Satellite) -> None:
        """Wait until nobody uses a drained satellite, and put it to sleep."""
        while satellite.retirement.is_closed and not satellite.is_dormant:
            pause_s = LOOK_S
            unused = not satellite.leases and not satellite.waiting
            if unused and satellite.state is SatelliteState.OPERATIONAL and satellite.rules.owned:
                try:
                    satellite.ask_to_sleep()
                except SleepRefused as exc:
                    fields = {"satellite": str(satellite.key), "reason": exc.peer_hint}
                    log.info("a drained satellite stays awake", extra={"fields": fields})
                    pause_s = ASK_AGAIN_S
            await trio.sleep(pause_s)


def _note(action: str, subject: str, viewer: Viewer, outcome: str) -> None:
    fields = {"action": action, "subject": subject, "principal": viewer.name, "outcome": outcome}
    log.warning("done from the page", extra={"fields": fields})
