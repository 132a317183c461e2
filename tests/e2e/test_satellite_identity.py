"""Machines with certificates of the daemon's own authority: EC2 emulated, real enrolment, real TLS to the satellites."""

import contextlib
import dataclasses
import datetime
import functools
import logging
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import grpc
import pytest
import trio
from botocore.exceptions import ClientError
from cryptography import x509

from beds.hosts.enrolling_cloud import DEADLINE_S, MINE, THEIRS, EnrollingCloud, call, enrolling_cloud
from beds.peers.clients import CallError
from beds.ports import free_port
from beds.stores.dynamodb_server import DynamoDbServer
from bentpipe.daemon.edge import dial as dialling
from bentpipe.daemon.fleet import reserve_keeper
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki import authority_keeper
from bentpipe.daemon.pki.authority import new_authority, rotated
from bentpipe.daemon.pki.authority_file import keep_authority, read_authority
from bentpipe.daemon.registry.reserve import SpareState
from bentpipe.daemon.service.serve import Daemon
from bentpipe.daemon.store.dynamodb_table import Table
from bentpipe.proto import compute_pb2 as pb


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EnrollingCloud]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "AKIDONE")
    monkeypatch.setattr(dialling, "DIAL_DEADLINE_S", 2.0)
    with enrolling_cloud(tmp_path) as cloud:
        yield cloud


async def test_two_tenants_machines_enrol_and_serve(bed: EnrollingCloud, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with bed.serving() as daemon:
        async with trio.open_nursery() as nursery:
            for key in (MINE, THEIRS):
                nursery.start_soon(call, daemon, key)
        assert daemon.satellite_ca is not None
        assert daemon.satellite_ca.enrolments.results == {("enrol", "ok"): 2}
        mode = (bed.disk_of(MINE) / "tls/identity.pem").stat().st_mode
        assert mode & 0o777 == 0o600
        token = bed.bootstrap_of(MINE)["token"]
        assert token not in (bed.folder / "ledger.sqlite").read_bytes().decode("latin-1")
        # Nobody else may speak to the satellite: neither without a certificate, nor with another machine's.
        address = bed.emulator.cloud.instances[bed.instance_of(MINE)].private_ip
        assert bed.emulator.cloud.machines is not None
        target = f"{address}:{bed.emulator.cloud.machines.port}"
        trusted = bed.bootstrap_of(MINE)["trusted"].encode()
        stolen = (bed.disk_of(THEIRS) / "tls/identity.pem").read_bytes()
        for credentials in (
            grpc.ssl_channel_credentials(trusted),
            grpc.ssl_channel_credentials(trusted, stolen, stolen),
        ):
            name = _name_in(bed.disk_of(MINE) / "tls/identity.pem")
            options = [("grpc.ssl_target_name_override", name)]
            with pytest.raises(grpc.RpcError):
                await trio.to_thread.run_sync(_echo, target, credentials, options)
    assert token not in caplog.text


def _echo(target: str, credentials: grpc.ChannelCredentials, options: list[tuple[str, str]]) -> None:
    with grpc.secure_channel(target, credentials, options) as channel:
        invoke = channel.unary_unary("/bentpipe.demo.Satellite/Echo", lambda data: data, lambda data: data)
        invoke(b"stolen", timeout=2.0)


def _name_in(identity: Path) -> str:
    names = x509.load_pem_x509_certificates(identity.read_bytes())[0].extensions
    return names.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)[0]


async def test_addresses_that_two_tenants_machines_exchange_carry_no_byte(bed: EnrollingCloud) -> None:
    """EC2 says that each machine is where the other one is, and both listen. No client's byte may go to the other tenant."""
    async with bed.serving() as daemon:
        for key in (MINE, THEIRS):
            assert await call(daemon, key) == b"hello"
        await bed.exchange_addresses(daemon)
        for key in (MINE, THEIRS):
            with pytest.raises(CallError) as caught:
                await call(daemon, key, b"secret", timeout_s=20.0)
            assert caught.value.code == grpc.StatusCode.UNAVAILABLE.value[0]
        await bed.exchange_addresses(daemon)
        with trio.fail_after(DEADLINE_S):
            for key in (MINE, THEIRS):
                assert await _until_served(daemon, key) == b"hello"


