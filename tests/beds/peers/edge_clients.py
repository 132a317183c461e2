"""Clients of the testbed's edge host, by satellite and token, and what their calls end with."""

import contextlib
import time
from collections.abc import Iterator

import pytest

from beds.peers.clients import TIMEOUT_S, CallError, Client, GrpcioClient, Metadata
from beds.peers.kinds import CLIENTS, or_skip
from bentpipe.daemon.testbed.edge_host import ORG, EdgeHost
from bentpipe.proto.grpc_status import GrpcStatus


def metadata_of(edge: EdgeHost, satellite: str, token: str | None = None) -> Metadata:
    """For one of the host's satellites, by its own token if no other is given."""
    token = edge.token if token is None else token
    return (("satellite_name", satellite), ("satellite_org", ORG), ("satellite_token", token))


def client_of(edge: EdgeHost, satellite: str, token: str | None = None) -> GrpcioClient:
    return GrpcioClient(edge.port, edge.ca_pem, metadata_of(edge, satellite, token))


@contextlib.contextmanager
def client_of_kind(edge: EdgeHost, kind: str, satellite: str, token: str | None = None) -> Iterator[Client]:
    """A client of that kind, until the end of the block. Skips the test if it is not available here."""
    with contextlib.closing(
        or_skip(CLIENTS[kind], edge.port, edge.ca_pem, metadata_of(edge, satellite, token))
    ) as made:
        yield made


def outcome(client: GrpcioClient, timeout_s: float = TIMEOUT_S) -> tuple[GrpcStatus, str]:
    """One call's status and words."""
    try:
        client.unary("Echo", b"hello", timeout_s=timeout_s)
    except CallError as exc:
        return GrpcStatus(exc.code), exc.details
    return GrpcStatus.OK, ""


def call_once(edge: EdgeHost, satellite: str, token: str | None = None) -> tuple[GrpcStatus, str]:
    """The outcome of a call on a connection of its own."""
    with contextlib.closing(client_of(edge, satellite, token)) as client:
        return outcome(client)


def status_of(edge: EdgeHost, satellite: str, token: str | None = None) -> GrpcStatus:
    return call_once(edge, satellite, token)[0]


def wait_status(edge: EdgeHost, satellite: str, token: str, wanted: GrpcStatus, deadline_s: float) -> None:
    """Call again and again until a call ends so. Fails the test at the deadline."""
    deadline = time.monotonic() + deadline_s
    while status_of(edge, satellite, token) is not wanted:
        if time.monotonic() > deadline:
            pytest.fail(f"{wanted} did not come")
        time.sleep(0.1)
