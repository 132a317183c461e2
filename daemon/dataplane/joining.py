"""What a GO does before the splice: words, replay of both transcripts, and the relay until the ACK has been taken out.

The joiner's thread does it (native/src/join.c). From its first step on the client may hear the satellite, so nothing of ours
may be said to it any more: if a step fails, the client's connection is closed.
"""

from bentpipe.daemon.connections.outcomes import Outcome
from bentpipe.daemon.connections.transport import OverLimit, transport_error
from bentpipe.daemon.dataplane.stream import Stream
from bentpipe.daemon.planes.records import GoFlag, GoRecord
from bentpipe.native.joiner import Join, News, StreamFailure
from bentpipe.native.tls import failure_of
from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.errors import GreetingError

NO_ACK = "the ACK of our SETTINGS never came"
CUT = "cut before the splice"
MOST_JOIN_MS = 60_000
"""For one GO, whatever the control plane asks."""


class JoinFailed(Exception):
    """The client's connection can only be closed. `limit` names the limit that it broke, if any."""

    def __init__(self, outcome: Outcome, words: str, limit: str | None = None) -> None:
        super().__init__(words)
        self.outcome = outcome
        self.limit = limit


def join_of(client: Stream, half: Stream, go: GoRecord) -> Join:
    """What a GO asks for. The bytes that the joiner has read and that are not here yet follow behind these."""
    ack_owed = GoFlag.ACK_OWED in go.flags
    seen_until = go.frame_at if ack_owed else client.transcript.end
    return Join(
        to_client=go.words + half.transcript.between(go.half_from, half.transcript.end),
        to_satellite=client.transcript.between(go.client_from, seen_until),
        frames=client.transcript.between(go.frame_at, client.transcript.end) if ack_owed else b"",
        ack_owed=ack_owed,
        deadline_ms=min(go.deadline_ms, MOST_JOIN_MS),
    )


def failure_of_join(news: News) -> JoinFailed:
    """What the last news of a client say that was not joined."""
    match news.failure:
        case StreamFailure.LATE:
            return JoinFailed(Outcome.DEADLINE, NO_ACK)
        case StreamFailure.STOPPED:
            return JoinFailed(Outcome.REFUSED, CUT)
        case StreamFailure.FRAME:
            return _bad_frame(news.header)
        case StreamFailure.CLIENT if news.result == 0:
            return JoinFailed(Outcome.CLIENT_GONE, Outcome.CLIENT_GONE.value)
        case _ if news.result == 0:
            return JoinFailed(Outcome.BROKEN, Outcome.BROKEN.value)
    error = transport_error(failure_of(news.result, news.words))
    if not isinstance(error, OverLimit):
        return JoinFailed(Outcome.BROKEN, str(error))
    if news.failure is StreamFailure.CLIENT:
        return JoinFailed(Outcome.MALFORMED, str(error), error.limit)
    return JoinFailed(Outcome.BROKEN, f"the satellite: {error}")


def _bad_frame(header: bytes) -> JoinFailed:
    """The words for the frame that must not come are those of the filter in Python."""
    try:
        AckFilter().receive_data(header)
    except GreetingError as exc:
        return JoinFailed(Outcome.MALFORMED, str(exc), exc.limit or exc.error_code.name)
    return JoinFailed(Outcome.MALFORMED, "a frame that must not come")
