"""Where the ledger and the registry are kept."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from bentpipe.config.base import DurationS, Name, Section

DAY_S = 86_400.0
LEDGER_NAME = "ledger.sqlite"


class StoreSection(Section):
    """Where the ledger and the registry are kept, and with DynamoDB the rows by which several hosts agree."""

    kind: Literal["sqlite", "dynamodb", "none"] = "sqlite"
    path: Path | None = None
    """By default LEDGER_NAME in the service's state directory. Without that (not under systemd) nothing is kept."""
    table: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{3,255}$")
    """The DynamoDB table that all hosts of the fleet share; `bentpipe store init` makes it."""
    region: str | None = None
    """By default as boto3 finds it, like the credentials."""
    endpoint: str | None = None
    host: Name | None = None
    """This host's name in the ledger, and to other hosts; by default the machine's name. No other host may have it."""
    lease_s: DurationS = Field(default=15.0, ge=0.1, alias="lease")
    """If a host dies while it acts on a satellite, another host takes over after this time."""
    host_expiry_s: DurationS = Field(default=120.0, ge=0.1, alias="host_expiry")
    """After this time the satellites that a dead host has used may sleep. The same holds for a host that cannot reach the
    store."""
    detail_s: DurationS = Field(default=14 * DAY_S, ge=0, alias="detail")
    """After this time only the sums of each day are kept of the ledger. 0: every interval is kept for ever, as in DynamoDB
    by default."""
    keep_s: DurationS = Field(default=0.0, ge=0, alias="keep")
    """After this time the sums of a day are deleted. 0: never."""

    @property
    def deleted_after_s(self) -> float:
        """After this time the ledger's intervals are deleted; 0: never."""
        return 0.0 if self.kind == "dynamodb" and "detail_s" not in self.model_fields_set else self.detail_s

    @model_validator(mode="after")
    def _keeps_what_it_adds_up(self) -> Self:
        for name, value in (("detail", self.detail_s), ("keep", self.keep_s)):
            if 0 < value < DAY_S:
                raise ValueError(f"{name} is less than a day: the ledger is kept by days; 0 keeps it for ever")
        if 0 < self.keep_s < self.deleted_after_s:
            raise ValueError("keep is less than detail: a day cannot be deleted before it is added up")
        return self

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        shared = {"table", "region", "endpoint", "host", "lease_s", "host_expiry_s"}
        misplaced = self.model_fields_set & (shared if self.kind != "dynamodb" else {"path"})
        if misplaced:
            names = ", ".join(sorted(name.removesuffix("_s") for name in misplaced))
            raise ValueError(f"kind {self.kind!r} does not use {names}; remove it")
        if self.kind == "dynamodb" and self.table is None:
            raise ValueError("kind 'dynamodb' needs a table")
        return self

    def ledger_path(self, environment: Mapping[str, str] = os.environ) -> Path | None:
        """The SQLite file; None if there is none."""
        if self.kind != "sqlite":
            return None
        # systemd.exec(5): a list of folders, ours has one.
        directory = environment.get("STATE_DIRECTORY", "").partition(":")[0]
        return self.path or (Path(directory) / LEDGER_NAME if directory else None)
