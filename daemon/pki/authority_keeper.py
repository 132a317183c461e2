"""Keeps the authority: reads or makes its file, reads it again when it changes, and renews the daemon's own certificate."""

import dataclasses
import datetime
import logging
import time
from collections.abc import Callable
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bentpipe.daemon.pki.authority import CertificateAuthority, new_authority, new_key
from bentpipe.daemon.pki.authority_file import AuthorityError, keep_authority, read_authority

log = logging.getLogger("bentpipe.pki")

AUTHORITY_NAME = "satellite-ca.pem"
LOOK_S = 60.0
"""Between looks at the file: a rotation is taken up without a restart."""
OWN_AGE_S = 86_400.0
"""Age at which the daemon's own certificate is renewed."""
ENDS_SOON_S = 90 * 86_400.0
"""So long before the authority ends, the log says each day that it must be rotated."""


@dataclasses.dataclass(frozen=True, slots=True)
class Signing:
    """The authority, and the daemon's own key and certificate by it."""

    authority: CertificateAuthority
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class AuthorityKeeper:
    """Reads the file when it is made, blocking, and makes it if `makes`. Raises AuthorityError."""

    def __init__(self, path: Path, fleet: str, *, makes: bool, wall: Callable[[], float] = time.time) -> None:
        self._path = path
        self._fleet = fleet
        self._wall = wall
        self._failing = ""
        if makes and not path.exists():
            keep_authority(path, new_authority(fleet, self._now()))
            log.info("a certificate authority for satellites was made", extra={"fields": {"file": str(path)}})
        self.signing = self._sign_with(read_authority(path))

    async def run_keeper(self, changed: Callable[[], None]) -> None:
        """Look at the file for ever. `changed` is called when `signing` is another one."""
        while True:
            await trio.sleep(LOOK_S)
            try:
                found = await trio.to_thread.run_sync(read_authority, self._path)
            except AuthorityError as exc:
                if str(exc) != self._failing:
                    log.error("the authority's file", extra={"fields": {"error": str(exc)}})
                self._failing = str(exc)
                found = self.signing.authority
            else:
                self._failing = ""
            if self._is_stale(found):
                self.signing = self._sign_with(found)
                changed()

    def _is_stale(self, found: CertificateAuthority) -> bool:
        known = self.signing.authority
        if (found.certificate, found.chain, found.roots) != (known.certificate, known.chain, known.roots):
            return True
        return self._wall() - self._made_at >= OWN_AGE_S

    def _sign_with(self, authority: CertificateAuthority) -> Signing:
        now = self._now()
        self._made_at = self._wall()
        ends = authority.certificate.not_valid_after_utc
        if ends - now < datetime.timedelta(seconds=ENDS_SOON_S):
            words = "the satellites' authority ends soon: `bentpipe ca rotate` replaces it"
            log.error(words, extra={"fields": {"file": str(self._path), "ends": f"{ends:%Y-%m-%d}"}})
        key = new_key()
        return Signing(authority, key, authority.issue_daemon(key.public_key(), now))

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._wall(), datetime.UTC)
