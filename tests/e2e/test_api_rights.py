"""Every method of the API by every kind of credential, over the wire: what a caller hears, and what is done."""

import contextlib
import hashlib
import http.client
import itertools
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trio
import trustme
from google.protobuf.message import Message

from beds.hosts.form import serve_file
from beds.ports import free_port
from beds.quoted import without_id
from bentpipe.daemon.accounts.principal import Origin
from bentpipe.daemon.accounts.sessions import TokenPurpose
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.registry.accounts import StoredRevocation
from bentpipe.daemon.service.serve import Daemon
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto import operations_pb2
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.logstream_pb2 import StreamLogRequest
from bentpipe.proto.reflection_pb2 import ServerReflectionRequest

COMPUTE = "/api.public.compute.Compute/"
LOGS = "/api.public.logstream.LogStream/StreamLogs"
REFLECTION = tuple(f"/grpc.reflection.{v}.ServerReflection/ServerReflectionInfo" for v in ("v1", "v1alpha"))
PAGES = (
    ("POST", "/api/v0/account/login", "token"),
    ("POST", "/api/v0/account/exchange", "Bearer"),
    ("GET", "/api/v0/admin/organizations", "Bearer"),
    ("GET", "/api/v0/account/ping", "Bearer"),
    ("GET", "/api/v0/account/tokens", "Bearer"),
    ("GET", "/api/v1/secrets/user/std/registry/docker.io/username", "Bearer"),
)
Page = dict[str, list[dict[str, str]]]
"""What the pages with lists have."""
OPERATIONS = "/bentpipe.operations.Operations/"
OWN = SatelliteKey("acme", "own")
MINE, THEIRS, MISSING = SatelliteKey("acme", "mine"), SatelliteKey("acme", "theirs"), SatelliteKey("acme", "missing")
METHODS: dict[str, type[Message]] = {
    "GetSatellite": pb.GetSatelliteRequest,
    "WakeSatellite": pb.WakeSatelliteRequest,
    "ReserveSatellite": pb.ReserveSatelliteRequest,
    "SleepSatellite": pb.SleepSatelliteRequest,
    "UpdateSatellite": pb.UpdateSatelliteRequest,
    "DeleteSatellite": pb.DeleteSatelliteRequest,
    "LaunchSatellite": pb.LaunchSatelliteRequest,
    OPERATIONS + "CutConnections": operations_pb2.CutConnectionsRequest,
}
"""By name, or by path if they are of another service than Compute."""
MANAGES = ("SleepSatellite", "UpdateSatellite", "DeleteSatellite", "LaunchSatellite", OPERATIONS + "CutConnections")
NOBODY = ("nothing", "bad", "expired", "revoked", "job of a revoked exchange", "session of a revoked token", "alg none")
ELSEWHERE = ("other org", "job of the wrong repository", "session of the wrong repository")
USERS = ("use only", "session of use only", "job")
MANAGERS = ("manage", "session of manage")


def hashed(secret: str) -> str:
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()


