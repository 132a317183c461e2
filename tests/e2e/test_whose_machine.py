"""A client reaches its own satellite's machine and no other: fleets in one account, names that look alike, tags, addresses.

Daemons are processes of their own, with the default settings (a sweep of 60 s among them) unless a case says otherwise.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ec2_emulator.calling import free_port
from ec2_emulator.clock import ScaledClock
from ec2_emulator.server import Emulator
from edge_daemons import config_text, edge_daemon, token_of, wait

from bentpipe.daemon.model import SatelliteKey

from clients import CallError

SPEED = 100.0
"""A start then takes 0.2 s."""
NAMED = Path(__file__).parents[1] / "peers" / "named_satellite.py"
BUILDER = SatelliteKey("acme", "builder")


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """Where satellites write who they are and which token they were sent."""
    return tmp_path / "seen"


@pytest.fixture
def cloud(seen: Path) -> Iterator[Emulator]:
    command = (sys.executable, "-P", str(NAMED), "{host}", "{port}", "{instance_id}", str(seen))
    with Emulator(ScaledClock(SPEED), machine_command=command, machine_port=free_port()) as emulator:
        yield emulator


def ec2_of(cloud: Emulator, fleet: str, **keys: str) -> str:
    more = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    return f'[ec2]\nregion = "eu-central-1"\nendpoint = "{cloud.url}"\nfleet = "{fleet}"\n{more}'


def satellite(cloud: Emulator, keys: str = "", ec2: str = "") -> str:
    assert cloud.cloud.machines is not None
    return f'provider = "ec2"\nmin_awake = 0\n{keys}\n[satellite.ec2]\nport = {cloud.cloud.machines.port}\n{ec2}'


def tags_of(key: SatelliteKey, fleet: str = "prod") -> dict[str, str]:
    return {"bentpipe:fleet": fleet, "bentpipe:satellite": str(key)}


def test_two_fleets_of_one_account_never_share_a_machine(cloud: Emulator, tmp_path: Path) -> None:
    cloud.control.add_template(name="builder")
    launched = 'launch_template = "builder"'
    prod = config_text({BUILDER: satellite(cloud, "", launched)}, sections=ec2_of(cloud, "prod"))
    staging = config_text(
        {BUILDER: satellite(cloud, 'sleep_mode = "stop"\nsleep_after = "1s"', launched)},
        sections=ec2_of(cloud, "staging"),
    )
    with edge_daemon(tmp_path, prod, name="prod") as one, edge_daemon(tmp_path, staging, name="staging") as two:
        answers = [daemon.ask(BUILDER.org, BUILDER.name) for daemon in (one, two)]
        fleets = {each["instance_id"]: each["tags"]["bentpipe:fleet"] for each in cloud.control.describe()}  # type: ignore[index]
        assert [fleets[each] for each in answers] == ["prod", "staging"]
        wait(lambda: cloud.control.state(instance_id=answers[1]) == "stopped", "staging's sleeps")
        assert cloud.control.state(instance_id=answers[0]) == "running"
        assert one.ask(BUILDER.org, BUILDER.name) == answers[0]


def test_names_with_dots_are_told_apart(tmp_path: Path, seen: Path) -> None:
    """`acme.eu/builder` and `acme/eu.builder` are the same letters."""
    keys = [SatelliteKey("acme.eu", "builder"), SatelliteKey("acme", "eu.builder")]
    satellites = {
        key: f"""[satellite.process]
command = ["{sys.executable}", "-P", "{NAMED}", "{{host}}", "{{port}}", "{key}", "{seen}"]"""
        for key in keys
    }
    with edge_daemon(tmp_path, config_text(satellites)) as daemon:
        for key in (*keys, *keys):
            assert daemon.ask(key.org, key.name) == str(key)
        for key, other in (keys, keys[::-1]):
            with pytest.raises(CallError, match="no such satellite"):
                daemon.ask(key.org, key.name, token=token_of(other.org))
    for line in seen.read_text().splitlines():
        name, token = line.split()
        assert token == token_of(name.partition("/")[0])
