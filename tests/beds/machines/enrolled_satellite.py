"""A satellite on a machine that enrols: it gets a certificate by its user data, and serves as buildkitd would.

`python -P -m beds.machines.enrolled_satellite PORT HOST FOLDER`. The user data is in the variable USER_DATA_NAME;
FOLDER stands for the machine's disk. It runs daemon/responder/enrol.py as a satellite does. It serves TLS that takes only
clients with a certificate of the daemon's authority.
"""

import importlib.resources
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import yaml

from bentpipe.daemon.testbed.ec2_emulator.machines import METADATA_NAME, USER_DATA_NAME
from bentpipe.daemon.testbed.satellite import make_server

POLL_S = 0.05
"""Between looks for the certificate."""


def write_files(user_data: str, root: Path) -> None:
    """Do what cloud-init does with `write_files`, below `root`."""
    for each in yaml.safe_load(user_data)["write_files"]:
        path = root / each["path"].lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=int(each["permissions"], 8))
        path.write_text(each["content"])


def main() -> int:
    """Serve until SIGTERM."""
    port, host, folder = sys.argv[1:4]
    root = Path(folder)
    enrolment = root / "etc/bentpipe/enrolment.json"
    enrolment.parent.mkdir(parents=True, exist_ok=True)
    if not enrolment.exists() and os.environ[USER_DATA_NAME]:
        write_files(os.environ[USER_DATA_NAME], root)
    program = importlib.resources.files("bentpipe.daemon.responder") / "enrol.py"
    place = root / "etc/bentpipe/tls"
    metadata = ("--metadata", os.environ[METADATA_NAME])
    subprocess.Popen([sys.executable, "-I", "-S", str(program), str(enrolment), str(place), *metadata])
    identity = place / "identity.pem"
    while not identity.exists():
        time.sleep(POLL_S)
    pem = identity.read_bytes()
    trusted = (place / "ca.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([(pem, pem)], root_certificates=trusted, require_client_auth=True)
    server = make_server(f"{host}:{port}", credentials=credentials)
    server.start()
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
