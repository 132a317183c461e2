"""How descriptors are shared out, and what is said where they are too few."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentpipe.config.model import Config
from bentpipe.daemon.connections.descriptors import ENGINE_THREAD_FDS, LEAST_CONNECTIONS, PIPE_FDS, TooFewDescriptors
from bentpipe.daemon.connections.quotas import CONNECTION_FDS
from bentpipe.daemon.service.descriptors import SATELLITE_FDS, share_out
from bentpipe.native.engine import PIPES_A_THREAD

UNIT = Path(__file__).parents[3] / "systemd" / "bentpipe.service"


def config(
    *, satellites: int = 0, max_connections: int | None = None, threads: int = 2, splice: str = "auto"
) -> Config:
    return Config.model_validate(
        {
            "listener": [{"address": "127.0.0.1:0"}],
            "limits": {} if max_connections is None else {"max_connections": max_connections},
            "engine": {"threads": threads, "splice": splice},
            "satellite": [
                {"org": "acme", "name": f"s{n}", "process": {"command": ["x", "{port}"]}} for n in range(satellites)
            ],
        }
    )


@given(
    limit=st.integers(0, 1 << 21),
    satellites=st.integers(0, 20),
    threads=st.integers(1, 256),
    connections=st.none() | st.integers(LEAST_CONNECTIONS, 1 << 20),
    splice=st.sampled_from(["auto", "off", "always"]),
)
def test_what_is_shared_out_never_exceeds_the_limit(
    limit: int, satellites: int, threads: int, connections: int | None, splice: str
) -> None:
    wanted = config(satellites=satellites, max_connections=connections, threads=threads, splice=splice)
    try:
        found = share_out(wanted, limit)
    except TooFewDescriptors as exc:
        numbers = [int(each) for each in re.findall(r"\d+", str(exc))]
        assert limit in numbers
        needed = int(re.findall(r"LimitNOFILE=(\d+)", str(exc))[0])
        assert needed > limit
        assert share_out(wanted, needed).connections >= LEAST_CONNECTIONS, "what it says is enough"
        for fits in map(int, re.findall(r"max_connections to (\d+)", str(exc))):
            share_out(config(satellites=satellites, max_connections=fits, threads=threads, splice=splice), limit)
        return
    pipes = found.pipes * PIPE_FDS * threads
    assert found.reserve + found.connections * CONNECTION_FDS + pipes <= limit
    assert found.reserve >= threads * ENGINE_THREAD_FDS + satellites * SATELLITE_FDS
    assert found.pipes <= PIPES_A_THREAD
    assert found.connections == connections or connections is None
    assert found.pipes == 0 or splice != "off"


def test_the_default_is_as_much_as_fits_and_leaves_pipes() -> None:
    assert share_out(config(), 1 << 20).connections == 10_000
    few = share_out(config(), 1024)
    assert 100 < few.connections < 400
    assert few.pipes > 10


def test_the_units_limit_has_room_for_the_defaults_and_all_pipes() -> None:
    [limit] = re.findall(r"^LimitNOFILE=(\d+)$", UNIT.read_text(), re.MULTILINE)
    found = share_out(config(satellites=500, threads=64), int(limit))
    assert (found.connections, found.pipes) == (10_000, PIPES_A_THREAD)


def test_the_binding_knows_the_engines_number() -> None:
    source = (Path(__file__).parents[3] / "native/src/internal.h").read_text()
    assert re.findall(r"#define PIPE_MAX (\d+)", source) == [str(PIPES_A_THREAD)]


def test_a_limit_without_room_for_a_connection_is_refused() -> None:
    assert share_out(config(), 200).connections > 1
    with pytest.raises(TooFewDescriptors):
        share_out(config(), 10)
