"""Tokens of the store, by `bentpipe token`, in a daemon that runs: added, used, revoked, refused; no restart."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from beds.peers.clients import CallError, GrpcioClient
from bentpipe.daemon.service.tokens import TOKEN_REFRESH_S
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.proto.grpc_status import GrpcStatus

PROGRAM = Path(sys.executable).with_name("bentpipe")
PATIENCE_S = 20 + TOKEN_REFRESH_S


def token_command(edge: EdgeHost, *arguments: str) -> str:
    done = subprocess.run(
        [PROGRAM, "token", arguments[0], "--config", edge.config_path, *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def answer(edge: EdgeHost, satellite: str, token: str) -> GrpcStatus:
    metadata = (("satellite_name", satellite), ("satellite_org", ORG), ("satellite_token", token))
    client = GrpcioClient(edge.port, edge.ca_pem, metadata)
    try:
        client.unary("Echo", b"hello")
    except CallError as exc:
        return GrpcStatus(exc.code)
    finally:
        client.close()
    return GrpcStatus.OK


def wait_answer(edge: EdgeHost, satellite: str, token: str, wanted: GrpcStatus) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while answer(edge, satellite, token) is not wanted:
        if time.monotonic() > deadline:
            pytest.fail(f"{wanted} did not come")


def test_a_token_lives_from_add_to_revoke() -> None:
    with EdgeHost([DemoSatellite("mine"), DemoSatellite("theirs")], sleep_after_s=600) as edge:
        secret = token_command(edge, "add", "--name", "ci", "--grant", f"{ORG}/mine").split()[-1]
        wait_answer(edge, "mine", secret, GrpcStatus.OK)
        assert answer(edge, "theirs", secret) is GrpcStatus.NOT_FOUND
        token_command(edge, "revoke", "ci")
        wait_answer(edge, "mine", secret, GrpcStatus.UNAUTHENTICATED)
        assert answer(edge, "mine", edge.token) is GrpcStatus.OK
        assert secret not in edge.log_path.read_text()
