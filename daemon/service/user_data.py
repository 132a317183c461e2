"""Makes a machine's user data for its launch: its settings, and what it needs to enrol. It must never launch anything."""

import dataclasses

from bentpipe.config.model import SatelliteSection
from bentpipe.daemon.image.files import ImageFile
from bentpipe.daemon.image.render import enrolment_file, render_image
from bentpipe.daemon.image.user_data import cloud_config, packed
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.satellite_ca import SatelliteCa


@dataclasses.dataclass(frozen=True, slots=True)
class UserDataMaker:
    """Always makes the same user data of the same launch, since EC2 refuses a repetition that differs."""

    satellite_ca: SatelliteCa | None

    async def make(self, section: SatelliteSection, launch: str) -> bytes:
        """The user data for a launch's token; empty if the machine needs none. Raises ProviderError."""
        own: tuple[ImageFile, ...] = ()
        if self.satellite_ca is not None:
            bootstrap = await self.satellite_ca.bootstrap(SatelliteKey(section.org, section.name), launch)
            own = () if bootstrap is None else (enrolment_file(bootstrap.to_json()),)
        if section.image is not None:
            image = render_image(section, section.image)
            return packed(cloud_config((*image.settings, *own), image.start))
        return packed(cloud_config(own)) if own else b""
