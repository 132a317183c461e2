"""The clients and the satellites of the matrix, by name.

If one is not available here, its tests are skipped, with the reason.
"""

import sys
from collections.abc import Callable

import pytest

from beds.peers.builds import CLIENTS as BUILT
from beds.peers.builds import Missing, go_peer
from beds.peers.child_clients import go_client, jvm_client, node_client, rust_client
from beds.peers.clients import Client, GrpcioClient, GrpclibClient, MakesClient, Metadata
from beds.programs import program

CLIENTS: dict[str, MakesClient] = {
    "grpcio": GrpcioClient,
    "grpclib": GrpclibClient,
    "grpc-go": go_client,
    "grpc-js": node_client,
    "tonic": rust_client,
    "grpc-java": jvm_client,
}
CLIENT_KINDS = list(CLIENTS)
SERVER_KINDS = ["grpcio", "grpclib", "grpc-go"]
TABLE_SIZES = (0, 64, 65_536)
"""What some nghttpd say as SETTINGS_HEADER_TABLE_SIZE, instead of the initial 4,096."""


def or_skip(make: MakesClient, port: int, ca_pem: bytes | None, metadata: Metadata, keepalive_s: float = 0) -> Client:
    """Call `make`, or skip the test with the reason why the peer is missing."""
    try:
        return make(port, ca_pem, metadata, keepalive_s)
    except Missing as exc:
        pytest.skip(str(exc))


def satellite_command(kind: str) -> tuple[str, ...] | None:
    """The command line of a satellite, None if it is not available here."""
    commands: dict[str, Callable[[], tuple[str, ...]]] = {
        "grpcio": lambda: (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}"),
        "grpcio-settings": lambda: (*program("peers.grpcio_satellite"), "{port}"),
        "grpclib": lambda: (*program("peers.grpclib_satellite"), "{port}"),
        "grpc-go": lambda: (go_peer(), "server", "{port}"),
        "strict": lambda: (go_peer(), "strict", "{port}"),
    }
    try:
        return commands[kind]()
    except Missing:
        return None


def available_clients() -> list[str]:
    """The clients that are available here."""
    found = ["grpcio", "grpclib"]
    for kind, build in BUILT.items():
        try:
            build()
        except Missing:
            continue
        found.append(kind)
    return found
