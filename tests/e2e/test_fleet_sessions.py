"""Two daemons that share a DynamoDB table: each takes the sessions of the other, and both end with their token."""

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import urllib3

from beds.hosts.edge_daemons import EdgeDaemon, config_text, edge_daemon, wait
from beds.programs import BENTPIPE
from beds.stores.dynamodb_server import DynamoDbServer
from bentpipe.daemon.accounts.key_keeper import KEY_NAME
from bentpipe.daemon.accounts.signing_key import keep_key, new_key
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.store.dynamodb_table import Table
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto.grpc_status import GrpcStatus

GET = "/api.public.compute.Compute/GetSatellite"
SATELLITE = SatelliteKey("acme", "one")
KEYS = f"""
[satellite.process]
command = ["{sys.executable}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "{{port}}"]
"""


def log_in(daemon: EdgeDaemon, token: str) -> tuple[int, str]:
    headers = {"Authorization": f"token {token}"}
    with urllib3.PoolManager() as pool:
        url = f"http://127.0.0.1:{daemon.port}/api/v0/account/login"
        answer = pool.request("POST", url, headers=headers, retries=False)
        return answer.status, str(answer.json().get("token", ""))


def get(daemon: EdgeDaemon, session: str) -> GrpcStatus:
    request = pb.GetSatelliteRequest(org_id=SATELLITE.org, name=SATELLITE.name).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{daemon.port}") as channel:
        invoke = channel.unary_unary(GET, lambda message: message, lambda data: data)
        try:
            invoke(request, metadata=[("authorization", f"Bearer {session}")], timeout=30)
        except grpc.RpcError as exc:
            return GrpcStatus(exc.code().value[0])
    return GrpcStatus.OK


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """`fleet(host)` is a host's configuration."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDONE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with DynamoDbServer() as server:
        name = uuid.uuid4().hex
        Table(name, region="eu-central-1", endpoint=server.url).create_now()

        def config(host: str) -> str:
            store = f'kind = "dynamodb"\ntable = "{name}"\nregion = "eu-central-1"\nendpoint = "{server.url}"'
            return config_text({SATELLITE: KEYS}, sections=f'api = true\n[store]\n{store}\nhost = "{host}"\n')

        yield config


def operator(folder: Path, *arguments: str) -> str:
    command: list[str | Path] = [BENTPIPE, *arguments, "--config", folder / "a.toml"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_each_host_takes_the_sessions_of_the_other_until_their_token_is_revoked(
    tmp_path: Path, fleet: Callable[[str], str]
) -> None:
    states = {host: {"STATE_DIRECTORY": str(tmp_path / host)} for host in ("a", "b")}
    with (
        edge_daemon(tmp_path, fleet("a"), name="a", environment=states["a"]) as a,
        edge_daemon(tmp_path, fleet("b"), name="b", environment=states["b"]) as b,
    ):
        secret = operator(tmp_path, "token", "add", "--name", "ci", "--grant", "acme/*").split()[-1]
        sessions = []
        for here, other in ((a, b), (b, a)):
            # A new host's first key signs once the others must know it; until then it says so, and that it will pass.
            wait(lambda here=here: log_in(here, secret)[0] == 200, "it gives out sessions")  # type: ignore[misc]
            status, session = log_in(here, secret)
            assert status == 200
            assert get(other, session) is get(here, session) is GrpcStatus.OK, "at once, without waiting"
            sessions.append(session)
        assert (tmp_path / "a" / KEY_NAME).read_bytes() != (tmp_path / "b" / KEY_NAME).read_bytes()
        operator(tmp_path, "token", "revoke", "ci")
        for daemon in (a, b):
            for session in sessions:
                wait(lambda d=daemon, s=session: get(d, s) is GrpcStatus.UNAUTHENTICATED, "it is refused")  # type: ignore[misc]


def test_a_key_that_is_replaced_ends_no_session(tmp_path: Path, fleet: Callable[[str], str]) -> None:
    key = tmp_path / "session.key"
    keep_key(key, new_key())
    section = f'[accounts]\nsigning_key = "{key}"\n'
    with edge_daemon(tmp_path, fleet("a") + section, name="a") as a:
        wait(lambda: log_in(a, "bp_acme")[0] == 200, "it gives out sessions")
        _, before = log_in(a, "bp_acme")
    keep_key(key, new_key())
    with edge_daemon(tmp_path, fleet("a") + section, name="a") as a:
        wait(lambda: log_in(a, "bp_acme")[0] == 200, "it signs with the new key")
        _, after = log_in(a, "bp_acme")
        assert before.partition(".")[0] != after.partition(".")[0]
        deadline = time.monotonic() + 10
        assert [get(a, session) for session in (before, after)] == [GrpcStatus.OK] * 2
        assert time.monotonic() < deadline
