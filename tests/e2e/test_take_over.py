"""A control plane that hangs is replaced by the next one that is started, and no client is cut."""

import contextlib
import os
import signal
from pathlib import Path

from beds.hosts.two_planes import DEADLINE_S, PLAIN, TLS, two_planes


def test_a_hung_control_plane_is_replaced(tmp_path: Path) -> None:
    with two_planes(tmp_path) as host, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(host.client(port))) for port in (PLAIN, TLS)]
        for client in clients:
            assert client.unary("Echo", b"hello") == b"hello"
        hung = host.control
        assert hung is not None
        os.kill(hung.pid, signal.SIGSTOP)
        try:
            host.start()
            assert hung.wait(DEADLINE_S) == -signal.SIGKILL
        finally:
            hung.kill()
        assert host.count("a control plane that hangs is ended") == 1
        seated = [each["adopted"] for each in host.records() if each["message"] == "data plane seated"]
        assert seated == [0, len(clients)]
        for client in clients:
            assert client.unary("Echo", b"adopted") == b"adopted"
        with contextlib.closing(host.client(PLAIN)) as newcomer:
            assert newcomer.unary("Echo", b"new") == b"new"
        assert host.emulator.control.starts(instance_id=host.instances[next(iter(host.instances))]) == 1
