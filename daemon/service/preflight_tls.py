"""All that `bentpipe check` says of certificates: those that are shown, names that none is for, and the own authority."""

import datetime
from collections.abc import Iterator, Mapping

from bentpipe.config.model import Config, ServerTlsSection
from bentpipe.daemon.connections.server_name import parse_server_name
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.authority_file import AuthorityError, read_authority
from bentpipe.daemon.pki.authority_keeper import ENDS_SOON_S
from bentpipe.daemon.service.certificate_files import certificate_ends, names_of, pairs_of, shown_concerns
from bentpipe.daemon.service.concern import Concern
from bentpipe.daemon.service.read_chain import read_chain


def tls_concerns(config: Config) -> Iterator[Concern]:
    """Look at every certificate that the configuration names."""
    yield from shown_concerns(config)
    for index, listener in enumerate(config.listener):
        if listener.tls is not None and listener.tls.satellite_domain is not None:
            yield from _domain_concerns(f"listener[{index}].tls", listener.tls, listener.tls.satellite_domain, config)
    yield from own_authority_concerns(config)


def look_at_all(config: Config) -> tuple[Mapping[str, float], list[Concern]]:
    """For the watch of a daemon that has the connections itself."""
    return certificate_ends(config), list(tls_concerns(config))


def look_at_own(config: Config) -> tuple[Mapping[str, float], list[Concern]]:
    """For the watch of a control plane: data planes look at what they show, which it perhaps may not read."""
    return {}, list(own_authority_concerns(config))


def own_authority_concerns(config: Config) -> Iterator[Concern]:
    """The authority that gives satellites their certificates."""
    if config.satellite_ca is None or config.satellite_ca.file is None:
        return
    path = config.satellite_ca.file
    try:
        ends = read_authority(path).certificate.not_valid_after_utc
    except AuthorityError as exc:
        yield Concern("satellite_ca.file", str(exc), fatal=True)
        return
    if ends - datetime.datetime.now(datetime.UTC) < datetime.timedelta(seconds=ENDS_SOON_S):
        words = f"{path}: the authority ends at {ends:%Y-%m-%d}: `bentpipe ca rotate` replaces its key"
        yield Concern("satellite_ca.file", words, fatal=False)


def _domain_concerns(where: str, section: ServerTlsSection, domain: str, config: Config) -> Iterator[Concern]:
    """Server names `NAME.ORG.domain` that no certificate of the listener covers."""
    names: set[str] = set()
    for _, pair in pairs_of(where, section):
        try:
            names |= names_of(read_chain(pair.certificate)[0])
        except ValueError:
            return
    named = {parse_server_name(name, domain) for name in names}
    # A wildcard stands for the first label alone (RFC 9525 section 6.3): the satellites of one org.
    wild = {parse_server_name(name.replace("*", "any", 1), domain) for name in names if name.startswith("*.")}
    orgs = {key.org for key in wild if key is not None}
    for satellite in config.satellite:
        key = SatelliteKey(satellite.org.lower(), satellite.name.lower())
        if key not in named and key.org not in orgs:
            wanted, for_all = ".".join((key.name, key.org, domain)), ".".join(("*", key.org, domain))
            words = f"no certificate is for {wanted}; with {for_all} in its names one is for all of the org"
            yield Concern(f"{where}.satellite_domain", words, fatal=False)
