"""Tokens of the store, by `bentpipe token`, in a daemon that runs: added, used, revoked, refused; no restart."""

import subprocess
import sys
from pathlib import Path

from beds.peers.edge_clients import status_of, wait_status
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


def test_a_token_lives_from_add_to_revoke() -> None:
    with EdgeHost([DemoSatellite("mine"), DemoSatellite("theirs")], sleep_after_s=600) as edge:
        secret = token_command(edge, "add", "--name", "ci", "--grant", f"{ORG}/mine").split()[-1]
        wait_status(edge, "mine", secret, GrpcStatus.OK, PATIENCE_S)
        assert status_of(edge, "theirs", secret) is GrpcStatus.NOT_FOUND
        token_command(edge, "revoke", "ci")
        wait_status(edge, "mine", secret, GrpcStatus.UNAUTHENTICATED, PATIENCE_S)
        assert status_of(edge, "mine", edge.token) is GrpcStatus.OK
        assert secret not in edge.log_path.read_text()
