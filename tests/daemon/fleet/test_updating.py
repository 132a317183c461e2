"""What an update is to change, by what the client sends and what machine types there are."""

import pytest

from bentpipe.config.model import MachineTypeSection
from bentpipe.daemon.errors import InvalidRequest, NotServed
from bentpipe.daemon.fleet.updating import Types, WantedUpdate, decide_change, objection_of_types
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.registry.launched import LaunchedSatellite, SatelliteChange

AMD, ARM = "linux/amd64", "linux/arm64"


def kind(size: str, platform: str = AMD, **more: object) -> MachineTypeSection:
    ec2 = {"launch_template": "builder", "instance_type": "m7i.large"}
    sections = {"provider": "ec2", "ec2": ec2, "size": size, "platform": platform}
    return MachineTypeSection.model_validate({**sections, **more})


def command(size: str) -> MachineTypeSection:
    return kind(size, provider="process", ec2=None, process={"command": ["buildkitd", "{port}"]})


IMAGE = {"buildkit": "docker.io/moby/buildkit@sha256:" + "0" * 64, "cache": {"file": "60GiB"}}
ALL = [
    *(kind("small"), kind("big"), kind("small", ARM), kind("big", ARM), kind("arm", ARM)),
    *(kind("imaged", image=IMAGE), command("local"), command("local-big")),
]
TYPES: Types = {(each.size, each.platform): each for each in ALL}


def row(size: str = "small", platform: str = AMD) -> LaunchedSatellite:
    return LaunchedSatellite(SatelliteKey("acme", "a"), size, platform, "ada", 1)


@pytest.mark.parametrize(
    ("now", "wanted", "then"),
    [
        (row(), WantedUpdate(), None),
        (row(), WantedUpdate("small", AMD), None),
        (row(), WantedUpdate("big"), ("big", AMD, False)),
        (row(), WantedUpdate("big", AMD, drop_cache=True), ("big", AMD, True)),
        (row(), WantedUpdate(drop_cache=True), ("small", AMD, True)),
        (row(), WantedUpdate(platform=ARM), ("small", ARM, False)),
        (row("small", ARM), WantedUpdate("big", AMD), ("big", ARM, False)),  # the CLI always sends this platform
        (row("small", ARM), WantedUpdate("", AMD), None),
        (row("local"), WantedUpdate("local-big"), ("local-big", AMD, False)),
    ],
)
def test_what_is_to_change(now: LaunchedSatellite, wanted: WantedUpdate, then: tuple[str, str, bool] | None) -> None:
    assert decide_change(now, wanted, TYPES, 7) == (None if then is None else SatelliteChange(*then, at_us=7))


@pytest.mark.parametrize("wanted", [WantedUpdate("huge"), WantedUpdate("arm"), WantedUpdate(platform="windows/amd64")])
def test_there_is_no_such_machine_type(wanted: WantedUpdate) -> None:
    with pytest.raises(InvalidRequest, match=r"there are: small \(linux/amd64\), big"):
        decide_change(row(), wanted, TYPES, 7)


def test_a_commands_files_are_its_own() -> None:
    with pytest.raises(NotServed, match="keeps its files"):
        decide_change(row("local"), WantedUpdate("small", drop_cache=True), TYPES, 7)


def test_what_only_another_machine_can_be() -> None:
    def objection(size: str, platform: str) -> str:
        return objection_of_types(row(), SatelliteChange(size, platform, replace=False, at_us=7), TYPES)

    assert objection("big", AMD) == ""
    assert "platform" in objection("small", ARM)
    assert "settings of what runs" in objection("imaged", AMD)
