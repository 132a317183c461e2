"""The first round trip after the replay: relays both ways in Python until the ACK of our SETTINGS was taken out.

The satellite never saw our SETTINGS, and most servers end a connection on an ACK they did not ask for (RFC 9113
§6.5.3). Only the client-to-satellite direction is framed meanwhile; the other flows at once.
"""

import trio

from bentpipe.daemon.edge.outcomes import Gone, Outcome
from bentpipe.daemon.edge.transport import OverLimit, Transport, TransportError
from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.errors import GreetingError


async def relay_until_ack(client: Transport, satellite: Transport, ack_filter: AckFilter) -> None:
    """Return with both directions at a byte boundary and nothing buffered here.

    Raises TransportError, GreetingError (broken framing) or Gone if either side ends first.
    """
    await _Relay(client, satellite, ack_filter).run()


class _Relay:
    def __init__(self, client: Transport, satellite: Transport, ack_filter: AckFilter) -> None:
        self._client = client
        self._satellite = satellite
        self._filter = ack_filter
        self._waiting = trio.CancelScope()
        self._failure: Exception | None = None

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._downstream, nursery.cancel_scope)
            try:
                await self._upstream()
            except (Gone, GreetingError, TransportError) as exc:
                self._failure = exc
                nursery.cancel_scope.cancel()
            self._waiting.cancel()
        if self._failure is not None:
            raise self._failure

    async def _upstream(self) -> None:
        while not self._filter.done:
            data = await self._client.receive_some()
            if not data:
                raise Gone(Outcome.CLIENT_GONE)
            await self._satellite.send_all(self._filter.receive_data(data))

    async def _downstream(self, both: trio.CancelScope) -> None:
        """Copy until told to stop. Only the wait is ever told: bytes once read are always sent on."""
        try:
            while not self._filter.done:
                with trio.CancelScope() as self._waiting:
                    await self._satellite.wait_readable()
                data = self._satellite.receive_nowait()
                if data == b"":
                    raise Gone(Outcome.BROKEN)
                if data:
                    await self._client.send_all(data)
        except OverLimit as exc:
            self._failure = TransportError(f"the satellite: {exc}")  # OverLimit is what the client does
            both.cancel()
        except (Gone, TransportError) as exc:
            self._failure = exc
            both.cancel()
