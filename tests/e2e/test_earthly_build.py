"""A build from login to artifact: the Earthly CLI's calls in their order, and a real BuildKit behind the port that answered.

`satbuild` stands for the CLI's own BuildKit client: two connections with the session in the metadata of every call.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trustme

from beds.hosts.api_daemon import ApiToken, write_api_config
from beds.hosts.form import serve_file, with_ports
from beds.peers.buildkit_host import CLIENT, SATELLITE_DOMAIN, buildkitd_command
from beds.peers.builds import BuildKit, Missing, buildkit, grpcurl
from beds.peers.earthly_cli import RECORDED, EarthlyCli, Json
from beds.quoted import without_id
from bentpipe.daemon.model import SatelliteKey, SatelliteState
from bentpipe.daemon.service.serve import Daemon
from bentpipe.proto import compute_pb2 as pb
from bentpipe.proto.grpc_status import GrpcStatus
from bentpipe.proto.logstream_pb2 import StreamLogRequest, StreamLogResponse

TOKEN, OTHER_TOKEN = "bp_anna", "bp_eve"
KEY = SatelliteKey("acme", "builder")
DEADLINE_S = 120.0
SLEEP, STARTING, OPERATIONAL = (
    getattr(pb, f"SATELLITE_STATUS_{name}") for name in ("SLEEP", "STARTING", "OPERATIONAL")
)


@dataclasses.dataclass(frozen=True)
class Bed:
    """The daemon: one port for the API and for builds with a session, and one for builds with a certificate."""

    daemon: Daemon
    programs: BuildKit
    folder: Path

    @property
    def port(self) -> int:
        return self.daemon.addresses[0][1]

    @property
    def leases(self) -> int:
        return self.daemon.fleet.get(KEY).leases

    def context(self, data: bytes) -> Path:
        """A folder whose build copies `data` and its hash."""
        folder = self.folder / hashlib.sha256(data).hexdigest()[:8]
        folder.mkdir()
        shutil.copy(self.programs.step, folder / "step")
        (folder / "data").write_bytes(data)
        steps = ('RUN ["/step", "sum", "/data"]', 'RUN ["/step", "talk", "128", "0"]')
        (folder / "Dockerfile").write_text("\n".join(["FROM scratch", "COPY step data /", *steps]))
        return folder

    def satbuild(self, address: str, session: str, context: Path, out: Path) -> subprocess.CompletedProcess[str]:
        """Build as the CLI does, at the address that GetSatellite gave."""
        where = ["-addr", address, "-ca", str(self.folder / "ca.pem"), "-org", KEY.org, "-name", KEY.name]
        return self._run([self.programs.satbuild, *where, "-context", str(context), "-out", str(out)], session)

    def buildctl(self, context: Path, out: Path) -> subprocess.CompletedProcess[str]:
        """Build with a client that can send no metadata, on the port for certificates."""
        command = [self.programs.buildctl, "--addr", f"tcp://127.0.0.1:{self.daemon.addresses[1][1]}"]
        command += ["--tlsservername", f"{KEY.name}.{KEY.org}.{SATELLITE_DOMAIN}"]
        for option, name in (("tlscacert", "sat-ca"), ("tlscert", "client"), ("tlskey", "client-key")):
            command += [f"--{option}", str(self.folder / f"{name}.pem")]
        command += ["build", "--frontend", "dockerfile.v0", "--progress", "plain", "--output", f"type=local,dest={out}"]
        return self._run([*command, "--local", f"context={context}", "--local", f"dockerfile={context}"])

    @staticmethod
    def _run(command: list[str], session: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**os.environ, "SATELLITE_TOKEN": session},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    async def wait_leases(self, count: int) -> None:
        with trio.fail_after(20):
            while self.leases != count:
                await trio.sleep(0.01)


def second_listener(folder: Path) -> str:
    """For clients with a certificate."""
    servers, clients = trustme.CA(), trustme.CA()
    server, client = servers.issue_cert(f"*.{KEY.org}.{SATELLITE_DOMAIN}"), clients.issue_cert(CLIENT)
    for name, blobs in (
        ("sat-ca", [servers.cert_pem]),
        ("sat", server.cert_chain_pems),
        ("sat-key", [server.private_key_pem]),
        ("clients", [clients.cert_pem]),
        ("client", client.cert_chain_pems),
        ("client-key", [client.private_key_pem]),
    ):
        (folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in blobs))
    return with_ports(f"""
