"""How long the engine's threads poll: the rule without a clock, and that bytes flow while they do."""

import socket
import subprocess
from pathlib import Path

import pytest

from bentpipe.native.engine import Engine, EngineOptions, Leg

ROOT = Path(__file__).parents[2]
TCP_NOTSENT_LOWAT = 25
"""linux/tcp.h; Python has no name for it before 3.12."""


@pytest.fixture(scope="module")
def rule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("rule") / "rule"
    sources = [ROOT / "native" / "src" / "busy_poll.c", ROOT / "tests" / "native" / "poll" / "rule.c"]
    includes = [f"-I{ROOT / 'native' / folder}" for folder in ("include", "src")]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    subprocess.run(["gcc", *flags, *includes, *sources, "-o", program], check=True)
    return program


def waits(rule: Path, limit_us: int, gaps_us: list[int]) -> list[str]:
    command = [str(rule), str(limit_us), *map(str, gaps_us)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_polling_grows_while_events_come_soon(rule: Path) -> None:
    assert waits(rule, 200, [120] * 5) == ["slept 50", "slept 100", "slept 200", "polled 200", "polled 200"]


def test_polling_shrinks_while_they_do_not(rule: Path) -> None:
    found = waits(rule, 200, [120] * 3 + [10_000] * 9)
    assert found[3:] == [f"slept {200 >> shift}" for shift in (1, 2, 3, 4, 5, 6, 7)] + ["slept 0", "slept 0"]


def test_an_event_within_the_limit_starts_it_again(rule: Path) -> None:
    assert waits(rule, 200, [10_000, 150, 10_000, 150]) == ["slept 0", "slept 50", "slept 25", "slept 50"]


def test_the_limit_is_kept(rule: Path) -> None:
    assert waits(rule, 70, [60] * 4) == ["slept 50", "slept 70", "polled 70", "polled 70"]


def test_without_the_option_a_thread_sleeps_at_once(rule: Path) -> None:
    assert waits(rule, 0, [10, 10]) == ["slept 0", "slept 0"]


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def test_the_bytes_of_a_thread_that_polls_arrive() -> None:
    engine = Engine(EngineOptions(threads=1, busy_poll_s=0.001))
    client, client_leg = pair()
    satellite, satellite_leg = pair()
    with client, satellite:
        engine.splice(Leg(client_leg.detach(), None), Leg(satellite_leg.detach(), None))
        for number in range(2000):
            message = number.to_bytes(4, "big")
            client.sendall(message)
            assert satellite.recv(4, socket.MSG_WAITALL) == message
            satellite.sendall(message)
            assert client.recv(4, socket.MSG_WAITALL) == message
        engine.close()


@pytest.mark.parametrize("wanted", [0, 131072])
def test_the_limit_of_unsent_bytes_is_the_clients_alone(wanted: int) -> None:
    engine = Engine(EngineOptions(threads=1, unsent_bytes=wanted))
    client, client_leg = pair()
    satellite, satellite_leg = pair()
    with client, satellite, client_leg.dup() as seen_client, satellite_leg.dup() as seen_satellite:
        before = [each.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT) for each in (seen_client, seen_satellite)]
        engine.splice(Leg(client_leg.detach(), None), Leg(satellite_leg.detach(), None))
        after = [each.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT) for each in (seen_client, seen_satellite)]
        engine.close()
    assert after == [wanted or before[0], before[1]]
