"""Opens what the daemon listens on: the clients' sockets with their TLS, the metrics' socket and the control socket.

All of this can fail for reasons that the operator must mend: a port is taken, a certificate cannot be read. So it is done
before anything is started. It raises OSError or TlsError, and the message says what is wrong.
"""

import contextlib
import dataclasses
import logging
import socket
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path

from bentpipe.config.live import entries_by_name
from bentpipe.config.model import Config
from bentpipe.daemon.api.server import ControlApi
from bentpipe.daemon.connections.arrival import Arrival
from bentpipe.daemon.connections.listener import Gate, Listener, bind, in_tasks, listen_for
from bentpipe.daemon.connections.listening_sockets import ListeningSockets, Place
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.connections.transport import Transport
from bentpipe.daemon.edge.caller import Caller
from bentpipe.daemon.edge.edge import Edge
from bentpipe.daemon.edge.session import Session
from bentpipe.daemon.private_socket import PrivateListener
from bentpipe.daemon.service import sd
from bentpipe.daemon.service.admin_sockets import admin_places, admin_sockets, open_admin_place
from bentpipe.daemon.service.control import ControlServer, open_control_socket
from bentpipe.daemon.service.local_api import LocalApi, local_api_path

log = logging.getLogger("bentpipe")


@dataclasses.dataclass(frozen=True, slots=True)
class OpenPorts:
    """Sockets that listen, before any connection is accepted."""

    clients: tuple[tuple[str, Port, socket.socket], ...]
    """Each with the name of its listener."""
    metrics: ListeningSockets
    admin: ListeningSockets
    """For the page."""
    control: PrivateListener | None
    local_api: PrivateListener | None
    enrolment: tuple[socket.socket, ...]
    """For machines that want a certificate."""

    @property
    def client_names(self) -> tuple[str, ...]:
        """Of the clients' sockets."""
        return tuple(name for name, _, _ in self.clients)

    @property
    def numbers(self) -> frozenset[int]:
        """The TCP ports, as they are open now."""
        sockets = (*(sock for _, _, sock in self.clients), *self.metrics.all, *self.admin.all)
        return frozenset(sock.getsockname()[1] for sock in sockets if sock.family != socket.AF_UNIX)


@dataclasses.dataclass(frozen=True, slots=True)
class Ports:
    """The sockets with what serves them."""

    listeners: tuple[Listener, ...]
    metrics: ListeningSockets
    admin: ListeningSockets
    control: ControlServer | None
    local_api: LocalApi | None


def open_ports(config: Config, spoken: Sequence[Port]) -> OpenPorts:
    """Open every socket; `spoken` is what `read_port` says of each listener; empty if the data plane has those.

    Raises OSError, with none left open except those that systemd has passed: another configuration may use them.
    """
    passed = sd.listen_sockets()
    with contextlib.ExitStack() as opened:
        opened.callback(_leave_open, passed)
        clients = []
        names = entries_by_name("listener", config.listener)
        for name, section, port in zip(names if spoken else (), config.listener if spoken else (), spoken, strict=True):
            for sock in listen_for(section, passed):
                if section.address is not None:
                    opened.enter_context(sock)
                clients.append((name, port, sock))
        metrics = ListeningSockets({})
        opened.callback(metrics.close)
        metrics.prepare(metrics_places(config), open_metrics_place).take()
        enrolment = bind(*config.satellite_ca.address) if config.satellite_ca is not None else []
        for sock in enrolment:
            opened.enter_context(sock)
        admin = admin_sockets({})
        opened.callback(admin.close)
        admin.prepare(admin_places(config.admin), open_admin_place).take()
        path = config.control.socket_path()
        control = local_api = None
        if path is not None:
            control = opened.enter_context(open_control_socket(path))
            local_api = open_control_socket(local_api_path(path))
        opened.pop_all()
    return OpenPorts(tuple(clients), metrics, admin, control, local_api, tuple(enrolment))


def metrics_places(config: Config) -> tuple[Place, ...]:
    """Where the metrics are to be served."""
    return () if config.metrics.address is None else (config.metrics.address,)


def open_metrics_place(place: Place) -> Sequence[socket.socket]:
    """Open the metrics' sockets. Raises OSError."""
    assert not isinstance(place, Path)
    return bind(*place)


def _leave_open(passed: Mapping[str, list[socket.socket]]) -> None:
    for sockets in passed.values():
        for sock in sockets:
            sock.detach()


def serve_ports(
    opened: OpenPorts, edge: Edge, gate: Gate, control: ControlServer | None, local_api: ControlApi
) -> Ports:
    """Make what serves the sockets, which it takes over. `local_api` is served on the Unix socket beside `control`."""

    def serve(client: Transport, port: Port, arrival: Arrival) -> Awaitable[None]:
        return Session(edge, Caller(client, arrival, greeting=edge.greeters.make()), port).run()

    listeners = tuple(Listener(sock, port, gate, in_tasks(serve)) for _, port, sock in opened.clients)
    return Ports(
        listeners=listeners,
        metrics=opened.metrics,
        admin=opened.admin,
        control=control,
        local_api=LocalApi(opened.local_api, local_api, edge.book) if opened.local_api is not None else None,
    )
