"""Opens what the daemon listens on: the clients' sockets with their TLS, the metrics' socket and the control socket.

All of this can fail for reasons that the operator must mend: a port is taken, a certificate cannot be read. So it is done
before anything is started. It raises OSError or TlsError, and the message says what is wrong.
"""

import contextlib
import dataclasses
import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from bentpipe.config.model import Config, ListenerSection, SatelliteTlsSection
from bentpipe.daemon.api.server import ControlApi
from bentpipe.daemon.edge.arrival import Proxies
from bentpipe.daemon.edge.dial import SatelliteTls
from bentpipe.daemon.edge.edge import Edge
from bentpipe.daemon.edge.listener import Listener, bind
from bentpipe.daemon.edge.opening import Port
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.service import sd
from bentpipe.daemon.service.certificates import CertificateReload
from bentpipe.daemon.service.control import ControlServer, Verb, open_control_socket
from bentpipe.daemon.service.local_api import LocalApi, local_api_path
from bentpipe.native.engine import Ktls, ktls_self_test
from bentpipe.native.tls import TlsClientContext, TlsServerContext

log = logging.getLogger("bentpipe")


@dataclasses.dataclass(frozen=True, slots=True)
class OpenPorts:
    """Sockets that listen, before any connection is accepted."""

    clients: tuple[tuple[ListenerSection, Port, socket.socket], ...]
    metrics: tuple[socket.socket, ...]
    control: socket.socket | None
    local_api: socket.socket | None
    enrolment: tuple[socket.socket, ...]
    """For machines that want a certificate."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The TCP ports."""
        sockets = (*(sock for _, _, sock in self.clients), *self.metrics)
        return tuple(sock.getsockname()[1] for sock in sockets if sock.family != socket.AF_UNIX)


@dataclasses.dataclass(frozen=True, slots=True)
class Ports:
    """The sockets with what serves them."""

    listeners: tuple[Listener, ...]
    certificates: CertificateReload
    metrics: tuple[socket.socket, ...]
    metrics_addresses: tuple[tuple[str, int], ...]
    control: ControlServer | None
    local_api: LocalApi | None


def find_ktls(config: Config) -> Ktls:
    """Find which of the kernel's TLS the engine may use: what a self-test has seen work, if any TLS is configured."""
    listeners, machines = any(each.tls for each in config.listener), any(each.tls for each in config.machines)
    encrypted = listeners or machines or config.registration is not None
    if config.engine.ktls == "off" or not encrypted:
        return Ktls.NONE
    usable, words = ktls_self_test()
    log.info("kTLS", extra={"fields": {"spliced": str(usable), "found": words}})
    return usable


def satellite_tls_of(config: Config, ktls: Ktls) -> dict[SatelliteKey, SatelliteTls]:
    """Read the certificates by which satellites are trusted. Raises TlsError, naming the file."""
    return {
        SatelliteKey(section.org, section.name): _trust(section.tls, section.tls.ca, ktls)
        for section in config.satellite
        if section.tls is not None and section.tls.ca is not None
    }


def type_tls_of(config: Config, ktls: Ktls) -> dict[tuple[str, str], SatelliteTls]:
    """The same for machine types, by size and platform. Raises TlsError, naming the file."""
    return {
        (each.size, each.platform): _trust(each.tls, each.tls.ca, ktls)
        for each in config.machine_type
        if each.tls is not None and each.tls.ca is not None
    }


def _trust(section: SatelliteTlsSection, ca: Path, ktls: Ktls) -> SatelliteTls:
    context = TlsClientContext(ca=ca, certificate=section.certificate, key=section.key)
    if ktls:
        context.enable_ktls()
    return SatelliteTls(context, section.server_name)


def read_port(section: ListenerSection, ktls: Ktls) -> Port:
    """Read what a listener speaks, with its certificates. Raises TlsError, naming the file."""
    proxies = Proxies(section.proxy_protocol.networks if section.proxy_protocol is not None else ())
    if section.tls is None:
        return Port(proxies=proxies, serves_api=section.api, one_request=section.one_request_per_connection)
    context = TlsServerContext(section.tls.certificate, section.tls.key, client_ca=section.tls.client_ca)
    if ktls:
        context.enable_ktls()
    for more in section.tls.more:
        context.add(TlsServerContext(more.certificate, more.key))
    return Port(context, section.tls.satellite_domain, proxies, section.api, section.one_request_per_connection)


def open_ports(config: Config, spoken: Sequence[Port]) -> OpenPorts:
    """Open every socket; `spoken` is what `read_port` says of each listener.

    Raises OSError, with none left open except those that systemd has passed: another configuration may use them.
    """
    passed = sd.listen_sockets()
    with contextlib.ExitStack() as opened:
        opened.callback(_leave_open, passed)
        clients = []
        for section, port in zip(config.listener, spoken, strict=True):
            for sock in _listening(section, passed):
                if section.address is not None:
                    opened.enter_context(sock)
                clients.append((section, port, sock))
        metrics = bind(*config.metrics.address) if config.metrics.address is not None else []
        for sock in metrics:
            opened.enter_context(sock)
        enrolment = bind(*config.satellite_ca.address) if config.satellite_ca is not None else []
        for sock in enrolment:
            opened.enter_context(sock)
        path = config.control.socket_path()
        control = local_api = None
        if path is not None:
            control = opened.enter_context(open_control_socket(path))
            local_api = open_control_socket(local_api_path(path))
        opened.pop_all()
    return OpenPorts(tuple(clients), tuple(metrics), control, local_api, tuple(enrolment))


def _leave_open(passed: Mapping[str, list[socket.socket]]) -> None:
    for sockets in passed.values():
        for sock in sockets:
            sock.detach()


def _listening(section: ListenerSection, passed: dict[str, list[socket.socket]]) -> list[socket.socket]:
    """Open the sockets of one listener, or take those that systemd has passed for it. Raises OSError."""
    if section.address is not None:
        return bind(*section.address)
    if section.systemd in passed:
        return passed[section.systemd]
    raise OSError(f"listener: systemd passed no socket named {section.systemd!r}, only {sorted(passed)}")


def serve_ports(opened: OpenPorts, edge: Edge, ktls: Ktls, verbs: Mapping[str, Verb], local_api: ControlApi) -> Ports:
    """Make what serves the sockets, which it takes over.

    `verbs` are the verbs of the control socket; `local_api` is served on the Unix socket beside it.
    """
    listeners = tuple(Listener(sock, port, edge) for _, port, sock in opened.clients)
    sections = [section for section, _, _ in opened.clients]
    return Ports(
        listeners=listeners,
        certificates=CertificateReload(
            list(zip(listeners, sections, strict=True)), lambda section: read_port(section, ktls)
        ),
        metrics=opened.metrics,
        metrics_addresses=tuple(sock.getsockname()[:2] for sock in opened.metrics),
        control=ControlServer(opened.control, verbs) if opened.control is not None else None,
        local_api=LocalApi(opened.local_api, local_api) if opened.local_api is not None else None,
    )