async def _until_served(daemon: Daemon, key: SatelliteKey) -> bytes:
    while True:
        try:
            return await call(daemon, key, timeout_s=20.0)
        except CallError:
            await trio.sleep(0.2)


async def test_a_token_that_is_read_from_the_user_data_is_worth_nothing(
    bed: EnrollingCloud, caplog: pytest.LogCaptureFixture
) -> None:
    async with bed.serving() as daemon:
        assert await call(daemon, MINE) == b"hello"
        program = Path(__file__).parents[2] / "daemon/responder/enrol.py"
        place = bed.folder / "thief"
        command = [sys.executable, "-I", "-S", str(program), str(bed.disk_of(MINE) / "enrolment.json"), str(place)]
        with caplog.at_level(logging.ERROR):
            async with trio.open_nursery() as nursery:
                thief = await nursery.start(functools.partial(trio.run_process, command, check=False))
                with trio.fail_after(DEADLINE_S):
                    while "in other hands" not in caplog.text:
                        await trio.sleep(0.05)
                thief.kill()
        assert not (place / "identity.pem").exists()
        assert await call(daemon, MINE) == b"hello", "the machine itself is not harmed"


async def test_certificates_are_renewed_and_the_daemon_goes_on(bed: EnrollingCloud) -> None:
    """A life of 60 s, so the next certificate comes after 20 s; the clock in the test is the machine's own."""
    async with bed.serving(life="60s") as daemon:
        assert await call(daemon, MINE) == b"hello"
        identity = bed.disk_of(MINE) / "tls/identity.pem"
        first = identity.read_bytes()
        (bed.disk_of(MINE) / "tls/renewal.json").write_text('{"at": 0}')
        with trio.fail_after(DEADLINE_S):
            while identity.read_bytes() == first:
                await trio.sleep(0.1)
        assert daemon.satellite_ca is not None
        assert daemon.satellite_ca.enrolments.results["renew", "ok"] == 1
        assert await call(daemon, MINE) == b"hello", "it still serves with the certificate before"


async def test_a_daemon_that_is_started_again_knows_its_machines(bed: EnrollingCloud) -> None:
    async with bed.serving() as daemon:
        assert await call(daemon, MINE) == b"hello"
        instance = bed.instance_of(MINE)
    authority = bed.folder / authority_keeper.AUTHORITY_NAME
    assert authority.stat().st_mode & 0o777 == 0o600
    async with bed.serving() as daemon:
        assert await call(daemon, MINE) == b"hello"
    keep_authority(authority, rotated(read_authority(authority), "test", _now()))
    async with bed.serving() as daemon:
        assert await call(daemon, MINE) == b"hello", "the machine trusts the old authority only"
        assert await call(daemon, THEIRS) == b"hello"
    assert bed.instance_of(MINE) == instance


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


async def test_a_launch_that_was_not_answered_is_repeated_as_it_was(bed: EnrollingCloud) -> None:
    """EC2 refuses one client token with other parameters, and the user data are parameters."""
    bed.emulator.control.reset(action="RunInstances", after=True)
    async with bed.serving() as daemon:
        assert await call(daemon, MINE) == b"hello"
        assert daemon.provider.call_counts["RunInstances", "ok"] >= 1
        assert ("RunInstances", "IdempotentParameterMismatch") not in daemon.provider.call_counts
        assert len(bed.emulator.cloud.instances) == 1
        assert bed.emulator.cloud.instances[bed.instance_of(MINE)].user_data.startswith("#cloud-config")


async def test_a_launch_is_repeated_after_a_crash_and_a_rotation(bed: EnrollingCloud) -> None:
    """The new authority makes another token. The machine has the old one, which stays good."""
    bed.emulator.control.reset(action="RunInstances", times=None, after=True)
    async with bed.serving() as daemon:
        with trio.fail_after(DEADLINE_S):
            while not bed.emulator.cloud.instances:
                # Whether this client is served does not matter, only that its machine is launched.
                with contextlib.suppress(CallError):
                    await call(daemon, MINE, timeout_s=4.0)
    assert len(bed.emulator.cloud.instances) == 1
    bed.emulator.cloud.faults.clear()
    authority = bed.folder / authority_keeper.AUTHORITY_NAME
    keep_authority(authority, rotated(read_authority(authority), "test", _now()))
    async with bed.serving() as daemon:
        with trio.fail_after(DEADLINE_S):
            assert await _until_served(daemon, MINE) == b"hello"
    assert len(bed.emulator.cloud.instances) == 1


