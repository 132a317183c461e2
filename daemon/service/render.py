"""`bentpipe sat render`: shows what a satellite's machine is made of, or writes it to a folder. It never starts anything."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import click

from bentpipe.config.load import load_config
from bentpipe.config.model import Config, MachineTypeSection, SatelliteSection
from bentpipe.daemon.errors import BentpipeError, Source
from bentpipe.daemon.image.files import EXECUTABLE, ImageFile, MachineImage
from bentpipe.daemon.image.render import render_image
from bentpipe.daemon.image.user_data import LIMIT_BYTES, cloud_config, packed
from bentpipe.daemon.model import SatelliteKey

ROOT_FOLDER = "rootfs"
USER_DATA_NAME = "user-data"
INSTALL_NAME = "install"
INSTALL = """#!/bin/sh
# Copies the files beside this script into the machine image that is being made, whose root is the first argument (by default
# the machine on which this runs).
set -eu
from=$(cd "$(dirname "$0")" && pwd)/rootfs
# Folders that exist keep their owners and permissions.
tar -C "$from" -cf - . | tar -C "${1:-/}" -xpf - --no-overwrite-dir --no-same-owner
"""


class RenderError(BentpipeError):
    """Nothing is rendered: the message says why and what to do."""

    source = Source.OPERATOR


@dataclasses.dataclass(frozen=True, slots=True)
class RenderWish:
    """What `bentpipe sat render` was asked for."""

    config_path: Path
    name: str
    """ORG/NAME, or NAME if no other org of the file has it."""
    machine_type: str | None
    """SIZE or SIZE/PLATFORM: then the satellite need not be in the file."""
    out: Path | None


def run_render(wish: RenderWish) -> None:
    """Print the files, or write them. Raises ConfigErrors, RenderError and OSError."""
    machine = _machine_of(load_config(wish.config_path, check_files=False), wish)
    if machine.image is None:
        raise RenderError(_no_image(machine))
    image = render_image(machine, machine.image)
    if wish.out is None:
        for piece in _shown(image):
            click.echo(piece)
        return
    _write(image, wish.out)
    click.echo(
        f"{wish.out}/{ROOT_FOLDER}: {len(image.programs)} programs for the machine image; {wish.out}/{INSTALL_NAME} copies "
        f"them. {wish.out}/{USER_DATA_NAME}: what a launch gives the machine"
    )


def _machine_of(config: Config, wish: RenderWish) -> SatelliteSection:
    org, _, name = wish.name.rpartition("/")
    if wish.machine_type is not None:
        return _type_of(config, wish.machine_type).satellite(org or "ORG", name)
    found = [each for each in config.satellite if each.name == name and org in ("", each.org)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RenderError(f"{', '.join(each.org for each in found)} have a satellite {name!r}: give ORG/NAME")
    types = ", ".join(f"{each.size}/{each.platform}" for each in config.machine_type) or "none"
    raise RenderError(
        f"{wish.config_path} has no satellite {wish.name!r}. If it is launched by clients, give its --machine-type: {types}"
    )


def _type_of(config: Config, wanted: str) -> MachineTypeSection:
    size, _, platform = wanted.partition("/")
    for each in config.machine_type:
        if each.size == size and platform in ("", each.platform):
            return each
    types = ", ".join(f"{each.size}/{each.platform}" for each in config.machine_type) or "there is none"
    raise RenderError(f"no [[machine_type]] is {wanted!r}: {types}")


def _no_image(machine: SatelliteSection) -> str:
    called = SatelliteKey(machine.org, machine.name)
    if machine.process is not None:
        return (
            f"{called} is a process on the edge host: {' '.join(machine.process.command)}. Nothing is rendered for it: "
            "it runs within the host's own limits. A section image is for provider 'ec2'"
        )
    return (
        f"{called} has no section image, so its machine is what its launch template or its owner has made it. Add "
        "[satellite.image] or [machine_type.image] to let bentpipe render it"
    )


def _shown(image: MachineImage) -> Iterator[str]:
    yield "# In the machine image (AMI): `--out DIR` writes them, and DIR/install copies them."
    for file in image.programs:
        yield f"==> {file.path} ({file.mode:04o}, {len(file.content.encode())} bytes)"
    yield f"\n# In the user data ({len(packed(_user_data(image)))} of at most {LIMIT_BYTES} bytes, compressed if need be)."
    for file in image.settings:
        yield f"==> {file.path} ({file.mode:04o})\n{file.content}"
    yield f"==> at the first boot, after cloud-init has written them\n{image.start}"


def _user_data(image: MachineImage) -> str:
    return cloud_config(image.settings, image.start)


def _write(image: MachineImage, out: Path) -> None:
    root = out / ROOT_FOLDER
    if root.exists():
        raise RenderError(f"{root} exists: remove it, or give another folder")
    for file in image.programs:
        _write_file(root, file)
    (out / USER_DATA_NAME).write_bytes(packed(_user_data(image)))
    _write_file(out, ImageFile(INSTALL_NAME, INSTALL, EXECUTABLE))


def _write_file(root: Path, file: ImageFile) -> None:
    place = root / file.path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    # The permissions are there from the beginning, whatever the umask.
    place.touch(mode=file.mode)
    os.chmod(place, file.mode)
    place.write_text(file.content)
