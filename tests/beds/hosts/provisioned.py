"""A daemon whose satellites are launched, updated and removed by the API: local processes, or emulated EC2."""

import contextlib
import functools
import hashlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest
import trio
from google.protobuf.message import Message

from beds.hosts.edge_daemons import EdgeDaemon, edge_daemon
from beds.hosts.form import serve_file, write_in_form
from beds.peers.clients import GrpcioClient
from beds.quoted import without_id
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto.grpc_status import GrpcStatus

DEADLINE_S = 60.0
KEY = SatelliteKey("acme", "new")
TOKENS = (("user", "use", "acme"), ("manager", "manage", "acme"), ("stranger", "manage", "other"))
PROCESSES = f"""
[[machine_type]]
size = "small"
sleep_mode = "stop"
min_awake = 0
[machine_type.process]
command = ["{sys.executable}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "{{port}}"]
"""
EC2_PROVIDER = """
[ec2]
region = "eu-central-1"
endpoint = "{url}"
fleet = "test"
poll = "50ms"
sweep = "200ms"
"""
EC2_TYPE = """
[[machine_type]]
size = "{size}"
provider = "ec2"
min_awake = 0
retry_after = "100ms"
{settings}
[machine_type.ec2]
launch_template = "builder"
port = {port}
{machine}
"""


def config_text(folder: Path, types: str, *, limits: str = "", store: str = "") -> str:
    tokens = "".join(
        f"""
[[token]]
name = "{name}"
hash = "sha256:{hashlib.sha256(name.encode()).hexdigest()}"
grants = ["{org}/*"]
scopes = ["{scope}"]
"""
        for name, scope, org in TOKENS
    )
    store = store or f'path = "{folder / "ledger.sqlite"}"'
    return f"""
[daemon]
log_format = "json"
drain_deadline = "100ms"
[limits]
{limits}
[budget]
max_awake = 2
[store]
{store}
[[listener]]
address = "127.0.0.1:0"
api = true
{tokens}
{types}
"""


@contextlib.asynccontextmanager
async def serving(folder: Path, text: str, name: str = "edge") -> AsyncIterator[Daemon]:
    path = folder / f"{name}.toml"
    write_in_form(path, text, folder / name)
    async with trio.open_nursery() as nursery:
        daemon = await nursery.start(serve_file, path)
        yield daemon
        daemon.drain.set()


def ask(port: int, method: str, request: Message, token: str = "manager") -> tuple[GrpcStatus, str, bytes]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        path = method if method.startswith("/") else f"/api.public.compute.Compute/{method}"
        invoke = channel.unary_unary(path, lambda message: message, lambda data: data)
        try:
            metadata = [("authorization", f"Bearer {token}")]
            answer = invoke(request.SerializeToString(), metadata=metadata, timeout=DEADLINE_S)
        except grpc.RpcError as exc:
            return GrpcStatus(exc.code().value[0]), without_id(exc.details()), b""
        return GrpcStatus.OK, "", answer


def launch(port: int, *, token: str = "manager", size: str = "small", name: str = KEY.name) -> tuple[GrpcStatus, str]:
    request = pb.LaunchSatelliteRequest(org_id=KEY.org, name=name, size=size, platform="linux/amd64")
    status, words, answer = ask(port, "LaunchSatellite", request, token)
    if status is GrpcStatus.OK:
        assert pb.LaunchSatelliteResponse.FromString(answer).status == pb.SATELLITE_STATUS_CREATING
    return status, words


def remove(port: int, *, token: str = "manager", force: bool = False, name: str = KEY.name) -> tuple[GrpcStatus, str]:
    return ask(port, "DeleteSatellite", pb.DeleteSatelliteRequest(org_id=KEY.org, name=name, force=force), token)[:2]


def listed(port: int) -> dict[str, int]:
    status, words, answer = ask(port, "ListSatellites", pb.ListSatellitesRequest(org_id=KEY.org))
    assert status is GrpcStatus.OK, words
    return {each.name: each.status for each in pb.ListSatellitesResponse.FromString(answer).instances}


def client_of(port: int) -> GrpcioClient:
    names = (("satellite_name", KEY.name), ("satellite_org", KEY.org), ("satellite_token", "user"))
    return GrpcioClient(port, None, names)


async def until(condition: Callable[[], bool], what: str) -> None:
    with trio.move_on_after(DEADLINE_S):
        while not await trio.to_thread.run_sync(condition):
            await trio.sleep(0.05)
        return
    pytest.fail(f"never: {what}")


def living(emulator: Emulator) -> list[str]:
    gone = ("terminated", "shutting-down")
    return [str(each["instance_id"]) for each in emulator.control.describe() if each["state"] not in gone]


def ec2_type(cloud: Emulator, *, size: str = "small", settings: str = "", machine: str = "") -> str:
    """A machine type: `settings` are keys of its own, `machine` those of its section of EC2."""
    machines = cloud.cloud.machines
    assert machines is not None
    return EC2_TYPE.format(size=size, port=machines.port, settings=settings, machine=machine)


def ec2_text(folder: Path, cloud: Emulator, store: str = "", *, types: str = "") -> str:
    """The configuration of a daemon over the emulated cloud; by default with one machine type."""
    provider = EC2_PROVIDER.format(url=cloud.url)
    return config_text(folder, provider + (types or ec2_type(cloud)), store=store)


async def in_thread(call: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(call, abandon_on_cancel=True)


@contextlib.contextmanager
def killed(daemon: EdgeDaemon) -> Iterator[None]:
    """Kill the daemon at the block's end."""
    yield
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait(DEADLINE_S)


async def kill_in(
    folder: Path,
    text: str,
    cloud: Emulator,
    action: str,
    call: Callable[[int], object],
    *,
    after: bool = False,
    skip: int = 0,
) -> None:
    """Run a daemon, make a call of its API, and kill it while it waits for an action of EC2's API.

    `after`: EC2 has carried the action out. `skip`: so many calls of the action are answered first. What EC2 has received
    it may carry out after the daemon's death.
    """
    cloud.control.hold(action=action, after=after, skip=skip)
    with edge_daemon(folder, text) as daemon, killed(daemon):
        port = daemon.port
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, functools.partial(call, port))
            await until(lambda: cloud.control.held(action=action) > 0, f"{action} is under way")
            nursery.cancel_scope.cancel()
    cloud.control.release(action=action)
