"""Signals that come before the daemon is ready for them: they end no daemon that is starting."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beds.hosts.edge_daemons import PATIENCE_S, EdgeDaemon, config_text, wait
from beds.programs import BENTPIPE
from bentpipe.daemon.model import SatelliteKey

KEY = SatelliteKey("acme", "builder")
SATELLITE = f'[satellite.process]\ncommand = ["{sys.executable}", "-m", "http.server", "{{port}}"]'


def opened_by_another(fifo: Path) -> int:
    """Wait until somebody opens the FIFO to read. Returns its writing end."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert time.monotonic() < deadline, "the configuration was never read"
            time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_daemon_that_is_still_starting_is_not_ended(number: signal.Signals, tmp_path: Path) -> None:
    """It reads its configuration, and hears no signals yet: a reload is sent by the program that renews certificates."""
    config, log = tmp_path / "bentpipe.toml", tmp_path / "log"
    os.mkfifo(config)
    with (
        log.open("wb") as file,
        subprocess.Popen([BENTPIPE, "serve", "--config", config], stderr=file, stdin=subprocess.DEVNULL) as process,
    ):
        try:
            with os.fdopen(opened_by_another(config), "w") as writer:
                process.send_signal(number)
                time.sleep(0.2)
                writer.write(config_text({KEY: SATELLITE}))
            daemon = EdgeDaemon(process, log)
            assert daemon.port
            process.send_signal(signal.SIGHUP)
            wait(lambda: daemon.said(message="signal", signal="SIGHUP"), "it hears signals")
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