async def test_a_machine_that_sleeps_keeps_its_identity(bed: EnrollingCloud) -> None:
    async with bed.serving() as daemon:
        assert await call(daemon, MINE) == b"hello"
        instance = bed.instance_of(MINE)
        first = (bed.disk_of(MINE) / "tls/identity.pem").read_bytes()
        # Hibernated, then stopped plainly: a process that is frozen, and one that begins anew on the same disk.
        for hibernate in (True, False):
            await trio.to_thread.run_sync(_stop, bed, instance, hibernate)
            assert await _until_served(daemon, MINE) == b"hello"
            assert bed.instance_of(MINE) == instance
        assert (bed.disk_of(MINE) / "tls/identity.pem").read_bytes() == first
        assert daemon.satellite_ca is not None
        assert daemon.satellite_ca.enrolments.results == {("enrol", "ok"): 1}


def _stop(bed: EnrollingCloud, instance_id: str, hibernate: bool) -> None:
    client = boto3.client("ec2", region_name="eu-central-1", endpoint_url=bed.emulator.url)
    while True:
        try:
            client.stop_instances(InstanceIds=[instance_id], Hibernate=hibernate)
            break
        except ClientError as exc:
            if exc.response["Error"]["Code"] != "UnsupportedOperation":  # too soon after the launch
                raise
            time.sleep(0.2)
    client.get_waiter("instance_stopped").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 1, "MaxAttempts": 60})


TYPE = """
[[machine_type]]
size = "small"
provider = "ec2"
min_awake = 0
retry_after = "100ms"
[machine_type.ec2]
launch_template = "builder"
port = {port}
[machine_type.tls]
issued = true
"""


async def test_a_satellite_that_is_removed_and_launched_again_has_another_identity(bed: EnrollingCloud) -> None:
    bed.types = TYPE
    key = SatelliteKey(MINE.org, "new")
    async with bed.serving() as daemon:
        assert daemon.provisioner is not None
        assert daemon.satellite_ca is not None
        names = []
        for _ in range(2):
            await daemon.provisioner.launch(key, "small", "linux/amd64", "somebody")
            assert await call(daemon, key) == b"hello"
            names.append(_name_in(bed.disk_of(key) / "tls/identity.pem"))
            await daemon.provisioner.remove(key, force=True)
            assert key not in daemon.edge.satellite_tls
            with trio.fail_after(DEADLINE_S):
                while daemon.provisioner.has(key):
                    await trio.sleep(0.05)
            await daemon.satellite_ca.issued.refresh()
            assert key not in daemon.edge.satellite_tls
        assert names[0] != names[1]


async def test_two_hosts_share_the_machines(bed: EnrollingCloud, tmp_path: Path) -> None:
    """A machine enrols at one host. Both hosts bring clients to it, also when only one of them has the rotated authority."""
    with DynamoDbServer() as server:
        table = uuid.uuid4().hex
        Table(table, region="eu-central-1", endpoint=server.url).create_now()
        settings = f'kind = "dynamodb"\ntable = "{table}"\nregion = "eu-central-1"\nendpoint = "{server.url}"\n'
        authority = new_authority("test", _now())
        hosts = []
        for name in ("one", "two"):
            file = tmp_path / f"{name}.pem"
            keep_authority(file, authority)
            store = f'{settings}host = "{name}"\n'
            hosts.append(dataclasses.replace(bed, enrolment=free_port(), store=store, file=file))
        async with hosts[0].serving() as one, hosts[1].serving() as two:
            assert await call(one, MINE) == b"hello"
            assert await call(two, MINE) == b"hello"
            assert one.satellite_ca is not None
            assert two.satellite_ca is not None
            assert one.satellite_ca.enrolments.results == {("enrol", "ok"): 1}
            assert two.satellite_ca.enrolments.results == {}
            assert len(bed.emulator.cloud.instances) == 1
        keep_authority(tmp_path / "two.pem", rotated(authority, "test", _now()))
        async with hosts[0].serving() as one, hosts[1].serving() as two:
            for daemon in (one, two):
                assert await call(daemon, MINE) == b"hello"
            assert await call(two, THEIRS) == b"hello"
            assert await call(one, THEIRS) == b"hello"


