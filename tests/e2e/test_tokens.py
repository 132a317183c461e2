"""Tokens of the store, by `bentpipe token`, in a daemon that runs: added, used, revoked, refused; no restart."""

from beds.peers.edge_clients import status_of, wait_status
from beds.programs import bentpipe
from bentpipe.daemon.service.tokens import TOKEN_REFRESH_S
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.proto.grpc_status import GrpcStatus

PATIENCE_S = 20 + TOKEN_REFRESH_S


def test_a_token_lives_from_add_to_revoke() -> None:
    with EdgeHost([DemoSatellite("mine"), DemoSatellite("theirs")], sleep_after_s=600) as edge:
        secret = bentpipe(edge.config_path, "token", "add", "--name", "ci", "--grant", f"{ORG}/mine").split()[-1]
        wait_status(edge, "mine", secret, GrpcStatus.OK, PATIENCE_S)
        assert status_of(edge, "theirs", secret) is GrpcStatus.NOT_FOUND
        bentpipe(edge.config_path, "token", "revoke", "ci")
        wait_status(edge, "mine", secret, GrpcStatus.UNAUTHENTICATED, PATIENCE_S)
        assert status_of(edge, "mine", edge.token) is GrpcStatus.OK
        assert secret not in edge.log_path.read_text()
