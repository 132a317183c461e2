"""Makes a machine's user data for its launch: its settings, and what it needs to enrol. It must never launch anything."""

import dataclasses
import hashlib
import json

import trio

from bentpipe.config.model import MachineTypeSection, SatelliteSection
from bentpipe.daemon.image.files import ImageFile
from bentpipe.daemon.image.render import enrolment_file, render_image
from bentpipe.daemon.image.user_data import cloud_config, own_config, packed
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.satellite_ca import SatelliteCa

DIGESTED = ("provider", "size", "platform", "ec2", "sleep_mode", "tls")
"""Keys of a machine type, beside its user data, that say what its machines are."""


@dataclasses.dataclass(frozen=True, slots=True)
class UserDataMaker:
    """Always makes the same user data of the same launch, since EC2 refuses a repetition that differs."""

    satellite_ca: SatelliteCa | None

    async def make(self, section: SatelliteSection, launch: str) -> bytes:
        """The user data for a launch's token; empty if the machine needs none. Raises ProviderError."""
        own = await self._enrolment_of(section, launch)
        return self._made(section, () if own is None else (own,))

    async def make_own(self, section: SatelliteSection, launch: str) -> bytes:
        """What a machine needs that has been in the reserve; empty if it needs nothing more. Raises ProviderError."""
        own = await self._enrolment_of(section, launch)
        return b"" if own is None else own_config(own)

    async def make_spare(self, kind: MachineTypeSection) -> bytes:
        """The user data of a machine of the reserve: no name and no token, which it gets when it is assigned."""
        await trio.lowlevel.checkpoint()
        return self._made(kind.satellite("", ""), ())

    async def digest_of(self, kind: MachineTypeSection) -> str:
        """What the type's machines in the reserve are made of, as a hash: after a change they are replaced."""
        fields = kind.model_dump(mode="json", include=set(DIGESTED))
        hashed = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
        hashed.update(await self.make_spare(kind))
        return hashed.hexdigest()

    async def _enrolment_of(self, section: SatelliteSection, launch: str) -> ImageFile | None:
        if self.satellite_ca is None:
            return None
        bootstrap = await self.satellite_ca.bootstrap(SatelliteKey(section.org, section.name), launch)
        return None if bootstrap is None else enrolment_file(bootstrap.to_json())

    def _made(self, section: SatelliteSection, own: tuple[ImageFile, ...]) -> bytes:
        if section.image is not None:
            image = render_image(section, section.image)
            return packed(cloud_config((*image.settings, *own), image.start))
        return packed(cloud_config(own)) if own else b""