RESERVED = """
[[machine_type]]
size = "small"
provider = "ec2"
reserve = 1
min_awake = 0
wake_deadline = "20s"
retry_after = "100ms"
[machine_type.ec2]
launch_template = "builder"
port = {port}
[machine_type.tls]
issued = true
"""


async def test_a_machine_of_the_reserve_gets_its_identity_when_it_is_assigned(
    bed: EnrollingCloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has neither name nor token nor key before. After the resume it reads them, and enrols."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(reserve_keeper, "MOVING_S", 0.05)
    monkeypatch.setattr(reserve_keeper, "TOO_EARLY_S", 0.1)
    bed.types = RESERVED
    async with bed.serving() as daemon:
        instance = await _ready_spare(daemon)
        spare = bed.emulator.cloud.instances[instance]
        disk = bed.folder / "disks" / instance / "etc/bentpipe"
        assert spare.user_data == "", "it boots without a token"
        assert not (disk / "enrolment.json").exists()
        assert not list(disk.glob("tls/*.pem"))
        boot_id = spare.boot_id
        new = SatelliteKey(MINE.org, "new")
        await trio.to_thread.run_sync(_launch, daemon.addresses[0][1], new)
        assert await call(daemon, new) == b"hello"
        assert bed.instance_of(new) == instance
        assert spare.boot_id == boot_id, "its memory was kept, and what it was told is from outside of that"
        bootstrap = bed.bootstrap_of(new)
        assert bootstrap["satellite"] == str(new)
        assert bootstrap["token"] in spare.user_data
        assert (disk / "enrolment.json").stat().st_mode & 0o777 == 0o600
        assert daemon.satellite_ca is not None
        assert daemon.satellite_ca.enrolments.results == {("enrol", "ok"): 1}
        assert bootstrap["token"] not in (bed.folder / "ledger.sqlite").read_bytes().decode("latin-1")
    assert bootstrap["token"] not in caplog.text


@pytest.mark.parametrize("fault", ["refused", "not answered"])
async def test_a_machine_that_cannot_get_its_identity_is_not_used(
    bed: EnrollingCloud, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A policy may forbid it. Then another machine is launched, with its token in the user data of the launch."""
    monkeypatch.setattr(reserve_keeper, "MOVING_S", 0.05)
    monkeypatch.setattr(reserve_keeper, "TOO_EARLY_S", 0.1)
    bed.types = RESERVED
    action, control = "ModifyInstanceAttribute", bed.emulator.control
    async with bed.serving() as daemon:
        spare = await _ready_spare(daemon)
        if fault == "refused":
            control.fail(action=action, code="UnauthorizedOperation", status=403, times=1)
        else:
            control.reset(action=action, times=3, after=True)
        new = SatelliteKey(MINE.org, "new")
        await trio.to_thread.run_sync(_launch, daemon.addresses[0][1], new)
        assert await call(daemon, new) == b"hello"
        assert (bed.instance_of(new) == spare) == (fault == "not answered")
        assert daemon.satellite_ca is not None
        assert daemon.satellite_ca.enrolments.results == {("enrol", "ok"): 1}


async def _ready_spare(daemon: Daemon) -> str:
    """Wait for the machine of the reserve. Returns its instance."""
    keeper = daemon.reserve
    assert keeper is not None
    with trio.fail_after(DEADLINE_S):
        while not any(each.state is SpareState.READY for each in keeper.view.rows):
            await trio.sleep(0.05)
    (row,) = keeper.view.rows
    return row.instance


def _launch(port: int, key: SatelliteKey) -> None:
    request = pb.LaunchSatelliteRequest(org_id=key.org, name=key.name, size="small", platform="linux/amd64")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        invoke = channel.unary_unary(
            "/api.public.compute.Compute/LaunchSatellite", lambda message: message, lambda data: data
        )
        invoke(request.SerializeToString(), metadata=[("authorization", f"Bearer {key.org}")], timeout=DEADLINE_S)
