"""What a listener speaks, and how its certificates are read."""

import dataclasses
import logging

from bentpipe.config.model import Config, ListenerSection
from bentpipe.daemon.connections.arrival import Proxies
from bentpipe.native.engine import Ktls, ktls_self_test
from bentpipe.native.tls import TlsServerContext

log = logging.getLogger("bentpipe")


@dataclasses.dataclass(frozen=True, slots=True)
class Port:
    """What a listener speaks: TLS or not, the domain below which server names are satellites, and the trusted proxies."""

    tls: TlsServerContext | None = None
    satellite_domain: str | None = None
    proxies: Proxies = dataclasses.field(default_factory=Proxies)
    serves_api: bool = False
    """Whether the control API answers here, beside the satellites."""
    one_request: bool = False
    """Whether a connection may make one request, because its clients are frontends that mix several tenants' requests."""


def find_ktls(config: Config) -> Ktls:
    """Find which of the kernel's TLS the engine may use: what a self-test has seen work, if any TLS is configured."""
    listeners, machines = any(each.tls for each in config.listener), any(each.tls for each in config.machines)
    encrypted = listeners or machines or config.registration is not None
    if config.engine.ktls == "off" or not encrypted:
        return Ktls.NONE
    usable, words = ktls_self_test()
    log.info("kTLS", extra={"fields": {"spliced": str(usable), "found": words}})
    return usable


def read_port(section: ListenerSection, ktls: Ktls) -> Port:
    """Read what a listener speaks, with its certificates. Raises TlsError, naming the file."""
    proxies = Proxies(section.proxy_protocol.networks if section.proxy_protocol is not None else ())
    if section.tls is None:
        return Port(proxies=proxies, serves_api=section.api, one_request=section.one_request_per_connection)
    context = TlsServerContext(section.tls.certificate, section.tls.key, client_ca=section.tls.client_ca)
    if ktls:
        context.enable_ktls()
    if section.tls.client_crl is not None:
        context.add_crls(section.tls.client_crl)
    for more in section.tls.more:
        context.add(TlsServerContext(more.certificate, more.key))
    return Port(context, section.tls.satellite_domain, proxies, section.api, section.one_request_per_connection)
