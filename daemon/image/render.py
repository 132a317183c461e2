"""Renders a satellite's machine image from its settings. Pure, except that it reads its own programs from the package.

It must never decide anything that depends on the machine: programs/ does that on the machine.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import json
from collections.abc import Sequence

from bentpipe.config.image import ImageSection
from bentpipe.config.model import SatelliteSection
from bentpipe.daemon.image.buildkit import buildkit_configuration, cni_configuration
from bentpipe.daemon.image.files import EXECUTABLE, SECRET, ImageFile, MachineImage
from bentpipe.daemon.image.places import (
    AUTHORITY,
    CNI,
    DOCTOR,
    ENROL,
    ENROLMENT,
    IDENTITY,
    LIBRARY,
    PROGRAMS_PACKAGE,
    PYTHON,
    RESPONDER,
)
from bentpipe.daemon.image.programs.settings import (
    BUILDS_CGROUP,
    CACHE,
    PROGRAM_SUMS,
    RESPONDER_SETTINGS,
    RUNTIME,
    SETTINGS,
    SOCKET,
    TEMPLATE,
    SatelliteSettings,
)
from bentpipe.daemon.image.units import render_links, render_start, render_units
from bentpipe.daemon.responder.bundle import PACKAGE, bundle
from bentpipe.daemon.responder.enrol import DAEMON_NAME
from bentpipe.daemon.responder.settings import ResponderSettings

PROGRAMS = (
    "settings",
    "limits",
    "cache",
    "enclose",
    "fetch",
    "findings",
    "looks",
    "check_limits",
    "check_disks",
    "check_programs",
    "check_identity",
    "doctor",
)
"""Programs that run as modules; `runtime` is a file of its own."""


def render_image(machine: SatelliteSection, section: ImageSection) -> MachineImage:
    """Render all files of the machine. Unless its certificate is issued, BuildKit and the responder speak plaintext."""
    enrols = machine.has_issued_tls
    port = machine.ec2.port if machine.ec2 is not None else 0
    hibernates = machine.sleep_mode == "hibernate"
    settings = dataclasses.asdict(_settings(section, hibernates=hibernates))
    programs = own_programs()
    told = [
        *render_units(section, hibernates=hibernates, enrols_for=port if enrols else None),
        ImageFile(str(SETTINGS), _json(settings)),
        ImageFile(str(TEMPLATE), buildkit_configuration(section, port, tls=enrols)),
        ImageFile(RESPONDER_SETTINGS, _json(_told(_responder(section, tls=enrols)))),
        ImageFile(str(PROGRAM_SUMS), _sums(programs)),
        *([ImageFile(CNI, cni_configuration(section))] if section.network == "cni" else []),
    ]
    return MachineImage(
        programs=programs,
        settings=tuple(told),
        links=tuple(render_links(enrols=enrols)),
        start=render_start(enrols=enrols),
    )


def enrolment_file(text: str) -> ImageFile:
    """The file of a machine's own by which it gets its certificate: see daemon/responder/enrol.py."""
    return ImageFile(ENROLMENT, text, SECRET)


def _settings(section: ImageSection, *, hibernates: bool) -> SatelliteSettings:
    cache = section.cache
    return SatelliteSettings(
        flavour=section.flavour,
        programs=str(section.programs_folder),
        image=section.buildkit if section.digest else "",
        runc=section.runc,
        cpu_percent=section.cpu_percent,
        memory_reserve_bytes=section.memory_reserve_bytes,
        memory_buildkit_bytes=section.memory_buildkit_bytes,
        pids_max=section.pids_max,
        io_max_bytes_per_s=section.io_max_bytes_per_s,
        cache_device=cache.device or "",
        cache_file_bytes=cache.file_bytes or 0,
        cache_filesystem=cache.filesystem,
        keep_percent=cache.keep_percent,
        sources_percent=cache.sources_percent,
        hibernates=hibernates,
    )


def _responder(section: ImageSection, *, tls: bool) -> ResponderSettings:
    cache = section.cache
    plain = ResponderSettings(
        listen=f"[::]:{section.responder_port}",
        builds_cgroup=BUILDS_CGROUP,
        buildkit_socket=str(SOCKET),
        buildkit_flavor=section.flavour,
        cache=str(CACHE),
        prune_below_percent=cache.prune_below_percent,
        prune_until_percent=cache.prune_until_percent,
        ballast_bytes=cache.ballast_bytes,
    )
    if not tls:
        return plain
    return dataclasses.replace(plain, certificate=IDENTITY, key=IDENTITY, client_ca=AUTHORITY, client_name=DAEMON_NAME)


def _told(settings: ResponderSettings) -> dict[str, object]:
    """All but the defaults: an older responder, of a machine image that was not made again, refuses keys that are new."""
    defaults = {each.name: each.default for each in dataclasses.fields(settings)}
    return {name: value for name, value in dataclasses.asdict(settings).items() if value != defaults[name]}


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


def _sums(programs: Sequence[ImageFile]) -> str:
    """The programs' digests, as sha256sum(1) writes and checks them."""
    return "".join(f"{hashlib.sha256(each.content.encode()).hexdigest()}  {each.path}\n" for each in programs)


@functools.cache
def own_programs() -> tuple[ImageFile, ...]:
    """Our programs, read once. They are the same for all settings, so one machine image serves every type."""
    folder = importlib.resources.files(PROGRAMS_PACKAGE)
    place = f"{LIBRARY}/{PROGRAMS_PACKAGE.replace('.', '/')}"
    files = [ImageFile(f"{place}/{name}.py", (folder / f"{name}.py").read_text()) for name in PROGRAMS]
    runtime = ImageFile(RUNTIME, (folder / "runtime.py").read_text(), EXECUTABLE)
    doctor = ImageFile(DOCTOR, _shell(f'PYTHONPATH={LIBRARY} exec {PYTHON} {PROGRAMS_PACKAGE}.doctor "$@"'), EXECUTABLE)
    enrol = ImageFile(ENROL, importlib.resources.files(PACKAGE).joinpath("enrol.py").read_text())
    return (*files, runtime, doctor, ImageFile(RESPONDER, bundle()), enrol)


def _shell(command: str) -> str:
    return f"#!/bin/sh\n{command}\n"