class Bed:
    """A daemon whose satellites sleep, and a credential of each kind."""

    def __init__(self, daemon: Daemon, ca_pem: bytes) -> None:
        self.daemon = daemon
        self._ca_pem = ca_pem
        parts = daemon.account_parts
        sessions, log_in = parts.admission.sessions, parts.authority.log_in

        def job(rule: str, exchange: str) -> str:
            origin = Origin(f"rule:{rule}", exchange, time.time_ns() // 1000)
            return sessions.issue(TokenPurpose.JOB, origin, time.time() + 3600).token

        gone = sessions.issue(TokenPurpose.SESSION, Origin("token:" + "0" * 32), time.time() + 3600).token
        self.credentials: dict[str, str | None] = {
            "nothing": None,
            "bad": "bp_bad",
            "expired": "expired",
            "revoked": "bp_revoked",
            "job of a revoked exchange": job("main", "bad"),
            "session of a revoked token": gone,
            "alg none": "eyJhbGciOiJub25lIn0." + log_in("manager").token.split(".")[1] + ".",
            "other org": "foreign",
            "job of the wrong repository": job("other-repository", "a"),
            "session of the wrong repository": log_in(job("other-repository", "b")).token,
            "use only": "user",
            "session of use only": log_in("user").token,
            "job": job("main", "c"),
            "manage": "manager",
            "session of manage": log_in("manager").token,
        }

    def state(self, key: SatelliteKey) -> SatelliteState:
        return self.daemon.fleet.get(key).state

    async def call(self, method: str, request: Message, kind: str) -> tuple[GrpcStatus, str, list[bytes]]:
        return await trio.to_thread.run_sync(self._call, method, request, self.credentials[kind])

    async def about(self, method: str, kind: str, key: SatelliteKey) -> tuple[GrpcStatus, str, list[bytes]]:
        return await self.call(method, METHODS[method](org_id=key.org, name=key.name), kind)

    async def page(self, method: str, path: str, scheme: str, kind: str) -> tuple[int, Page]:
        """The status and the JSON of an HTTP/1.1 page."""
        return await trio.to_thread.run_sync(self._page, method, path, scheme, self.credentials[kind])

    def _page(self, method: str, path: str, scheme: str, token: str | None) -> tuple[int, Page]:
        host, port = self.daemon.addresses[0]
        context = ssl.create_default_context(cadata=self._ca_pem.decode())
        with contextlib.closing(http.client.HTTPSConnection(host, port, timeout=60, context=context)) as connection:
            connection.request(method, path, headers={} if token is None else {"Authorization": f"{scheme} {token}"})
            answer = connection.getresponse()
            found: Page = json.loads(answer.read())
            return answer.status, found

    def _call(self, method: str, request: Message, token: str | None) -> tuple[GrpcStatus, str, list[bytes]]:
        credentials = grpc.ssl_channel_credentials(self._ca_pem)
        host, port = self.daemon.addresses[0]
        with grpc.secure_channel(f"{host}:{port}", credentials) as channel:
            invoke = channel.unary_stream(
                method if "/" in method else COMPUTE + method, lambda message: message, lambda data: data
            )
            metadata = [] if token is None else [("authorization", f"Bearer {token}")]
            answers: list[bytes] = []
            try:
                answers += invoke(request.SerializeToString(), metadata=metadata, timeout=60)
            except grpc.RpcError as exc:
                return GrpcStatus(exc.code().value[0]), without_id(exc.details()), answers
            return GrpcStatus.OK, "", answers


@pytest.fixture
async def bed(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Bed]:
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    (tmp_path / "key.pem").write_bytes(server.private_key_pem.bytes())
    tokens = "".join(
        f'[[token]]\nname = "{name}"\nhash = "{hashed(name)}"\n{rest}\n'
        for name, rest in (
            ("user", 'grants = ["acme/mine"]'),
            ("manager", 'grants = ["acme/*"]\nscopes = ["manage"]'),
            ("foreign", 'grants = ["other/*"]\nscopes = ["manage"]'),
            ("expired", 'grants = ["acme/*"]\nscopes = ["manage"]\nexpires = 2020-01-01T00:00:00Z'),
        )
    )
    rules = "".join(
        f'[[oidc_rule]]\nname = "{name}"\nissuer = "ci"\nclaims = {{ repository_id = "{number}" }}\ngrants = ["{grant}"]\n'
        for number, (name, grant) in enumerate((("main", "acme/mine"), ("other-repository", "other/*")))
    )
    satellites = "".join(
        f"""
[[satellite]]
org = "{org}"
name = "{name}"
min_awake = 0
sleep_mode = "stop"
[satellite.process]
command = ["{sys.executable}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "{{port}}"]
"""
        for org, name in (("acme", "mine"), ("acme", "theirs"), ("other", "x"))
    )
    (tmp_path / "bentpipe.toml").write_text(f"""
[store]
path = "{tmp_path / "ledger.sqlite"}"
[registration]
networks = ["127.0.0.0/8"]
plaintext = true
[[listener]]
address = "127.0.0.1:0"
api = true
[listener.tls]
certificate = "{tmp_path / "cert.pem"}"
key = "{tmp_path / "key.pem"}"
[[oidc_issuer]]
name = "ci"
issuer = "https://127.0.0.1:1"
audience = "bentpipe"
{tokens}
{rules}
{satellites}
""")
    daemon = await nursery.start(serve_file, tmp_path / "bentpipe.toml")
    with trio.fail_after(60):
        while not signs(daemon):
            await trio.sleep(0.01)
    made = Bed(daemon, authority.cert_pem.bytes())
    store = daemon.records.stores.accounts
    assert store is not None
    await store.put_revocation(StoredRevocation("exchange:bad", 1, 1 << 62))
    with trio.fail_after(60):
        while daemon.account_parts.admission.version < 2:
            await trio.sleep(0.01)
    yield made
    daemon.drain.set()
    with trio.fail_after(60):
        while nursery.child_tasks:
            await trio.sleep(0.01)


def signs(daemon: Daemon) -> bool:
    try:
        daemon.account_parts.admission.sessions.signing_key()
    except Exception:
        return False
    return True


async def test_the_wrong_caller_hears_its_place_and_nothing_is_done(bed: Bed) -> None:
    for kind, method in itertools.product(NOBODY, METHODS):
        status, _, answers = await bed.about(method, kind, MINE)
        assert (status, answers) == (GrpcStatus.UNAUTHENTICATED, []), (kind, method)
    for kind, method in itertools.product(ELSEWHERE, METHODS):
        expected = GrpcStatus.PERMISSION_DENIED if method == "LaunchSatellite" else GrpcStatus.NOT_FOUND
        found = await bed.about(method, kind, MINE)
        assert (found[0], found[2]) == (expected, []), (kind, method)
        assert found == await bed.about(method, kind, MISSING), "a foreign satellite and none have one answer"
    for kind, method in itertools.product(USERS, METHODS):
        found = await bed.about(method, kind, THEIRS)
        expected = GrpcStatus.PERMISSION_DENIED if method == "LaunchSatellite" else GrpcStatus.NOT_FOUND
        assert (found[0], found[2]) == (expected, []), (kind, method)
        assert found == await bed.about(method, kind, MISSING), "a foreign satellite and none have one answer"
    for kind, method in itertools.product(USERS, MANAGES):
        status, words, answers = await bed.about(method, kind, MINE)
        assert (status, answers) == (GrpcStatus.PERMISSION_DENIED, []), (kind, method)
        assert "manage" in words
    assert {bed.state(key) for key in (MINE, THEIRS)} == {SatelliteState.SLEEP}
    assert bed.daemon.fleet.statistics().wakes == 0


async def test_a_list_has_what_is_the_callers_own(bed: Bed) -> None:
    request = pb.ListSatellitesRequest(org_id="acme")
    for kinds, names in ((ELSEWHERE, []), (USERS, ["mine"]), (MANAGERS, ["mine", "theirs"])):
        for kind in kinds:
            status, _, [message] = await bed.call("ListSatellites", request, kind)
            listed = [each.name for each in pb.ListSatellitesResponse.FromString(message).instances]
            assert (status, listed) == (GrpcStatus.OK, names), kind
    for kind in NOBODY:
        assert (await bed.call("ListSatellites", request, kind))[0] is GrpcStatus.UNAUTHENTICATED


async def test_an_activity_has_what_is_the_callers_own(bed: Bed) -> None:
    request, method = operations_pb2.GetActivityRequest(org_id="acme"), OPERATIONS + "GetActivity"
    for kinds, names in ((ELSEWHERE, []), (USERS, ["mine"]), (MANAGERS, ["mine", "theirs"])):
        for kind in kinds:
            status, _, [message] = await bed.call(method, request, kind)
            shown = [each.name for each in operations_pb2.GetActivityResponse.FromString(message).satellites]
            assert (status, shown) == (GrpcStatus.OK, names), kind
    for kind in NOBODY:
        assert (await bed.call(method, request, kind))[0] is GrpcStatus.UNAUTHENTICATED


async def test_nobody_hears_nothing_from_the_other_methods_and_pages(bed: Bed) -> None:
    """Server reflection, the log stream, and every page over HTTP/1.1. A page that does not exist is 404 for all."""
    for kind, path in itertools.product(NOBODY, (LOGS, *REFLECTION)):
        request = StreamLogRequest(eof=True) if path == LOGS else ServerReflectionRequest(list_services="")
        status, _, answers = await bed.call(path, request, kind)
        assert (status, answers) == (GrpcStatus.UNAUTHENTICATED, []), (kind, path)
    for kind in NOBODY:
        for method, page, scheme in PAGES:
            code, body = await bed.page(method, page, scheme, kind)
            assert (code, list(body)) == (401, ["message"]), (kind, page)
    assert (await bed.page("GET", "/api/v0/nothing", "Bearer", "bad"))[0] == 404


async def test_pages_have_what_is_the_callers_own(bed: Bed) -> None:
    for kinds, org in ((ELSEWHERE, "other"), (USERS, "acme"), (MANAGERS, "acme")):
        for kind in kinds:
            status, body = await bed.page("GET", "/api/v0/admin/organizations", "Bearer", kind)
            assert (status, [each["name"] for each in body["details"]]) == (200, [org]), kind
            status, body = await bed.page("GET", "/api/v0/account/tokens", "Bearer", kind)
            assert status == 200
            assert {each["name"] for each in body["tokenDetails"]} <= {"user", "manager", "foreign"} - (
                {"foreign"} if org == "acme" else {"user", "manager"}
            ), kind


async def test_who_registers_a_satellite_and_keeps_it_registered(bed: Bed) -> None:
    def wanted(port: int) -> pb.RegisterSatelliteRequest:
        return pb.RegisterSatelliteRequest(
            org_id="acme", satellite_name="own", satellite_port=port, platform="linux/amd64"
        )

    ports = (free_port(), free_port())
    for kind in (*NOBODY, *ELSEWHERE, *USERS):
        expected = GrpcStatus.UNAUTHENTICATED if kind in NOBODY else GrpcStatus.PERMISSION_DENIED
        status, _, answers = await bed.call("RegisterSatellite", wanted(ports[0]), kind)
        assert (status, answers) == (expected, []), kind
    assert bed.daemon.fleet.find(OWN) is None
    status, words, [message] = await bed.call("RegisterSatellite", wanted(ports[0]), "manage")
    assert status is GrpcStatus.OK, words
    token = pb.RegisterSatelliteResponse.FromString(message).registration_token
    about = (
        ("SatelliteHeartbeat", pb.SatelliteHeartbeatRequest),
        ("DeregisterSatellite", pb.DeregisterSatelliteRequest),
    )
    for method, request in about:
        for kind in (*NOBODY, *ELSEWHERE, *USERS):
            expected = GrpcStatus.UNAUTHENTICATED if kind in NOBODY else GrpcStatus.NOT_FOUND
            found = await bed.call(method, request(registration_token=token), kind)
            assert (found[0], found[2]) == (expected, []), (kind, method)
            if kind not in NOBODY:
                unknown = await bed.call(method, request(registration_token="bpr_unknown"), kind)
                assert found == unknown, "a token of another's satellite and none have one answer"
        assert (await bed.call(method, request(registration_token=token), "session of manage"))[0] is GrpcStatus.OK
    assert bed.daemon.fleet.find(OWN) is None


async def test_the_right_caller_wakes_and_reserves_and_puts_to_sleep(bed: Bed) -> None:
    for kind in (*USERS, *MANAGERS):
        for method in ("GetSatellite", "WakeSatellite", "ReserveSatellite"):
            assert (await bed.about(method, kind, MINE))[0] is GrpcStatus.OK, (kind, method)
    assert bed.state(MINE) is SatelliteState.OPERATIONAL
    for kind, method in itertools.product(MANAGERS, MANAGES):
        status, _, _ = await bed.about(method, kind, THEIRS)
        assert status not in (GrpcStatus.UNAUTHENTICATED, GrpcStatus.PERMISSION_DENIED, GrpcStatus.NOT_FOUND), (
            kind,
            method,
        )
