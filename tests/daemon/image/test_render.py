"""What is rendered for each machine of the sample is accepted by systemd and cloud-init, and says what was configured."""

import gzip
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from beds.machines.rendered import TOKEN, RenderedMachine, machines_of_the_sample, written
from bentpipe.config.image import ImageSection
from bentpipe.daemon.image.files import SECRET, ImageFile
from bentpipe.daemon.image.programs.settings import SatelliteSettings
from bentpipe.daemon.image.units import device_unit
from bentpipe.daemon.image.user_data import LIMIT_BYTES, UserDataTooLarge, cloud_config, own_config, packed
from bentpipe.daemon.responder.settings import load_settings

MACHINES = machines_of_the_sample()
each_machine = pytest.mark.parametrize("machine", MACHINES, ids=[each.name for each in MACHINES])


def file_of(machine: RenderedMachine, ending: str) -> str:
    image = machine.image()
    [found] = [each.content for each in (*image.common, *image.own) if each.path.endswith(ending)]
    return found


def user_data(machine: RenderedMachine, *, issued: bool = True) -> str:
    image = machine.image(issued=issued)
    return cloud_config((*image.settings, *image.own), image.start)


def test_the_sample_has_both_flavours_and_both_places_of_a_cache() -> None:
    assert {each.section.flavour for each in MACHINES} == {"moby", "earthly"}
    assert {each.section.cache.device is None for each in MACHINES} == {True, False}


