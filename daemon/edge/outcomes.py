"""How connections end before they are spliced: the closed list that logs and counters use."""

import collections
import dataclasses
import enum


class Outcome(enum.Enum):
    """What became of an accepted connection."""

    SPLICED = "spliced"
    REFUSED = "refused"
    ANSWERED = "answered"
    """Asked for a service of the daemon's own, and never for a satellite."""
    PROBE = "probe"
    """Closed by the peer before a request: a load balancer's health check. Not an error."""
    CLIENT_GONE = "client-gone"
    """Left while it was held."""
    DEADLINE = "deadline"
    """No complete request before greeting_deadline."""
    MALFORMED = "malformed"
    """Broke RFC 9113, or a limit of the greeting."""
    HTTP1 = "http1"
    NOT_HTTP2 = "not-http2"
    TLS_ON_PLAIN_PORT = "tls-on-plain-port"
    PLAIN_ON_TLS_PORT = "plain-on-tls-port"
    TLS_FAILED = "tls-failed"
    NO_PROXY_HEADER = "no-proxy-header"
    """A peer of proxy_protocol.from began with something else than a PROXY header."""
    BAD_PROXY_HEADER = "bad-proxy-header"
    """Its PROXY header is malformed, too long, or its checksum is wrong."""
    UNTRUSTED_PROXY_HEADER = "untrusted-proxy-header"
    """A PROXY header of a peer that is not in proxy_protocol.from, or on a port without it."""
    BROKEN = "broken"
    """The connection broke under us, or a leg failed between lease and hand-off."""
    OVER_LIMIT = "over-limit"
    """A stranger that made room for others: max_strangers, max_connections_per_address or stranger_bytes."""
    CRASHED = "crashed"
    """A bug of ours; the log has its traceback."""


@dataclasses.dataclass(slots=True)
class ConnectionCounters:
    """Counts since the start; only the Trio thread touches them."""

    accepted: int = 0
    accept_errors: int = 0
    ended: collections.Counter[Outcome] = dataclasses.field(default_factory=collections.Counter)
    refusals: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """By gRPC status name."""
    malformed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """By the greeting's limit or RFC 9113 error code."""
    answers: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """What the daemon answered itself, by method and result ("Check SERVING", "Check NOT_FOUND")."""


class Gone(Exception):
    """The connection is over and nothing is left to say; `outcome` is how it is counted, `limit` what it passed, if any."""

    def __init__(self, outcome: Outcome, limit: str | None = None) -> None:
        super().__init__(outcome.value)
        self.outcome = outcome
        self.limit = limit
