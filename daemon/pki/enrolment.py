"""Gives machines their bootstrap tokens and their certificates, as `rules` decides over the store's rows.

A token is computed from the authority's key and the launch, so that each repetition of a launch, by whichever host with the
same authority, has the same user data. Nothing is kept in memory that another host would need.
"""

import base64
import collections
import dataclasses
import datetime
import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import Callable

from cryptography import x509

from bentpipe.config.base import NAME_PATTERN
from bentpipe.daemon.errors import StoreError
from bentpipe.daemon.logs import log_limited
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.pki import rules
from bentpipe.daemon.pki.authority import CertificateAuthority, MachineName, key_hash_of, pem_of
from bentpipe.daemon.pki.requests import check_signature, read_request
from bentpipe.daemon.pki.rules import Denial, Denied
from bentpipe.daemon.registry.identities import ExpectedMachine, IdentityStore, StoredIdentity

log = logging.getLogger("bentpipe.pki")

ATTEMPTS = 10
"""Between a look at a row and a write, another host may have changed it: then both are done again."""
TOKEN_PREFIX = "bpm_"
"""Lets people and secret scanners see what it is."""
PURPOSE = "bentpipe bootstrap token"
LOGGED_DIGITS = 12
"""Of a launch's token: enough to tell launches apart."""
LOGGED_CHARS = 130
"""Of what a machine calls its satellite: no satellite's ORG/NAME is longer."""
RENEW_PART = 3
"""A machine asks for its next certificate after a third of the life of the present one. With the default life of 90 days, 60
days are left by then, and that is the longest time for which EC2 keeps a hibernated machine."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bootstrap:
    """What a new machine needs to enrol. It is in its user data."""

    address: str
    """HOST:PORT at which machines enrol."""
    satellite: str
    """ORG/NAME."""
    launch: str
    token: str
    trusted: str
    """The authority's roots in PEM."""

    def to_json(self) -> str:
        """As the file that the machine reads."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"


@dataclasses.dataclass(frozen=True, slots=True)
class Issued:
    """The answer to a machine: PEM, and when it is to ask again, in seconds from now."""

    certificate: str
    """Its own, followed by the chain."""
    trusted: str
    renew_after_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says. Times are seconds."""

    fleet: str
    address: str
    machine_life_s: float
    token_life_s: float


