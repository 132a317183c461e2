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

    programs: tuple[ImageFile, ...]
    """Programs of ours. They are in the machine image (AMI), since user data have no room for them."""
    settings: tuple[ImageFile, ...]
    """All that follows from the configuration: units, limits, BuildKit's configuration. They are in the user data."""
    links: tuple[ImageLink, ...]
    """As `systemctl enable` and `systemctl mask` make them."""
    start: str
    """A shell's commands that make the links and start the satellite, on a machine that has just got the files."""
    own: tuple[ImageFile, ...] = ()
    """Of one machine alone: in the user data too, and never in a machine image, which has no machine's secrets."""

    @property
    def common(self) -> tuple[ImageFile, ...]:
        """All files that are the same on all machines with these settings."""
        return (*self.programs, *self.settings)
