"""A CI job from its OIDC token to a build's call: `bentpipe login --ci`, one exchange, sessions, revocation."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
import urllib3

from beds.hosts.ci_issuer import CiIssuer
from beds.peers.clients import CallError, GrpcioClient
from beds.programs import BENTPIPE
from bentpipe.daemon.accounts.contract import EXCHANGE_PATH
from bentpipe.daemon.service.tokens import TOKEN_REFRESH_S
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.proto.grpc_status import GrpcStatus

PATIENCE_S = 20 + TOKEN_REFRESH_S


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[CiIssuer]:
    made = CiIssuer(tmp_path)
    yield made
    made.close()


@pytest.fixture
def edge(issuer: CiIssuer, tmp_path: Path) -> Iterator[EdgeHost]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "edge-ca.pem"))
    served = authority.issue_cert("localhost")
    served.cert_chain_pems[0].write_to_path(str(tmp_path / "api.pem"))
    served.private_key_pem.write_to_path(str(tmp_path / "api-key.pem"))
    settings = f"""
[[oidc_issuer]]
name = "gitlab"
issuer = "{issuer.url}"
audience = "bentpipe"
ca = "{issuer.ca}"
[[oidc_rule]]
name = "main"
issuer = "gitlab"
claims = {{ project_id = "7", ref_protected = "true" }}
patterns = {{ ref_path = "refs/heads/*" }}
grants = ["{ORG}/mine"]
[[listener]]
address = "127.0.0.1:0"
api = true
[listener.tls]
certificate = "{tmp_path / "api.pem"}"
key = "{tmp_path / "api-key.pem"}"
"""
    with EdgeHost(
        [DemoSatellite("mine"), DemoSatellite("theirs")], sleep_after_s=600, drain_deadline_s=1, settings=settings
    ) as host:
        yield host


class Api:
    """The listener with the API, as curl sees it."""

    def __init__(self, edge: EdgeHost, directory: Path) -> None:
        self.edge = edge
        self.ca = directory / "edge-ca.pem"
        self.url = f"https://localhost:{edge.ports[-1]}"

    def post(self, path: str, authorization: str) -> tuple[int, dict[str, str]]:
        with urllib3.PoolManager(ca_certs=str(self.ca)) as pool:
            answer = pool.request("POST", self.url + path, headers={"Authorization": authorization}, retries=False)
            return answer.status, answer.json()

    def job(self, id_token: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "GITLAB_CI": "true", "BENTPIPE_ID_TOKEN": id_token}
        command: list[str | Path] = [BENTPIPE, "login", "--ci", "--server", self.url, "--ca", self.ca]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)

    def operator(self, *arguments: str) -> None:
        command: list[str | Path] = [BENTPIPE, *arguments, "--config", self.edge.config_path]
        subprocess.run(command, capture_output=True, timeout=60, check=True)

    def build(self, satellite: str, token: str) -> GrpcStatus:
        metadata = (("satellite_name", satellite), ("satellite_org", ORG), ("satellite_token", token))
        client = GrpcioClient(self.edge.port, self.edge.ca_pem, metadata)
        try:
            client.unary("Echo", b"hello")
        except CallError as exc:
            return GrpcStatus(exc.code)
        finally:
            client.close()
        return GrpcStatus.OK


@pytest.fixture
def api(edge: EdgeHost, tmp_path: Path) -> Api:
    return Api(edge, tmp_path)


def test_a_job_logs_in_once_and_builds_where_its_rule_lets_it(api: Api, issuer: CiIssuer) -> None:
    id_token = issuer.token()
    done = api.job(id_token)
    assert (done.returncode, done.stderr) == (0, "")
    token = done.stdout.strip()
    status, login = api.post("/api/v0/account/login", f"token {token}")
    assert status == 200
    assert login["token"] != token
    for shown in (token, login["token"]):
        assert api.build("mine", shown) is GrpcStatus.OK
        assert api.build("theirs", shown) is GrpcStatus.NOT_FOUND
    again = api.job(id_token)
    assert (again.returncode, again.stdout) == (2, "")
    assert "exchanged before" in again.stderr
    log = api.edge.log_path.read_text()
    assert "acme/app" in log
    assert not any(secret in log for secret in (id_token, token, login["token"]))


def test_other_jobs_get_nothing_and_hear_why(api: Api, issuer: CiIssuer) -> None:
    for claims, words in (
        ({"project_id": "8"}, "no rule"),
        ({"ref_protected": "false"}, "no rule"),
        ({"ref_path": "refs/heads/a/b"}, "no rule"),
        ({"aud": "somebody else"}, "aud"),
        ({"iss": "https://gitlab.com"}, "issuer"),
        ({"exp": int(time.time()) - 60}, "expired"),
    ):
        status, answer = api.post(EXCHANGE_PATH, f"Bearer {issuer.token(**claims)}")
        assert status == 401
        assert words in answer["message"].lower()
    assert api.post("/api/v0/account/login", f"token {issuer.token()}")[0] == 401
    assert api.build("mine", issuer.token()) is GrpcStatus.UNAUTHENTICATED


def test_a_revoked_rule_ends_what_its_jobs_got_until_they_exchange_again(api: Api, issuer: CiIssuer) -> None:
    status, login = api.post(EXCHANGE_PATH, f"Bearer {issuer.token()}")
    assert status == 200
    assert api.build("mine", login["token"]) is GrpcStatus.OK
    api.operator("oidc", "revoke", "--rule", "main")
    deadline = time.monotonic() + PATIENCE_S
    while api.build("mine", login["token"]) is not GrpcStatus.UNAUTHENTICATED:
        assert time.monotonic() < deadline
    status, answer = api.post(EXCHANGE_PATH, f"Bearer {issuer.token()}")
    assert (status, answer["message"]) == (401, "the rule for this job is revoked")
    api.operator("oidc", "allow", "--rule", "main")
    while api.post(EXCHANGE_PATH, f"Bearer {issuer.token()}")[0] != 200:
        assert time.monotonic() < deadline + PATIENCE_S
    assert api.build("mine", login["token"]) is GrpcStatus.UNAUTHENTICATED
