"""The emulator as a program, with processes behind its instances."""

import json
import signal
import socket
import subprocess
import sys
import threading

from beds.machines.emulator_calls import DEADLINE_S, client_of, look, post
from beds.ports import free_port

PROGRAM = (sys.executable, "-P", "-m", "bentpipe.daemon.testbed.ec2_emulator.main")

COUNTER = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
served = 0
while True:
    client, _ = server.accept()
    served += 1
    client.sendall(str(served).encode())
    client.close()
"""


def served(host: str, port: int) -> int:
    with socket.create_connection((host, port), timeout=DEADLINE_S) as sock:
        return int(sock.recv(100))


def wait_served(host: str, port: int) -> int:
    gate = threading.Event()
    for _ in range(1000):
        try:
            return served(host, port)
        except ConnectionRefusedError:
            gate.wait(0.02)
    raise AssertionError(f"nothing listens at {host}:{port}")


def wait_refused(host: str, port: int) -> None:
    gate = threading.Event()
    for _ in range(1000):
        try:
            socket.create_connection((host, port), timeout=DEADLINE_S).close()
        except ConnectionRefusedError:
            return
        gate.wait(0.02)
    raise AssertionError(f"something listens at {host}:{port}")


def test_processes_live_and_freeze_and_die_with_their_instances() -> None:
    port = free_port()
    command = [*PROGRAM, "--manual", "--machine-port", str(port), "--machine-command"]
    child = [sys.executable, "-ISc", COUNTER, "{host}", "{port}"]
    with subprocess.Popen([*command, *child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        url = json.loads(program.stdout.readline())["url"]
        hand = f"{url}/control"
        ec2 = client_of(url)
        instance_id = str(post(f"{hand}/add_instance"))

        def start() -> tuple[str, int]:
            ec2.start_instances(InstanceIds=[instance_id])
            post(f"{hand}/advance_to_next")
            host = look(ec2, instance_id)["PrivateIpAddress"]
            return host, wait_served(host, port)

        def stop(hibernate: bool) -> None:
            ec2.stop_instances(InstanceIds=[instance_id], Hibernate=hibernate)
            post(f"{hand}/advance_to_next")

        host, count = start()
        assert count == 1
        stop(hibernate=True)
        host, count = start()
        assert count == 2
        stop(hibernate=False)
        wait_refused(host, port)
        host, count = start()
        assert count == 1
        program.send_signal(signal.SIGTERM)
        assert program.wait(DEADLINE_S) == 0
        ec2.close()
    wait_refused(host, port)
