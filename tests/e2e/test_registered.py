"""Satellites that register themselves, by real gRPC clients: their heartbeats, their addresses, and two hosts."""

import concurrent.futures
import contextlib
import hashlib
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest
import trio
import trustme
from google.protobuf.message import Message

from beds.hosts.provisioned import serving
from beds.peers.clients import CallError, GrpcioClient
from beds.ports import free_port
from beds.quoted import without_id
from beds.stores.dynamodb_server import DynamoDbServer
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.store.dynamodb_table import Table
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto.grpc_client import ClientCall
from bentpipe.proto.grpc_status import GrpcStatus

DEADLINE_S = 60.0
OFFLINE_S = 3.0
BEAT_S = 0.5
KEY = SatelliteKey("acme", "own")
TOKENS = (("user", "use", "acme"), ("manager", "manage", "acme"), ("stranger", "manage", "other"))
SERVICE = "bentpipe.demo.Satellite"
COMPUTE = "/api.public.compute.Compute/"
S = SatelliteState
Wanted = pb.RegisterSatelliteRequest
USUAL = Wanted()


def config_text(store: str, registration: str, *, limits: str = "", address: str = "127.0.0.1:0") -> str:
    tokens = "".join(
        f'[[token]]\nname = "{name}"\nhash = "sha256:{hashlib.sha256(name.encode()).hexdigest()}"\n'
        f'grants = ["{org}/*"]\nscopes = ["{scope}"]\n'
        for name, scope, org in TOKENS
    )
    return f"""
[daemon]
drain_deadline = "100ms"
[limits]
{limits}
[store]
{store}
[[listener]]
address = "{address}"
api = true
{tokens}
{registration}
"""


def registration(*, plaintext: bool = True, networks: str = '"127.0.0.0/8"') -> str:
    return f'[registration]\nnetworks = [{networks}]\noffline_after = "{OFFLINE_S}s"\nplaintext = {str(plaintext).lower()}\n'


def sqlite(folder: Path) -> str:
    return f'path = "{folder / "ledger.sqlite"}"'


class Host:
    """A daemon as its callers see it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    @property
    def port(self) -> int:
        return self.daemon.addresses[0][1]

    async def ask(
        self, method: str, request: Message, token: str = "manager", *, source: str | None = None
    ) -> tuple[GrpcStatus, str, list[bytes]]:
        """Call from this host's usual address by grpcio, or from `source`."""
        with trio.fail_after(DEADLINE_S):
            if source is None:
                return await trio.to_thread.run_sync(self._ask, method, request, token)
            return await trio.to_thread.run_sync(self._ask_from, source, method, request, token)

    def _ask(self, method: str, request: Message, token: str) -> tuple[GrpcStatus, str, list[bytes]]:
        answers: list[bytes] = []
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            invoke = channel.unary_stream(COMPUTE + method, lambda message: message, lambda data: data)
            try:
                metadata = [("authorization", f"Bearer {token}")]
                answers += invoke(request.SerializeToString(), metadata=metadata, timeout=DEADLINE_S)
            except grpc.RpcError as exc:
                return GrpcStatus(exc.code().value[0]), without_id(exc.details()), answers
        return GrpcStatus.OK, "", answers

    def _ask_from(self, source: str, method: str, request: Message, token: str) -> tuple[GrpcStatus, str, list[bytes]]:
        metadata = (("authorization", f"Bearer {token}"),)
        call = ClientCall(
            COMPUTE + method, request.SerializeToString(), authority="edge", scheme="http", metadata=metadata
        )
        answers: list[bytes] = []
        with socket.create_connection(("127.0.0.1", self.port), DEADLINE_S, source_address=(source, 0)) as sock:
            while call.status is None:
                sock.sendall(call.data_to_send())
                answers += call.receive_data(sock.recv(65536))
        return call.status, call.words, answers

    async def register(
        self,
        port: int,
        *,
        key: SatelliteKey = KEY,
        token: str = "manager",
        source: str | None = None,
        change: pb.RegisterSatelliteRequest = USUAL,
    ) -> tuple[GrpcStatus, str, str]:
        """Register, with what `change` has instead of the usual. Returns the status, its words, the registration token."""
        request = pb.RegisterSatelliteRequest(
            org_id=key.org,
            satellite_name=key.name,
            satellite_host="127.0.0.1",
            satellite_port=port,
            platform="linux/arm64",
            version="v1",
        )
        request.MergeFrom(change)
        status, words, answers = await self.ask("RegisterSatellite", request, token, source=source)
        given = pb.RegisterSatelliteResponse.FromString(answers[0]).registration_token if answers else ""
        return status, words, given

    async def beat(self, registered: str, **others: str) -> tuple[GrpcStatus, str]:
        request = pb.SatelliteHeartbeatRequest(registration_token=registered, op_load=3)
        status, words, _ = await self.ask("SatelliteHeartbeat", request, **others)
        return status, words

    async def deregister(self, token: str) -> GrpcStatus:
        return (await self.ask("DeregisterSatellite", pb.DeregisterSatelliteRequest(registration_token=token)))[0]

    async def get(self, key: SatelliteKey = KEY) -> pb.GetSatelliteResponse | None:
        _, _, answers = await self.ask("GetSatellite", pb.GetSatelliteRequest(org_id=key.org, name=key.name))
        return pb.GetSatelliteResponse.FromString(answers[0]) if answers else None

    def state(self, key: SatelliteKey = KEY) -> SatelliteState | None:
        satellite = self.daemon.fleet.find(key)
        return satellite.shown_state if satellite is not None else None

    async def until(self, *states: SatelliteState | None, key: SatelliteKey = KEY) -> None:
        with trio.fail_after(DEADLINE_S):
            while self.state(key) not in states:
                await trio.sleep(0.02)

    @contextlib.contextmanager
    def client(self, key: SatelliteKey = KEY, token: str = "user") -> Iterator[GrpcioClient]:
        metadata = (("satellite_name", key.name), ("satellite_org", key.org), ("satellite_token", token))
        client = GrpcioClient(self.port, None, metadata)
        try:
            yield client
        finally:
            client.close()

    async def echo(self, client: GrpcioClient, message: bytes = b"hello") -> bytes:
        return await trio.to_thread.run_sync(lambda: client.unary("Echo", message, timeout_s=DEADLINE_S))


