"""From a satellite's section to what the keeper is asked to start: port, command line, environment.

Owns all steps between the configuration and the request. Knows nothing of states. Everything here is short and synchronous.
"""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from bentpipe.config.model import ProcessSection
from bentpipe.daemon.errors import ProviderError, ProviderPermanent, ProviderRetryable
from bentpipe.daemon.keeper.protocol import NOTE_BYTES, Field, Tag
from bentpipe.daemon.model import Address
from bentpipe.daemon.ports import PortReservation, reserve_port
from bentpipe.daemon.providers.process.link import PASSING_ERRNOS

INHERITED = ("PATH", "HOME", "LANG")
"""The part of the daemon's environment that a satellite gets. Other variables may hold credentials, or belong to the daemon
alone: with NOTIFY_SOCKET, WATCHDOG_PID and LISTEN_FDS a satellite would speak to systemd in the daemon's name."""
HOME = "HOME"
"""A satellite with a user of its own gets a private folder instead of the daemon's."""
DIGEST_DIGITS = 16


def pick_port(host: str, taken: Collection[int]) -> PortReservation:
    """Reserve a free port that is not in `taken`. Raises ProviderRetryable, ProviderPermanent.

    A process that is not ours may still get the port before the satellite binds it. Then the satellite exits with its own
    message, and the next client that wants it starts it again. No client is sent to the other process: see `listening`.
    """
    try:
        return reserve_port(host, taken)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ProviderRetryable(f"no free port on {host}") from error
        raise _provider_error(f"cannot open a port on {host}", error) from error


def build_environment(section: ProcessSection, own: Mapping[str, str], *, own_user: bool = False) -> dict[str, str]:
    """Build a satellite's environment: a few of the daemon's variables, and those of its section."""
    inherited = {name: own[name] for name in INHERITED if name in own and not (own_user and name == HOME)}
    return {"PATH": os.defpath, **inherited, **section.environment}


def resolve_command(section: ProcessSection, address: Address, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Fill in address and program path. Raises ProviderPermanent if there is no such program or folder.

    The keeper would say so too, but in fewer words. Its user may lack a permission that this process has.
    """
    if section.directory is not None and not section.directory.is_dir():
        raise ProviderPermanent(f"cannot start: no such directory: {section.directory}")
    program, *arguments = (
        argument.replace("{port}", str(address.port)).replace("{host}", address.host) for argument in section.command
    )
    if "/" in program:
        path = Path(section.directory or ".").absolute() / program
        if not path.exists():
            raise ProviderPermanent(f"cannot start: there is no program at {path}")
        if not path.is_file() or not os.access(path, os.X_OK):
            raise ProviderPermanent(f"cannot start: not an executable file: {path}")
        return (str(path), *arguments)
    found = shutil.which(program, path=environment["PATH"])
    if found is None:
        raise ProviderPermanent(f"cannot start: program {program!r} is in no folder of PATH ({environment['PATH']})")
    return (found, *arguments)


def digest_of(section: ProcessSection) -> str:
    """Differs if the section asks for another process."""
    text = section.model_dump_json(exclude={"stop_grace_s"})
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """What the keeper keeps for the next daemon: where the satellite listens, and by which section it was started."""

    address: Address
    digest: str
    is_configured: bool
    """Whether the configuration file names the satellite; else the registry does."""

    def encode(self) -> bytes:
        """As bytes. Raises ProviderPermanent if the keeper would not take them."""
        text = {**dataclasses.asdict(self.address), "digest": self.digest, "configured": self.is_configured}
        data = json.dumps(text).encode()
        if len(data) > NOTE_BYTES:
            raise ProviderPermanent("cannot start: its host has too many characters")
        return data

    @classmethod
    def decode(cls, data: bytes) -> "Note | None":
        """Read one; None if it is not a note of a daemon that this one understands."""
        try:
            told: object = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(told, dict):
            return None
        host, port, digest = told.get("host"), told.get("port"), told.get("digest")
        if not isinstance(host, str) or not isinstance(port, int) or not isinstance(digest, str):
            return None
        return cls(Address(host, port), digest, told.get("configured") is True)


def request_of(section: ProcessSection, note: Note, soft_files: int | None, *, own_user: bool) -> list[Field]:
    """What the keeper is asked to start, all but the name. Raises ProviderPermanent if it has no program or folder."""
    environment = build_environment(section, os.environ, own_user=own_user)
    command = resolve_command(section, note.address, environment)
    folder = section.directory
    if folder is None and not own_user:
        folder = Path()
    fields: list[Field] = [(Tag.ARGUMENT, os.fsencode(each)) for each in command]
    fields += [(Tag.ENVIRONMENT, os.fsencode(f"{name}={value}")) for name, value in environment.items()]
    if folder is not None:
        fields.append((Tag.FOLDER, os.fsencode(folder.absolute())))
    fields += [(Tag.NOTE, note.encode()), (Tag.GRACE_MS, int(section.stop_grace_s * 1000))]
    if soft_files is not None:
        fields.append((Tag.SOFT_FILES, soft_files))
    if own_user:
        fields.append((Tag.OWN_USER, 1))
    return fields


def _provider_error(what: str, error: OSError) -> ProviderError:
    kind = ProviderRetryable if error.errno in PASSING_ERRNOS else ProviderPermanent
    return kind(f"{what}: {error}")
