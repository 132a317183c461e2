"""What runs on a satellite's machine: BuildKit, its limits, its cache. `bentpipe sat render` shows what is made of it."""

import ipaddress
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from bentpipe.config.base import DurationS, Section, SizeBytes
from bentpipe.config.responder import RESPONDER_PORT

BUILDKIT_PATTERN = (
    r"^(oci:/[A-Za-z0-9._/-]+|[a-z0-9][a-z0-9.:-]*(/[a-z0-9._-]+)+)@sha256:[0-9a-f]{64}$|^/[A-Za-z0-9._/-]+$"
)
"""HOST/REPOSITORY@sha256:…, oci:/FOLDER@sha256:…, or /FOLDER."""
ABSOLUTE_PATTERN = r"^/[A-Za-z0-9._/-]*[A-Za-z0-9_-]$"
"""A path that systemd's units and a shell read as it is written."""


class CacheSection(Section):
    """BuildKit's cache: a file system of its own, so that builds that fill it leave the machine's disk alone.

    BuildKit's databases stay on the machine's own disk, so that BuildKit can record a prune if the cache is full.
    """

    device: str | None = Field(default=None, pattern=r"^/dev/[A-Za-z0-9._/-]+$")
    """The block device of a volume that is for the cache alone. It is formatted if it has no file system."""
    file_bytes: SizeBytes | None = Field(default=None, ge=1 << 30, alias="file")
    """Instead of a device: a file of this size on the machine's own disk, with a file system in it."""
    filesystem: Literal["xfs", "ext4"] = "xfs"
    """XFS makes inodes as they are needed. ext4 has a fixed number, which a cache can use up."""
    keep_percent: int = Field(default=60, ge=10, le=90)
    """BuildKit's garbage collection leaves the cache at this much of its file system. BuildKit undercounts what it uses, and
    does not collect while a build runs, so the rest is what running builds may take."""
    sources_percent: int = Field(default=10, ge=1, le=90)
    """What local sources and Git checkouts may use of it, if they have not been used for `sources_age`."""
    sources_age_s: DurationS = Field(default=48 * 3600.0, ge=0, alias="sources_age")
    prune_below_percent: int = Field(default=10, ge=1, le=50)
    """If less than this is free (bytes, or inodes), the responder prunes, until `prune_until_percent` is free."""
    prune_until_percent: int = Field(default=20, ge=2, le=80)
    ballast_bytes: SizeBytes = Field(default=256 << 20, ge=0, alias="ballast")
    """What the responder holds and gives back only for a prune of a full cache."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.device is None) == (self.file_bytes is None):
            raise ValueError("give exactly one of device and file")
        if self.prune_until_percent <= self.prune_below_percent:
            raise ValueError("prune_until_percent must be more than prune_below_percent")
        if self.keep_percent + self.prune_below_percent > 100:
            raise ValueError("keep_percent and prune_below_percent are more than 100 together: every build would prune")
        if self.file_bytes is not None and self.ballast_bytes > self.file_bytes // 4:
            raise ValueError("ballast is more than a quarter of file")
        return self


class HealthSection(Section):
    """How the Earthly fork of BuildKit finds out that a client is gone. moby's BuildKit has fixed values: 5 s, 15 s, 2."""

    frequency_s: DurationS = Field(default=5.0, ge=1, alias="frequency")
    timeout_s: DurationS = Field(default=30.0, ge=1, alias="timeout")
    allowed_failures: int = Field(default=2, ge=1, le=100)


class ImageSection(Section):
    """What runs on the machines of a satellite or a machine type."""

    flavour: Literal["moby", "earthly"] = "moby"
    """Which BuildKit: the Earthly CLI needs Earthly's fork; everything else speaks to moby's."""
    buildkit: str = Field(pattern=BUILDKIT_PATTERN)
    """Where its programs come from: an image in a registry or in an OCI layout on the machine, by digest; or a folder of the
    machine that has them."""
    runc: str = Field(default="/usr/bin/runc", pattern=ABSOLUTE_PATTERN)
    """runc 1.1 or newer. If the image has a `buildkit-runc`, that is used instead."""
    cpu_percent: int = Field(default=95, ge=10, le=100)
    """What builds and BuildKit together may use of ALL cores. The number of cores is read at every boot."""
    memory_reserve_bytes: SizeBytes = Field(default=768 << 20, ge=128 << 20, alias="memory_reserve")
    """What builds and BuildKit together must leave free: for the kernel, the system and the responder."""
    memory_buildkit_bytes: SizeBytes = Field(default=384 << 20, ge=64 << 20, alias="memory_buildkit")
    """What is kept for BuildKit itself: builds cannot take it."""
    pids_max: int = Field(default=32_768, ge=256, le=4_000_000)
    """Processes and threads of all builds together."""
    parallelism: int = Field(default=0, ge=0, le=10_000)
    """Steps that run at once; 0: no limit."""
    security_insecure: bool = False
    """Whether builds may ask for the entitlement `security.insecure`. Such a step is root on the machine."""
    network: Literal["host", "cni"] = "host"
    """Of steps: the machine's own, so that two steps cannot listen on one port; or a network namespace for each step, by CNI
    plug-ins that the machine image has."""
    cni_plugins: str = Field(default="/usr/lib/cni", pattern=ABSOLUTE_PATTERN)
    """Where the plug-ins bridge, host-local and loopback are, for network = "cni"."""
    cni_subnet: str = "172.30.0.0/16"
    """The steps' addresses. The machine translates them to its own."""
    additional_config: str = Field(default="", max_length=4096)
    """TOML that is added to the end of BuildKit's configuration. It must begin with a table's header."""
    io_latency_s: DurationS = Field(default=0.05, gt=0, le=10, alias="io_latency")
    """The time in which the responder's reads and writes shall be done; builds are slowed down for it (io.latency)."""
    io_max_bytes_per_s: SizeBytes = Field(default=0, ge=0, alias="io_max")
    """What builds may read, and what they may write, a second, on the cache's disk. 0: no limit."""
    responder_port: int = Field(default=RESPONDER_PORT, ge=1, le=65535)
    health: HealthSection = HealthSection()
    cache: CacheSection

    @model_validator(mode="after")
    def _fits_flavour(self) -> Self:
        try:
            ipaddress.IPv4Network(self.cni_subnet)
        except ValueError as exc:
            raise ValueError(f"cni_subnet: {exc}") from exc
        if self.flavour == "moby" and "health" in self.model_fields_set:
            raise ValueError("moby's BuildKit has no setting for health; remove it")
        added = self.additional_config.lstrip()
        if added and not added.startswith("["):
            raise ValueError('additional_config must begin with the header of a table, such as [registry."docker.io"]')
        return self

    @property
    def programs_folder(self) -> Path:
        """Where the programs are on the machine."""
        return (
            Path(self.buildkit) if self.buildkit.startswith("/") else Path("/var/lib/bentpipe/buildkit") / self.digest
        )

    @property
    def digest(self) -> str:
        """The image's digest, in hexadecimal; "" if the programs are a folder's."""
        return self.buildkit.rpartition("@sha256:")[2] if "@sha256:" in self.buildkit else ""
