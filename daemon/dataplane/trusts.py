"""The TLS by which satellites are known, by the names that OPEN uses: those of the configuration's files, and those that the
control plane has taught.

What was taught is kept in memory alone, and is forgotten when the next control plane comes: it teaches it again before it
uses it. A name that is not known here makes an OPEN fail, so that no satellite with TLS is ever dialled in plaintext.
"""

from collections.abc import Callable

from bentpipe.daemon.connections.dial_once import SatelliteTls
from bentpipe.daemon.connections.trust_material import TrustMaterial
from bentpipe.daemon.planes.bounds import TRUSTS_TAUGHT
from bentpipe.daemon.planes.codec import ProtocolBroken
from bentpipe.daemon.planes.records import TrustRecord
from bentpipe.native.engine import Ktls
from bentpipe.native.tls import TlsError


class Trusts:
    """`in_files` finds what the configuration has; it is asked first, so nothing that is taught can replace that."""

    def __init__(self, in_files: Callable[[str], SatelliteTls | None], ktls: Ktls) -> None:
        self._in_files = in_files
        self._ktls = ktls
        self._taught: dict[str, SatelliteTls] = {}

    def find(self, name: str) -> SatelliteTls | None:
        """The TLS of this name; None if nobody has told it."""
        return self._in_files(name) or self._taught.get(name)

    def teach(self, record: TrustRecord) -> str:
        """Keep or forget what the control plane has. Returns what is wrong with it. Raises ProtocolBroken for too many."""
        self._taught.pop(record.name, None)
        if not record.authorities:
            return ""
        if len(self._taught) >= TRUSTS_TAUGHT:
            raise ProtocolBroken("more names of TRUST than may be taught")
        told = (record.authorities, record.certificate, record.key)
        material = TrustMaterial(*(each.decode(errors="replace") for each in told))
        try:
            context = material.make_context(self._ktls)
        except TlsError as exc:
            return f"{record.name}: {exc}"
        self._taught[record.name] = SatelliteTls(context)
        return ""

    def forget_taught(self) -> None:
        """Another control plane sits."""
        self._taught.clear()
