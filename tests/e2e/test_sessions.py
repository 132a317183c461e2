"""Sessions in a daemon that runs: given out by another host of the fleet, used, and ended by what ends their tokens."""

import hashlib
import time
from collections.abc import Callable, Iterator

import pytest
import trio

from beds.peers.clients import CallError
from beds.peers.edge_clients import client_of, status_of
from beds.programs import bentpipe
from bentpipe.config.load import load_config
from bentpipe.daemon.accounts.key_keeper import KEY_NAME
from bentpipe.daemon.accounts.principal import Origin
from bentpipe.daemon.accounts.sessions import Sessions, TokenPurpose
from bentpipe.daemon.accounts.signing_key import SigningKey, new_key, read_key
from bentpipe.daemon.registry.accounts import StoredKey
from bentpipe.daemon.registry.sqlite_accounts import SqliteAccountStore
from bentpipe.daemon.service.tokens import TOKEN_REFRESH_S
from bentpipe.daemon.testbed.edge_host import ORG, DemoSatellite, EdgeHost
from bentpipe.proto.grpc_status import GrpcStatus

PATIENCE_S = 20 + TOKEN_REFRESH_S
RULES = f"""
[[oidc_issuer]]
name = "ci"
issuer = "https://127.0.0.1:1"
audience = "bentpipe"
[[oidc_rule]]
name = "main"
issuer = "ci"
claims = {{ repository_id = "1" }}
grants = ["{ORG}/mine"]
"""


@pytest.fixture
def edge() -> Iterator[EdgeHost]:
    satellites = [DemoSatellite("mine"), DemoSatellite("theirs")]
    with EdgeHost(satellites, sleep_after_s=600, drain_deadline_s=1, settings=RULES) as host:
        yield host


def session(origin: Origin, key: SigningKey, kind: TokenPurpose = TokenPurpose.SESSION) -> str:
    sessions = Sessions("default")
    sessions.sign_with(key)
    return sessions.issue(kind, origin, time.time() + 3600).token


def of_token(secret: str) -> Origin:
    digest = hashlib.sha256(secret.encode()).digest()
    return Origin(f"token:{hashlib.sha256(digest).hexdigest()[:32]}")


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def own_key(edge: EdgeHost) -> SigningKey:
    path = edge.config_path.parent / KEY_NAME
    wait_until(path.exists)
    return read_key(path)


def test_a_session_is_taken_as_its_token_is(edge: EdgeHost) -> None:
    token = session(of_token(edge.token), own_key(edge))
    assert status_of(edge, "mine", token) is GrpcStatus.OK
    assert status_of(edge, "theirs", token) is GrpcStatus.OK
    assert status_of(edge, "mine", token[:-4] + "AAAA") is GrpcStatus.UNAUTHENTICATED
    assert status_of(edge, "mine", session(Origin("token:" + "0" * 32), own_key(edge))) is GrpcStatus.UNAUTHENTICATED
    assert token not in edge.log_path.read_text()


def test_a_session_of_another_host_is_taken_once_its_key_is_in_the_store(edge: EdgeHost) -> None:
    key = new_key()
    token = session(of_token(edge.token), key)
    assert status_of(edge, "mine", token) is GrpcStatus.UNAUTHENTICATED

    async def publish() -> None:
        path = load_config(edge.config_path).store.ledger_path()
        assert path is not None
        store = SqliteAccountStore(path)
        await store.put_key(StoredKey(key.key_id, key.public_pem, 1 << 62))
        await store.aclose()

    trio.run(publish)
    wait_until(lambda: status_of(edge, "mine", token) is GrpcStatus.OK)


def test_revoking_a_token_ends_its_sessions_and_cuts_their_connections_alone(edge: EdgeHost) -> None:
    first, second = (
        bentpipe(
            edge.config_path, "token", "add", "--name", name, "--principal", "team", "--grant", f"{ORG}/*"
        ).split()[-1]
        for name in ("first", "second")
    )
    one, two = (session(of_token(secret), own_key(edge)) for secret in (first, second))
    wait_until(lambda: status_of(edge, "mine", one) is status_of(edge, "mine", two) is GrpcStatus.OK)
    clients = [client_of(edge, "mine", token) for token in (one, two)]
    for client in clients:
        client.unary("Echo", b"hello")
    bentpipe(edge.config_path, "token", "revoke", "--cut", "first")
    wait_until(lambda: status_of(edge, "mine", one) is GrpcStatus.UNAUTHENTICATED)
    wait_until(lambda: "connections of what was revoked cut" in edge.log_path.read_text())
    with pytest.raises(CallError):
        clients[0].unary("Echo", b"hello", timeout_s=20)
    clients[1].unary("Echo", b"hello")
    for client in clients:
        client.close()


def test_revoking_a_rule_or_an_org_ends_what_jobs_got(edge: EdgeHost) -> None:
    jobs = [
        session(Origin("rule:main", f"0{number}", time.time_ns() // 1000), own_key(edge), TokenPurpose.JOB)
        for number in range(3)
    ]
    assert [status_of(edge, "mine", job) for job in jobs] == [GrpcStatus.OK] * 3
    assert status_of(edge, "theirs", jobs[0]) is GrpcStatus.NOT_FOUND
    bentpipe(edge.config_path, "oidc", "revoke", "--exchange", "00")
    wait_until(lambda: status_of(edge, "mine", jobs[0]) is GrpcStatus.UNAUTHENTICATED)
    assert status_of(edge, "mine", jobs[1]) is GrpcStatus.OK
    client = client_of(edge, "mine", jobs[1])
    client.unary("Echo", b"hello")
    bentpipe(edge.config_path, "oidc", "revoke", "--cut", "--rule", "main")
    wait_until(lambda: status_of(edge, "mine", jobs[1]) is GrpcStatus.UNAUTHENTICATED)
    wait_until(lambda: "rule:main" in edge.log_path.read_text())
    with pytest.raises(CallError):
        client.unary("Echo", b"hello", timeout_s=20)
    client.close()
    assert status_of(edge, "mine", edge.token) is GrpcStatus.OK
    bentpipe(edge.config_path, "org", "revoke", ORG)
    wait_until(lambda: status_of(edge, "mine", edge.token) is GrpcStatus.NOT_FOUND)
    bentpipe(edge.config_path, "org", "add", ORG)
    wait_until(lambda: status_of(edge, "mine", edge.token) is GrpcStatus.OK)
