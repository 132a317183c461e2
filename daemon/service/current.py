"""The configuration with which the daemon runs at this moment, and how the reloads ended. It decides nothing."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from bentpipe.config.load import LoadedConfig
from bentpipe.config.model import Config
from bentpipe.config.sources import Texts


def keep_nothing(texts: Texts) -> None:
    """Without `--last-good` no copy is kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConfigOrigin:
    """Where the configuration comes from: what is read again at a reload."""

    path: Path
    loaded: LoadedConfig
    """The configuration at the start, with its texts."""
    keep: Callable[[Texts], None] = keep_nothing
    """Keeps the texts with which the daemon runs as the last good ones."""


@dataclasses.dataclass(slots=True)
class Current:
    """Changed by a reload alone."""

    config: Config
    problem: str
    """Why this is not the configuration of the file; empty if it is."""
    origin: ConfigOrigin | None
    """None: it was not read from files, so a reload reads the files that it names, and not itself."""
    reloads: int = 0
    """Reloads that worked."""
    failed: int = 0
    """Reloads after which nothing had changed, because of a mistake."""
    last_failure: str = ""
    """Why the last reload has changed nothing; empty if it worked."""
