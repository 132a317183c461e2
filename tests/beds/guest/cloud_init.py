"""Debian's own cloud-init in a guest: what it is given, how a stage of it is held up, and how long each took."""

import dataclasses
import time

from beds.guest.image import CLOUD_INIT_OFF
from beds.guest.machine import Guest, GuestError
from bentpipe.daemon.image.files import MachineImage
from bentpipe.daemon.image.programs.settings import BUILDKIT_UNIT
from bentpipe.daemon.image.user_data import cloud_config, packed

SEED = "/var/lib/cloud/seed/nocloud"
"""The folder that the data source NoCloud reads (cloud-init, "NoCloud")."""
FIRST_STAGE, LAST_STAGE = "cloud-init-local.service", "cloud-final.service"
STAGES = (FIRST_STAGE, "cloud-init-network.service", "cloud-config.service", LAST_STAGE)
GO_ON = "/run/go-on"
HELD_UP = f"[Service]\nExecStartPre=/bin/sh -c 'until [ -e {GO_ON} ]; do sleep 0.2; done'\n"
END_DEADLINE_S = 400.0
POLL_S = 0.5


def seed(guest: Guest, image: MachineImage) -> None:
    """Make the guest a machine of our machine image that was launched with user data: it has them from its next boot on."""
    for program in image.programs:
        guest.put(program.path, program.content.encode(), program.mode)
    guest.put(f"{SEED}/user-data", packed(cloud_config((*image.settings, *image.own), image.start)))
    guest.put(f"{SEED}/meta-data", b"instance-id: i-1\n")
    guest.run("rm $1", CLOUD_INIT_OFF)


def hold_up(guest: Guest, stage: str) -> None:
    """At its next boots this stage does not begin before `go_on`. No other is held up any more."""
    guest.run("rm -rf /etc/systemd/system/cloud-*.service.d")
    guest.put(f"/etc/systemd/system/{stage}.d/held-up.conf", HELD_UP.encode())


def is_held_up(guest: Guest, stage: str) -> bool:
    """Whether the stage waits for `go_on`."""
    return guest.run("systemctl show -P SubState $1", stage).strip() == "start-pre"


def go_on(guest: Guest) -> None:
    """Let the stage begin, and return when cloud-init is done. Raises GuestError."""
    guest.run("touch $1", GO_ON)
    deadline = time.monotonic() + END_DEADLINE_S
    ask = "systemctl show -P ActiveState $1"
    while (state := guest.run(ask, LAST_STAGE).strip()) not in ("active", "failed"):
        if time.monotonic() > deadline:
            raise GuestError(f"cloud-init's last stage is {state}:\n{guest.run('systemctl list-jobs')}")
        time.sleep(POLL_S)


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """From when to when something ran, in seconds of uptime."""

    begun_s: float
    ended_s: float

    def __str__(self) -> str:
        return f"{self.ended_s - self.begun_s:.1f} s until {self.ended_s:.1f}"


def _seconds(guest: Guest, unit: str | None, *events: str) -> list[float]:
    """When these happened to a unit, or to systemd itself, in seconds of uptime; 0 if they have not."""
    names = [f"{event}TimestampMonotonic" for event in events]
    said = guest.run('systemctl show "$@"', *(f"--property={name}" for name in names), *([unit] if unit else []))
    found = dict(line.split("=", 1) for line in said.splitlines() if line)
    return [int(found[name]) / 1e6 for name in names]


def boot_spans(guest: Guest) -> dict[str, Span]:
    """What this boot consisted of, by systemd's clock. Spans of cloud-init and of BuildKit may overlap."""
    [kernel_s] = _seconds(guest, None, "Userspace")
    spans = {"kernel": Span(0.0, kernel_s)}
    for stage in STAGES:
        begun_s, ended_s = _seconds(guest, stage, "ExecMainStart", "ExecMainExit")
        if ended_s:
            spans[stage.removesuffix(".service")] = Span(begun_s, ended_s)
    [started_s, listening_s] = _seconds(guest, BUILDKIT_UNIT, "ExecMainStart", "ActiveEnter")
    return spans | {"until BuildKit's start": Span(kernel_s, started_s), "BuildKit": Span(started_s, listening_s)}
