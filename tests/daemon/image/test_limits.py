"""The limits that a machine computes for itself at its boot, and the cgroups that BuildKit's start makes."""

import json
import os
from pathlib import Path

import pytest

from beds.machines.rendered import machines_of_the_sample
from bentpipe.daemon.image.programs import enclose, limits, settings
from bentpipe.daemon.image.programs.settings import SatelliteSettings, SetupError, limits_of, load_settings

GIB = 1 << 30


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """satellite.json as the sample's first machine has it."""
    image = machines_of_the_sample()[0].image()
    [file] = [each for each in image.common if each.path == str(settings.SETTINGS)]
    place = tmp_path / "satellite.json"
    place.write_text(file.content)
    return place


def with_memory(folder: Path, kib: int) -> Path:
    proc = folder / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text(f"MemTotal:       {kib} kB\nMemFree:        1 kB\n")
    return proc


def test_the_cpu_share_is_of_all_cores(told: Path) -> None:
    given = load_settings(told)
    assert limits_of(given, 1, 8 * GIB).cpu_quota_percent == 95
    assert limits_of(given, 96, 8 * GIB).cpu_quota_percent == 9120


def test_the_reserve_is_left_and_steps_cannot_take_buildkits_part(told: Path) -> None:
    given = load_settings(told)
    found = limits_of(given, 2, 8 * GIB)
    assert found.slice_bytes == 8 * GIB - given.memory_reserve_bytes
    assert found.steps_bytes == found.slice_bytes - given.memory_buildkit_bytes


def test_a_machine_that_is_too_small_is_refused_and_not_squeezed(told: Path) -> None:
    with pytest.raises(SetupError, match="larger machine"):
        limits_of(load_settings(told), 2, GIB)


def test_the_drop_in_is_for_this_machine(told: Path, tmp_path: Path) -> None:
    given = load_settings(told)
    lines = limits.drop_in(given, with_memory(tmp_path, 4 << 20)).splitlines()
    cores = os.sysconf("SC_NPROCESSORS_ONLN")
    assert f"CPUQuota={95 * cores}%" in lines
    assert f"MemoryMax={4 * GIB - given.memory_reserve_bytes}" in lines
    assert not any("IO" in line for line in lines)


def test_a_limit_of_io_is_for_the_disk_of_the_cache(told: Path, tmp_path: Path) -> None:
    raw = json.loads(told.read_text()) | {"io_max_bytes_per_s": 1000}
    proc = with_memory(tmp_path, 4 << 20)
    on_device = limits.drop_in(SatelliteSettings(**raw), proc)
    assert "IOWriteBandwidthMax=/dev/sdf 1000" in on_device.splitlines()
    in_file = limits.drop_in(SatelliteSettings(**raw | {"cache_device": ""}), proc)
    assert "IOReadBandwidthMax=/ 1000" in in_file.splitlines()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("{", "render the satellite's image again"),
        ("[]", "not an object"),
        ('{"flavour": "moby"}', "newer than the daemon"),
    ],
)
def test_settings_that_cannot_be_read_make_no_limits(broken: str, words: str, tmp_path: Path) -> None:
    place = tmp_path / "satellite.json"
    place.write_text(broken)
    with pytest.raises(SetupError, match=words):
        load_settings(place)


def test_a_key_of_a_newer_daemon_does_not_stop_the_machine(told: Path) -> None:
    before = load_settings(told)
    told.write_text(json.dumps(json.loads(told.read_text()) | {"of_tomorrow": 1}))
    assert load_settings(told) == before


def test_a_value_of_the_wrong_kind_is_named(told: Path) -> None:
    told.write_text(json.dumps(json.loads(told.read_text()) | {"pids_max": "many"}))
    with pytest.raises(SetupError, match="pids_max"):
        load_settings(told)


def test_the_generator_writes_nothing_if_it_is_not_sure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """buildkitd.service asserts that the file is there."""
    monkeypatch.setattr(limits, "_say", lambda words: os.write(2, words.encode()))
    assert limits.main(str(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []
    assert "BuildKit will not start" in capfd.readouterr().err


def test_buildkit_and_its_steps_are_divided(tmp_path: Path) -> None:
    enclose.divide(tmp_path, 5 * GIB, GIB, 777)
    read = {str(each.relative_to(tmp_path)): each.read_text() for each in tmp_path.rglob("*") if each.is_file()}
    assert read["steps/memory.max"] == str(5 * GIB)
    assert read["steps/pids.max"] == "777"
    assert read["steps/memory.swap.max"] == "0"
    assert read["daemon/memory.min"] == str(GIB)
    assert read["daemon/cgroup.procs"] == str(os.getpid())
    assert "daemon/memory.max" not in read
    assert "daemon/pids.max" not in read
    assert not any(name.endswith("memory.high") for name in read)


def test_a_limit_that_cannot_be_set_is_the_end_of_the_start(tmp_path: Path) -> None:
    (tmp_path / "steps" / "pids.max").mkdir(parents=True)
    with pytest.raises(SetupError, match=r"pids\.max"):
        enclose.divide(tmp_path, GIB, GIB, 777)


def test_cgroup_v1_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("3:memory:/a\n0::/\n")
    with pytest.raises(SetupError, match="unified_cgroup_hierarchy"):
        enclose.own_cgroup(tmp_path, tmp_path)
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "self" / "cgroup").write_text("0::/builds.slice/buildkitd.service\n")
    assert enclose.own_cgroup(tmp_path, tmp_path) == tmp_path / "builds.slice/buildkitd.service"
