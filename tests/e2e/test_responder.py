"""A daemon with a satellite and the real responder: what an operator and a tenant read of it; and responders that lie."""

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from beds.hosts.api_daemon import ApiToken, write_api_config
from beds.hosts.command_bed import DEADLINE_S, TOKENS, CommandBed
from beds.hosts.form import serve_file
from beds.peers.responder_process import ResponderProcess
from beds.peers.responder_status import YOUNG, status
from beds.peers.scripted_responder import scripted_responder
from bentpipe.daemon.model import Resume, SatelliteKey, SatelliteState
from bentpipe.daemon.readings.condition import Condition
from bentpipe.daemon.service.metric import Snapshot
from bentpipe.daemon.service.metric_table import METRICS
from bentpipe.proto import responder_pb2 as pb

KEY = SatelliteKey("acme", "builder")


@contextlib.asynccontextmanager
async def bed(folder: Path, port: int, *, machine: str = "") -> AsyncIterator[CommandBed]:
    """A daemon whose satellite acme/builder has a responder at `port`, and the keys `machine`."""
    tokens = {name: ApiToken(TOKENS[name], scope=scope) for name, scope in (("manager", "manage"), ("user", "use"))}
    config, ca = write_api_config(
        folder, tokens, {"acme/builder": ()}, sections=f'[store]\npath = "{folder}/l.sqlite"\n'
    )
    section = f"{machine}\n[satellite.responder]\nport = {port}\ninterval = 1\n[satellite.process]"
    config.write_text(config.read_text().replace("[satellite.process]", section))
    async with trio.open_nursery() as nursery:
        daemon = await nursery.start(serve_file, config)
        yield CommandBed(daemon, ca)
        daemon.drain.set()
        with trio.fail_after(DEADLINE_S):
            while nursery.child_tasks:
                await trio.sleep(0.01)


async def wait_for(check: Callable[[], object]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not check():
            await trio.sleep(0.02)


def metric(stage: CommandBed, name: str) -> dict[str, float]:
    (row,) = (each for each in METRICS if each.name == name)
    return {" ".join(labels): value for labels, value in row.read(Snapshot(stage.daemon)).items()}


async def test_what_a_real_responder_tells_is_in_inspect_top_and_metrics(tmp_path: Path) -> None:
    with ResponderProcess({}) as responder:
        responder.wait_status("machine", "disk")
        async with bed(tmp_path, responder.port) as stage:
            satellite = stage.daemon.fleet.get(KEY)
            asleep = json.loads((await stage.sat("inspect", "builder", "--json")).stdout)
            assert "reading" not in asleep
            with stage.channel() as echo:
                assert await trio.to_thread.run_sync(echo, b"1") == b"1"
                await wait_for(lambda: satellite.reader.condition is Condition.DEAF)
                shown = (await stage.sat("inspect", "builder")).stdout
                assert "condition      deaf" in shown
                assert "builds         unknown" in shown
                told = json.loads((await stage.sat("inspect", "builder", "--json")).stdout)["reading"]
                assert told["condition"] == "deaf"
                assert told["uptime_s"] > 0
                top = json.loads((await stage.run(["top", "--once", "--json"])).stdout)
                [row] = top["satellites"]
                assert (row["condition"], row["builds"]) == ("deaf", None)
                assert "condition" in (await stage.run(["top", "--once"])).stdout
                assert metric(stage, "satellite_conditions")["deaf"] == 1
                assert metric(stage, "readings")["ok"] >= 1
            assert satellite.resumes[Resume.RESUMED] + satellite.resumes[Resume.COLD] == 1


async def test_a_responder_that_dies_makes_its_satellite_silent_and_no_client_notices(tmp_path: Path) -> None:
    with ResponderProcess({}) as responder:
        responder.wait_status("machine", "disk")
        async with bed(tmp_path, responder.port) as stage:
            satellite = stage.daemon.fleet.get(KEY)
            with stage.channel() as echo:
                await trio.to_thread.run_sync(echo, b"1")
                await wait_for(lambda: satellite.reader.last)
                responder.process.kill()
                await wait_for(lambda: satellite.reader.condition is Condition.SILENT)
                assert await trio.to_thread.run_sync(echo, b"2") == b"2"
                assert satellite.state is SatelliteState.OPERATIONAL


async def test_an_out_of_memory_kill_is_logged_beside_the_client_that_is_connected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "bentpipe.fleet")
    kills = pb.Kills(look=YOUNG)
    with scripted_responder(lambda: status(running=1, kills=kills)) as port:
        async with bed(tmp_path, port) as stage:
            satellite = stage.daemon.fleet.get(KEY)
            with stage.channel() as echo:
                await trio.to_thread.run_sync(echo, b"1")
                await wait_for(lambda: satellite.reader.last)
                kills = pb.Kills(look=YOUNG, machine_oom_kills=1)
                kills.recent.add(number=1, cause=pb.Kill.OOM, step="buildkit/x", build_refs=["ref0"])
                await wait_for(lambda: metric(stage, "build_kills")["oom"] == 1)
    (record,) = (each for each in caplog.records if each.message == "a build ran out of memory")
    fields = record.__dict__["fields"]
    assert fields["steps"][0]["builds"] == ["ref0"]
    (connection,) = fields["connections"]
    assert connection.endswith(" of user")


@pytest.mark.parametrize("running", [0, 1])
async def test_a_satellite_without_clients_sleeps_unless_it_says_that_a_build_runs(
    tmp_path: Path, running: int
) -> None:
    with scripted_responder(lambda: status(running=running)) as port:
        async with bed(tmp_path, port, machine="sleep_after = 1") as stage:
            satellite = stage.daemon.fleet.get(KEY)
            with stage.channel() as echo:
                await trio.to_thread.run_sync(echo, b"1")
            await wait_for(lambda: satellite.leases == 0)
            if running:
                await trio.sleep(4)
                assert satellite.state is SatelliteState.OPERATIONAL
                done = await stage.sat("sleep", "builder")
                assert done.returncode != 0
                assert "builds run on it: 1" in done.stderr
            else:
                await wait_for(lambda: satellite.state is SatelliteState.SLEEP)
