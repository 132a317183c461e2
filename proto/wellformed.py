"""Checks that a request is well-formed, by RFC 9113 §8.1.1 to §8.5. A malformed one ends its stream, never the connection.

The `h2` library makes a connection error of it. It also refuses a request without `:authority` and Host, which is allowed
(§8.3.1) and sent by load balancers' checks. So the library's own validation of fields is off, and this module replaces it.
The library's checks of content-length, and of trailers without END_STREAM, still end the connection, which is allowed
(§5.4.1).
"""

import re

from bentpipe.proto.events import HeaderList

NAME = re.compile(rb":?[^\x00-\x20A-Z\x7f-\xff:]+")
"""§8.2.1: the characters that a field's name must not have, and the one colon with which it may begin."""
VALUE = re.compile(rb"(?:[^\x00\n\r \t](?:[^\x00\n\r]*[^\x00\n\r \t])?)?")
"""§8.2.1: no NUL, CR or LF, and no white space at either end."""
CONNECTION_FIELDS = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
"""§8.2.2."""
PSEUDO_FIELDS = {b":method", b":scheme", b":path", b":authority"}
"""§8.3.1. A client may send `:protocol` (RFC 8441) only to a server that has announced it, and we have not."""


def why_malformed(fields: HeaderList) -> str | None:
    """Return what is wrong with a request's header list; None if nothing is."""
    return _wrong_field(fields) or _wrong_pseudo_fields(fields) or _wrong_meaning(fields)


def why_malformed_trailers(fields: HeaderList) -> str | None:
    """The same for a request's trailers, which have no pseudo-header field (§8.1)."""
    if any(name.startswith(b":") for name, _ in fields):
        return "a pseudo-header field in trailers"
    return _wrong_field(fields)


def _wrong_field(fields: HeaderList) -> str | None:
    for name, value in fields:
        if not NAME.fullmatch(name):
            return "a field's name has a character that it must not have"
        if not VALUE.fullmatch(value):
            return f"the value of {name.decode()} has a character that it must not have there"
        if name in CONNECTION_FIELDS:
            return f"{name.decode()} is a field of HTTP/1.1"
        if name == b"te" and value.lower() != b"trailers":
            return "te is for trailers only"
    return None


def _wrong_pseudo_fields(fields: HeaderList) -> str | None:
    found: dict[bytes, bytes] = {}
    others = False
    for name, value in fields:
        if not name.startswith(b":"):
            others = True
        elif name not in PSEUDO_FIELDS:
            return f"{name.decode()} is not a pseudo-header field of a request"
        elif name in found:
            return f"{name.decode()} is given twice"
        elif others:
            return f"{name.decode()} comes after other fields"
        else:
            found[name] = value
    if found.get(b":method") == b"CONNECT":
        wanted, wrong = {b":method", b":authority"}, found.keys() & {b":scheme", b":path"}
    else:
        wanted, wrong = {b":method", b":scheme", b":path"}, set()
    if missing := wanted - found.keys():
        return f"{min(missing).decode()} is missing"
    if wrong:
        return f"CONNECT with {min(wrong).decode()}"
    return None if found.get(b":path", b"/") else ":path is empty"


def _wrong_meaning(fields: HeaderList) -> str | None:
    """Host and `:authority` must be the same, if both are given (§8.3.1). h2 checks content-length."""
    hosts = {value.lower() for name, value in fields if name in (b":authority", b"host")}
    return "host and :authority differ" if len(hosts) > 1 else None
