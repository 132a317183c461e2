"""docker buildx with its driver `remote`, without any Docker: TLS without ALPN, SNI for the satellite, a certificate."""

import concurrent.futures
import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from beds.peers.buildkit_host import Build, BuildKitHost, BuildSatellite
from beds.peers.builds import Missing, buildkit, buildx
from bentpipe.daemon.model import SatelliteState

GONE_DEADLINE_S = 20.0
SLEEP_DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def host() -> Iterator[BuildKitHost]:
    try:
        programs, client = buildkit(), buildx()
    except Missing as exc:
        pytest.skip(str(exc))
    satellites = [BuildSatellite("cold"), *(BuildSatellite(name, sleep_after_s=1) for name in ("sleeper", "other"))]
    with BuildKitHost(programs, satellites, client) as running:
        for satellite in satellites[1:]:
            created = running.create_builder(satellite.name, satellite.name)
            assert created.returncode == 0, created.stderr
        yield running


def done(build: Build) -> None:
    built = build.wait()
    assert built.code == 0, built.progress[-3000:]


def test_cold_and_warm(host: BuildKitHost, tmp_path: Path) -> None:
    """Already `create` asks the satellite who it is and wakes it; builds then find it awake and get their own bytes back."""
    created = host.create_builder("cold", "cold")
    assert created.returncode == 0, created.stderr
    for number in range(2):
        data = bytes([number]) * 3_000_000
        out = tmp_path / str(number)
        with host.build("cold", ("sum", "/data"), data=data, out=out, client="buildx") as build:
            done(build)
        assert (out / "data").read_bytes() == data
        assert (out / "data.sum").read_text() == hashlib.sha256(data).hexdigest()
    assert host.edge.starts("cold") == 1


def test_many_builds_at_once_wake_it_once(host: BuildKitHost) -> None:
    host.edge.wait_state("sleeper", SatelliteState.SLEEP, SLEEP_DEADLINE_S)
    before = host.edge.starts("sleeper")
    with concurrent.futures.ThreadPoolExecutor() as pool:

        def run(_number: int) -> None:
            with host.build("sleeper", ("silence", "0"), client="buildx") as build:
                done(build)

        list(pool.map(run, range(4)))
    assert host.edge.starts("sleeper") == before + 1


def test_a_client_that_is_interrupted_takes_its_build_with_it(host: BuildKitHost) -> None:
    with host.build("other", ("silence", "3600"), client="buildx") as build:
        build.wait_running()
        build.signal(signal.SIGINT)
        build.wait_gone(GONE_DEADLINE_S)
        assert build.wait().code != 0


def test_looking_at_a_builder_wakes_its_satellite(host: BuildKitHost) -> None:
    """`inspect` asks one builder, `ls` all that it knows: requests like any other (docs/clients.md says so)."""
    for command, names in ((("inspect", "other"), ("other",)), (("ls",), ("sleeper", "other"))):
        for name in ("sleeper", "other"):
            host.edge.wait_state(name, SatelliteState.SLEEP, SLEEP_DEADLINE_S)
        before = {name: host.edge.starts(name) for name in ("sleeper", "other")}
        looked = host.buildx(*command)
        assert looked.returncode == 0, looked.stderr
        assert looked.stdout.count("running") >= len(names), looked.stdout
        assert {name for name, count in before.items() if host.edge.starts(name) == count + 1} == set(names)


def test_refusals_in_words(host: BuildKitHost) -> None:
    for name, satellite, known, words in (
        ("nowhere", "nowhere", True, "no such satellite, or not yours"),
        ("stranger", "cold", False, "no client certificate that is known here"),
    ):
        assert host.create_builder(name, satellite, known=known).returncode == 0
        with host.build(name, ("silence", "0"), client="buildx") as build:
            built = build.wait()
        assert built.code != 0
        assert words in built.progress, built.progress[-2000:]
        assert host.buildx("rm", name).returncode == 0