@each_machine
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(machine: RenderedMachine, tmp_path: Path) -> None:
    units = written(machine.image(), tmp_path) / "etc" / "systemd" / "system"
    names = [str(each) for each in units.iterdir() if each.is_file()]
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", *names],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in verified.stderr.splitlines() if str(units) in line or "bentpipe" in line]
    assert complaints == []
    assert verified.returncode == 0, verified.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_would_complain_of_a_mistake(tmp_path: Path) -> None:
    """So that the test above can fail: an unknown key is a complaint that names the file."""
    units = written(MACHINES[0].image(), tmp_path) / "etc" / "systemd" / "system"
    unit = units / "buildkitd.service"
    unit.write_text(unit.read_text().replace("OOMPolicy=continue", "OOMPolicy=maybe"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "buildkitd.service" in verified.stderr
    assert "OOMPolicy" in verified.stderr or "OOM policy" in verified.stderr


@each_machine
@pytest.mark.skipif(shutil.which("cloud-init") is None, reason="cloud-init is not installed")
def test_cloud_init_accepts_the_user_data(machine: RenderedMachine, tmp_path: Path) -> None:
    for issued in (True, False):
        path = tmp_path / "user-data"
        path.write_text(user_data(machine, issued=issued))
        done = subprocess.run(
            ["cloud-init", "schema", "--config-file", str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Valid" in done.stdout


@pytest.mark.skipif(shutil.which("cloud-init") is None, reason="cloud-init is not installed")
def test_cloud_init_accepts_what_a_machine_of_the_reserve_is_told(tmp_path: Path) -> None:
    file = ImageFile("/etc/bentpipe/enrolment.json", '{"token": "a"}\n', SECRET)
    path = tmp_path / "user-data"
    path.write_bytes(own_config(file))
    done = subprocess.run(
        ["cloud-init", "schema", "--config-file", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [read] = yaml.safe_load(path.read_text())["write_files"]
    assert ImageFile(read["path"], read["content"], int(read["permissions"], 8)) == file


@each_machine
def test_the_user_data_say_each_file_exactly(machine: RenderedMachine) -> None:
    image = machine.image()
    read = yaml.safe_load(user_data(machine))
    found = [ImageFile(each["path"], each["content"], int(each["permissions"], 8)) for each in read["write_files"]]
    assert tuple(found) == (*image.settings, *image.own)
    assert "runcmd" not in read, "it would wait for multi-user.target"
    [first] = read["bootcmd"]
    assert first[-1] == image.start
    secrets = [each for each in found if TOKEN in each.content]
    assert [each.mode for each in secrets] == [SECRET]


@each_machine
def test_no_secret_is_in_what_several_machines_share(machine: RenderedMachine) -> None:
    image = machine.image()
    plain = machine.image(issued=False)
    assert not any(TOKEN in each.content for each in image.common)
    units = ("buildkitd.service", "bentpipe-responder.service", "bentpipe-enrol.service")
    differing = {each.path for each in set(image.common) ^ set(plain.common)}
    assert differing == {
        *("/etc/bentpipe/buildkitd.toml", "/etc/bentpipe/responder.json"),
        *(f"/etc/systemd/system/{each}" for each in units),
    }


@each_machine
def test_the_user_data_fit_and_one_machine_image_serves_every_type(machine: RenderedMachine) -> None:
    compressed = gzip.compress(user_data(machine).encode())
    assert len(compressed) < LIMIT_BYTES // 2, "the rest is for additional_config and certificates"
    assert machine.image().programs == MACHINES[0].image(issued=False).programs


def test_user_data_are_packed_alike_each_time_and_refused_if_ec2_would() -> None:
    text = cloud_config((ImageFile("/a", "x\n" * 50_000),))
    assert packed("#cloud-config\n") == b"#cloud-config\n"
    assert packed(text) == packed(text)
    assert gzip.decompress(packed(text)).decode() == text
    noise = cloud_config((ImageFile("/a", os.urandom(LIMIT_BYTES).hex() + "\n"),))
    with pytest.raises(UserDataTooLarge, match=str(LIMIT_BYTES)):
        packed(noise)


@each_machine
def test_the_settings_are_what_the_programs_read(machine: RenderedMachine) -> None:
    settings = SatelliteSettings(**json.loads(file_of(machine, "/satellite.json")))
    assert settings.cpu_percent == machine.section.cpu_percent
    assert settings.pids_max == machine.section.pids_max
    assert bool(settings.cache_device) != bool(settings.cache_file_bytes)


@each_machine
def test_the_responder_reads_its_settings(machine: RenderedMachine, tmp_path: Path) -> None:
    root = written(machine.image(), tmp_path)
    settings = load_settings(str(root / "etc/bentpipe/responder.json"))
    assert settings.buildkit_flavor == machine.section.flavour
    assert settings.builds_cgroup == "builds.slice/buildkitd.service/steps"
    compile((root / "usr/local/lib/bentpipe/responder.py").read_text(), "responder.py", "exec")


@each_machine
def test_no_unit_has_a_limit_that_ends_what_must_live(machine: RenderedMachine) -> None:
    buildkit = file_of(machine, "/buildkitd.service")
    assert {"TimeoutStartSec=infinity", "OOMPolicy=continue", "TasksMax=infinity", "Delegate=yes"} <= set(
        buildkit.splitlines()
    )
    for name in ("/builds.slice", "/buildkitd.service"):
        highs = re.findall(r"^MemoryHigh=(.*)$", file_of(machine, name), re.MULTILINE)
        assert set(highs) <= {"infinity"}
    for name in ("/responder.slice", "/bentpipe-responder.service"):
        assert re.search(r"^MemoryMin=\d+M$", file_of(machine, name), re.MULTILINE)
    assert "169.254.169.254" in file_of(machine, "/builds.slice")


@each_machine
def test_a_volume_may_come_late(machine: RenderedMachine) -> None:
    """systemd gives a device up after 90 s, and then nothing would start the cache again."""
    drop_ins = [each for each in machine.image().common if ".device.d/" in each.path]
    device = machine.section.cache.device
    assert [each.path for each in drop_ins] == (
        [] if device is None else [f"/etc/systemd/system/{device_unit(device)}.d/50-bentpipe.conf"]
    )
    assert all("JobRunningTimeoutSec=infinity" in each.content.splitlines() for each in drop_ins)


@each_machine
def test_no_unit_waits_for_the_network_or_for_cloud_init(machine: RenderedMachine) -> None:
    """On Debian and Ubuntu the usual dependencies would: cloud-init's network stage comes before sysinit.target."""
    for each in machine.image().common:
        lines = each.content.splitlines()
        if each.path.endswith(".service"):
            assert {"DefaultDependencies=no", "Conflicts=shutdown.target", "Before=shutdown.target"} <= set(lines), (
                each.path
            )
        waited_for = {
            name for line in lines if line.startswith("After=") for name in line.removeprefix("After=").split()
        }
        assert not waited_for & {"network.target", "network-online.target", "sysinit.target", "basic.target"}, each.path
        assert not any(name.startswith("cloud-") for name in waited_for), each.path


def test_a_folder_of_programs_needs_no_fetch() -> None:
    section = MACHINES[0].section.model_copy(update={"buildkit": "/opt/buildkit"})
    image = RenderedMachine("", MACHINES[0].machine, section).image()
    assert not any("fetch.service" in each.path for each in image.common)
    assert json.loads(file_of(RenderedMachine("", MACHINES[0].machine, section), "/satellite.json"))["image"] == ""


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="systemd-escape is not installed")
@pytest.mark.parametrize("path", ["/dev/sdf", "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store-vol0", "/dev/a.b_c"])
def test_a_device_has_the_unit_that_systemd_names(path: str) -> None:
    escaped = subprocess.run(
        ["systemd-escape", "--path", "--suffix=device", path], capture_output=True, text=True, check=True
    )
    assert device_unit(path) == escaped.stdout.strip()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"buildkit": "docker.io/moby/buildkit:latest"}, "buildkit"),
        ({"buildkit": "docker.io/moby/buildkit@sha256:12"}, "buildkit"),
        ({"network": "bridge"}, "network"),
        ({"cni_subnet": "172.30.0.1/16"}, "cni_subnet"),
        ({"health": {"frequency": "5s"}}, "no setting for health"),
        ({"additional_config": "debug = true"}, "header of a table"),
        ({"cache": {}}, "exactly one"),
        ({"cache": {"device": "/dev/sdf", "file": "10GiB"}}, "exactly one"),
        ({"cache": {"device": "/etc/passwd"}}, "device"),
        ({"cache": {"file": "1GiB", "ballast": "512MiB"}}, "quarter"),
        ({"cache": {"device": "/dev/sdf", "keep_percent": 90, "prune_below_percent": 20}}, "more"),
        ({"cache": {"device": "/dev/sdf", "prune_below_percent": 20, "prune_until_percent": 20}}, "more than"),
        ({"cpu_percent": 101}, "cpu_percent"),
        ({"runc": "runc; reboot"}, "runc"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_words(change: dict[str, object], words: str) -> None:
    fine = {"buildkit": "/opt/buildkit", "cache": {"device": "/dev/sdf"}}
    ImageSection.model_validate(fine)
    with pytest.raises(ValueError, match=words):
        ImageSection.model_validate(fine | change)
