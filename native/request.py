"""The binding of the reading of first requests in C: whose a request is, and for which satellite. include/bp.h says how."""

import dataclasses
from collections.abc import Iterable
from typing import Protocol, cast

from bentpipe.native.lib import Pointer, ffi, lib

NAME_BYTES, TOKEN_BYTES, DIGEST_BYTES = 64, 16_384, 32
TRACEPARENT_BYTES, TRACESTATE_BYTES = 128, 512
"""Bounds of enum bp_request_sizes."""


@dataclasses.dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request that names a satellite and shows a token, beyond doubt."""

    org: str
    name: str
    digest: bytes
    """SHA-256 of the token."""
    traceparent: bytes
    """As the client gave it, for proto/trace_context.py; b"" if there is none that fits."""
    tracestate: bytes
    """Likewise."""


class _CSpan(Protocol):
    at: int
    bytes: int


class _CSatellite(Protocol):
    org: Pointer
    org_bytes: int
    name: Pointer
    name_bytes: int


class _CRequest(Protocol):
    satellite: _CSatellite
    digest: Pointer
    traceparent: _CSpan
    tracestate: _CSpan


class _CText(Protocol):
    text: Pointer


class RequestReader:
    """Reads requests. Only one thread may use it."""

    def __init__(self, own_paths: Iterable[bytes]) -> None:
        """`own_paths`: what the paths begin with that the daemon answers itself."""
        self._paths = [ffi.new("char[]", path) for path in own_paths]
        self._own = ffi.new("char *[]", self._paths)
        self._rules: dict[bytes | None, tuple[Pointer, Pointer]] = {}
        """By domain, of which the configuration has a few: the rules, and the text that they point to."""
        self.pointer = ffi.new("struct bp_request *")
        """The last request that was read, as a struct bp_request."""
        self._c = cast(_CRequest, self.pointer)

    def read(self, fields: Pointer, server_name: bytes | None, domain: bytes | None) -> TokenRequest | None:
        """Read a request. None: it is unusual, and Python decides about it.

        `fields`: of GreetingLimits, after REQUEST. `server_name`: what the client asked for by TLS (SNI). `domain`: the
        port's; a server name below it is a satellite's.
        """
        name = ffi.NULL if server_name is None else ffi.new("char[]", server_name)
        if not lib.bp_request_read(fields, name, self.rules(domain), self.pointer):
            return None
        c, satellite = self._c, self._c.satellite
        return TokenRequest(
            bytes(ffi.buffer(satellite.org, satellite.org_bytes)).decode(),
            bytes(ffi.buffer(satellite.name, satellite.name_bytes)).decode(),
            bytes(ffi.buffer(c.digest, DIGEST_BYTES)),
            _text_of(fields, c.traceparent),
            _text_of(fields, c.tracestate),
        )

    def rules(self, domain: bytes | None) -> Pointer:
        """The struct bp_request_rules of a domain; it stays as long as this object."""
        if domain not in self._rules:
            text = ffi.NULL if domain is None else ffi.new("char[]", domain)
            rules = {"domain": text, "own_paths": self._own, "own_count": len(self._paths)}
            self._rules[domain] = ffi.new("struct bp_request_rules *", rules), text
        return self._rules[domain][0]


def _text_of(fields: Pointer, span: _CSpan) -> bytes:
    return ffi.buffer(cast(_CText, fields).text, span.at + span.bytes)[span.at :] if span.bytes else b""