class Enrolments:
    """`authority` is the one that signs now. `changed` is called with each row that this host has changed."""

    def __init__(
        self,
        settings: Settings,
        store: IdentityStore,
        authority: Callable[[], CertificateAuthority],
        changed: Callable[[StoredIdentity], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._longest_life_s = settings.machine_life_s
        """Of a certificate that this process may have given out."""
        self._store = store
        self._authority = authority
        self._changed = changed
        self._wall = wall
        self._told: set[tuple[str, str, Denial]] = set()
        self.results: collections.Counter[tuple[str, str]] = collections.Counter()
        """Requests since the start, by kind and result."""

    def follow(self, settings: Settings) -> None:
        """Other settings hold for tokens and certificates that are given out from now on."""
        self._settings = settings
        self._longest_life_s = max(self._longest_life_s, settings.machine_life_s)

    async def expect(self, key: SatelliteKey, launch: str, generation: int) -> Bootstrap:
        """Let the machine of a launch enrol from now on. Repetitions return the same. Raises StoreError."""
        token = self._token(key, launch)
        hashes = (rules.token_hash_of(token),)
        machine = ExpectedMachine(launch, generation, hashes, self._us(self._settings.token_life_s))
        await self._change(key, lambda row: rules.expect(key, row, machine))
        return Bootstrap(self._settings.address, str(key), launch, token, pem_of(self.trusted()))

    async def prolong(self, key: SatelliteKey) -> None:
        """The satellite's machine is started: if it has not enrolled yet, it may do so now. Raises StoreError."""
        until_us = self._us(self._settings.token_life_s)
        await self._change(key, lambda row: rules.prolong(row, until_us))

    async def enrol(self, satellite: str, launch: str, token: str, request_pem: str) -> Issued:
        """Give a machine its first certificate. Raises RequestError, Denied, StoreError."""
        public = read_request(request_pem)
        try:
            key = _key_of(satellite)
            await self._change(key, lambda row: rules.enrol(row, launch, token, key_hash_of(public), self._us()))
        except Denied as exc:
            self._note("enrol", exc, satellite, launch)
            raise
        self._count("enrol", key, launch)
        name = MachineName(self._settings.fleet, key, launch)
        return self._issued(self._authority().issue_machine(public, name, self._now(), self._settings.machine_life_s))

    async def renew(self, satellite: str, launch: str, public_pem: str, request_pem: str, signature: str) -> Issued:
        """Give a machine its next certificate. Raises RequestError, Denied, StoreError.

        `public_pem` is the key of its present certificate, which has signed the request: see `check_signature`. That
        certificate may have ended, if the machine slept. What counts is that the row has the key.
        """
        public = read_request(request_pem)
        present = key_hash_of(check_signature(public_pem, request_pem, signature))
        try:
            key = _key_of(satellite)
            await self._change(key, lambda row: rules.renew(row, launch, present, key_hash_of(public), self._us()))
        except Denied as exc:
            self._note("renew", exc, satellite, launch)
            raise
        self._count("renew", key, launch)
        name = MachineName(self._settings.fleet, key, launch)
        return self._issued(self._authority().issue_machine(public, name, self._now(), self._settings.machine_life_s))

    def trusted(self) -> tuple[x509.Certificate, ...]:
        """The authority's roots that count now."""
        return self._authority().trusted(self._now(), self._longest_life_s)

    async def _change(
        self, key: SatelliteKey, decide: Callable[[StoredIdentity | None], StoredIdentity | None]
    ) -> None:
        for _ in range(ATTEMPTS):
            row = decide(await self._store.identity(key))
            if row is None:
                return
            if await self._store.put(row):
                self._changed(row)
                return
        raise StoreError(f"too many changes of {key}'s identity at once")

    def _issued(self, certificate: x509.Certificate) -> Issued:
        chain = pem_of([certificate, *self._authority().chain])
        return Issued(chain, pem_of(self.trusted()), self._settings.machine_life_s / RENEW_PART)

    def _token(self, key: SatelliteKey, launch: str) -> str:
        name = MachineName(self._settings.fleet, key, launch)
        made = hmac.digest(self._authority().secret(PURPOSE), name.uri.encode(), hashlib.sha256)
        return TOKEN_PREFIX + base64.urlsafe_b64encode(made).decode().rstrip("=")

    def _note(self, kind: str, denied: Denied, satellite: str, launch: str) -> None:
        """Count a denial. One that shows a stolen secret is an error in the log, once for each launch."""
        denial = denied.denial
        self.results[kind, denial.name.lower()] += 1
        shown = ascii(satellite[:LOGGED_CHARS])[1:-1]
        fields = {
            "request": kind,
            "satellite": shown,
            "launch": ascii(launch[:LOGGED_DIGITS])[1:-1],
            "error": denial.value,
        }
        if not denial.alarming:
            log_limited(log, "denied certificate", "a machine gets no certificate", fields, logging.WARNING)
        elif (satellite, launch, denial) not in self._told:
            # Only requests with a right token or key come here, so there are no more of these than launches.
            self._told.add((satellite, launch, denial))
            log.error("a machine's secret is in other hands", extra={"fields": fields})

    def _count(self, kind: str, key: SatelliteKey, launch: str) -> None:
        self.results[kind, "ok"] += 1
        fields = {"request": kind, "satellite": str(key), "launch": launch[:LOGGED_DIGITS]}
        log.info("a machine has a certificate", extra={"fields": fields})

    def _us(self, after_s: float = 0.0) -> int:
        return int((self._wall() + after_s) * 1e6)

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._wall(), datetime.UTC)


def _key_of(satellite: str) -> SatelliteKey:
    """Read ORG/NAME. Raises Denied if that cannot be a satellite's: such text must not come to the store."""
    org, _, name = satellite.partition("/")
    if not re.fullmatch(NAME_PATTERN, org) or not re.fullmatch(NAME_PATTERN, name) or "\n" in satellite:
        raise Denied(Denial.UNKNOWN)
    return SatelliteKey(org, name)