class Builder:
    """A satellite in this process: a real gRPC server that says its name before what it was sent."""

    def __init__(self, name: str, *, port: int = 0, certificate: trustme.LeafCert | None = None) -> None:
        self.heard: list[bytes] = []

        def echo(message: bytes, context: grpc.ServicerContext) -> bytes:
            self.heard.append(message)
            return name.encode() + b": " + message

        handler = grpc.unary_unary_rpc_method_handler(echo)
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Echo": handler}),))
        self.port = port or free_port()
        where = f"127.0.0.1:{self.port}"
        if certificate is None:
            self._server.add_insecure_port(where)
        else:
            chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
            pair = (certificate.private_key_pem.bytes(), chain)
            self._server.add_secure_port(where, grpc.ssl_server_credentials([pair]))
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()


@contextlib.contextmanager
def builder(name: str, *, port: int = 0, certificate: trustme.LeafCert | None = None) -> Iterator[Builder]:
    made = Builder(name, port=port, certificate=certificate)
    try:
        yield made
    finally:
        made.close()


@contextlib.asynccontextmanager
async def beating(host: Host, token: str) -> AsyncIterator[Callable[[], None]]:
    """Send heartbeats inside the block, until what it yields is called."""
    async with trio.open_nursery() as nursery:

        async def beat() -> None:
            while True:
                await host.beat(token)
                await trio.sleep(BEAT_S)

        nursery.start_soon(beat)
        yield nursery.cancel_scope.cancel
        nursery.cancel_scope.cancel()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with serving(
        tmp_path, config_text(sqlite(tmp_path), registration(), limits="max_registered_per_org = 2")
    ) as daemon:
        yield Host(daemon)


