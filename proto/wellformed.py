"""Whether a request is well-formed, by RFC 9113 §8.1.1 to §8.5: one that is not ends its stream, never the connection.

The `h2` library makes a connection error of it, and of what is no error: a request may leave out `:authority` and Host
(§8.3.1), as load balancers' checks do. So its own validation of fields is off, and this takes its place. What it says of
content-length, and of trailers without END_STREAM, still ends the connection, as it may (§5.4.1).
"""

import re

from bentpipe.proto.events import HeaderList

NAME = re.compile(rb":?[^\x00-\x20A-Z\x7f-\xff:]+")
"""§8.2.1: what a field's name must not have, and the one colon that it may begin with."""
VALUE = re.compile(rb"(?:[^\x00\n\r \t](?:[^\x00\n\r]*[^\x00\n\r \t])?)?")
"""§8.2.1: no NUL, CR or LF, and no white space at either end."""
CONNECTION_FIELDS = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
"""§8.2.2."""
PSEUDO_FIELDS = {b":method", b":scheme", b":path", b":authority"}
"""§8.3.1. `:protocol` (RFC 8441) would be for those whom we told that we take it."""


def why_malformed(fields: HeaderList) -> str | None:
    """Say what is wrong with a request's header list; None if nothing is."""
    return _wrong_field(fields) or _wrong_pseudo_fields(fields) or _wrong_meaning(fields)


def why_malformed_trailers(fields: HeaderList) -> str | None:
    """The same of a request's trailers, which have no pseudo-header field (§8.1)."""
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
            return f"{name.decode()} is no pseudo-header field of a request"
        elif name in found:
            return f"{name.decode()} is given twice"
        elif others:
            return f"{name.decode()} comes behind other fields"
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
    """Host and `:authority` must be the same, if both are given (§8.3.1). Lengths of content are h2's to compare."""
    hosts = {value.lower() for name, value in fields if name in (b":authority", b"host")}
    return "host and :authority differ" if len(hosts) > 1 else None
