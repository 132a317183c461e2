"""A real BuildKit behind a real daemon: buildkitd is the satellite, buildctl the client, and each build runs a container."""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.peers.buildkit_host import Build, BuildKitHost, BuildSatellite
from beds.peers.builds import Missing, buildkit
from bentpipe.daemon.model import SatelliteState

LINE_BYTES = 128
GONE_DEADLINE_S = 20.0
"""For BuildKit to notice that its client is gone and to kill the step."""


@pytest.fixture(scope="module")
def host() -> Iterator[BuildKitHost]:
    try:
        programs = buildkit()
    except Missing as exc:
        pytest.skip(str(exc))
    names = ("cold", "builder", "mortal")
    with BuildKitHost(programs, [*map(BuildSatellite, names), BuildSatellite("sleeper", sleep_after_s=1)]) as running:
        yield running


def done(build: Build, deadline_s: float = 90.0) -> None:
    built = build.wait(deadline_s)
    assert built.code == 0, built.progress[-3000:]


def test_cold_and_warm(host: BuildKitHost, tmp_path: Path) -> None:
    """The first build wakes the satellite and the second finds it awake; both get their own bytes back."""
    for number in range(2):
        data = bytes([number]) * 3_000_000
        out = tmp_path / str(number)
        with host.build("cold", ("sum", "/data"), data=data, out=out) as build:
            done(build)
        assert (out / "data").read_bytes() == data
        assert (out / "data.sum").read_text() == hashlib.sha256(data).hexdigest()
    assert host.edge.starts("cold") == 1


@pytest.mark.parametrize(
    ("length_s", "talk_bytes"),
    [(20, 16 << 20), pytest.param(300, 512 << 20, marks=pytest.mark.slow)],
)
def test_one_silent_and_one_loud_build_at_once(host: BuildKitHost, length_s: int, talk_bytes: int) -> None:
    """BuildKit checks every 5 s that its client is there, through us; and no line of output may be missing.

    The output is spread over the build's length, since buildctl drops what it has not read 3 s after the build's end.
    """
    with (
        host.build("builder", ("silence", str(length_s))) as silent,
        host.build("builder", ("talk", str(talk_bytes), str(length_s))) as loud,
    ):
        silent.wait_running()
        loud.wait_running()
        for build in (silent, loud):
            done(build, length_s + 90)
        assert loud.wait().talked == list(range(talk_bytes // LINE_BYTES))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_client_that_goes_takes_its_build_with_it(host: BuildKitHost, number: signal.Signals) -> None:
    with host.build("builder", ("silence", "3600")) as build:
        build.wait_running()
        build.signal(number)
        build.wait_gone(GONE_DEADLINE_S)
        assert build.wait().code != 0
    with host.build("builder", ("silence", "0")) as build:
        done(build)


def test_a_satellite_that_dies_takes_its_builds_with_it(host: BuildKitHost) -> None:
    """No container is left behind, the client is told, and the next build starts the satellite again.

    buildctl asks for the reason on a new connection in the moment of its death, which may not be refused either.
    """
    with host.build("mortal", ("silence", "3600")) as build:
        build.wait_running()
        [pid] = host.daemon_pids("mortal")
        os.kill(pid, signal.SIGKILL)
        build.wait_gone(GONE_DEADLINE_S)
        assert build.wait().code != 0
    with host.build("mortal", ("silence", "0")) as build:
        done(build)
    wakes = [
        record["before"]
        for record in host.edge.records()
        if record.get("satellite") == "acme/mortal" and record.get("after") == SatelliteState.STARTING.value
    ]
    # Between its death and the end of its process it is only looked at, not woken.
    assert [before for before in wakes if before != SatelliteState.OPERATIONAL.value] == ["sleep", "sleep"]
    assert not any(record["message"] == "refused" for record in host.edge.records())


def test_hibernated_between_builds(host: BuildKitHost) -> None:
    """Frozen and thawed: the same process builds on."""
    pids = []
    for number in range(1, 3):
        with host.build("sleeper", ("silence", "0")) as build:
            done(build)
        assert host.edge.starts("sleeper") == number
        host.edge.wait_state("sleeper", SatelliteState.SLEEP, 20)
        pids.append(host.daemon_pids("sleeper"))
    assert len(pids[0]) == 1
    assert pids[0] == pids[1]