async def test_the_life_of_a_registered_satellite(host: Host) -> None:
    with builder("one") as one, host.client() as client:
        status, words, token = await host.register(one.port)
        assert (status, words, token.startswith("bpr_")) == (GrpcStatus.OK, "", True)
        async with beating(host, token) as stop:
            assert await host.echo(client) == b"one: hello"
            found = await host.get()
            assert found is not None
            assert (found.status, found.is_managed) == (pb.SATELLITE_STATUS_OPERATIONAL, False)
            assert (found.platform, found.size, found.version) == ("linux/arm64", "registered", "v1")
            await trio.sleep(OFFLINE_S + 1)
            assert host.state() is S.OPERATIONAL, "it is never put to sleep"
            status, words, _ = await host.ask("SleepSatellite", pb.SleepSatelliteRequest(org_id="acme", name="own"))
            assert (status, "registered itself" in words) == (GrpcStatus.ABORTED, True)
            status, words, _ = await host.ask("UpdateSatellite", pb.UpdateSatelliteRequest(org_id="acme", name="own"))
            assert (status, "registered itself" in words) == (GrpcStatus.UNIMPLEMENTED, True)
            stop()
        await host.until(S.OFFLINE)
        assert await host.echo(client) == b"one: hello", "open connections stay"
        with host.client() as late, pytest.raises(CallError) as refused:
            await host.echo(late)
        assert "the satellite is offline: it has sent no heartbeat for 3 s" in str(refused.value)
        reserve = pb.ReserveSatelliteRequest(org_id="acme", name="own")
        status, words, _ = await host.ask("ReserveSatellite", reserve, "user")
        assert (status, "offline" in words) == (GrpcStatus.ABORTED, True)
        assert (await host.beat(token))[0] is GrpcStatus.OK
        await host.until(S.OPERATIONAL)
        with host.client() as late:
            assert await host.echo(late) == b"one: hello"
        assert await host.deregister(token) is GrpcStatus.OK
        assert host.state() is None
        with trio.fail_after(DEADLINE_S):
            await host.daemon.handoff.wait_none()
        assert (await host.beat(token))[0] is GrpcStatus.NOT_FOUND
        assert await host.deregister(token) is GrpcStatus.NOT_FOUND
        assert host.daemon.fleet.statistics().wakes == 0


async def test_a_port_that_does_not_answer_holds_its_clients(host: Host) -> None:
    port = free_port()
    _, _, token = await host.register(port)
    async with beating(host, token):
        await host.until(S.STARTING)
        with host.client() as client:
            async with trio.open_nursery() as nursery:
                said: list[bytes] = []

                async def call() -> None:
                    said.append(await host.echo(client))

                nursery.start_soon(call)
                with trio.fail_after(DEADLINE_S):
                    while not host.daemon.fleet.get(KEY).waiting:
                        await trio.sleep(0.01)
                with builder("late", port=port):
                    with trio.fail_after(DEADLINE_S):
                        while not said:
                            await trio.sleep(0.01)
            assert said == [b"late: hello"]


async def test_a_caller_that_manages_it_removes_it(host: Host) -> None:
    with builder("one") as one, host.client() as client:
        _, _, token = await host.register(one.port)
        async with beating(host, token):
            assert await host.echo(client) == b"one: hello"
            request = pb.DeleteSatelliteRequest(org_id="acme", name="own")
            status, words, _ = await host.ask("DeleteSatellite", request)
            assert (status, "used now" in words) == (GrpcStatus.ABORTED, True)
            assert await host.echo(client) == b"one: hello"
            request.force = True
            assert (await host.ask("DeleteSatellite", request))[0] is GrpcStatus.OK
            assert host.state() is None


