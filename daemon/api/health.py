"""grpc.health.v1.Health on a connection of the control API, for grpcurl and the like: they ask for server reflection first.

A health check that is a connection's first request is answered by `edge/health_connection.py`, without a credential. Here
every call has one. What each status means is the same (`edge/health.py`).
"""

from bentpipe.daemon.accounts.contract import Access, Scope
from bentpipe.daemon.api.call import Call, Method, decoded, unary
from bentpipe.daemon.edge.health import HealthBoard, Subject
from bentpipe.daemon.errors import SATELLITE_WORDS, Draining, InvalidRequest, NoSuchSatellite
from bentpipe.daemon.model import SatelliteKey
from bentpipe.proto.health import SERVICE_PATH, ServingStatus
from bentpipe.proto.health_check_pb2 import HealthCheckRequest, HealthCheckResponse

DRAINING_WORDS = "the edge host is shutting down: watch another"


class HealthCalls:
    """The service's methods."""

    def __init__(self, board: HealthBoard) -> None:
        self._board = board

    @property
    def methods(self) -> dict[str, Method]:
        """Both of them, by path."""
        return {
            SERVICE_PATH + "Check": unary(HealthCheckRequest, self._check),
            SERVICE_PATH + "Watch": Method(self._watch),
        }

    def _check(self, call: Call, request: HealthCheckRequest) -> HealthCheckResponse:
        return _response(self._status(call.access, request.service))

    def _status(self, access: Access, service: str) -> ServingStatus:
        """Say what the status is now. Raises NoSuchSatellite, also if the satellite is not the caller's."""
        subject: Subject = None
        if service:
            org, _, name = service.partition("/")
            subject = SatelliteKey(org, name)
            if not access.may(Scope.USE, org, name):
                raise NoSuchSatellite(f"{access.name} may not use {service!r}", peer_hint=SATELLITE_WORDS)
        return self._board.status(subject)

    async def _watch(self, call: Call) -> None:
        message = await call.receive()
        if message is None:
            raise InvalidRequest("the request must be exactly one message")
        service = decoded(HealthCheckRequest, message).service
        told: ServingStatus | None = None
        while True:
            seen = self._board.changes
            try:
                status = self._status(call.access, service)
            except NoSuchSatellite:
                status = (
                    ServingStatus.SERVICE_UNKNOWN
                )  # by the protocol a Watch waits for a service that does not exist yet
            if status is not told:
                await call.send(_response(status))
                told = status
            if self._board.ending:
                raise Draining(DRAINING_WORDS)
            await self._board.wait_change(seen)


def _response(status: ServingStatus) -> HealthCheckResponse:
    return HealthCheckResponse(status=HealthCheckResponse.ServingStatus.Name(status))
