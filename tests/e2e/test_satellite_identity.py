"""Machines with certificates of the daemon's own authority: EC2 emulated, real enrolment, real TLS to the satellites."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import trio
from cryptography import x509

from beds.peers.clients import CallError, GrpcioClient
from beds.ports import free_port
from beds.programs import program
from bentpipe.config.load import load_config
from bentpipe.daemon.edge import dial as dialling
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.pki import authority_keeper
from bentpipe.daemon.pki.authority import rotated
from bentpipe.daemon.pki.authority_file import keep_authority, read_authority
from bentpipe.daemon.service.serve import Daemon, serve
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

DEADLINE_S = 60.0
SPEED = 100.0
MINE, THEIRS = SatelliteKey("acme", "one"), SatelliteKey("rival", "one")
CONFIG = """
[daemon]
drain_deadline = "100ms"
[store]
path = "{folder}/ledger.sqlite"
[satellite_ca]
address = "127.0.0.1:{enrolment}"
machines_call = "127.0.0.1:{enrolment}"
machine_life = "{life}"
[ec2]
region = "eu-central-1"
endpoint = "{url}"
fleet = "test"
poll = "50ms"
sweep = "200ms"
[[listener]]
address = "127.0.0.1:0"
api = true
"""
SATELLITE = """
[[token]]
name = "{org}"
hash = "sha256:{hash}"
grants = ["{org}/*"]
scopes = ["manage"]
[[satellite]]
org = "{org}"
name = "one"
provider = "ec2"
min_awake = 0
wake_deadline = "20s"
retry_after = "100ms"
[satellite.ec2]
launch_template = "builder"
port = {port}
[satellite.tls]
issued = true
"""


@dataclasses.dataclass
class Bed:
    """An emulated EC2 whose machines enrol, and the daemon's configuration."""

    emulator: Emulator
    folder: Path
    enrolment: int

    def text(self, *, life: str = "90d") -> str:
        machines = self.emulator.cloud.machines
        assert machines is not None
        text = CONFIG.format(folder=self.folder, enrolment=self.enrolment, url=self.emulator.url, life=life)
        for key in (MINE, THEIRS):
            digest = hashlib.sha256(key.org.encode()).hexdigest()
            text += SATELLITE.format(org=key.org, hash=digest, port=machines.port)
        return text

    @contextlib.asynccontextmanager
    async def serving(self, *, life: str = "90d") -> AsyncIterator[Daemon]:
        path = self.folder / "bentpipe.toml"
        path.write_text(self.text(life=life))
        async with trio.open_nursery() as nursery:
            daemon = await nursery.start(serve, load_config(path))
            yield daemon
            daemon.drain.set()

    def instance_of(self, key: SatelliteKey) -> str:
        (found,) = [
            instance_id
            for instance_id, each in self.emulator.cloud.instances.items()
            if each.tags.get("bentpipe:satellite") == str(key) and each.state.label in ("pending", "running")
        ]
        return found

    def disk_of(self, key: SatelliteKey) -> Path:
        return self.folder / "disks" / self.instance_of(key) / "etc/bentpipe"

    def bootstrap_of(self, key: SatelliteKey) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.disk_of(key) / "enrolment.json").read_text())
        return found


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "AKIDONE")
    disk = str(tmp_path / "disks" / "{instance_id}")
    command = (*program("machines.enrolled_satellite"), "{port}", "{host}", disk)
    monkeypatch.setattr(dialling, "DIAL_DEADLINE_S", 2.0)
    with Emulator(ScaledClock(SPEED), machine_command=command, machine_port=free_port()) as emulator:
        emulator.control.add_template(name="builder")
        yield Bed(emulator, tmp_path, free_port())


async def call(daemon: Daemon, key: SatelliteKey, words: bytes = b"hello", timeout_s: float = DEADLINE_S) -> bytes:
    names = (("satellite_name", key.name), ("satellite_org", key.org), ("satellite_token", key.org))

    def run() -> bytes:
        with contextlib.closing(GrpcioClient(daemon.addresses[0][1], None, names)) as client:
            return client.unary("Echo", words, timeout_s=timeout_s)

    return await trio.to_thread.run_sync(run)


async def test_two_tenants_machines_enrol_and_serve(bed: Bed, caplog: pytest.LogCaptureFixture) -> None:
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


async def test_addresses_that_two_tenants_machines_exchange_carry_no_byte(bed: Bed) -> None:
    """EC2 says that each machine is where the other one is, and both listen. No client's byte may go to the other tenant."""
    async with bed.serving() as daemon:
        for key in (MINE, THEIRS):
            assert await call(daemon, key) == b"hello"
        await _exchange(bed, daemon)
        for key in (MINE, THEIRS):
            with pytest.raises(CallError) as caught:
                await call(daemon, key, b"secret", timeout_s=20.0)
            assert caught.value.code == grpc.StatusCode.UNAVAILABLE.value[0]
        await _exchange(bed, daemon)
        with trio.fail_after(DEADLINE_S):
            for key in (MINE, THEIRS):
                assert await _until_served(daemon, key) == b"hello"


async def _exchange(bed: Bed, daemon: Daemon) -> None:
    """Let EC2 tell the one's address of the other, and wait until the daemon believes it."""
    one, two = (bed.emulator.cloud.instances[bed.instance_of(key)] for key in (MINE, THEIRS))
    with bed.emulator.cloud.lock:
        one.private_ip, two.private_ip = two.private_ip, one.private_ip
    assert bed.emulator.cloud.machines is not None
    port = bed.emulator.cloud.machines.port
    with trio.fail_after(DEADLINE_S):
        for key, instance in ((MINE, one), (THEIRS, two)):
            while not daemon.fleet.get(key).is_at(Address(instance.private_ip, port)):
                await trio.sleep(0.05)


async def _until_served(daemon: Daemon, key: SatelliteKey) -> bytes:
    while True:
        try:
            return await call(daemon, key, timeout_s=20.0)
        except CallError:
            await trio.sleep(0.2)


async def test_a_token_that_is_read_from_the_user_data_is_worth_nothing(
    bed: Bed, caplog: pytest.LogCaptureFixture
) -> None:
    async with bed.serving() as daemon:
        assert await call(daemon, MINE) == b"hello"
        program = Path(__file__).parents[2] / "responder/enrol.py"
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


async def test_certificates_are_renewed_and_the_daemon_goes_on(bed: Bed) -> None:
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


async def test_a_daemon_that_is_started_again_knows_its_machines(bed: Bed) -> None:
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
