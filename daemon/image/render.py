"""Renders a satellite's machine image from its settings. Pure, except that it reads its own programs from the package.

It must never decide anything that depends on the machine: programs/ does that on the machine.
"""

import dataclasses
import importlib.resources
import json

from bentpipe.config.image import ImageSection
from bentpipe.config.model import SatelliteSection
from bentpipe.daemon.image.buildkit import buildkit_configuration
from bentpipe.daemon.image.files import EXECUTABLE, SECRET, ImageFile, MachineImage
from bentpipe.daemon.image.places import (
    AUTHORITY,
    ENROLMENT,
    LIBRARY,
    PROGRAMS_PACKAGE,
    RESPONDER,
    RESPONDER_SETTINGS,
    RUNTIME,
)
from bentpipe.daemon.image.programs.settings import (
    BUILDS_CGROUP,
    CACHE,
    SETTINGS,
    SOCKET,
    TEMPLATE,
    SatelliteSettings,
)
from bentpipe.daemon.image.units import render_links, render_units
from bentpipe.responder.bundle import bundle
from bentpipe.responder.settings import ResponderSettings

PROGRAMS = ("settings", "limits", "cache", "enclose", "fetch")
"""Programs that run as modules; `runtime` is a file of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Enrolment:
    """How a new machine gets its certificate. The token is worth nothing once it is used, or some minutes later."""

    daemon: str
    """HOST:PORT at which the machine asks."""
    satellite: str
    """ORG/NAME."""
    token: str
    authority_pem: str
    """The certificate of the daemon's own authority."""


def render_image(machine: SatelliteSection, section: ImageSection, enrolment: Enrolment | None = None) -> MachineImage:
    """Render all files of the machine. Without an enrolment, BuildKit and the responder speak plaintext."""
    port = machine.ec2.port if machine.ec2 is not None else 0
    hibernates = machine.sleep_mode == "hibernate"
    settings = dataclasses.asdict(_settings(section, hibernates=hibernates))
    common = [
        *render_units(section, hibernates=hibernates),
        ImageFile(str(SETTINGS), _json(settings)),
        ImageFile(str(TEMPLATE), buildkit_configuration(section, port, tls=enrolment is not None)),
        ImageFile(RESPONDER_SETTINGS, _json(dataclasses.asdict(_responder(section)))),
        *_programs(),
    ]
    own = []
    if enrolment is not None:
        told = {"daemon": enrolment.daemon, "satellite": enrolment.satellite, "token": enrolment.token}
        own += [ImageFile(ENROLMENT, _json(told), SECRET), ImageFile(AUTHORITY, enrolment.authority_pem)]
    return MachineImage(tuple(common), tuple(render_links()), tuple(own))


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


def _responder(section: ImageSection) -> ResponderSettings:
    cache = section.cache
    return ResponderSettings(
        listen=f"[::]:{section.responder_port}",
        builds_cgroup=BUILDS_CGROUP,
        buildkit_socket=str(SOCKET),
        buildkit_flavor=section.flavour,
        cache=str(CACHE),
        prune_below_percent=cache.prune_below_percent,
        prune_until_percent=cache.prune_until_percent,
        ballast_bytes=cache.ballast_bytes,
    )


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


def _programs() -> list[ImageFile]:
    folder = importlib.resources.files(PROGRAMS_PACKAGE)
    place = f"{LIBRARY}/{PROGRAMS_PACKAGE.replace('.', '/')}"
    files = [ImageFile(f"{place}/{name}.py", (folder / f"{name}.py").read_text()) for name in PROGRAMS]
    runtime = ImageFile(RUNTIME, (folder / "runtime.py").read_text(), EXECUTABLE)
    return [*files, runtime, ImageFile(RESPONDER, bundle())]