async def test_which_requests_are_refused(host: Host) -> None:
    port = free_port()
    changes: list[tuple[pb.RegisterSatelliteRequest, GrpcStatus, str]] = [
        (Wanted(satellite_host="10.0.0.1"), GrpcStatus.PERMISSION_DENIED, "[registration] networks"),
        (Wanted(satellite_host="169.254.169.254"), GrpcStatus.PERMISSION_DENIED, "[registration] networks"),
        (Wanted(satellite_host="localhost"), GrpcStatus.INVALID_ARGUMENT, "satellite_host"),
        (Wanted(satellite_host="127.0.0.2"), GrpcStatus.PERMISSION_DENIED, "the call comes from 127.0.0.1"),
        (Wanted(satellite_port=-1), GrpcStatus.INVALID_ARGUMENT, "satellite_port"),
        (Wanted(platform="windows"), GrpcStatus.INVALID_ARGUMENT, "platform"),
        (Wanted(version="v\n1"), GrpcStatus.INVALID_ARGUMENT, "version"),
        (Wanted(satellite_name="a/b"), GrpcStatus.INVALID_ARGUMENT, "satellite_name is malformed"),
        (Wanted(org_id="other"), GrpcStatus.PERMISSION_DENIED, "manage"),
        (Wanted(certificate=pb.TLSCertificate(root_ca=b"no")), GrpcStatus.INVALID_ARGUMENT, "PEM"),
        (Wanted(certificate=pb.TLSCertificate(root_ca=b"x" * 20_000)), GrpcStatus.INVALID_ARGUMENT, "too long"),
        (Wanted(certificate=pb.TLSCertificate(client_ca_key=b"no")), GrpcStatus.INVALID_ARGUMENT, "private keys"),
        (Wanted(registration_token="x" * 129), GrpcStatus.INVALID_ARGUMENT, "registration_token"),
    ]
    for change, expected, said in changes:
        status, words, token = await host.register(port, change=change)
        assert (status, token) == (expected, ""), (change, words)
        assert said in words
    for caller, expected in (("user", GrpcStatus.PERMISSION_DENIED), ("nobody", GrpcStatus.UNAUTHENTICATED)):
        assert (await host.register(port, token=caller))[0] is expected
    status, words, _ = await host.register(port, source="127.0.0.2")
    assert (status, "the call comes from 127.0.0.2" in words) == (GrpcStatus.PERMISSION_DENIED, True)
    status, words, _ = await host.register(host.port)
    assert (status, "daemon's own" in words) == (GrpcStatus.PERMISSION_DENIED, True)
    assert host.daemon.fleet.satellites == ()


async def test_names_addresses_and_limits(host: Host) -> None:
    first, second = free_port(), free_port()
    _, _, token = await host.register(first)
    status, words, _ = await host.register(first, key=SatelliteKey("other", "thief"), token="stranger")
    assert (status, words) == (GrpcStatus.PERMISSION_DENIED, f"127.0.0.1:{first} may not be registered")
    status, words, _ = await host.register(second)
    assert (status, "from another address" in words) == (GrpcStatus.ALREADY_EXISTS, True)
    status, words, moved = await host.register(second, change=Wanted(registration_token=token))
    assert (status, moved) == (GrpcStatus.OK, token), "who has the token may move"
    status, _, again = await host.register(second, change=Wanted(registration_token="bpr_guessed"))
    assert (status, again.startswith("bpr_"), again == "bpr_guessed") == (GrpcStatus.OK, True, False)
    assert (await host.beat(token))[0] is GrpcStatus.NOT_FOUND, "there is a new token"
    status, words = await host.beat(again, source="127.0.0.3")
    assert (status, "the call comes from 127.0.0.3" in words) == (GrpcStatus.PERMISSION_DENIED, True)
    assert (await host.register(first, key=SatelliteKey("acme", "b")))[0] is GrpcStatus.OK
    status, words, _ = await host.register(free_port(), key=SatelliteKey("acme", "c"))
    assert (status, "limits.max_registered_per_org" in words) == (GrpcStatus.ABORTED, True)
    await trio.sleep(OFFLINE_S)
    status, _, stolen = await host.register(first, key=SatelliteKey("other", "new"), token="stranger")
    assert status is GrpcStatus.OK, "the address is free once its satellite is offline"
    assert host.state(SatelliteKey("other", "new")) in (S.STARTING, S.OPERATIONAL)
    await host.until(None, key=SatelliteKey("acme", "b"))
    assert (await host.beat(stolen))[0] is GrpcStatus.NOT_FOUND, "a token is nothing without the right to its satellite"
    assert (await host.beat(stolen, token="stranger"))[0] is GrpcStatus.OK


async def test_without_its_section_nothing_registers(tmp_path: Path) -> None:
    launches = '[[machine_type]]\nsize = "small"\n[machine_type.process]\ncommand = ["true", "{port}"]\n'
    async with serving(tmp_path, config_text(sqlite(tmp_path), launches)) as daemon:
        host = Host(daemon)
        status, words, _ = await host.register(free_port())
        assert (status, "[registration] networks" in words) == (GrpcStatus.UNIMPLEMENTED, True)
        assert (await host.beat("bpr_x"))[0] is GrpcStatus.UNIMPLEMENTED


