"""The first boot of a satellite as its user data make it, and what `bentpipe-doctor` says of a machine whose kernel it asks.

cloud-init is not in the guest: the test writes the files as it does, and queues the unit that `bootcmd` queues.
"""

import shlex
from collections.abc import Iterator

import pytest
import yaml

from beds.guest.image import guest_image
from beds.guest.machine import Guest, GuestError
from beds.guest.satellite import START_DEADLINE_S, GuestSatellite, rendered_image
from beds.peers.builds import Missing
from bentpipe.daemon.image.programs.settings import BUILDKIT_UNIT, BUILDS_CGROUP
from bentpipe.daemon.image.user_data import cloud_config

pytestmark = pytest.mark.slow

CLOUD_INIT_PER = ("cloud-init-per", "instance")
DOCTOR_DEADLINE_S = 90.0
STAGE = """[Service]
Type=oneshot
ExecStart=/bin/sh -c 'until [ -e /run/written ]; do sleep 0.1; done'
"""
"""Stands for cloud-init's network stage: it ends when the files are written."""


def await_ready(guest: Guest) -> None:
    GuestSatellite(guest, guest_image()).await_ready()


def doctor(guest: Guest) -> tuple[int, str]:
    """(exit code, output)."""
    said = guest.run("bentpipe-doctor && echo code 0 || echo code $?", deadline_s=DOCTOR_DEADLINE_S)
    lines, _, code = said.rstrip().rpartition("\ncode ")
    return int(code), lines


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    try:
        running = Guest(guest_image())
    except Missing as exc:
        pytest.skip(str(exc))
    image = rendered_image()
    told = yaml.safe_load(cloud_config((*image.settings, *image.own), image.start))
    with running:
        for program in image.programs:
            running.put(program.path, program.content.encode(), program.mode)
        running.put("/run/systemd/system/cloud-init.service", STAGE.encode())
        running.run("systemctl daemon-reload; systemctl start --no-block cloud-init.service")
        [first] = told["bootcmd"]
        assert tuple(first[:2]) == CLOUD_INIT_PER
        running.run(shlex.join(first[3:]))
        for file in told["write_files"]:
            running.put(file["path"], file["content"].encode(), int(file["permissions"], 8))
        running.run("touch /run/written")
        await_ready(running)
        yield running


def test_the_doctor_finds_no_fault(guest: Guest) -> None:
    code, said = doctor(guest)
    assert "FAIL" not in said, said
    assert code == 0
    for words in ("daemon, beside the steps'", "closed to builds", "of the same version as the settings"):
        assert words in said


def test_a_buildkit_that_was_killed_comes_back_within_its_limits(guest: Guest) -> None:
    before = guest.run("systemctl show -P MainPID $1", BUILDKIT_UNIT)
    guest.run("kill -KILL $(systemctl show -P MainPID $1); sleep 2", BUILDKIT_UNIT)
    await_ready(guest)
    assert guest.run("systemctl show -P MainPID $1", BUILDKIT_UNIT) != before
    code, said = doctor(guest)
    assert code == 0, said


def test_a_limit_that_somebody_has_lifted_is_told(guest: Guest) -> None:
    guest.run("echo max >/sys/fs/cgroup/$1/pids.max", BUILDS_CGROUP)
    code, said = doctor(guest)
    assert code == 1
    [fault] = [line for line in said.splitlines() if line.startswith("FAIL")]
    assert "builds' processes" in fault
    guest.run("systemctl restart $1", fault.rpartition("systemctl restart ")[2], deadline_s=START_DEADLINE_S)
    assert doctor(guest)[0] == 0, "the remedy is right"


def test_without_limits_buildkit_does_not_start(guest: Guest) -> None:
    guest.run("mv /etc/bentpipe/satellite.json /etc/bentpipe/gone; systemctl daemon-reload")
    try:
        with pytest.raises(GuestError, match="ssert"):
            guest.run("systemctl restart $1 || { journalctl -u $1 -n 5 -o cat; exit 1; }", BUILDKIT_UNIT)
    finally:
        guest.run("mv /etc/bentpipe/gone /etc/bentpipe/satellite.json; systemctl daemon-reload")
    guest.run("systemctl restart $1", BUILDKIT_UNIT, deadline_s=START_DEADLINE_S)
    assert doctor(guest)[0] == 0


def test_the_next_boot_needs_no_user_data(guest: Guest) -> None:
    before = guest.boot_id()
    guest.run("sync")
    guest.power_off()
    guest.boot()
    assert guest.boot_id() != before
    await_ready(guest)
    assert doctor(guest)[0] == 0
