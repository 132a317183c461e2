"""What each address of the site answers: who may look is settled first, then the page is made of what that one may see."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus

import trio

from bentpipe.config.admin import AdminSection
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.admin.actions import WORDS, Actions, PageAction, offered
from bentpipe.daemon.admin.content import NEWEST_MOST, PARTS, Content
from bentpipe.daemon.admin.counters import Turned
from bentpipe.daemon.admin.facts import AdminParts
from bentpipe.daemon.admin.feed import Feed
from bentpipe.daemon.admin.guard import host_name, host_problem, is_same_secret, origin_problem
from bentpipe.daemon.admin.history import FIRST_SPAN, SPANS
from bentpipe.daemon.admin.http1 import BadRequest, BrowserRequest, HttpReply
from bentpipe.daemon.admin.look import Looker
from bentpipe.daemon.admin.pages import STATIC_KINDS, Pages, lines_of
from bentpipe.daemon.admin.viewer import SignIns, Viewer, Viewers
from bentpipe.daemon.errors import StoreError, TokensUnknown, Unauthenticated
from bentpipe.daemon.fleet.satellite import Satellite
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.records.ids import NotAnId, parse_id
from bentpipe.daemon.records.telling import Fields
from bentpipe.daemon.tasks import Owner, contained

log = logging.getLogger("bentpipe.admin")

COOKIE = "bentpipe"
"""Followed by the port: browsers keep cookies by host name alone, and other services of this host may have pages too."""
STATIC_AGE_S = 3600
DRAIN_QUESTION = (
    "The daemon takes no more clients, and refuses those that wait. It ends with the last connection, or cuts what is left "
    "after {}. systemd may start it again."
)
RENDERERS = 2
"""Threads that render at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Visit:
    """A request, and on what kind of socket it came."""

    request: BrowserRequest
    local: bool
    """On the Unix socket, from root or the daemon's own user."""


class NotServedHere(Exception):
    """The page is not answered. `answer` says why."""

    def __init__(self, answer: HttpReply) -> None:
        super().__init__()
        self.answer = answer


