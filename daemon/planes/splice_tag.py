"""What the data plane keeps of a splice for the next control plane: whose connection it is, and where it leads."""

import dataclasses
import json

from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.planes.bounds import TAG_BYTES

NO_HOST = "unix"
"""Stands for the address of a client that has none, as in `Arrival`."""


class TagUnreadable(ValueError):
    """Not a tag of ours, or of a later version that this one cannot read."""


@dataclasses.dataclass(frozen=True, slots=True)
class SpliceTag:
    """A splice's facts."""

    key: SatelliteKey
    principal: str
    """As in `Splice`."""
    payer: str
    """The principal whose quota is charged."""
    host: str
    """The client's address, by which limits count; "unix" if it has none."""
    credentials: frozenset[str]
    address: Address
    """Of the satellite."""
    connection_id: str = ""
    """Of its record; "" if an older control plane has made the splice."""
    accepted_at: float = 0.0
    """In seconds since the epoch; 0 if that is not known."""

    def encode(self) -> bytes:
        """Write it. If it is too long, credentials are left out from the end, and `who` may still be cut by name."""
        credentials = sorted(self.credentials)
        while True:
            fields = {
                "org": self.key.org,
                "name": self.key.name,
                "who": self.principal,
                "payer": self.payer,
                "from": self.host,
                "by": credentials,
                "at": [self.address.host, self.address.port],
                "id": self.connection_id,
                "since": self.accepted_at,
            }
            data = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
            if len(data) <= TAG_BYTES or not credentials:
                return data
            credentials.pop()

    @classmethod
    def decode(cls, data: bytes) -> "SpliceTag":
        """Read it; fields of later versions are passed over. Raises TagUnreadable."""
        try:
            fields = json.loads(data.decode())
        except ValueError as exc:
            raise TagUnreadable("not JSON in UTF-8") from exc
        match fields:
            case {
                "org": str(org),
                "name": str(name),
                "who": str(who),
                "payer": str(payer),
                "from": str(host),
                "by": list(by),
                "at": [str(at), int(port)],
            }:
                credentials = frozenset(each for each in by if isinstance(each, str))
                connection_id, since = fields.get("id"), fields.get("since")
                return cls(
                    *(SatelliteKey(org, name), who, payer, host, credentials, Address(at, port)),
                    connection_id if isinstance(connection_id, str) else "",
                    float(since) if isinstance(since, int | float) else 0.0,
                )
        raise TagUnreadable("a field is missing, or of another type")
