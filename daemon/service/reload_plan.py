"""What a reload would do: the files are read and checked, and compared with the running daemon. Changes nothing.

`prepare` blocks, since it reads files: it runs in a thread. `refusals` asks the running parts, so it runs on Trio's thread.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bentpipe.config.live import Difference, Effect, differences, entries_by_name, machine_type_name
from bentpipe.config.load import CREDENTIAL_PREFIX, LoadedConfig, parse_config
from bentpipe.config.model import Config, ListenerSection
from bentpipe.config.sources import Texts
from bentpipe.daemon.connections.descriptors import (
    PIPE_FDS,
    Descriptors,
    TooFewDescriptors,
    engine_threads,
)
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.port import Port, read_port
from bentpipe.daemon.connections.quotas import CONNECTION_FDS
from bentpipe.daemon.connections.satellite_tls import satellite_tls_of, type_tls_of
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.provisioning import Provisioner
from bentpipe.daemon.fleet.reserve_keeper import ReserveKeeper
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service.concern import Concern
from bentpipe.daemon.service.connection_records import make_tracer
from bentpipe.daemon.service.current import Current
from bentpipe.daemon.service.descriptors import share_out
from bentpipe.daemon.service.machines import Machines
from bentpipe.daemon.service.preflight import file_concerns
from bentpipe.daemon.service.satellite_changes import SatelliteChanges
from bentpipe.native.engine import Ktls

if TYPE_CHECKING:
    from bentpipe.daemon.records.traces import Tracer


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration that was read and is good by itself, with everything that was made of its files."""

    config: Config
    loaded: LoadedConfig | None
    """None: the configuration is the one of the start, and only its files were read again."""
    differences: tuple[Difference, ...]
    ports: Mapping[str, Port]
    """By the listener's name."""
    satellite_tls: Mapping[SatelliteKey, SatelliteTls]
    type_tls: Mapping[tuple[str, str], SatelliteTls]
    warnings: tuple[str, ...]
    tracer: "Tracer | None" = None
    """If traces go somewhere else from now on, or others are sampled: what sends them. Its thread has not begun."""


class Unfit(Exception):
    """The configuration cannot be used as it is; `reasons` has one line for each mistake."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = tuple(reasons)


OF_THE_DATA_PLANE = frozenset({"limits.max_connections", "limits.max_strangers", "limits.stranger_bytes"})
"""What a data plane of its own has taken from the file at its start, besides its listeners."""


READ_BY_THE_DATA_PLANE = re.compile(r"\.tls\.(?:certificate|key|client_ca|client_crl|more)\b")
"""Of a listener, what a data plane takes from the file at each reload: what it shows to clients, and whom it trusts."""


class Divided(Protocol):
    """What knows how the descriptors are divided now."""

    @property
    def descriptors(self) -> Descriptors:
        """At this moment."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class RunningParts:
    """What a plan asks of the running daemon."""

    fleet: Fleet
    machines: Machines
    provisioner: Provisioner | None
    reserve: ReserveKeeper | None
    changes: SatelliteChanges
    divided: Divided
    serves_listeners: bool
    """False: a data plane of its own has the listeners and the connections, and its own limits of them."""


def prepare(current: Current, credentials: Mapping[str, Path], ktls: Ktls, *, serves_listeners: bool) -> Prepared:
    """Read and check the files. `credentials` count instead of those that systemd has given. Blocks.

    `serves_listeners`: see RunningParts; the files of listeners and of satellites are read only then.

    Raises ConfigErrors, Unfit, TlsError, OSError.
    """
    if current.origin is None:
        loaded, config = None, current.config
    else:
        loaded = parse_config(Texts.read(current.origin.path), instead=credentials)
        config = loaded.config
    concerns = [each for each in file_concerns(config) if serves_listeners or not _is_of_the_data_plane(each)]
    fatal = [_told(each, loaded) for each in concerns if each.fatal]
    if fatal:
        raise Unfit(fatal)
    ports = {}
    listeners = config.listener if serves_listeners else ()
    for name, section in entries_by_name("listener", listeners).items():
        assert isinstance(section, ListenerSection)
        ports[name] = read_port(section, ktls)
    return Prepared(
        config,
        loaded,
        tuple(differences(*_compared(current, loaded))) if loaded is not None else (),
        ports,
        satellite_tls_of(config, ktls if serves_listeners else None),
        type_tls_of(config, ktls if serves_listeners else None),
        tuple(_told(each, loaded) for each in concerns if not each.fatal),
        make_tracer(config) if config.traces != current.config.traces else None,
    )


