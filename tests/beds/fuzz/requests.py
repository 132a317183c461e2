"""Random first requests of clients, honest and hostile: metadata in both spellings, twice, malformed, and at each limit."""

import dataclasses
import random
from collections.abc import Callable

from bentpipe.proto.events import HeaderList

DOMAIN = "builds.example"
TOKEN_LIMIT = 16 << 10
KEYS = (
    *(b"satellite_org", b"satellite-org", b"satellite_name", b"satellite-name", b"satellite_token", b"satellite-token"),
    *(b"authorization", b":method", b":path", b"traceparent", b"tracestate"),
)
OTHER_KEYS = (
    *(b"satellite_token-bin", b"satellite-name-bin", b"satellite_org-bin", b"Satellite_Org", b"satellite.name"),
    *(b"satellite_orgs", b"atellite_org", b"", b"te", b":authority", b"host", b"authorization-bin", b"Authorization"),
    *(b"proxy-authorization", b":scheme", b"grpc-timeout", b"x-" + b"y" * 300),
)
NAMES = (b"acme", b"Acme", b"b-1", b"b", b"0", b"a.b", b"a_b", b"x" * 64, b"a" + b"-" * 62 + b"z")
NO_NAMES = (
    *(b"", b"-a", b"a-", b".", b"a b", b"a/b", b"a\0b", b"x" * 65, b"a\n", b"\xe2\x84\xaa", b"a\xffb", b"a*", b" a"),
    *(b"a" * 40 + b"\0" + b"a", b"_a", b"a_"),
)
TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PATHS = (b"/moby.buildkit.v1.Control/Solve", b"/", b"/x", b"/grpc.reflectiom", b"/grpc.healthy")
ODD_PATHS = (
    *(
        b"",
        b"x",
        b"*",
        b"/grpc.health.v1.Health/Check",
        b"/AWS.ALB/healthcheck",
        b"/grpc.reflection.v1.ServerReflection/",
    ),
    *(b"/api.public.Compute/List", b"/bentpipe.operations.Operations/X"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What a client has asked, and where."""

    headers: HeaderList
    server_name: str | None = None
    domain: str | None = None


class Requests:
    """Makes them, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._changes: tuple[Callable[[list[tuple[bytes, bytes]]], None], ...] = (
            *(self._drop, self._repeat, self._respell, self._other_value, self._other_value, self._add, self._add),
            *(self._swap, self._rename, self._move),
        )

    def make(self) -> Asked:
        """One request."""
        pick = self._random
        org, name = pick.choice(NAMES), pick.choice(NAMES)
        headers = self._plain(org, name)
        for _ in range(pick.choice((0, 0, 0, 1, 1, 2, 4))):
            pick.choice(self._changes)(headers)
        domain = pick.choice((None, DOMAIN, DOMAIN, "a", "a.a"))
        return Asked(tuple(headers), self._server_name(org, name, domain), domain)

    def _plain(self, org: bytes, name: bytes) -> list[tuple[bytes, bytes]]:
        pick = self._random
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", pick.choice(PATHS)), (b":authority", b"a")]
        if pick.random() < 0.75:
            headers += [(self._spelt(b"satellite_org"), org), (self._spelt(b"satellite_name"), name)]
        if pick.random() < 0.5:
            headers.append((self._spelt(b"satellite_token"), self._token()))
        else:
            headers.append((b"authorization", self._scheme() + self._token()))
        if pick.random() < 0.2:
            headers.append((b"traceparent", TRACEPARENT))
        if pick.random() < 0.1:
            headers.append((b"tracestate", b"congo=t61rcWkgMzE"))
        return headers

    def _spelt(self, key: bytes) -> bytes:
        return key.replace(b"_", b"-") if self._random.random() < 0.4 else key

    def _scheme(self) -> bytes:
        return self._random.choice((b"Bearer ", b"Bearer ", b"bearer ", b"BEARER \t ", b"bEaReR  "))

    def _token(self) -> bytes:
        pick = self._random
        size = pick.choice((1, 43, 43, 43, 200, TOKEN_LIMIT))
        return bytes(pick.choices(b"abcXYZ019._-=", k=size)) if size < 1000 else b"t" * size

    def _odd_token(self) -> bytes:
        pick = self._random
        odd = (b"", b" ", b"\t\n", b"t" * (TOKEN_LIMIT + 1), b"a\x80", b" a ", b"a\0", b"\0", b"\x7f", b"a b", b"\x1f")
        return pick.choice(odd)

    def _server_name(self, org: bytes, name: bytes, domain: str | None) -> str | None:
        pick = self._random
        if pick.random() < 0.4:
            return None
        below = domain or DOMAIN
        if pick.random() < 0.6:
            org, name = (each.replace(b".", b"") for each in (org, name))
        said = f"{name.decode()}.{org.decode()}.{below}"
        match pick.randrange(8):
            case 0:
                said = pick.choice(
                    (
                        *("", ".", below, f".{below}", f"a.{below}", f"a..{below}", f".a.{below}", f"a.b.{below}x"),
                        *("a.b." + below + "." + below, f"a.b.c.{below}", f"\u212a.b.{below}", "a.b.\xe9"),
                        *(f"{'a' * 65}.b.{below}", f"{'a' * 230}.b.{below}", "x" * 255, "x" * 253 + ".a"),
                        *(f"a_.b.{below}", f"a b.c.{below}", f"-a.b.{below}"),
                    )
                )
            case 1:
                said = said.upper()
            case 2:
                said += "." * pick.choice((1, 1, 2))
            case 3:
                said = f"{pick.choice(NAMES).decode()}.{pick.choice(NAMES).decode()}.{below}"
            case _:
                pass
        return said

    # -- changes -----------------------------------------------------------------------------------------------------

    def _drop(self, headers: list[tuple[bytes, bytes]]) -> None:
        if headers:
            del headers[self._random.randrange(len(headers))]

    def _repeat(self, headers: list[tuple[bytes, bytes]]) -> None:
        if headers:
            headers.append(self._random.choice(headers))

    def _respell(self, headers: list[tuple[bytes, bytes]]) -> None:
        """A key in the other spelling too, mostly with the same value."""
        spelt = [each for each in headers if each[0].startswith(b"satellite")]
        if spelt:
            key, value = self._random.choice(spelt)
            other = key.replace(b"_", b"-") if b"_" in key else key.replace(b"-", b"_")
            headers.append((other, value if self._random.random() < 0.7 else self._value_of(other)))

    def _other_value(self, headers: list[tuple[bytes, bytes]]) -> None:
        if headers:
            at = self._random.randrange(len(headers))
            headers[at] = headers[at][0], self._value_of(headers[at][0])

    def _add(self, headers: list[tuple[bytes, bytes]]) -> None:
        key = self._random.choice(KEYS if self._random.random() < 0.6 else OTHER_KEYS)
        headers.insert(self._random.randrange(len(headers) + 1), (key, self._value_of(key)))

    def _swap(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._random.shuffle(headers)

    def _rename(self, headers: list[tuple[bytes, bytes]]) -> None:
        if headers:
            at = self._random.randrange(len(headers))
            headers[at] = self._random.choice((*KEYS, *OTHER_KEYS)), headers[at][1]

    def _move(self, headers: list[tuple[bytes, bytes]]) -> None:
        """The token to the other place, or to both."""
        values = [value for key, value in headers if key in (b"satellite_token", b"satellite-token")]
        for value in values[:1]:
            headers.append((b"authorization", self._scheme() + value + self._random.choice((b"", b" ", b"\r\n", b"x"))))

    def _value_of(self, key: bytes) -> bytes:
        pick = self._random
        plain = key.replace(b"-", b"_")
        if plain in (b"satellite_org", b"satellite_name"):
            return pick.choice(NAMES if pick.random() < 0.5 else NO_NAMES)
        if plain == b"satellite_token":
            return self._token() if pick.random() < 0.5 else self._odd_token()
        match key:
            case b"authorization":
                schemes = (b"", b"Basic ", b"Bearer", b"bearer\t", b"Bearer ", b"bearer  ", b"bearer \v\f")
                return pick.choice(schemes) + (self._token() if pick.random() < 0.5 else self._odd_token())
            case b":method":
                return pick.choice((b"POST", b"GET", b"post", b"", b"POST "))
            case b":path":
                return pick.choice((*PATHS, *ODD_PATHS))
            case b"traceparent":
                return pick.choice(
                    (TRACEPARENT, b"cc" + TRACEPARENT[2:] + b"-" + b"x" * 72, TRACEPARENT + b"-x", b"", b"01")
                )
            case b"tracestate":
                return pick.choice((b"", b"a=1", b"a=1," * 128, b"a=1," * 128 + b"b", b"\xff"))
            case _:
                return pick.randbytes(pick.choice((0, 3, 40)))
