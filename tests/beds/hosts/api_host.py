"""Methods of a test's own, served by the control API's connection on a plain port: no fleet and no configuration."""

import dataclasses
import datetime
import socket
from collections.abc import Mapping

import trio

from bentpipe.daemon.accounts.contract import Access, Authority, Credentials, Login, Org, Scope, TokenSummary
from bentpipe.daemon.api.call import Method
from bentpipe.daemon.api.server import ControlApi
from bentpipe.daemon.connections.arrival import Arrival, Proxies
from bentpipe.daemon.connections.outcomes import ConnectionCounters, ConnectionOver, Outcome
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.connections.quota_limits import QuotaLimits
from bentpipe.daemon.connections.quotas import Quotas
from bentpipe.daemon.connections.transport import Transport, TransportError
from bentpipe.daemon.edge.announcements import Announcements
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.opening import FirstRequest, read_opening
from bentpipe.daemon.edge.services import ServedConnection
from bentpipe.daemon.errors import Unauthenticated
from bentpipe.daemon.records.book import Book

LIMITS = QuotaLimits(strangers=100, strangers_bytes=8 << 20, per_prefix=100, admitted=100, said_bytes=64 << 20)
SESSION = "session."
"""Put before a token, it is the credential that logging in gives for it."""


@dataclasses.dataclass(slots=True)
class Person:
    """A principal, and what it may do: scopes by (org, satellite), where "*" stands for all satellites."""

    name: str
    rights: dict[tuple[str, str], frozenset[Scope]]
    revoked: bool = False
    writes: bool = False

    @property
    def email(self) -> str:
        return f"{self.name}@bentpipe.invalid"

    def holds(self) -> bool:
        return not self.revoked

    def may(self, scope: Scope, org: str, satellite: str | None) -> bool:
        if self.revoked:
            return False
        rights = [
            each
            for (of, name), each in self.rights.items()
            if of == org and (satellite is None or name in (satellite, "*"))
        ]
        return any(scope in each or (scope is Scope.USE and Scope.MANAGE in each) for each in rights)

    def orgs(self) -> tuple[Org, ...]:
        return tuple(Org(org, org) for org in sorted({org for org, _ in self.rights}))

    def tokens(self) -> tuple[TokenSummary, ...]:
        return (TokenSummary(self.name, self.writes),)


class People:
    """An authority of a few tokens, which a test can revoke at any time."""

    def __init__(self, people: Mapping[str, Person]) -> None:
        self.people = dict(people)

    def authenticate(self, credentials: Credentials) -> Access:
        person = self.people.get((credentials.token or "").removeprefix(SESSION))
        if person is None or person.revoked:
            raise Unauthenticated("the token is missing or not valid")
        return person

    def log_in(self, token: str) -> Login:
        self.authenticate(Credentials(token))
        return Login(SESSION + token, datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1))

    async def exchange(self, id_token: str) -> Login:
        await trio.lowlevel.checkpoint()
        return self.log_in(id_token.removeprefix("id."))


class ApiHost:
    """Serves an API; `outcomes` is how its connections ended."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        authority: Authority,
        *,
        stranger_age_s: float = 600.0,
        limits: QuotaLimits = LIMITS,
    ) -> None:
        self.counters = ConnectionCounters()
        self.book = Book()
        self.quotas = Quotas(limits, trio.current_time)
        self.api = ControlApi(methods, authority, self.counters, stranger_age_s)
        self.outcomes: list[Outcome] = []
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._sock.setblocking(False)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._sock.getsockname()
        return host, port

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            with trio.socket.from_stdlib_socket(self._sock) as listener:
                while True:
                    sock, name = await listener.accept()
                    arrival = Arrival(self.quotas, name, Proxies(), self.book)
                    nursery.start_soon(self._serve, socket.socket(fileno=sock.detach()), arrival)

    async def _serve(self, sock: socket.socket, arrival: Arrival) -> None:
        caller = Caller(Transport(sock), arrival)
        try:
            opening = await read_opening(caller, Port(serves_api=True), Announcements())
            connection: ServedConnection
            if isinstance(opening, FirstRequest):
                connection = self.api.open(caller, opening.identity, None)
            else:
                connection = self.api.open_http1(caller, opening.identity)
            self.outcomes.append(await connection.run())
            await caller.transport.close_gracefully()
            connection.dispose()
        except ConnectionOver as exc:
            self.outcomes.append(exc.outcome)
        except TransportError:
            self.outcomes.append(Outcome.BROKEN)
        finally:
            caller.transport.close()
            arrival.place.release()
