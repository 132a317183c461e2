"""How connections end before they are spliced: the closed list that the log and the metrics use, and the counters."""

import collections
import dataclasses
import enum

from bentpipe.daemon.records.histograms import CALL_BOUNDS_S, LabelledHistogram
from bentpipe.proto.errors import GreetingError


class Outcome(enum.Enum):
    """What became of an accepted connection."""

    SPLICED = "spliced"
    REFUSED = "refused"
    ANSWERED = "answered"
    """It asked for a service of the daemon's own, and never for a satellite."""
    PROBE = "probe"
    """The peer closed it before a request, as a load balancer does that checks health. Not an error."""
    CLIENT_GONE = "client-gone"
    """The client left while it was held."""
    DEADLINE = "deadline"
    """There was no complete request before greeting_deadline."""
    MALFORMED = "malformed"
    """The client broke RFC 9113, or a limit of the greeting."""
    HTTP1 = "http1"
    NOT_HTTP2 = "not-http2"
    TLS_ON_PLAIN_PORT = "tls-on-plain-port"
    PLAIN_ON_TLS_PORT = "plain-on-tls-port"
    TLS_FAILED = "tls-failed"
    NO_PROXY_HEADER = "no-proxy-header"
    """A peer in proxy_protocol.from did not begin with a PROXY header."""
    BAD_PROXY_HEADER = "bad-proxy-header"
    """The PROXY header is malformed, too long, or its checksum is wrong."""
    UNTRUSTED_PROXY_HEADER = "untrusted-proxy-header"
    """A PROXY header came from a peer that is not in proxy_protocol.from, or on a port without it."""
    BROKEN = "broken"
    """The connection broke, or one of its legs failed between lease and hand-off."""
    OVER_LIMIT = "over-limit"
    """A stranger was evicted: max_strangers, max_connections_per_address or stranger_bytes was reached."""
    CRASHED = "crashed"
    """A bug of bentpipe; the log has its traceback."""


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
    unadmitted: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Clients that a data plane has offered, though it may admit clients itself, by reason."""
    answers: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """What the daemon answered itself, by method and result ("Check SERVING", "Check NOT_FOUND")."""

    call_times: LabelledHistogram = dataclasses.field(default_factory=lambda: LabelledHistogram(CALL_BOUNDS_S))
    """How long calls of the control API took, by method."""

    def count_malformed(self, error: GreetingError) -> None:
        """Count an error of a client's in HTTP/2."""
        self.malformed[error.limit or error.error_code.name] += 1


class ConnectionOver(Exception):
    """The connection is over and the client is told nothing more. `limit` names the limit that it broke, if any."""

    def __init__(self, outcome: Outcome, limit: str | None = None) -> None:
        super().__init__(outcome.value)
        self.outcome = outcome
        self.limit = limit
