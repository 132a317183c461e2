"""Reads a request's destination and its sender from its header list.

Pure. The values come from the client, so they are checked. daemon/edge/identity.py decides how they may be combined.
"""

import dataclasses
import re

from bentpipe.proto.events import HeaderList

NAME = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
"""As in the configuration. Such a name fits a DNS label, a metadata value and a cgroup's folder."""
ORG_KEY, NAME_KEY, TOKEN_KEY = b"satellite_org", b"satellite_name", b"satellite_token"
SATELLITE_KEYS = frozenset(key for named in (ORG_KEY, NAME_KEY) for key in (named, named.replace(b"_", b"-")))
"""Both, in both spellings."""
TOKEN_BYTES = 16 << 10
BEARER = b"bearer "


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
    method = _one(headers, b":method")
    path = _one(headers, b":path")
    if method != b"POST" or path is None or not path.startswith(b"/"):
        raise MetadataError("this is not a gRPC request: it must be POST /package.Service/Method")
    org, name = (_name(headers, key) for key in (ORG_KEY, NAME_KEY))
    if (org is None) is not (name is None):
        raise MetadataError(f"the metadata {both_spellings(ORG_KEY if org is None else NAME_KEY)} is missing")
    satellite = None if org is None or name is None else (org, name)
    return RouteRequest(path.decode("latin-1"), satellite, _token(headers))


def names_satellite(headers: HeaderList) -> bool:
    """Whether the metadata name a satellite, well or badly."""
    return any(name in SATELLITE_KEYS for name, _ in headers)


def _token(headers: HeaderList) -> str | None:
    token = _either(headers, TOKEN_KEY)
    authorization = _one(headers, b"authorization")
    if authorization is not None and authorization.lower().startswith(BEARER):
        bearer = authorization[len(BEARER) :].strip()
        if token is not None and token != bearer:
            raise MetadataError("satellite_token (or satellite-token) and authorization carry different tokens")
        token = bearer
    if token is not None and (len(token) > TOKEN_BYTES or not token.isascii()):
        raise MetadataError("the token is too long or not ASCII")
    return None if token is None else token.decode()


def _one(headers: HeaderList, key: bytes) -> bytes | None:
    values = [value for name, value in headers if name == key]
    if len(values) > 1:
        raise MetadataError(f"{key.decode()} is given {len(values)} times")
    return values[0] if values else None


def _either(headers: HeaderList, key: bytes) -> bytes | None:
    """The value of a key in either spelling."""
    dashed = _dashed(key)
    values = [value for value in (_one(headers, key), _one(headers, dashed)) if value is not None]
    if len(set(values)) > 1:
        raise MetadataError(f"{key.decode()} and {dashed.decode()} are both given, and differ")
    return values[0] if values else None


def _dashed(key: bytes) -> bytes:
    return key.replace(b"_", b"-")


def both_spellings(key: bytes) -> str:
    """A key in both spellings, for messages to the client."""
    return f"{key.decode()} (or {_dashed(key).decode()})"


def _name(headers: HeaderList, key: bytes) -> str | None:
    value = _either(headers, key)
    if value is None:
        return None
    if not NAME.fullmatch(value):
        raise MetadataError(f"{both_spellings(key)} is malformed: letters, digits, '.', '_' and '-', 64 at most")
    return value.decode()
