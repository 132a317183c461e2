"""How connections end, in words for operators: one row for each outcome before the splice and for each reason of the engine.

The code of an end is the outcome's or the reason's name. What a healthy peer does every day is not an error: a client may
close TLS without close_notify, a load balancer may connect and leave. A warning is something that people should look at.
"""

import logging
from collections.abc import Mapping

from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.errors import BentpipeError, Source
from bentpipe.daemon.records.record import End
from bentpipe.native.engine import EndReason

CUT_WORDS = "cut by the operator"

WARNING, ERROR = logging.WARNING, logging.ERROR

_OUTCOMES: Mapping[Outcome, tuple[str, int]] = {
    Outcome.REFUSED: ("the client was refused", logging.INFO),
    Outcome.ANSWERED: ("answered by the daemon itself", logging.INFO),
    Outcome.PROBE: ("the peer left before it made a request, as health checks do", logging.INFO),
    Outcome.CLIENT_GONE: ("the client left while it waited for its satellite", logging.INFO),
    Outcome.DEADLINE: ("the client made no complete request in time", logging.INFO),
    Outcome.MALFORMED: ("the client broke HTTP/2, or a limit of it", logging.INFO),
    Outcome.HTTP1: ("the client speaks HTTP/1.1, and this port gRPC", logging.INFO),
    Outcome.NOT_HTTP2: ("the client does not speak HTTP/2", logging.INFO),
    Outcome.TLS_ON_PLAIN_PORT: ("the client speaks TLS to a port without TLS", logging.INFO),
    Outcome.PLAIN_ON_TLS_PORT: ("the client speaks plaintext to a port with TLS", logging.INFO),
    Outcome.TLS_FAILED: ("the TLS handshake failed", logging.INFO),
    Outcome.NO_PROXY_HEADER: ("a proxy in proxy_protocol.from sent no PROXY header", WARNING),
    Outcome.BAD_PROXY_HEADER: ("a proxy in proxy_protocol.from sent a wrong PROXY header", WARNING),
    Outcome.UNTRUSTED_PROXY_HEADER: ("a PROXY header from a peer that proxy_protocol.from does not name", logging.INFO),
    Outcome.BROKEN: ("the connection broke before it reached its satellite", logging.INFO),
    Outcome.OVER_LIMIT: ("evicted: strangers had no place left", logging.INFO),
    Outcome.CRASHED: ("a fault of the daemon's own; the log has its traceback", ERROR),
}

_REASONS: Mapping[EndReason, tuple[str, int]] = {
    EndReason.CLOSED: ("both sides closed it", logging.INFO),
    EndReason.CLIENT_RESET: ("the client reset it: it was killed, or gave up", logging.INFO),
    EndReason.SATELLITE_RESET: ("the satellite reset it: its server or its machine has died", WARNING),
    EndReason.CLIENT_TIMEOUT: ("the client does not answer any more: its host or the network is gone", logging.INFO),
    EndReason.SATELLITE_TIMEOUT: (
        "the satellite does not answer any more: its machine or the network is gone",
        WARNING,
    ),
    EndReason.CLIENT_TRUNCATED: ("the client closed it, without close_notify", logging.INFO),
    EndReason.SATELLITE_TRUNCATED: ("the satellite closed it, without close_notify", logging.INFO),
    EndReason.CLIENT_TLS_ERROR: ("the client's TLS is broken", logging.INFO),
    EndReason.SATELLITE_TLS_ERROR: ("the satellite's TLS is broken", WARNING),
    EndReason.IDLE_TIMEOUT: ("it moved nothing for engine.idle_timeout", logging.INFO),
    EndReason.HALF_CLOSED_TIMEOUT: (
        "one side closed it, and the other did not follow in engine.half_closed_timeout",
        logging.INFO,
    ),
    EndReason.ABORTED: ("cut at the drain deadline", WARNING),
    EndReason.ENGINE_CLOSED: ("the daemon ended", WARNING),
    EndReason.NO_MEMORY: ("the host has no memory left for it", ERROR),
    EndReason.GIVEN_BACK: ("quiet: ended so that its satellite can sleep", logging.INFO),
    EndReason.CLIENT_TLS_FLOOD: ("the client flooded TLS with records that carry no data", WARNING),
    EndReason.SATELLITE_TLS_FLOOD: ("the satellite flooded TLS with records that carry no data", WARNING),
}

OUTCOME_ENDS = {outcome: End(outcome.value, *row) for outcome, row in _OUTCOMES.items()}
SPLICE_ENDS = {reason: End(reason.name.lower(), *row) for reason, row in _REASONS.items()}
QUIET = End("quiet", "quiet: ended so that its satellite can sleep")
CUT = End(CUT_WORDS, CUT_WORDS, WARNING)

_REFUSED_BY_US = {
    Source.SATELLITE: End("refused", "refused: its satellite could not be used", WARNING),
    Source.PROVIDER: End("refused", "refused: the provider of its satellite failed", WARNING),
    Source.INTERNAL: End("refused", "refused: the daemon could not serve it", WARNING),
    Source.OPERATOR: End("refused", "refused: the operator's doing", logging.INFO),
}


def refused(error: BentpipeError) -> End:
    """How a refused connection ends: by whose fault it was refused."""
    return _REFUSED_BY_US.get(error.source, OUTCOME_ENDS[Outcome.REFUSED])
