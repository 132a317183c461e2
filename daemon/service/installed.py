"""The installed service as its unit describes it, for commands that an operator runs beside it in a shell.

systemd gives the daemon folders and credentials by its environment (systemd.exec(5)). A shell has none of that, so a command
with the service's own configuration would look for the store and the keys in the wrong place.
"""

import dataclasses
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bentpipe.config.load import LoadedConfig, parse_config
from bentpipe.config.model import Config
from bentpipe.config.sources import Texts

UNIT = "bentpipe.service"
PLANE_UNIT = "bentpipe-dataplane@.service"
"""Of a host whose data plane is a process of its own: it has the credentials then, and the daemon is After= it."""
UNIT_FOLDERS = tuple(
    map(
        Path,
        (
            "/etc/systemd/system",
            "/run/systemd/system",
            "/usr/local/lib/systemd/system",
            "/usr/lib/systemd/system",
            "/lib/systemd/system",
        ),
    )
)
"""Where systemd looks for units, first match first (systemd.unit(5))."""

STATE_ROOT, RUNTIME_ROOT = Path("/var/lib"), Path("/run")
MAX_UNIT_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class InstalledService:
    """What a unit says of its daemon."""

    config_path: Path | None
    credentials: Mapping[str, Path]
    """By name, those that LoadCredential= reads from a file of this host, here or in the data plane's unit."""
    plane_credentials: Mapping[str, Path]
    """Those of the data plane's unit; none without such a unit."""
    state_directory: Path | None
    runtime_directory: Path | None
    has_data_plane_unit: bool
    """Whether connections are in a process with a unit of its own."""
    planes: Path | None = None
    """Where the two units meet, as the command lines say it (`--planes`)."""
    plane_sees_listeners: bool = True
    """Whether the data plane's unit lets it see which user listens on a port: RestrictAddressFamilies= and PrivateUsers= may
    forbid it."""


def find_service(folders: Sequence[Path] = UNIT_FOLDERS) -> InstalledService | None:
    """Read the unit and its drop-ins. Returns None if there is no unit. Raises OSError if one cannot be read."""
    settings = _settings_of(UNIT, folders)
    if settings is None:
        return None
    # The data plane's unit may be there beside a service that is one process, and means nothing then.
    template = PLANE_UNIT.partition(".")[0]
    has_data_plane_unit = any(template in value for value in settings.get("After", []))
    plane = (_settings_of(PLANE_UNIT, folders) if has_data_plane_unit else None) or {}
    plane_credentials = dict(_credentials_of(plane.get("LoadCredential", [])))
    return InstalledService(
        _option_of(settings.get("ExecStart", []), "--config"),
        dict(_credentials_of(settings.get("LoadCredential", []))) | plane_credentials,
        plane_credentials,
        _folder_of(STATE_ROOT, settings.get("StateDirectory", [])),
        _folder_of(RUNTIME_ROOT, settings.get("RuntimeDirectory", [])),
        has_data_plane_unit,
        _option_of(settings.get("ExecStart", []), "--planes") if has_data_plane_unit else None,
        _allows(plane.get("RestrictAddressFamilies", []), "AF_NETLINK") and _sees_users(plane.get("PrivateUsers", [])),
    )


def _settings_of(unit_name: str, folders: Sequence[Path]) -> dict[str, list[str]] | None:
    """All values of each key, as systemd takes them together; None if there is no such unit. Raises OSError."""
    unit = next((folder / unit_name for folder in folders if (folder / unit_name).exists()), None)
    if unit is None:
        return None
    # A drop-in hides those of the same name in later folders; all others apply in the order of their names.
    drop_ins: dict[str, Path] = {}
    for folder in folders:
        for path in sorted((folder / f"{unit_name}.d").glob("*.conf")):
            drop_ins.setdefault(path.name, path)
    settings: dict[str, list[str]] = {}
    for path in (unit, *(drop_ins[name] for name in sorted(drop_ins))):
        for key, value in _assignments(path):
            if value:
                settings.setdefault(key, []).append(value)
            else:
                settings.pop(key, None)  # an empty value takes back all that came before
    return settings


