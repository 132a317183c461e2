"""A program that is to give EC2's credentials and never ends: the daemon starts, serves the others, and ends in time."""

import os
import signal
import sys
import time
from pathlib import Path

from beds.hosts.edge_daemons import config_text, edge_daemon
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.providers.ec2.traits import TRAITS

END_S = 20.0
START_S = TRAITS.look_deadline_s + 10


def test_a_credential_process_that_hangs_holds_up_neither_the_others_nor_the_end(tmp_path: Path) -> None:
    program, pids = tmp_path / "hang", tmp_path / "pids"
    program.write_text(f"#!/bin/sh\necho $$ >> {pids}\nexec sleep 1000\n")
    program.chmod(0o755)
    (tmp_path / "aws").write_text(f"[default]\nregion = eu-central-1\ncredential_process = {program}\n")
    satellites = {
        SatelliteKey("acme", "cloud"): 'provider = "ec2"\n[satellite.ec2]\ninstance_id = "i-0123456789abcdef0"',
        SatelliteKey("acme", "local"): f"""[satellite.process]
command = ["{sys.executable}", "-P", "-m", "bentpipe.daemon.testbed.satellite", "{{port}}"]""",
    }
    environment = {
        "AWS_CONFIG_FILE": str(tmp_path / "aws"),
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
    }
    began = time.monotonic()
    with edge_daemon(tmp_path, config_text(satellites), environment=environment) as edge:
        assert edge.port
        assert time.monotonic() - began < START_S
        edge.ask("acme", "local")
        edge.process.terminate()
        assert edge.process.wait(END_S) == 0
    for pid in pids.read_text().split():
        os.kill(int(pid), signal.SIGKILL)
