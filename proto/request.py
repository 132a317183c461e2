"""Reads a request's destination and its sender from its header list.

Pure. The values come from the client, so they are checked. daemon/edge/identity.py decides how they may be combined.
"""

import dataclasses
import re

from bentpipe.proto.events import HeaderList

NAME = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
"""As in the configuration. Such a name fits a DNS label, a metadata value and a cgroup's folder."""
ORG_KEY, NAME_KEY, TOKEN_KEY = b"satellite_org", b"satellite_name", b"satellite_token"
DASHED = {key: key.replace(b"_", b"-") for key in (ORG_KEY, NAME_KEY, TOKEN_KEY)}
"""Their other spelling."""
SATELLITE_KEYS = frozenset(key for named in (ORG_KEY, NAME_KEY) for key in (named, DASHED[named]))
"""Both, in both spellings."""
METHOD_KEY, PATH_KEY, AUTHORIZATION_KEY = b":method", b":path", b"authorization"
_READ_KEYS = frozenset({METHOD_KEY, PATH_KEY, AUTHORIZATION_KEY, *DASHED, *DASHED.values()})
TOKEN_BYTES = 16 << 10
BEARER = b"bearer "


Found = dict[bytes, list[bytes]]
"""The values of each field that is read here."""


class MetadataError(Exception):
    """The request's metadata cannot be used; `str()` is for the client."""


@dataclasses.dataclass(frozen=True, slots=True)
class RouteRequest:
    """The request's destination and sender. `satellite` is (org, name), None if the metadata name none."""

    path: str
    satellite: tuple[str, str] | None
    token: str | None


def parse_request(headers: HeaderList) -> RouteRequest:
    """Read the metadata `satellite_name`, `satellite_org`, `satellite_token` and `authorization: Bearer`.

    Each of the first three may be spelt with a dash instead: nginx and others drop fields with underscores unless told
    otherwise. Raises MetadataError if one is repeated or malformed, if two spellings or two tokens differ, or if only half
    of the name is given.
    """
    found = _found(headers)
    method, path = _one(found, METHOD_KEY), _one(found, PATH_KEY)
    if method != b"POST" or path is None or not path.startswith(b"/"):
        raise MetadataError("this is not a gRPC request: it must be POST /package.Service/Method")
    org, name = _name(found, ORG_KEY), _name(found, NAME_KEY)
    if (org is None) is not (name is None):
        raise MetadataError(f"the metadata {both_spellings(ORG_KEY if org is None else NAME_KEY)} is missing")
    satellite = None if org is None or name is None else (org, name)
    return RouteRequest(path.decode("latin-1"), satellite, _token(found))


def names_satellite(headers: HeaderList) -> bool:
    """Whether the metadata name a satellite, well or badly."""
    return any(name in SATELLITE_KEYS for name, _ in headers)


def _found(headers: HeaderList) -> Found:
    found: Found = {}
    for name, value in headers:
        if name in _READ_KEYS:
            found.setdefault(name, []).append(value)
    return found


def _token(found: Found) -> str | None:
    token = _either(found, TOKEN_KEY)
    authorization = _one(found, AUTHORIZATION_KEY)
    if authorization is not None and authorization.lower().startswith(BEARER):
        bearer = authorization[len(BEARER) :].strip()
        if token is not None and token != bearer:
            raise MetadataError("satellite_token (or satellite-token) and authorization carry different tokens")
        token = bearer
    if token is not None and (len(token) > TOKEN_BYTES or not token.isascii()):
        raise MetadataError("the token is too long or not ASCII")
    return None if token is None else token.decode()


def _one(found: Found, key: bytes) -> bytes | None:
    values = found.get(key)
    if values is None:
        return None
    if len(values) > 1:
        raise MetadataError(f"{key.decode()} is given {len(values)} times")
    return values[0]


def _either(found: Found, key: bytes) -> bytes | None:
    """The value of a key in either spelling."""
    dashed = DASHED[key]
    value, other = _one(found, key), _one(found, dashed)
    if value is not None and other is not None and value != other:
        raise MetadataError(f"{key.decode()} and {dashed.decode()} are both given, and differ")
    return other if value is None else value


def both_spellings(key: bytes) -> str:
    """A key in both spellings, for messages to the client."""
    return f"{key.decode()} (or {DASHED[key].decode()})"


def _name(found: Found, key: bytes) -> str | None:
    value = _either(found, key)
    if value is None:
        return None
    if not NAME.fullmatch(value):
        raise MetadataError(f"{both_spellings(key)} is malformed: letters, digits, '.', '_' and '-', 64 at most")
    return value.decode()
