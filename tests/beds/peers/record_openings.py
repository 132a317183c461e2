"""Records what real clients say before their first answer, into tests/corpus: NAME.0 until they wait for us, NAME.1 after.

`python record_openings.py [CLIENT ...]`, the clients being those of kinds.py, curl, h2load and buildctl. The greeting
itself is the server, so that our SETTINGS come when they would come.
"""

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

from beds.peers.clients import CallError
from beds.peers.kinds import CLIENTS
from bentpipe.proto.greeting import Greeting

CORPUS = Path(__file__).parents[2] / "corpus"
QUIET_S = 0.5
METADATA = (("satellite_name", "builder"), ("satellite_org", "acme"), ("satellite_token", "bp_recorded"))
FIELDS = [part for name, value in METADATA for part in ("-H", f"{name}: {value}")]
PROGRAMS = {
    "curl": ["curl", "-s", "-m", "2", "--http2-prior-knowledge", *FIELDS, "-d", "body", "http://127.0.0.1:{port}/x"],
    "h2load": ["h2load", "-n", "3", "-m", "3", "-N", "2", *FIELDS, "http://127.0.0.1:{port}/x"],
    "buildctl": ["buildctl", "--timeout", "2", "--addr", "tcp://127.0.0.1:{port}", "debug", "workers"],
}


def record(listener: socket.socket, name: str) -> None:
    """Accept one connection and write what comes until it falls silent."""
    connection, _ = listener.accept()
    connection.settimeout(QUIET_S)
    greeting = Greeting()
    flights = [b"", b""]
    with connection, contextlib.suppress(ConnectionError):
        for number in range(2):
            with contextlib.suppress(TimeoutError):
                while data := connection.recv(1 << 16):
                    flights[number] += data
                    greeting.receive_data(data, 0.0)
                    connection.sendall(greeting.data_to_send())
            greeting.end_of_first_flight()
            connection.sendall(greeting.data_to_send())
    for number, flight in enumerate(flights):
        (CORPUS / f"{name}.{number}").write_bytes(flight)


def run_client(name: str, port: int) -> None:
    """Make one call that is never answered."""
    if name in PROGRAMS:
        command = [part.replace("{port}", str(port)) for part in PROGRAMS[name]]
        subprocess.run(command, capture_output=True, timeout=30, check=False)
        return
    client = CLIENTS[name](port, None, METADATA)
    with contextlib.suppress(CallError):
        client.unary("Echo", b"hello", timeout_s=3 * QUIET_S)
    client.close()


def main() -> int:
    CORPUS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or [*CLIENTS, *PROGRAMS]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            recorder = threading.Thread(target=record, args=(listener, name))
            recorder.start()
            run_client(name, listener.getsockname()[1])
            recorder.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