[[listener]]
address = "127.0.0.1:0"
[listener.tls]
certificate = "{folder / "sat.pem"}"
key = "{folder / "sat-key.pem"}"
client_ca = "{folder / "clients.pem"}"
satellite_domain = "{SATELLITE_DOMAIN}"
[[certificate]]
name = "builder"
san = "EMAIL:{CLIENT}"
grants = ["{KEY}"]
""")


@pytest.fixture
async def bed(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Bed]:
    try:
        programs = buildkit()
    except Missing as exc:
        pytest.skip(str(exc))
    tokens = {"anna": ApiToken(TOKEN), "eve": ApiToken(OTHER_TOKEN, ("other/*",))}
    config, _ = write_api_config(tmp_path, tokens, {"other/theirs": ()})
    command = json.dumps(buildkitd_command(programs, tmp_path / "root"))
    satellite = f'[[satellite]]\norg = "{KEY.org}"\nname = "{KEY.name}"\n[satellite.process]\ncommand = {command}\n'
    config.write_text(config.read_text() + second_listener(tmp_path) + satellite)
    daemon = await nursery.start(serve_file, config)
    yield Bed(daemon, programs, tmp_path)
    daemon.drain.set()
    with trio.fail_after(DEADLINE_S):
        while nursery.child_tasks:
            await trio.sleep(0.01)


def prepare(cli: EarthlyCli, calls: list[Json], states: list[int]) -> str:
    """Login, orgs, GetSatellite, login, Reserve, each with its recorded headers. Returns where builds connect."""
    assert cli.http(calls[0])[0] == 200
    assert cli.http(calls[1])[0] == 200
    cli.api.ping()
    found = cli.grpc(calls[2], pb.GetSatelliteRequest)
    assert found.status == GrpcStatus.OK, found.words
    satellite = pb.GetSatelliteResponse.FromString(found.messages[0])
    assert satellite.is_managed
    assert satellite.status == states[0]
    assert cli.http(calls[3])[0] == 200
    reserved = cli.grpc(calls[4], pb.ReserveSatelliteRequest)
    assert reserved.status == GrpcStatus.OK, reserved.words
    told = [pb.ReserveSatelliteResponse.FromString(message).status for message in reserved.messages]
    assert list(dict.fromkeys(told)) == states
    return satellite.satellite_address


def finish(cli: EarthlyCli, calls: list[Json]) -> None:
    """After the build: ping, and the log stream to its acknowledged end."""
    assert cli.http(calls[6])[0] == 200
    ended = cli.grpc(calls[7], StreamLogRequest, [*(StreamLogRequest() for _ in range(50)), StreamLogRequest(eof=True)])
    assert ended.status == GrpcStatus.OK
    assert [StreamLogResponse.FromString(message).eof_ack for message in ended.messages] == [True]


async def test_from_login_to_artifact(bed: Bed) -> None:
    """Cold and warm: the first run wakes BuildKit, and the second finds it awake. Each gets its own bytes."""
    calls = RECORDED["build-sat-builder"]

    def run(number: int, states: list[int]) -> None:
        data, out = os.urandom(2_000_000), bed.folder / f"out{number}"
        with EarthlyCli(bed.daemon.addresses[0], (bed.folder / "ca.pem").read_bytes(), TOKEN) as cli:
            address = prepare(cli, calls, states)
            assert address == f"localhost:{bed.port}"
            assert bed.leases == 1, "it is reserved"
            built = bed.satbuild(address, cli.jwt, bed.context(data), out)
            assert built.returncode == 0, built.stdout
            finish(cli, calls)
        assert built.stdout.startswith("0 xxx"), "the output of the step"
        assert (out / "data").read_bytes() == data
        assert (out / "data.sum").read_text() == hashlib.sha256(data).hexdigest()

    await trio.to_thread.run_sync(run, 1, [SLEEP, STARTING, OPERATIONAL])
    await bed.wait_leases(0)  # both connections have come and gone, and took the reservation with them
    await trio.to_thread.run_sync(run, 2, [OPERATIONAL])
    await bed.wait_leases(0)
    assert bed.daemon.fleet.get(KEY).state is SatelliteState.OPERATIONAL


async def test_buildctl_after_the_same_login(bed: Bed) -> None:
    """One satellite, two clients: what the CLI has reserved is there for buildctl with its certificate, and the reverse."""
    calls = RECORDED["build-sat-builder"]
    data = os.urandom(100_000)

    def run() -> None:
        with EarthlyCli(bed.daemon.addresses[0], (bed.folder / "ca.pem").read_bytes(), TOKEN) as cli:
            address = prepare(cli, calls, [SLEEP, STARTING, OPERATIONAL])
            context = bed.context(data)
            for built, out in (
                (bed.buildctl(context, bed.folder / "one"), bed.folder / "one"),
                (bed.satbuild(address, cli.jwt, context, bed.folder / "two"), bed.folder / "two"),
            ):
                assert built.returncode == 0, built.stdout
                assert (out / "data").read_bytes() == data

    await trio.to_thread.run_sync(run)
    await bed.wait_leases(0)


async def test_grpcurl_learns_what_the_satellite_that_it_names_serves(bed: Bed) -> None:
    """Without the metadata it learns what the daemon serves (test_grpcurl.py)."""
    try:
        program = grpcurl()
    except Missing as exc:
        pytest.skip(str(exc))
    metadata = {"satellite_org": KEY.org, "satellite_name": KEY.name, "satellite_token": TOKEN}
    options = [word for name, value in metadata.items() for word in ("-H", f"{name}: {value}")]
    where = [program, "-cacert", str(bed.folder / "ca.pem"), *options, f"localhost:{bed.port}"]
    with trio.fail_after(DEADLINE_S):
        listed = await trio.run_process([*where, "list"], capture_stdout=True)
        assert b"moby.buildkit.v1.Control\n" in listed.stdout
        assert b"api.public.compute" not in listed.stdout
        called = await trio.run_process([*where, "moby.buildkit.v1.Control/Info"], capture_stdout=True)
        assert json.loads(called.stdout)["buildkitVersion"]["package"] == "github.com/moby/buildkit"


async def test_a_session_of_another_org_builds_nothing(bed: Bed) -> None:
    calls = RECORDED["build-sat-builder"]

    def run() -> None:
        with EarthlyCli(bed.daemon.addresses[0], (bed.folder / "ca.pem").read_bytes(), OTHER_TOKEN) as cli:
            assert cli.http(calls[0])[0] == 200
            refused = cli.grpc(calls[4], pb.ReserveSatelliteRequest)
            assert (refused.status, refused.messages) == (GrpcStatus.NOT_FOUND, [])
            out = bed.folder / "out"
            context = bed.context(b"data")
            for session in (cli.jwt, "", "nonsense"):
                built = bed.satbuild(f"localhost:{bed.port}", session, context, out)
                assert built.returncode == 1
                assert "could not connect to buildkit" in built.stdout
            assert without_id(refused.words) in bed.satbuild(f"localhost:{bed.port}", cli.jwt, context, out).stdout
            assert not out.exists()

    await trio.to_thread.run_sync(run)
    assert bed.daemon.fleet.get(KEY).state is SatelliteState.SLEEP
    assert not (bed.folder / "root").exists(), "BuildKit has never run"
