"""Puts the satellites' certificate authority together for a configuration, and runs it."""

import dataclasses
import socket
import ssl
from collections.abc import Sequence

import trio

from bentpipe.config.model import Config
from bentpipe.config.satellite_ca import SatelliteCaSection
from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.trust_material import in_memory
from bentpipe.daemon.errors import ProviderRetryable, StoreError
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.fleet.machine.states import WAKING
from bentpipe.daemon.ids import launch_token
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki.authority import pem_of, private_pem_of
from bentpipe.daemon.pki.authority_file import AuthorityError
from bentpipe.daemon.pki.authority_keeper import AUTHORITY_NAME, AuthorityKeeper
from bentpipe.daemon.pki.enrolment import Bootstrap, Enrolments, Settings
from bentpipe.daemon.registry.contract import Registry
from bentpipe.daemon.service.enrolment_server import EnrolmentServer
from bentpipe.daemon.service.issued_tls import IssuedTls
from bentpipe.daemon.service.stores import NO_STORE, Stores, state_file
from bentpipe.daemon.tasks import Owner, contained, run_owned, start_owned
from bentpipe.native.engine import Ktls

REFRESH_S = 1.0
"""Between reads of the store: a machine that has enrolled at another host is known here as soon as a launched satellite."""


@dataclasses.dataclass(frozen=True, slots=True)
class SatelliteCa:
    """The parts."""

    keeper: AuthorityKeeper
    enrolments: Enrolments
    issued: IssuedTls
    server: EnrolmentServer
    registry: Registry

    def follow(self, config: Config) -> None:
        """Another configuration holds for what machines are given from now on. The authority and the socket stay."""
        if config.satellite_ca is not None:
            self.enrolments.follow(_settings_of(config.ec2.fleet, config.satellite_ca))

    async def bootstrap(self, key: SatelliteKey, launch: str) -> Bootstrap | None:
        """What the machine of a launch needs to enrol; None if its certificate is not ours. Raises ProviderError.

        `launch` is the launch's token, which the registry's newest generation must have made.
        """
        if not self.issued.has(key):
            return None
        try:
            found = {each.key: each for each in await self.registry.satellites()}.get(key)
            if found is None or launch_token(key, generation=found.generation) != launch:
                raise ProviderRetryable(f"another launch of {key} has begun")
            return await self.enrolments.expect(key, launch, found.generation)
        except StoreError as exc:
            raise ProviderRetryable(str(exc), peer_hint=exc.peer_hint) from exc

    async def start(self, nursery: trio.Nursery, fleet: Fleet) -> None:
        """Start the tasks; returns once the machines are known, or the store has failed to tell."""
        nursery.start_soon(run_owned, Owner("satellite authority"), self.keeper.run_keeper, self._renew_contexts)
        await nursery.start(start_owned, Owner("machine identities"), self._run_refresh, fleet)
        nursery.start_soon(run_owned, Owner("enrolment"), self.server.run_enrolment)

    def _renew_contexts(self) -> None:
        self.issued.renew_context()
        self.server.renew_context()

    async def _run_refresh(
        self, fleet: Fleet, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        while True:
            await self.issued.refresh()
            task_status.started()
            for key in self.issued.waiting():
                satellite = fleet.find(key)
                if satellite is not None and satellite.state in WAKING:
                    with contained(Owner("machine identities", str(key))):
                        await self._prolong(key)
            await trio.sleep(REFRESH_S)

    async def _prolong(self, key: SatelliteKey) -> None:
        """A machine that was stopped before it could enrol is started again: its token must not have ended."""
        try:
            await self.enrolments.prolong(key)
        except StoreError:
            return  # the refresh tells that the store fails, and the next round tries again


def make_keeper(config: Config) -> AuthorityKeeper | None:
    """Read the authority's file, or make it; None without the section. Raises OSError if it cannot be used."""
    section = config.satellite_ca
    if section is None:
        return None
    path = section.file or state_file(config.store, AUTHORITY_NAME)
    if path is None:
        raise OSError("[satellite_ca]: there is no state directory to keep the authority in; file names one")
    try:
        return AuthorityKeeper(path, config.ec2.fleet, makes=section.file is None)
    except AuthorityError as exc:
        raise OSError(f"[satellite_ca]: {exc}") from exc


def make_satellite_ca(
    config: Config,
    keeper: AuthorityKeeper,
    stores: Stores,
    table: dict[SatelliteKey, SatelliteTls],
    ktls: Ktls,
    sockets: Sequence[socket.socket],
) -> SatelliteCa:
    """Make the parts; nothing is started. `table` is the edge's, which it keeps right. It takes the sockets over.

    Raises OSError if there is no store.
    """
    section = config.satellite_ca
    if section is None or stores.identities is None or stores.registry is None:
        raise OSError(f"[satellite_ca]: {NO_STORE}")
    fleet = config.ec2.fleet
    enrolments = Enrolments(
        _settings_of(fleet, section), stores.identities, lambda: keeper.signing.authority, lambda row: issued.take(row)
    )
    issued = IssuedTls(
        *(table, stores.identities, fleet, ktls),
        signing=lambda: keeper.signing,
        trusted=lambda: pem_of(enrolments.trusted()),
    )
    for each in config.satellite:
        if each.has_issued_tls:
            issued.add(SatelliteKey(each.org, each.name))
    server = EnrolmentServer(sockets, enrolments, lambda: _server_context(keeper))
    return SatelliteCa(keeper, enrolments, issued, server, stores.registry)


def _settings_of(fleet: str, section: SatelliteCaSection) -> Settings:
    return Settings(fleet, section.machines_call, section.machine_life_s, section.token_life_s)


def _server_context(keeper: AuthorityKeeper) -> ssl.SSLContext:
    signing = keeper.signing
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    shown = pem_of([signing.certificate, *signing.authority.chain])
    with in_memory(shown, private_pem_of(signing.key)) as (certificate, key):
        context.load_cert_chain(certificate, key)
    return context