class Site:
    """The pages; `answer` makes one. `section` returns the configuration as it is now."""

    def __init__(self, parts: AdminParts, viewers: Viewers, section: Callable[[], AdminSection]) -> None:
        self._parts = parts
        self._counters = parts.counters
        self._viewers = viewers
        self._section = section
        self._pages = Pages()
        looker = Looker(parts)
        self._content = Content(parts, looker)
        self._rendering = trio.CapacityLimiter(RENDERERS)
        self.feed = Feed(looker, parts)
        self.sign_ins = SignIns()
        self.actions = Actions(parts)

    # -- who looks -----------------------------------------------------------------------------------------------------

    async def answer(self, request: BrowserRequest, *, local: bool) -> HttpReply:
        """Answer one request, whatever it is, and count it. Raises no Exception."""
        answer = await self._answer_any(request, local=local)
        self._counters.answers[answer.status] += 1
        return answer

    async def _answer_any(self, request: BrowserRequest, *, local: bool) -> HttpReply:
        with contained(Owner("admin page")):
            try:
                return await self._answer(Visit(request, local))
            except NotServedHere as exc:
                return exc.answer
            except BadRequest as exc:
                self._counters.turned[Turned.MALFORMED] += 1
                return self.words(exc.status, exc.status.phrase, str(exc))
            except StoreError as exc:
                return self.words(HTTPStatus.SERVICE_UNAVAILABLE, "The store does not answer", str(exc))
        return self.words(HTTPStatus.INTERNAL_SERVER_ERROR, "This page could not be made", "The daemon's log says why.")

    def refuse(self, problem: BadRequest, reason: Turned = Turned.MALFORMED) -> HttpReply:
        """Answer a request that cannot be read, or one of too many, and count it."""
        self._counters.turned[reason] += 1
        self._counters.answers[problem.status] += 1
        return self.words(problem.status, problem.status.phrase, str(problem))

    def words(self, status: HTTPStatus, title: str, text: str, viewer: Viewer | None = None) -> HttpReply:
        """A page of a few words."""
        return HttpReply(status, self._pages.render("words.html", viewer, None, title=title, text=text))

    async def _answer(self, visit: Visit) -> HttpReply:
        request = visit.request
        if problem := host_problem(request.fields, self._section().hosts):
            self._counters.turned[Turned.HOST] += 1
            raise NotServedHere(self.words(HTTPStatus.MISDIRECTED_REQUEST, "Not this name", problem))
        match request.method, request.path:
            case "GET" | "HEAD", ("static", name):
                return self._static(name)
            case "GET" | "HEAD", ("sign-in",):
                return await self._sign_in_form(visit)
            case "GET" | "HEAD", path:
                return await self._page(path, visit, self._viewer_of(visit))
            case "POST", path:
                if problem := origin_problem(request.fields):
                    self._counters.turned[Turned.ORIGIN] += 1
                    raise NotServedHere(self.words(HTTPStatus.FORBIDDEN, "Not from a page of ours", problem))
                return await self._post(path, visit)
            case _:
                return dataclasses.replace(
                    self.words(HTTPStatus.METHOD_NOT_ALLOWED, "Not this method", "GET and POST are served."),
                    fields=(("allow", "GET, HEAD, POST"),),
                )

    def _cookie_name(self, request: BrowserRequest) -> str:
        port = request.fields.get("host", "").rpartition(":")[2]
        return f"{COOKIE}-{port}" if port.isdigit() else COOKIE

    def find_viewer(self, visit: Visit) -> Viewer | None:
        """Who it is; None if it has to sign in. Raises TokensUnknown while the store has not been read."""
        if visit.local:
            return self._viewers.operator
        sign_in = self.sign_ins.find(value := visit.request.cookie(self._cookie_name(visit.request)))
        if sign_in is not None:
            try:
                return self._viewers.of_token(sign_in.token, sign_in.secret)
            except Unauthenticated:
                self.sign_ins.close(value)
        return self._viewers.reader if self._section().read_without_token else None

    def principal_of(self, request: BrowserRequest, *, local: bool) -> str:
        """By whose name a connection counts; "" if nobody has signed in there."""
        try:
            viewer = self.find_viewer(Visit(request, local))
        except TokensUnknown:
            return ""
        return viewer.name if viewer is not None and viewer.acts else ""

    def _viewer_of(self, visit: Visit) -> Viewer:
        """Raises NotServedHere."""
        try:
            viewer = self.find_viewer(visit)
        except TokensUnknown as exc:
            raise NotServedHere(self.words(HTTPStatus.SERVICE_UNAVAILABLE, "Not yet", exc.peer_hint)) from exc
        if viewer is None:
            if visit.request.path[:1] in (("parts",), ("events",)):
                raise NotServedHere(HttpReply(HTTPStatus.UNAUTHORIZED, b"signed out\n", "text/plain; charset=utf-8"))
            raise NotServedHere(_redirect("/sign-in"))
        return viewer

    # -- signing in ----------------------------------------------------------------------------------------------------

    async def _sign_in_form(self, visit: Visit, problem: str = "", status: HTTPStatus = HTTPStatus.OK) -> HttpReply:
        if visit.local:
            return _redirect("/")
        return HttpReply(status, self._pages.render("sign-in.html", None, None, problem=problem))

    async def _sign_in(self, visit: Visit) -> HttpReply:
        if not self.sign_ins.may_try():
            self._counters.turned[Turned.ATTEMPTS] += 1
            return await self._sign_in_form(
                visit, "Too many attempts: try again in some seconds.", HTTPStatus.TOO_MANY_REQUESTS
            )
        token = visit.request.form.get("token", "").strip()
        try:
            viewer = self._viewers.of_token(token)
        except Unauthenticated:
            log.warning("sign-in refused")
            self._counters.turned[Turned.TOKEN] += 1
            return await self._sign_in_form(visit, "This token is not valid.", HTTPStatus.FORBIDDEN)
        except TokensUnknown as exc:
            return await self._sign_in_form(visit, exc.peer_hint, HTTPStatus.SERVICE_UNAVAILABLE)
        log.info("signed in", extra={"fields": {"principal": viewer.name, "operator": viewer.runs_host}})
        return _redirect("/", self._set_cookie(visit.request, self.sign_ins.open(token, viewer.name)))

    def _set_cookie(self, request: BrowserRequest, value: str, age_s: int | None = None) -> tuple[str, str]:
        # A name of `hosts` is that of a proxy which does TLS.
        secure = "; Secure" if host_name(request.fields["host"]) in self._section().hosts else ""
        age = "" if age_s is None else f"; Max-Age={age_s}"
        name = self._cookie_name(request)
        return "set-cookie", f"{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{age}"

    # -- what is shown -------------------------------------------------------------------------------------------------

    def _static(self, name: str) -> HttpReply:
        data = self._pages.static.get(name)
        if data is None:
            return self.words(HTTPStatus.NOT_FOUND, "No such page", "There is no such file.")
        kind = STATIC_KINDS[name.rpartition(".")[2]]
        return HttpReply(HTTPStatus.OK, data, kind, (("cache-control", f"max-age={STATIC_AGE_S}"),))

    async def _page(self, path: tuple[str, ...], visit: Visit, viewer: Viewer) -> HttpReply:
        query = visit.request.query
        match path:
            case ():
                values = await self._content.overview(viewer)
                return await self._show(
                    "overview.html", viewer, **values, done=self.actions.notice(query.get("done", ""))
                )
            case ("parts", name) if name in PARTS:
                values = await PARTS[name](self._content, viewer, query.get("satellite", ""))
                return await self._show(f"part-{name}.html", viewer, **values)
            case ("events",):
                return self._events(visit)
            case ("history",):
                span = query.get("span", "")
                values = await self._content.past(viewer, span if span in SPANS else FIRST_SPAN)
                return await self._show("history.html", viewer, **values)
            case ("connections",):
                return await self._connections(query, viewer)
            case ("connections", text):
                return await self._why(text, query, viewer)
            case ("satellites", org, name):
                return await self._satellite(SatelliteKey(org, name), query, viewer)
            case ("satellites", org, name, action):
                return await self._confirm(SatelliteKey(org, name), action, viewer)
            case ("connections", text, "cut"):
                return await self._confirm_one(text, viewer)
            case ("drain",) if viewer.runs_host:
                question = DRAIN_QUESTION.format(self._parts.host().drain_deadline)
                return await self._ask("Drain this host", question, "/", viewer)
            case _:
                return self.words(HTTPStatus.NOT_FOUND, "No such page", "There is no page at this address.", viewer)

    async def _show(self, template: str, viewer: Viewer, **values: object) -> HttpReply:
        """Render outside the Trio thread: a page of many satellites takes tens of milliseconds."""
        host = self._parts.host()
        render = functools.partial(self._pages.render, template, viewer, host, **values)
        body = await trio.to_thread.run_sync(render, limiter=self._rendering)
        return HttpReply(HTTPStatus.OK, body, fields=(("cache-control", "no-store"),))

    async def _connections(self, query: Mapping[str, str], viewer: Viewer) -> HttpReply:
        if text := query.get("id", "").strip():
            try:
                return _redirect(f"/connections/{parse_id(text)}")
            except NotAnId as exc:
                return self.words(HTTPStatus.BAD_REQUEST, "Not an id of a connection", str(exc), viewer)
        satellite, principal = query.get("satellite", ""), query.get("principal", "")
        rows = await self._content.newest(viewer, satellite, principal, NEWEST_MOST)
        return await self._show(
            "connections.html", viewer, connections=rows, problem="", satellite=satellite, principal=principal
        )

    async def _find_connection(self, text: str, viewer: Viewer) -> Fields:
        """Raises NotServedHere."""
        try:
            found = await self._parts.finder.find(parse_id(text))
        except NotAnId as exc:
            raise NotServedHere(
                self.words(HTTPStatus.BAD_REQUEST, "Not an id of a connection", str(exc), viewer)
            ) from exc
        if found is None or not viewer.sees_connection(found):
            words = "No such connection is known here, or it is not yours. It may be too old."
            raise NotServedHere(self.words(HTTPStatus.NOT_FOUND, "No such connection", words, viewer))
        return found

    async def _why(self, text: str, query: Mapping[str, str], viewer: Viewer) -> HttpReply:
        found = await self._find_connection(text, viewer)
        return await self._show(
            "why.html",
            viewer,
            lines=lines_of(found),
            id=str(found["id"]),
            done=self.actions.notice(query.get("done", "")),
            may_cut="ended_s" not in found and "spliced_s" in found and may_cut(found, viewer),
        )

    def _find_satellite(self, key: SatelliteKey, viewer: Viewer) -> Satellite:
        """Raises NotServedHere."""
        satellite = self._parts.fleet.find(key)
        if satellite is None or not viewer.sees(key):
            words = "There is no such satellite, or it is not yours."
            raise NotServedHere(self.words(HTTPStatus.NOT_FOUND, "No such satellite", words, viewer))
        return satellite

    async def _satellite(self, key: SatelliteKey, query: Mapping[str, str], viewer: Viewer) -> HttpReply:
        satellite = self._find_satellite(key, viewer)
        values = await self._content.overview(viewer, str(key))
        done = self.actions.notice(query.get("done", ""))
        return await self._show("satellite.html", viewer, **values, actions=offered(satellite, viewer), done=done)

    async def _ask(self, title: str, question: str, back: str, viewer: Viewer) -> HttpReply:
        """A page that asks before something is done: its form comes back to the page's own address."""
        return await self._show("confirm.html", viewer, title=title, question=question, back=back)

    def _action_of(self, key: SatelliteKey, name: str, viewer: Viewer) -> tuple[PageAction, Satellite]:
        """The action of an address, if the viewer may do it. Raises NotServedHere."""
        satellite = self._find_satellite(key, viewer)
        if name not in {each.value for each in PageAction}:
            raise NotServedHere(self.words(HTTPStatus.NOT_FOUND, "No such page", "There is no such action.", viewer))
        action = PageAction(name)
        if not viewer.may(WORDS[action].scope, key):
            self._counters.turned[Turned.RIGHTS] += 1
            words = f"That takes the scope {WORDS[action].scope.value} for this satellite."
            raise NotServedHere(self.words(HTTPStatus.FORBIDDEN, "Not yours to do", words, viewer))
        return action, satellite

    async def _confirm(self, key: SatelliteKey, name: str, viewer: Viewer) -> HttpReply:
        action, _ = self._action_of(key, name, viewer)
        words = WORDS[action]
        return await self._ask(f"{words.button}: {key}", words.question, f"/satellites/{key}", viewer)

    def _act(self, key: SatelliteKey, name: str, viewer: Viewer) -> HttpReply:
        action, satellite = self._action_of(key, name, viewer)
        notice = self.actions.keep_notice(self.actions.do(action, satellite, viewer))
        return _redirect(f"/satellites/{key}?done={notice}")

    async def _confirm_one(self, text: str, viewer: Viewer) -> HttpReply:
        found = await self._find_cuttable(text, viewer)
        question = "It ends at once, with whatever builds on it. Its client may connect again."
        return await self._ask(f"Cut connection {found['id']}", question, f"/connections/{found['id']}", viewer)

    async def _find_cuttable(self, text: str, viewer: Viewer) -> Fields:
        """Raises NotServedHere."""
        found = await self._find_connection(text, viewer)
        if not may_cut(found, viewer):
            self._counters.turned[Turned.RIGHTS] += 1
            words = "That takes the scope manage for its satellite."
            raise NotServedHere(self.words(HTTPStatus.FORBIDDEN, "Not yours to do", words, viewer))
        return found

    async def _cut_one(self, text: str, viewer: Viewer) -> HttpReply:
        found = await self._find_cuttable(text, viewer)
        notice = self.actions.keep_notice(self.actions.cut_one(str(found["id"]), viewer))
        return _redirect(f"/connections/{found['id']}?done={notice}")

    def _events(self, visit: Visit) -> HttpReply:
        if self.feed.is_full:
            self._counters.turned[Turned.LISTENERS] += 1
            words = b"too many pages listen; reload this one by hand\n"
            return HttpReply(HTTPStatus.SERVICE_UNAVAILABLE, words, "text/plain; charset=utf-8")

        def find() -> Viewer | None:
            try:
                return self.find_viewer(visit)
            except TokensUnknown:
                return None

        listen = functools.partial(self.feed.listen, find)
        fields = (("cache-control", "no-store"), ("x-accel-buffering", "no"))
        return HttpReply(HTTPStatus.OK, kind="text/event-stream", fields=fields, stream=listen)

    # -- what changes something ----------------------------------------------------------------------------------------

    async def _post(self, path: tuple[str, ...], visit: Visit) -> HttpReply:
        if path == ("sign-in",):
            return await self._sign_in(visit)
        viewer = self._viewer_of(visit)
        if not is_same_secret(visit.request.form.get("secret", ""), viewer.secret):
            self._counters.turned[Turned.SECRET] += 1
            words = "The page was too old, or not ours. Go back, reload it, and try again."
            raise NotServedHere(self.words(HTTPStatus.FORBIDDEN, "Not done", words, viewer))
        match path:
            case ("satellites", org, name, action):
                return self._act(SatelliteKey(org, name), action, viewer)
            case ("connections", text, "cut"):
                return await self._cut_one(text, viewer)
            case ("drain",) if viewer.runs_host:
                return _redirect(f"/?done={self.actions.keep_notice(self.actions.drain_host(viewer))}")
            case ("sign-out",):
                self.sign_ins.close(visit.request.cookie(self._cookie_name(visit.request)))
                return _redirect("/sign-in", self._set_cookie(visit.request, "", 0))
            case _:
                return self.words(HTTPStatus.NOT_FOUND, "No such page", "There is no page at this address.", viewer)


def may_cut(fields: Fields, viewer: Viewer) -> bool:
    """Whether the viewer may cut this connection."""
    org, _, name = str(fields.get("satellite", "")).partition("/")
    return viewer.may(Scope.MANAGE, SatelliteKey(org, name))


def _redirect(to: str, *fields: tuple[str, str]) -> HttpReply:
    return HttpReply(HTTPStatus.SEE_OTHER, fields=(("location", to), ("cache-control", "no-store"), *fields))
