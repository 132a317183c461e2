"""Reads a compact JWT (RFC 7519 over RFC 7515) before anything in it is believed. Pure.

PyJWT verifies signatures and times afterwards. This module refuses what no honest issuer writes, at the cost of some
microseconds: a token that is too long, names that appear twice in an object (parsers differ in which one counts), numbers
that are not JSON, and header fields that change how a token is to be read or which key is to be used.
"""

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping

HEADER_BYTES = 1_024
"""Of a header in base64: real ones name an algorithm, a type and a key id. joserfc's bound is 512."""
FORBIDDEN = frozenset({"crit", "b64", "jwk", "jku", "x5u", "x5c", "zip", "enc"})
"""Header fields. Keys come from where the configuration says, and extensions (RFC 7515 §4.1.11) are not known here."""


class MalformedJwt(Exception):
    """This is not a JWT that can be read; `str()` is for the log."""


@dataclasses.dataclass(frozen=True, slots=True)
class JwtText:
    """What a token says, not yet believed."""

    algorithm: str
    key_id: str | None
    token_type: str | None
    claims: Mapping[str, object]
    signed_part: str
    """What the signature covers: header and claims in base64, which only one text has."""


def looks_like_jwt(token: str) -> bool:
    """Whether it has the form of a compact JWT. All of them begin so: it is `{"` in base64."""
    return token.startswith("eyJ") and token.count(".") == 2


def read_jwt(token: str, max_bytes: int) -> JwtText:
    """Read header and claims. Raises MalformedJwt."""
    if len(token) > max_bytes:
        raise MalformedJwt(f"it has over {max_bytes} bytes")
    parts = token.split(".")
    if len(parts) != 3 or len(parts[0]) > HEADER_BYTES:
        raise MalformedJwt("it does not have three parts, or its header is too long")
    header, claims = _object(parts[0], "header"), _object(parts[1], "claims")
    forbidden = sorted(FORBIDDEN.intersection(header))
    if forbidden:
        raise MalformedJwt(f"the header field {forbidden[0]} is not allowed")
    algorithm = _text(header, "alg")
    if algorithm is None:
        raise MalformedJwt("the header names no algorithm")
    return JwtText(algorithm, _text(header, "kid"), _text(header, "typ"), claims, token.rpartition(".")[0])


def _object(part: str, name: str) -> dict[str, object]:
    try:
        raw = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
        found: object = json.loads(raw, object_pairs_hook=_once_each, parse_constant=_no_constant)
    except (binascii.Error, ValueError, RecursionError) as exc:
        raise MalformedJwt(f"the {name} cannot be read: {exc}") from exc
    if not isinstance(found, dict):
        raise MalformedJwt(f"the {name} is not an object")
    return found


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _text(header: Mapping[str, object], name: str) -> str | None:
    value = header.get(name)
    if value is not None and not isinstance(value, str):
        raise MalformedJwt(f"the header field {name} is not a string")
    return value
