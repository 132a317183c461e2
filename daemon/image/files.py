"""The files that make a machine a satellite. Pure values; it must never touch a disk."""

import dataclasses

PLAIN, EXECUTABLE, SECRET = 0o644, 0o755, 0o600


@dataclasses.dataclass(frozen=True, slots=True)
class ImageFile:
    """A file of the machine: absolute path, text, permissions."""

    path: str
    content: str
    mode: int = PLAIN


@dataclasses.dataclass(frozen=True, slots=True)
class ImageLink:
    """A symbolic link of the machine."""

    path: str
    target: str


@dataclasses.dataclass(frozen=True, slots=True)
class MachineImage:
    """All that makes a machine a satellite."""

    common: tuple[ImageFile, ...]
    """The same on all machines with these settings: they are in the machine image (AMI)."""
    links: tuple[ImageLink, ...]
    """These too: units that are enabled, and units of the distribution that must not run."""
    own: tuple[ImageFile, ...]
    """Of one machine alone: never in a machine image, which another tenant's machine may be made of."""
