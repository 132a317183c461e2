"""The real grpcurl, which knows nothing of our services: what the daemon serves, learnt by server reflection, and calls."""

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from beds.hosts.api_daemon import ApiToken, write_api_config
from beds.hosts.form import serve_file
from beds.peers.builds import Missing, grpcurl
from beds.quoted import without_ids
from bentpipe.daemon.service.serve import Daemon
from bentpipe.proto.grpc_status import GrpcStatus

TOKEN, OTHER_TOKEN = "bp_anna", "bp_eve"
DEADLINE_S = 60.0
BY_STATUS = 64
"""grpcurl's exit code is this and the call's status."""
COMPUTE = "api.public.compute.Compute"
BUILDER = '{"org_id": "acme", "name": "builder"}'


class Grpcurl:
    """Runs it against the daemon's port with TLS, or its Unix socket."""

    def __init__(self, program: str, daemon: Daemon, folder: Path) -> None:
        self._program, self._daemon, self._folder = program, daemon, folder

    async def __call__(self, *words: str, token: str | None = TOKEN, data: str = "") -> tuple[int, str]:
        """Run it with `words` behind the address. Returns the exit code and what it says."""
        options = [] if token is None else ["-H", f"authorization: Bearer {token}"]
        options += ["-d", data] if data else []
        port = self._daemon.addresses[0][1]
        where = ["-cacert", str(self._folder / "ca.pem"), *options, f"localhost:{port}"]
        return await self._run([*where, *words])

    async def local(self, *words: str, data: str = "") -> tuple[int, str]:
        """The same on the Unix socket."""
        options = ["-d", data] if data else []
        return await self._run(["-plaintext", *options, f"unix://{self._folder / 'api.sock'}", *words])

    async def _run(self, arguments: list[str]) -> tuple[int, str]:
        with trio.fail_after(DEADLINE_S):
            done = await trio.run_process(
                [self._program, *arguments], capture_stdout=True, stderr=subprocess.STDOUT, check=False
            )
        return done.returncode, done.stdout.decode()


@pytest.fixture
async def curl(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Grpcurl]:
    try:
        program = grpcurl()
    except Missing as exc:
        pytest.skip(str(exc))
    tokens = {"anna": ApiToken(TOKEN, scope="manage"), "eve": ApiToken(OTHER_TOKEN, ("other/*",))}
    sections = f'[control]\npath = "{tmp_path / "control.sock"}"\n'
    satellites = {"acme/builder": ("--boot", "0.3"), "other/theirs": ()}
    config, _ = write_api_config(tmp_path, tokens, satellites, sections=sections)
    daemon = await nursery.start(serve_file, config)
    yield Grpcurl(program, daemon, tmp_path)
    daemon.drain.set()
    with trio.fail_after(DEADLINE_S):
        while nursery.child_tasks:
            await trio.sleep(0.01)


async def test_it_learns_the_services_and_their_messages(curl: Grpcurl) -> None:
    others = ("api.public.logstream.LogStream", "bentpipe.operations.Operations", "grpc.health.v1.Health")
    assert await curl("list") == (0, "\n".join((COMPUTE, *others)) + "\n")
    code, methods = await curl("list", COMPUTE)
    assert code == 0
    assert f"{COMPUTE}.ReserveSatellite\n" in methods
    code, words = await curl("describe", f"{COMPUTE}.ReserveSatellite")
    assert code == 0
    assert "returns ( stream .api.public.compute.ReserveSatelliteResponse )" in words
    code, words = await curl("describe", "api.public.compute.GetSatelliteRequest")
    assert code == 0
    assert "string org_id = 1;" in words
    assert (await curl("describe", "no.such.Service"))[0] == 1


async def test_it_calls_what_it_has_learnt(curl: Grpcurl) -> None:
    code, said = await curl(f"{COMPUTE}/GetSatellite", data=BUILDER)
    assert code == 0, said
    assert json.loads(said)["status"] == "SATELLITE_STATUS_SLEEP"
    for service in ("", "acme/builder"):
        code, said = await curl("grpc.health.v1.Health/Check", data=json.dumps({"service": service}))
        assert (code, json.loads(said)) == (0, {"status": "SERVING"}), (
            "a satellite that sleeps is there for its clients"
        )
    code, said = await curl(f"{COMPUTE}/WakeSatellite", data=BUILDER)
    assert code == 0, said
    states = [json.loads(each + "}")["status"] for each in said.split("}")[:-1]]
    assert [state.removeprefix("SATELLITE_STATUS_") for state in states] == ["SLEEP", "STARTING", "OPERATIONAL"]


async def test_what_is_refused_says_why(curl: Grpcurl) -> None:
    for token in (None, "bp_wrong"):
        code, said = await curl("list", token=token)
        assert code == 1
        assert "Unauthenticated" in said
    answers = [
        await curl(f"{COMPUTE}/GetSatellite", token=OTHER_TOKEN, data=f'{{"org_id": "acme", "name": "{name}"}}')
        for name in ("builder", "nothing")
    ]
    (code, said), other = ((code, without_ids(words)) for code, words in answers)
    assert (code, said) == other
    assert code == BY_STATUS + GrpcStatus.NOT_FOUND
    code, said = await curl(f"{COMPUTE}/GetSatellite", data="{}")
    assert code == BY_STATUS + GrpcStatus.INVALID_ARGUMENT
    assert "org_id is missing" in said


async def test_the_unix_socket_needs_no_token(curl: Grpcurl) -> None:
    code, said = await curl.local("list")
    assert (code, said.splitlines()[0]) == (0, COMPUTE)
    code, said = await curl.local(f"{COMPUTE}/ListSatellites", data='{"org_id": "acme"}')
    assert code == 0, said
    assert [each["name"] for each in json.loads(said)["instances"]] == ["builder"]
