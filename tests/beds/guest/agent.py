"""The tests' way into the guest: runs commands that the host sends, one for each connection, and answers with their output.

Runs inside the guest, as root, under `python3 -I -S`. A request is one line of JSON: argv, input (base64), deadline_s. The
answer is one line of JSON: code (the exit code, or null after the deadline) and output (base64 of stdout and stderr).
It also brings the network up, since the guest has nothing else that would.
"""

import base64
import json
import os
import socket
import socketserver
import subprocess

PORT = 1
ADDRESS = "10.0.2.15/24"
"""Of QEMU's user-mode network, whose gateway is 10.0.2.2."""
READY = "agent is ready"


class Request(socketserver.StreamRequestHandler):
    """One command."""

    def handle(self) -> None:
        request = json.loads(self.rfile.readline())
        try:
            done = subprocess.run(
                request["argv"],
                input=base64.b64decode(request["input"]),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=request["deadline_s"],
                check=False,
            )
            code, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as exc:
            code, output = None, exc.stdout or b""
        answer = {"code": code, "output": base64.b64encode(output).decode()}
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    """One thread for each command."""

    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    for device in ("lo", "eth0"):
        subprocess.run(["ip", "link", "set", device, "up"], check=True)
    subprocess.run(["ip", "addr", "add", ADDRESS, "dev", "eth0"], check=True)
    subprocess.run(["ip", "route", "add", "default", "via", "10.0.2.2"], check=True)
    server = Server(("", PORT), Request)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    with open("/dev/ttyS0", "w") as console:
        console.write(f"{READY}\n")
    server.serve_forever()


if __name__ == "__main__":
    main()
