"""`bentpipe serve` in a process of its own, by a configuration with [metrics] and a log in JSON."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from beds.memory import resident_bytes
from beds.metrics import scrape
from bentpipe.daemon.testbed.edge_host import complete_lines

DEADLINE_S = 30.0
SECTIONS = '[daemon]\nlog_format = "json"\ndrain_deadline = "1s"\n[metrics]\naddress = "127.0.0.1:0"\n'


class Served:
    """The process; its ports are in the order of the configuration."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._log_path = config.with_suffix(".log")
        self.ports: list[int] = []
        self._metrics_port = 0

    def __enter__(self) -> Self:
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bentpipe.daemon.service.entry", "serve", "--config", self._config],
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + DEADLINE_S
        while not self._metrics_port:
            for record in self._records():
                if record["message"] == "listening":
                    self.ports.append(int(record["port"]))
                elif record["message"] == "metrics":
                    self._metrics_port = int(record["port"])
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self._log_path.read_text())
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _records(self) -> list[dict[str, str]]:
        records = [json.loads(line) for line in complete_lines(self._log_path) if line.startswith("{")]
        return records if any(record["message"] == "metrics" for record in records) else []

    @property
    def metrics_port(self) -> int:
        """Where it may be scraped."""
        return self._metrics_port

    def log(self) -> str:
        """What it has logged so far."""
        return self._log_path.read_text()

    def scrape(self) -> dict[tuple[str, str], float]:
        """Every metric's sample by its name and its one label's value."""
        return scrape(self._metrics_port, DEADLINE_S)

    @property
    def rss_bytes(self) -> int:
        """Resident memory."""
        return resident_bytes(self._process.pid)