def service_of(config_path: Path, folders: Sequence[Path] = UNIT_FOLDERS) -> InstalledService | None:
    """The installed service, if this configuration is its own."""
    try:
        service = find_service(folders)
    except OSError:
        return None  # a unit that this user may not read: the command says what it then lacks
    if service is None or service.config_path is None or not is_same_file(service.config_path, config_path):
        return None
    return service


def load_operators_config(
    config_path: Path, *, check_files: bool = True, folders: Sequence[Path] = UNIT_FOLDERS
) -> Config:
    """Read a configuration; if it is the installed service's own, with the folders and credentials that the service has.

    Raises ConfigErrors.
    """
    return read_operators_config(config_path, check_files=check_files, folders=folders).config


def read_operators_config(
    config_path: Path, *, check_files: bool = True, folders: Sequence[Path] = UNIT_FOLDERS
) -> LoadedConfig:
    """The same, with the texts that it was made of. Raises ConfigErrors."""
    service = service_of(config_path, folders)
    if service is None:
        return parse_config(Texts.read(config_path), check_files=check_files)
    for name, folder in (
        ("STATE_DIRECTORY", service.state_directory),
        ("RUNTIME_DIRECTORY", service.runtime_directory),
    ):
        if folder is not None:
            os.environ.setdefault(name, str(folder))
    return parse_config(Texts.read(config_path), check_files=check_files, credentials=service.credentials)


def _assignments(path: Path) -> Iterator[tuple[str, str]]:
    """The keys of the section [Service] that are used here, and After= of [Unit] (systemd.syntax(7))."""
    with path.open(errors="replace") as file:
        text = file.read(MAX_UNIT_BYTES)
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        elif "=" in stripped and not stripped.startswith(("#", ";")):
            key, _, value = stripped.partition("=")
            if section == "[Service]" or (section, key.strip()) == ("[Unit]", "After"):
                yield key.strip(), value.strip()


def installed_config(folders: Sequence[Path] = UNIT_FOLDERS) -> Path | None:
    """The configuration of the installed service; None if there is no unit, or it cannot be read."""
    try:
        service = find_service(folders)
    except OSError:
        return None
    return None if service is None else service.config_path


def _option_of(commands: Sequence[str], option: str) -> Path | None:
    """The path that follows an option in a command line; None if no command has the option."""
    for command in commands:
        try:
            words = shlex.split(command)
        except ValueError:  # quotes that do not end
            continue
        for index, word in enumerate(words):
            if word == option and index + 1 < len(words):
                return Path(words[index + 1])
            if word.startswith(f"{option}="):
                return Path(word.partition("=")[2])
    return None


def _allows(values: Sequence[str], family: str) -> bool:
    """Whether RestrictAddressFamilies= lets a process use a family: a list of those that it may, or after ~ may not."""
    may, may_not = set[str](), set[str]()
    for value in values:
        (may_not if value.startswith("~") else may).update(value.removeprefix("~").split())
    return family not in may_not and (not may or family in may)


def _sees_users(values: Sequence[str]) -> bool:
    """Whether PrivateUsers= leaves a process the host's user ids: the last value counts (systemd.exec(5))."""
    return not values or values[-1].lower() in ("no", "n", "false", "f", "off", "0", "full")


def _credentials_of(values: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for value in values:
        name, colon, path = value.partition(":")
        if colon and path.startswith("/"):
            yield name, Path(path)


def _folder_of(root: Path, values: Sequence[str]) -> Path | None:
    """The first folder of StateDirectory= and the like: "NAME" or "NAME:LINK"."""
    names = " ".join(values).split()
    return root / names[0].partition(":")[0] if names else None


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, or the same path if there is no file."""
    try:
        return one.samefile(other)
    except OSError:
        return one.absolute() == other.absolute()
