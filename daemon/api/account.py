"""The HTTP part of the control API: logging in, the caller's orgs, and what the Earthly CLI wants to know beside.

Requests in, answers out, without a connection. Bodies are JSON; an error is `{"message": …}`, which the CLI shows. Every
path that is not here is answered 404 at once: the CLI repeats 5xx for 18 s, and a build of a client without an account
waits for that.
"""

import dataclasses
import datetime
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus

from bentpipe.daemon.accounts import contract
from bentpipe.daemon.accounts.contract import Access, Authority, Credentials, Login, Org
from bentpipe.daemon.errors import BentpipeError, Unauthenticated
from bentpipe.proto.grpc_status import GrpcStatus

TOKEN_SCHEME, BEARER_SCHEME = "token", "bearer"
NO_TOKEN = "the header `Authorization: token TOKEN` is missing"
NO_ID_TOKEN = "the header `Authorization: Bearer ID_TOKEN` is missing"
NOT_FOUND = "not found"

BODY_BYTES = 4 << 10
"""Of a request's body. No page reads one. More is answered by 413."""

HTTP_STATUS = {
    GrpcStatus.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    GrpcStatus.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    GrpcStatus.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Of errors; any other is 500."""

Json = Mapping[str, object]
Promote = Callable[[Access], None]
"""Puts the connection on its caller's account. Raises LimitReached."""


@dataclasses.dataclass(frozen=True, slots=True)
class HttpRequest:
    """A complete request: the path without its query, and the client certificate of the connection as DER."""

    method: str
    path: str
    authorization: str = ""
    certificate_der: bytes | None = None


def request_of(method: str, target: str, authorizations: Sequence[bytes], certificate_der: bytes | None) -> HttpRequest:
    """Make a request of its parts. Two `Authorization` fields count as none: nobody could say which one is meant."""
    authorization = authorizations[0].decode("latin-1") if len(authorizations) == 1 else ""
    return HttpRequest(method, target.partition("?")[0], authorization, certificate_der)


@dataclasses.dataclass(slots=True)
class IncompleteRequest:
    """A request whose body is still to come. curl 7.88 fails if its stream ends before it has sent all of it."""

    request: HttpRequest
    body_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer, and the label by which it is counted. A stranger can never choose the label."""

    status: HTTPStatus
    body: Json
    label: str

    @property
    def data(self) -> bytes:
        """The body's bytes."""
        return json.dumps(self.body).encode()


BODY_TOO_LONG = HttpAnswer(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"message": "the body is too long: no page reads one"}, "HTTP 413"
)


class AccountPages:
    """Answers requests."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    async def answer(self, request: HttpRequest, promote: Promote) -> HttpAnswer:
        """Answer a request. `promote` is called once its caller is known."""
        page = self._page(request.path)
        if page is None:
            return HttpAnswer(HTTPStatus.NOT_FOUND, {"message": NOT_FOUND}, "HTTP 404")
        method, name, serve = page
        if request.method != method:
            words = f"only {method} is served here"
            return HttpAnswer(HTTPStatus.METHOD_NOT_ALLOWED, {"message": words}, "HTTP 405")
        try:
            return HttpAnswer(HTTPStatus.OK, await serve(request, promote), f"{name} 200")
        except BentpipeError as exc:
            status = HTTP_STATUS.get(exc.status, HTTPStatus.INTERNAL_SERVER_ERROR)
            return HttpAnswer(status, {"message": exc.peer_hint}, f"{name} {status.value}")

    def _page(self, path: str) -> tuple[str, str, Callable[[HttpRequest, Promote], Awaitable[Json]]] | None:
        """The method, the name for the counters, and what serves it."""
        match path:
            case "/api/v0/account/login":
                return "POST", "login", self._log_in
            case contract.EXCHANGE_PATH:
                return "POST", "exchange", self._exchange
            case "/api/v0/admin/organizations":
                return "GET", "organizations", self._orgs
            case "/api/v0/account/ping":
                return "GET", "ping", self._ping
            case "/api/v0/account/tokens":
                return "GET", "tokens", self._tokens
            case _ if path.startswith("/api/v1/secrets/"):
                return "GET", "secrets", self._secrets
            case _:
                return None

    def _access(self, request: HttpRequest, promote: Promote) -> Access:
        shown = _credential(request, BEARER_SCHEME)
        access = self._authority.authenticate(Credentials(shown, request.certificate_der))
        promote(access)
        return access

    async def _log_in(self, request: HttpRequest, promote: Promote) -> Json:
        token = _credential(request, TOKEN_SCHEME)
        if token is None:
            raise Unauthenticated(NO_TOKEN)
        return self._logged_in(self._authority.log_in(token), promote)

    async def _exchange(self, request: HttpRequest, promote: Promote) -> Json:
        id_token = _credential(request, BEARER_SCHEME)
        if id_token is None:
            raise Unauthenticated(NO_ID_TOKEN)
        return self._logged_in(await self._authority.exchange(id_token), promote)

    def _logged_in(self, login: Login, promote: Promote) -> Json:
        promote(self._authority.authenticate(Credentials(login.token)))
        return {"token": login.token, "expiry": _rfc3339(login.expiry)}

    async def _orgs(self, request: HttpRequest, promote: Promote) -> Json:
        access = self._access(request, promote)
        return {"details": [_org(org, access) for org in access.orgs()]}

    async def _ping(self, request: HttpRequest, promote: Promote) -> Json:
        access = self._access(request, promote)
        return {"email": access.email, "writeAccess": access.writes}

    async def _tokens(self, request: HttpRequest, promote: Promote) -> Json:
        access = self._access(request, promote)
        return {
            "tokenDetails": [
                {
                    "name": token.name,
                    "write": token.write,
                    "indefinite": token.expiry is None,
                    **({} if token.expiry is None else {"expiry": _rfc3339(token.expiry)}),
                }
                for token in access.tokens()
            ]
        }

    async def _secrets(self, request: HttpRequest, promote: Promote) -> Json:
        """There are none, so that the CLI goes on to Docker's own credentials; 404 would fail every pull that needs some."""
        self._access(request, promote)
        return {}


def _credential(request: HttpRequest, scheme: str) -> str | None:
    """The credential of the header `Authorization: SCHEME CREDENTIAL`; None if it has another scheme, or none."""
    shown, _, credential = request.authorization.partition(" ")
    return credential.strip() or None if shown.lower() == scheme else None


def _org(org: Org, access: Access) -> Json:
    kind = "PERSONAL" if org.personal else "UNSPECIFIED"
    return {"name": org.name, "id": org.id, "admin": access.writes, "type": kind}


def _rfc3339(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
