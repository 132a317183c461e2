"""The first round trip after the replay: relays both ways in Python until the ACK of our SETTINGS has been taken out.

The satellite never saw our SETTINGS, and most servers end a connection on an ACK that they did not ask for (RFC 9113
§6.5.3). Only the direction from client to satellite is read as frames; the other is passed on as it comes.
"""

import trio

from bentpipe.daemon.connections.outcomes import ConnectionOver, Outcome
from bentpipe.daemon.connections.transport import OverLimit, Transport, TransportError
from bentpipe.proto.ack_filter import AckFilter
from bentpipe.proto.errors import GreetingError


async def relay_until_ack(client: Transport, satellite: Transport, ack_filter: AckFilter) -> None:
    """Return once the ACK has been taken out; no byte of either direction is buffered here then.

    Raises TransportError, GreetingError (broken framing) or ConnectionOver if either side ends first.
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
            except (ConnectionOver, GreetingError, TransportError) as exc:
                self._failure = exc
                nursery.cancel_scope.cancel()
            self._waiting.cancel()
        if self._failure is not None:
            raise self._failure

    async def _upstream(self) -> None:
        while not self._filter.done:
            data = await self._client.receive_some()
            if not data:
                raise ConnectionOver(Outcome.CLIENT_GONE)
            await self._satellite.send_all(self._filter.receive_data(data))

    async def _downstream(self, both: trio.CancelScope) -> None:
        """Copy until told to stop. Only the wait can be stopped: bytes that were read are always sent on."""
        try:
            while not self._filter.done:
                with trio.CancelScope() as self._waiting:
                    await self._satellite.wait_readable()
                data = self._satellite.receive_nowait()
                if data == b"":
                    raise ConnectionOver(Outcome.BROKEN)
                if data:
                    await self._client.send_all(data)
        except OverLimit as exc:
            self._failure = TransportError(f"the satellite: {exc}")  # an OverLimit would be counted as the client's
            both.cancel()
        except (ConnectionOver, TransportError) as exc:
            self._failure = exc
            both.cancel()
