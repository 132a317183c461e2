"""bentpipe itself: the real daemon in a process of its own, with the lab's upstream program as its satellites."""

import hashlib
import json
import secrets
import sys
from pathlib import Path
from typing import Literal

from bench.lab import SATELLITE, Lab, put_first, realtime_missing
from bench.peers.base import HERE, Peer
from bentpipe.daemon.connections.descriptors import hard_limit
from bentpipe.daemon.connections.quotas import CONNECTION_FDS

NEVER = "24h"
MOST_CONNECTIONS = 100_000
SPARE_FILES = 1_900
"""Descriptors for pipes and everything else that the daemon opens beside its connections."""


class Bentpipe(Peer):
    """The daemon; `splice` chooses the engine's mode, `data_plane` whether its connections have a process of their own.

    `variant` is one option that differs from the default, and has its name in the peer's.
    """

    def __init__(
        self,
        splice: Literal["auto", "off", "always"] = "auto",
        data_plane: Literal["inside", "process"] = "inside",
        variant: Literal["", "realtime", "polling", "accepting at once", "snapshot"] = "",
    ) -> None:
        name = "bentpipe" if splice == "auto" else f"bentpipe {splice}"
        if data_plane == "process":
            name += " two processes"
        if variant:
            name += f" {variant}"
        super().__init__(name, "bentpipe", f"greeting, admission, hand-off to the engine (splice = {splice})")
        self._splice = splice
        self._data_plane = data_plane
        self._variant = variant
        self.satellites: list[tuple[str, tuple[str, ...]]] = [(SATELLITE, ())]
        """Names, and further arguments of the upstream that each one runs."""
        self.program = ["-m", "bentpipe.daemon.service.entry", "serve", "--config"]
        """What is run with the configuration."""
        self.sleep_after = NEVER
        self.log_level = "warning"
        self.api = False
        """Whether the port with TLS serves the control API too."""

    def missing(self) -> str | None:
        """Real time is a privilege."""
        return realtime_missing() if self._variant == "realtime" else None

    def start(self, lab: Lab) -> None:
        """Write the configuration and serve; the satellites sleep until the first client."""
        self.choose_ports()
        self.token = "bp_" + secrets.token_hex(32)
        satellites = [
            self.write_config(
                lab,
                "bentpipe_satellite.toml",
                name=name,
                sleep_after=self.sleep_after,
                command=json.dumps(lab.upstream_command("{port}", *arguments)),
            ).read_text()
            for name, arguments in self.satellites
        ]
        most = min(MOST_CONNECTIONS, (hard_limit() - SPARE_FILES) // CONNECTION_FDS)
        config = self.write_config(
            lab,
            "bentpipe.toml",
            splice=self._splice,
            priority="realtime" if self._variant == "realtime" else "slice",
            busy_poll="200us" if self._variant == "polling" else "0s",
            defer_accept=str(self._variant != "accepting at once").lower(),
            data_plane=self._data_plane,
            admission="snapshot" if self._variant == "snapshot" else "asked",
            planes=lab.directory / f"{self.name.replace(' ', '-')}-planes",
            log_level=self.log_level,
            api=str(self.api).lower(),
            max_connections=str(most),
            max_strangers=str(most // 2),
            token_hash=hashlib.sha256(self.token.encode()).hexdigest(),
            satellites="\n".join(satellites),
        )
        self.run_pinned(lab, [sys.executable, "-P", *self.program, str(config)])
        for pid in self.pids():
            put_first(pid)  # a data plane of its own is a session of its own

    @classmethod
    def stalled(cls) -> "Bentpipe":
        """The daemon, with its control plane stopped for 200 ms in every second."""
        peer = cls()
        peer.name = "bentpipe stalled"
        peer.program = [str(HERE / "stalled_serve.py")]
        return peer

    def is_worker(self, pid: int) -> bool:
        """Whether it is the data plane: the other children are satellites."""
        return b"dataplane" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")

    def thread_cpu_s(self) -> dict[str, float]:
        """CPU seconds so far of the control plane ("trio"), of a data plane's own Python ("plane"), and of the engine."""
        used = {"trio": 0.0, "plane": 0.0, "engine": 0.0}
        for pid in self.pids():
            python = "trio" if pid == self.processes[0].pid else "plane"
            for task in Path(f"/proc/{pid}/task").iterdir():
                name = python if task.name == str(pid) else "engine"
                used[name] += int((task / "schedstat").read_text().split()[0]) / 1e9
        return used