async def test_a_satellite_proves_itself_by_its_certificate(tmp_path: Path) -> None:
    authority, others = trustme.CA(), trustme.CA()
    text = config_text(sqlite(tmp_path), registration(plaintext=False))
    async with serving(tmp_path, text) as daemon:
        host = Host(daemon)
        status, words, _ = await host.register(free_port())
        assert (status, "root_ca" in words) == (GrpcStatus.PERMISSION_DENIED, True)
        certificate = pb.TLSCertificate(root_ca=authority.cert_pem.bytes())
        with builder("true", certificate=authority.issue_cert("127.0.0.1")) as true:
            status, words, token = await host.register(true.port, change=Wanted(certificate=certificate))
            assert status is GrpcStatus.OK, words
            async with beating(host, token):
                with host.client() as client:
                    assert await host.echo(client, b"secret") == b"true: secret"
                true.close()
                # Its machine is gone, its address passes to another tenant, and its heartbeats are still believed.
                for impostor_certificate in (others.issue_cert("127.0.0.1"), None):
                    with builder("other", port=true.port, certificate=impostor_certificate) as other:
                        with host.client() as client, pytest.raises(CallError):
                            await trio.to_thread.run_sync(lambda: client.unary("Echo", b"secret", timeout_s=3.0))
                        assert other.heard == [], "nothing was sent to another's machine"


async def test_another_daemon_takes_up_what_is_registered(tmp_path: Path) -> None:
    text = config_text(sqlite(tmp_path), registration())
    with builder("one") as one:
        async with serving(tmp_path, text) as daemon:
            _, _, token = await Host(daemon).register(one.port)
        async with serving(tmp_path, text) as daemon:
            host = Host(daemon)
            async with beating(host, token):
                with host.client() as client:
                    assert await host.echo(client) == b"one: hello"
        await trio.sleep(OFFLINE_S)
        async with serving(tmp_path, text) as daemon:
            host = Host(daemon)
            await host.until(S.OFFLINE)
            assert (await host.beat(token))[0] is GrpcStatus.OK
            await host.until(S.OPERATIONAL)
        narrower = config_text(sqlite(tmp_path), registration(networks='"127.0.0.2/32"'))
        async with serving(tmp_path, narrower) as daemon:
            host = Host(daemon)
            assert (await host.beat(token))[0] is GrpcStatus.NOT_FOUND, "its address is not allowed any more"
            assert host.state() is None


async def test_two_hosts_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "AKIDONE")
    with DynamoDbServer() as server, builder("one") as one:
        table = uuid.uuid4().hex
        Table(table, region="eu-central-1", endpoint=server.url).create_now()
        shared = f'kind = "dynamodb"\ntable = "{table}"\nregion = "eu-central-1"\nendpoint = "{server.url}"\n'
        texts = {name: config_text(shared + f'host = "{name}"', registration()) for name in ("a", "b")}
        async with serving(tmp_path, texts["a"], "a") as first, serving(tmp_path, texts["b"], "b") as second:
            a, b = Host(first), Host(second)
            tokens: list[str] = []

            async def register(host: Host) -> None:
                status, words, token = await host.register(one.port)
                assert status is GrpcStatus.OK, words
                tokens.append(token)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(register, a)
                nursery.start_soon(register, b)
            with trio.fail_after(DEADLINE_S):  # the loser's host learns it within two seconds
                while len(holding := [token for token in tokens if (await b.beat(token))[0] is GrpcStatus.OK]) != 1:
                    await trio.sleep(BEAT_S)
            [token] = holding
            async with beating(b, token) as stop:
                await a.until(S.OPERATIONAL)
                await b.until(S.OPERATIONAL)
                for host in (a, b):
                    with host.client() as client:
                        assert await host.echo(client) == b"one: hello"
                await trio.sleep(OFFLINE_S + 1)
                await a.until(S.OPERATIONAL)  # by heartbeats that come to the other host
                stop()
            await a.until(S.OFFLINE)
            await b.until(S.OFFLINE)
            assert (await a.beat(token))[0] is GrpcStatus.OK
            await b.until(S.OPERATIONAL)
            assert await a.deregister(token) is GrpcStatus.OK
            await b.until(None)
            assert (await b.beat(token))[0] is GrpcStatus.NOT_FOUND