def _is_of_the_data_plane(concern: Concern) -> bool:
    """Whether it is about a file that only the data plane reads, and that this process perhaps may not read."""
    return concern.where.startswith("listener[") or ".tls." in concern.where


def _compared(current: Current, loaded: LoadedConfig) -> tuple[Config, Config]:
    """Both configurations with the names of credentials in place of their files, which are others each time."""
    assert current.origin is not None
    texts = (current.origin.loaded.texts, loaded.texts)
    before, after = (parse_config(each, check_files=False, instead=_Names()).config for each in texts)
    return before, after


class _Names(dict[str, Path]):
    """Each credential as its own name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Path:
        return Path(CREDENTIAL_PREFIX + name)


def _told(concern: Concern, loaded: LoadedConfig | None) -> str:
    if loaded is None:
        return str(concern)
    place = loaded.merged.place(concern.where)
    return f"{place}: {dataclasses.replace(concern, where=place.where)}"


def refusals(prepared: Prepared, parts: RunningParts) -> list[str]:
    """Why the running daemon cannot become what was prepared; empty if it can."""
    return [
        *(
            str(each)
            for each in prepared.differences
            if each.change is Effect.RESTART and not _keeps_form(each, prepared.config, parts)
        ),
        *(
            f"{each.where}: {each.words} (needs a restart of the data plane)"
            for each in prepared.differences
            if not parts.serves_listeners and _is_fixed_in_the_data_plane(each)
        ),
        *_machine_refusals(prepared.config, parts),
        *_descriptor_refusals(prepared.config, parts.divided.descriptors),
    ]


def _keeps_form(difference: Difference, config: Config, parts: RunningParts) -> bool:
    """Whether connections live where the key says already: "auto" leaves it to the start, which chose what runs."""
    as_it_is = "inside" if parts.serves_listeners else "process"
    return difference.where == "daemon.data_plane" and config.daemon.data_plane in ("auto", as_it_is)


def _is_fixed_in_the_data_plane(difference: Difference) -> bool:
    where = difference.where
    is_fixed = where.startswith("listener ") and READ_BY_THE_DATA_PLANE.search(where) is None
    return is_fixed or where in OF_THE_DATA_PLANE


def _machine_refusals(config: Config, parts: RunningParts) -> Iterator[str]:
    for section in config.satellite:
        key = SatelliteKey(section.org, section.name)
        if parts.fleet.find(key) is not None and not parts.changes.has(key):
            yield f"satellite {key}: clients have launched or registered a satellite of this name"
        if provider := parts.machines.lacks(section):
            yield f"satellite {key}: the first machine of provider {provider!r} ({Effect.RESTART.value})"
    for kind in config.machine_type:
        if provider := parts.machines.lacks(kind):
            name = machine_type_name(kind)
            yield f"machine_type {name}: the first machine of provider {provider!r} ({Effect.RESTART.value})"
        if kind.reserve and parts.reserve is None:
            yield f"machine_type {machine_type_name(kind)}.reserve: the first one ({Effect.RESTART.value})"
    if config.machine_type and parts.provisioner is None:
        yield f"machine_type: the first one ({Effect.RESTART.value})"
    types = {(each.size, each.platform) for each in config.machine_type}
    for key, kind in parts.provisioner.served.items() if parts.provisioner is not None else ():
        if (kind.size, kind.platform) not in types:
            yield f"machine_type {machine_type_name(kind)}: removed, and {key} has it: remove that satellite first"


def _descriptor_refusals(config: Config, now: Descriptors) -> Iterator[str]:
    try:
        descriptors_of(config, now)
    except TooFewDescriptors as exc:
        yield str(exc)


def descriptors_of(config: Config, now: Descriptors) -> Descriptors:
    """How the descriptors are divided under another configuration. The engine keeps its pipes. Raises TooFewDescriptors."""
    wanted = share_out(config, now.limit)
    pipes = now.pipes * engine_threads(config) * PIPE_FDS
    fits = max(0, now.limit - wanted.reserve - pipes) // CONNECTION_FDS
    if wanted.connections > fits and "max_connections" in config.limits.model_fields_set:
        words = f"limits.max_connections = {wanted.connections}: the engine's pipes leave room for {fits}"
        raise TooFewDescriptors(f"{words} ({Effect.RESTART.value})")
    return dataclasses.replace(wanted, connections=min(wanted.connections, fits), pipes=now.pipes)
