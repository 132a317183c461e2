"""grpc.health.v1.Health on a connection of the control API: whom it tells what, and what a Watch hears."""

from collections.abc import AsyncIterator, Generator
from typing import cast

import grpc
import pytest
import trio

from beds.hosts.api_host import ApiHost, People, Person
from beds.quoted import without_id
from bentpipe.daemon.accounts.contract import Scope
from bentpipe.daemon.api.health import HealthCalls
from bentpipe.daemon.edge.health import HealthBoard
from bentpipe.daemon.errors import SATELLITE_WORDS, NoSuchSatellite
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.proto.health import SERVICE_PATH
from bentpipe.proto.health_check_pb2 import HealthCheckRequest, HealthCheckResponse

KEY = SatelliteKey("acme", "sat")
SERVING, NOT_SERVING, SERVICE_UNKNOWN = (
    HealthCheckResponse.ServingStatus.Value(name) for name in ("SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
)


class OneSatellite:
    """Stands for the fleet: the board asks it for a satellite's state and for nothing else."""

    shown_state = SatelliteState.SLEEP

    def get(self, key: SatelliteKey) -> "OneSatellite":
        if key != KEY:
            raise NoSuchSatellite(f"no {key}", peer_hint=SATELLITE_WORDS)
        return self


class Bed:
    def __init__(self) -> None:
        self.satellite = OneSatellite()
        self.board = HealthBoard(cast(Fleet, self.satellite))
        use = frozenset({Scope.USE})
        people = {"anna": Person("anna", {("acme", "*"): use}), "eve": Person("eve", {("other", "*"): use})}
        self.host = ApiHost(HealthCalls(self.board).methods, People(people))

    def ask(self, method: str, service: str, token: str | None = "anna") -> Generator[int, None, None]:
        """The statuses of a call; blocks."""
        with grpc.insecure_channel("{}:{}".format(*self.host.address)) as channel:
            call = channel.unary_stream(
                SERVICE_PATH + method,
                request_serializer=HealthCheckRequest.SerializeToString,
                response_deserializer=HealthCheckResponse.FromString,
            )
            metadata = [] if token is None else [("authorization", f"Bearer {token}")]
            for answer in call(HealthCheckRequest(service=service), metadata=metadata, timeout=60):
                yield answer.status

    async def check(self, service: str, token: str | None = "anna") -> int | tuple[grpc.StatusCode, str]:
        def run() -> int | tuple[grpc.StatusCode, str]:
            try:
                [status] = self.ask("Check", service, token)
            except grpc.RpcError as exc:
                return exc.code(), without_id(exc.details())
            return status

        return await trio.to_thread.run_sync(run)


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    made = Bed()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.host.run)
        yield made
        nursery.cancel_scope.cancel()


async def test_a_check_of_the_daemon_and_of_a_satellite(bed: Bed) -> None:
    assert await bed.check("") == await bed.check("acme/sat") == SERVING
    bed.satellite.shown_state = SatelliteState.FAILED
    assert (await bed.check(""), await bed.check("acme/sat")) == (SERVING, NOT_SERVING)


async def test_a_foreign_satellite_and_none_have_one_answer(bed: Bed) -> None:
    answers = [await bed.check(*each) for each in (("acme/sat", "eve"), ("acme/no", "eve"), ("acme/no",), ("nothing",))]
    assert answers == [(grpc.StatusCode.NOT_FOUND, SATELLITE_WORDS)] * 4
    for service in ("", "acme/sat"):
        answer = await bed.check(service, None)
        assert isinstance(answer, tuple)
        assert answer[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_a_watch_hears_each_change_and_ends_with_the_daemon(bed: Bed) -> None:
    heard: list[int] = []
    codes: list[grpc.StatusCode] = []

    def watch() -> None:
        try:
            heard.extend(bed.ask("Watch", "acme/sat"))
        except grpc.RpcError as exc:
            codes.append(exc.code())

    async def until(*expected: int) -> None:
        with trio.fail_after(20):
            while heard != list(expected):
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, watch)
        await until(SERVING)
        bed.satellite.shown_state = SatelliteState.OFFLINE
        bed.board.change()
        await until(SERVING, NOT_SERVING)
        bed.board.change()  # of another satellite
        bed.satellite.shown_state = SatelliteState.OPERATIONAL
        bed.board.change()
        await until(SERVING, NOT_SERVING, SERVING)
        bed.board.drain()
    assert (heard[3:], codes) == ([NOT_SERVING], [grpc.StatusCode.UNAVAILABLE])


async def test_a_watch_of_what_does_not_exist_waits_for_it(bed: Bed) -> None:
    watching = bed.ask("Watch", "acme/no")
    assert await trio.to_thread.run_sync(next, watching) == SERVICE_UNKNOWN
    await trio.to_thread.run_sync(watching.close)
