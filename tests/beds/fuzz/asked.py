"""The reading of first requests in C beside its oracles, proto/request.py and daemon/edge/identity.py.

C may only say what it is sure of: where it says something, Python must say the same. And it may leave a request that Python
admits only for a reason of `may_leave`: else nobody would notice that it leaves all of them.
"""

import dataclasses
import hashlib
import itertools
from typing import Protocol

from beds.fuzz.requests import Asked
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.dataplane.first_requests import own_paths
from bentpipe.daemon.edge.identity import Identities, TlsIdentity
from bentpipe.daemon.errors import BentpipeError
from bentpipe.daemon.model import SatelliteKey
from bentpipe.native.lib import ffi
from bentpipe.native.request import RequestReader, TokenRequest
from bentpipe.proto.events import HeaderList
from bentpipe.proto.request import NAME, MetadataError, parse_request
from bentpipe.proto.trace_context import trace_context

OWN_PATHS = own_paths(serves_api=True)
IDENTITIES = Identities(Admission(()), Certificates(()))


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What is known of a request that is not unusual."""

    key: SatelliteKey
    digest: bytes
    trace: tuple[str, str]


class Reader(Protocol):
    """Reads a request in C. None: it is unusual."""

    def __call__(self, asked: Asked) -> Known | None: ...


def known_to_python(asked: Asked) -> Known | None:
    """The oracle. None: Python refuses it, answers it itself, or wants other proof than a token."""
    headers, tls = asked.headers, TlsIdentity(asked.server_name)
    if dict(headers).get(b":path", b"").startswith(OWN_PATHS):
        return None
    try:
        request = parse_request(headers)
        key = IDENTITIES.destination(request, tls, asked.domain)
    except (MetadataError, BentpipeError):
        return None
    if not request.token:
        return None
    return Known(key, hashlib.sha256(request.token.encode()).digest(), trace_context(headers))


def known_of(read: TokenRequest) -> Known:
    """What C has read, as a value."""
    trace = ((b"traceparent", read.traceparent), (b"tracestate", read.tracestate))
    return Known(SatelliteKey(read.org, read.name), read.digest, trace_context(trace))


READER = RequestReader(OWN_PATHS)


def asked_in_c(asked: Asked) -> TokenRequest | None:
    """What C reads in this process."""
    parts = list(itertools.chain.from_iterable(asked.headers))
    sizes, text = ffi.new("uint32_t[]", [len(part) for part in parts]), ffi.new("char[]", b"".join(parts))
    fields = ffi.new("struct bp_fields *", {"count": len(asked.headers), "sizes": sizes, "text": text})
    name, domain = (None if each is None else each.encode() for each in (asked.server_name, asked.domain))
    return READER.read(fields, name, domain)


def read_in_c(asked: Asked) -> Known | None:
    """Read it in this process."""
    read = asked_in_c(asked)
    return None if read is None else known_of(read)


def may_leave(asked: Asked, expected: Known) -> bool:
    """Whether C has a reason to leave a request that Python knows."""
    names = [expected.key.org.encode(), expected.key.name.encode()]
    states = [value for key, value in asked.headers if key == b"tracestate"]
    domain_seen = asked.server_name is not None and asked.domain is not None
    odd = domain_seen and (not (asked.server_name or "").isascii() or len(asked.server_name or "") > 255)
    return odd or len(states) > 1 or not all(map(NAME.fullmatch, names))


def compare(asked: Asked, reader: Reader = read_in_c) -> Known | None:
    """Read it by both. Returns what is known. Raises AssertionError where they differ."""
    expected, read = known_to_python(asked), reader(asked)
    if read is None:
        assert expected is None or may_leave(asked, expected), f"C leaves it to Python for no reason: {asked}"
    else:
        assert read == expected, f"C reads something else: {asked}"
    return read


def asked_of(data: bytes) -> Asked:
    """A fuzzer's input: the server name in the first line, then `key=value` a line; a key may come twice."""
    first, *lines = data.split(b"\n")
    headers: HeaderList = tuple((key, value) for key, _, value in (line.partition(b"=") for line in lines))
    name = first.replace(b"\0", b"").decode(errors="replace")
    return Asked(headers, name or None, "builds.example" if len(first) % 2 else "a")
