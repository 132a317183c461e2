"""AWS for a page, in its network: moto for what the page's commands make, our emulator for the machines, and the AWS CLI.

As a program it serves both until it is killed. With `--get` it only installs the CLI, which is a virtual environment of its
own, since it pins its packages.
"""

import functools
import signal
import subprocess
import sys
from pathlib import Path

from moto.server import ThreadedMotoServer

from beds.guest.image import new_folder
from beds.peers.builds import OUT, Missing
from bentpipe.daemon.testbed.ec2_emulator.clock import ScaledClock
from bentpipe.daemon.testbed.ec2_emulator.server import Emulator

CLI = "awscli==1.46.3"
MAKE_DEADLINE_S = 300.0
MOTO_PORT, EMULATOR_PORT = 5000, 5001
MACHINE_PORT = 1234
SPEED = 60.0
"""Emulated seconds a second: a first boot takes less than one."""
TEMPLATE = "builder"
MACHINE = (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.satellite", "{port}", "--host", "{host}")

START = f"""
PYTHONPATH={Path(__file__).parents[2]} {sys.executable} -P -m beds.pages.aws >"$BED/aws.log" 2>&1 &
await_port {MOTO_PORT} $! "$BED/aws.log"
await_port {EMULATOR_PORT} $! "$BED/aws.log"
aws() {{ command aws --endpoint-url http://127.0.0.1:{MOTO_PORT} "$@"; }}
"""
"""What a page's shell does first."""
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "emulated",
    "AWS_SECRET_ACCESS_KEY": "emulated",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ENDPOINT_URL_EC2": f"http://127.0.0.1:{EMULATOR_PORT}",
    "AWS_ENDPOINT_URL_DYNAMODB": f"http://127.0.0.1:{MOTO_PORT}",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


@functools.cache
def aws_cli() -> Path:
    """The folder with the program. Raises Missing, if the package index cannot be reached."""
    folder = OUT / CLI.replace("==", "-")
    if not folder.exists():
        with new_folder(folder) as unfinished:
            environment = unfinished / "venv"
            pip = [
                str(environment / "bin/python"),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                CLI,
            ]
            try:
                subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=MAKE_DEADLINE_S)
                subprocess.run(pip, check=True, capture_output=True, text=True, timeout=MAKE_DEADLINE_S)
            except subprocess.TimeoutExpired as exc:
                raise Missing(f"{CLI} is not installed within {MAKE_DEADLINE_S:g} s") from exc
            except subprocess.CalledProcessError as exc:
                raise Missing(f"{CLI} cannot be installed: {str(exc.stderr)[-300:]}") from exc
            (unfinished / "aws").write_text(f'#!/bin/sh\nexec {folder}/venv/bin/python {folder}/venv/bin/aws "$@"\n')
            (unfinished / "aws").chmod(0o755)
    return folder


def get() -> None:
    """Install the CLI, and say whether it is there."""
    try:
        aws_cli()
    except Missing as exc:
        sys.stdout.write(f"peer AWS CLI: its tests are skipped: {exc}\n")
    else:
        sys.stdout.write("peer AWS CLI: ready\n")


def serve() -> None:
    """Serve until a signal."""
    moto = ThreadedMotoServer("127.0.0.1", MOTO_PORT, verbose=False)
    moto.start()
    with Emulator(
        ScaledClock(SPEED), port=EMULATOR_PORT, machine_command=MACHINE, machine_port=MACHINE_PORT
    ) as emulator:
        emulator.control.add_template(name=TEMPLATE)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    moto.stop()


if __name__ == "__main__":
    get() if "--get" in sys.argv else serve()
