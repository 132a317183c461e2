"""What a GO does before the splice: words, replay of both transcripts, and the relay until the ACK has been taken out.

From its first step on the client may hear the satellite, so nothing of ours may be said to it any more: if a step fails, the
client's connection is closed.
"""

import trio

from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.connections.replay import relay_until_ack
from bentpipe.daemon.connections.transport import OverLimit, TransportError
from bentpipe.daemon.dataplane.stream import Stream
from bentpipe.daemon.planes.records import GoFlag, GoRecord
from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.errors import GreetingError

NO_ACK = "the ACK of our SETTINGS never came"


class JoinFailed(Exception):
    """The client's connection can only be closed. `limit` names the limit that it broke, if any."""

    def __init__(self, outcome: Outcome, words: str, limit: str | None = None) -> None:
        super().__init__(words)
        self.outcome = outcome
        self.limit = limit


async def join(client: Stream, half: Stream, go: GoRecord) -> None:
    """Bring both sides to where the splice begins, within the GO's deadline. Raises JoinFailed."""
    try:
        with trio.fail_after(go.deadline_ms / 1000):
            await _replay(client, half, go)
    except trio.TooSlowError as exc:
        raise JoinFailed(Outcome.DEADLINE, NO_ACK) from exc
    except GreetingError as exc:
        raise JoinFailed(Outcome.MALFORMED, str(exc), exc.limit or exc.error_code.name) from exc
    except OverLimit as exc:
        raise JoinFailed(Outcome.MALFORMED, str(exc), exc.limit) from exc
    except TransportError as exc:
        raise JoinFailed(Outcome.BROKEN, str(exc)) from exc
    except ConnectionOver as exc:
        raise JoinFailed(exc.outcome, str(exc)) from exc


async def _replay(client: Stream, half: Stream, go: GoRecord) -> None:
    await client.flush()
    await half.flush()
    await client.transport.send_all(go.words)
    await client.transport.send_all(half.transcript.between(go.half_from, half.transcript.end))
    ack_owed = GoFlag.ACK_OWED in go.flags
    seen_until = go.frame_at if ack_owed else client.transcript.end
    await half.transport.send_all(client.transcript.between(go.client_from, seen_until))
    if not ack_owed:
        return
    ack_filter = AckFilter()
    # The ACK may be in bytes that the control plane has not seen: then nothing more may come, and nothing is waited for.
    passed_on = ack_filter.receive_data(client.transcript.between(go.frame_at, client.transcript.end))
    await half.transport.send_all(passed_on)
    if not ack_filter.done:
        await relay_until_ack(client.transport, half.transport, ack_filter)
