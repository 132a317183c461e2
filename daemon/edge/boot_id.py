"""Asks a satellite that has woken for its kernel's boot id and uptime. `daemon/fleet/resume.py` judges the answer.

The call is grpc.health.v1's Check, which any satellite may be asked. If the satellite offers the two values, they are in
the answer's metadata: `bentpipe-boot-id` (/proc/sys/kernel/random/boot_id) and `bentpipe-uptime-s` (/proc/uptime). A
satellite that lies here changes nobody's rights: at worst it is put to sleep in another way.
"""

import logging
import math
from collections.abc import Callable, Mapping

from bentpipe.daemon.edge.dial import SatelliteTls, dial_at_once
from bentpipe.daemon.edge.transport import Transport
from bentpipe.daemon.fleet.resume import BootInfo
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.proto.asking import AnswerError, Asking
from bentpipe.proto.events import HeaderList
from bentpipe.proto.first_settings import Announcement
from bentpipe.proto.health import SERVICE_PATH, encode_request

log = logging.getLogger("bentpipe.edge")

BOOT_ID_KEY, UPTIME_KEY = b"bentpipe-boot-id", b"bentpipe-uptime-s"
BOOT_ID_CHARS = 64
"""A boot id is a UUID of 36 characters; a longer value is not accepted."""


class BootIdQuery:
    """Asks over connections of its own, with the TLS that the satellites are configured with.

    `hear` is told what a satellite's SETTINGS say, for later clients.
    """

    def __init__(
        self,
        satellite_tls: Mapping[SatelliteKey, SatelliteTls],
        hear: Callable[[SatelliteKey, Announcement], None],
    ) -> None:
        self._satellite_tls = satellite_tls
        self._hear = hear

    async def ask(self, key: SatelliteKey, address: Address) -> BootInfo | None:
        """Ask the satellite. Returns None if it cannot be asked or offers nothing; never raises an Exception."""
        transport = await dial_at_once(address, self._satellite_tls.get(key))
        if transport is None:
            log.info("no boot id", extra={"fields": {"satellite": str(key), "error": "it could not be reached"}})
            return None
        try:
            asked = await _ask(transport)
            self._hear(key, asked.announced)
            return read_boot_info(asked.headers)
        except Exception as exc:  # any failure: the wake's kind is then UNKNOWN in the ledger
            log.info("no boot id", extra={"fields": {"satellite": str(key), "error": str(exc)}})
            return None
        finally:
            transport.close()


async def _ask(transport: Transport) -> Asking:
    """Make the call. Raises TransportError, AnswerError."""
    asking = Asking(f"{SERVICE_PATH}Check", encode_request(""))
    await transport.send_all(asking.data_to_send())
    while not asking.ended:
        data = await transport.receive_some()
        if not data:
            raise AnswerError("it hung up")
        asking.receive_data(data)
        await transport.send_all(asking.data_to_send())
    return asking


def read_boot_info(headers: HeaderList) -> BootInfo | None:
    """Read the answer's metadata; None if they have neither value. A malformed value counts as absent."""
    boot_id, uptime_s = "", None
    for name, value in headers:
        if name == BOOT_ID_KEY and value.isascii() and 0 < len(value) <= BOOT_ID_CHARS:
            boot_id = value.decode()
        elif name == UPTIME_KEY:
            uptime_s = _seconds(value)
    return BootInfo(boot_id, uptime_s) if boot_id or uptime_s is not None else None


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
