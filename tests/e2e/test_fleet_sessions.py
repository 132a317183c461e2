"""Two daemons that share a DynamoDB table: each takes the sessions of the other, and both end with their token.

A CI job's token is exchanged once, on whichever host.
"""

import concurrent.futures
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import urllib3

from beds.hosts.ci_issuer import CiIssuer
from beds.hosts.edge_daemons import EdgeDaemon, config_text, edge_daemon, wait
from beds.programs import BENTPIPE
from beds.stores.dynamodb_server import DynamoDbServer
from bentpipe.daemon.accounts.contract import EXCHANGE_PATH
from bentpipe.daemon.accounts.key_keeper import KEY_NAME
from bentpipe.daemon.accounts.signing_key import keep_key, new_key
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.store.dynamodb_table import Table
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto.grpc_status import GrpcStatus

GET = "/api.public.compute.Compute/GetSatellite"
SATELLITE = SatelliteKey("acme", "one")
RACES, RACERS = 5, 3
"""Tokens that are raced for, and callers on each host."""
KEYS = f"""
[satellite.process]
command = ["{sys.executable}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "{{port}}"]
"""


def log_in(daemon: EdgeDaemon, token: str) -> tuple[int, str]:
    status, answer = post(daemon, "/api/v0/account/login", f"token {token}")
    return status, answer.get("token", "")


def exchange(daemon: EdgeDaemon, id_token: str) -> tuple[int, dict[str, str]]:
    return post(daemon, EXCHANGE_PATH, f"Bearer {id_token}")


def post(daemon: EdgeDaemon, path: str, authorization: str) -> tuple[int, dict[str, str]]:
    with urllib3.PoolManager() as pool:
        url = f"http://127.0.0.1:{daemon.port}{path}"
        answer = pool.request("POST", url, headers={"Authorization": authorization}, retries=False)
        return answer.status, answer.json()


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


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[CiIssuer]:
    made = CiIssuer(tmp_path)
    yield made
    made.close()


def oidc(issuer: CiIssuer) -> str:
    return f"""
[[oidc_issuer]]
name = "gitlab"
issuer = "{issuer.url}"
audience = "bentpipe"
ca = "{issuer.ca}"
[[oidc_rule]]
name = "main"
issuer = "gitlab"
claims = {{ project_id = "7" }}
grants = ["{SATELLITE}"]
"""


def test_a_ci_token_is_exchanged_once_on_whichever_host(
    tmp_path: Path, fleet: Callable[[str], str], issuer: CiIssuer
) -> None:
    """One after the other in both orders, and then at once: of the callers on both hosts exactly one gets a token."""
    with (
        edge_daemon(tmp_path, fleet("a") + oidc(issuer), name="a") as a,
        edge_daemon(tmp_path, fleet("b") + oidc(issuer), name="b") as b,
    ):
        for daemon in (a, b):
            wait(lambda daemon=daemon: exchange(daemon, issuer.token())[0] == 200, "it exchanges")  # type: ignore[misc]
        for first, second in ((a, b), (b, a)):
            id_token = issuer.token()
            status, login = exchange(first, id_token)
            assert status == 200
            for refusing in (second, first):
                status, refused = exchange(refusing, id_token)
                assert status == 401
                assert "exchanged before" in refused["message"]
            assert get(first, login["token"]) is get(second, login["token"]) is GrpcStatus.OK
        callers = [a, b] * RACERS
        with concurrent.futures.ThreadPoolExecutor(len(callers)) as pool:
            for _ in range(RACES):
                id_token, at_once = issuer.token(), threading.Barrier(len(callers))

                def race(daemon: EdgeDaemon, id_token: str = id_token, at_once: threading.Barrier = at_once) -> int:
                    at_once.wait(30)
                    return exchange(daemon, id_token)[0]

                assert sorted(pool.map(race, callers)) == [200] + [401] * (len(callers) - 1)


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
