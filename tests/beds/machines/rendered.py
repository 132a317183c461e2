"""What the sample's machines are rendered to, as files in a folder that stands for the machine's root."""

import dataclasses
from pathlib import Path

from bentpipe.config.image import ImageSection
from bentpipe.config.load import load_config
from bentpipe.config.model import SatelliteSection, SatelliteTlsSection
from bentpipe.daemon.image.files import MachineImage
from bentpipe.daemon.image.render import enrolment_file, render_image

SAMPLE = Path(__file__).parents[3] / "config" / "sample.toml"
TOKEN = "token: 'one' use"
OWN = (enrolment_file(f'{{\n "token": "{TOKEN}",\n "trusted": "-----BEGIN CERTIFICATE-----\\nMA=="\n}}\n'),)
"""What a machine that enrols has of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class RenderedMachine:
    """A satellite or a machine type of the sample that is rendered."""

    name: str
    machine: SatelliteSection
    section: ImageSection

    def image(self, *, issued: bool = True) -> MachineImage:
        """Its files, with a certificate that the daemon issues or without TLS."""
        tls = SatelliteTlsSection(issued=True) if issued else None
        image = render_image(self.machine.model_copy(update={"tls": tls}), self.section)
        return dataclasses.replace(image, own=OWN if issued else ())


def machines_of_the_sample() -> list[RenderedMachine]:
    """Every machine of config/sample.toml that bentpipe renders."""
    config = load_config(SAMPLE, check_files=False)
    satellites = [(f"{each.org}-{each.name}", each) for each in config.satellite]
    types = [(f"type-{each.size}", each.satellite("acme", "launched")) for each in config.machine_type]
    return [RenderedMachine(name, each, each.image) for name, each in (*satellites, *types) if each.image is not None]


def written(image: MachineImage, root: Path) -> Path:
    """Write all files below `root`, and return it."""
    for file in (*image.common, *image.own):
        place = root / file.path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(file.content)
        place.chmod(file.mode)
    return root
