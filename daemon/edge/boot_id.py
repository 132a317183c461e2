"""Asks a satellite that has woken for its kernel's boot id and uptime: see `daemon/fleet/resume.py`, which judges them.

The question is grpc.health.v1's Check, which every satellite may be asked; the answer's metadata has what we want, if the
satellite offers it: `bentpipe-boot-id` (/proc/sys/kernel/random/boot_id) and `bentpipe-uptime-s` (/proc/uptime). Nothing
that a satellite says here changes who may use it: at worst it is put to sleep in another way.
"""

import logging
import math
from collections.abc import Callable, Mapping

from bentpipe.daemon.edge.dial import dial_at_once
from bentpipe.daemon.edge.transport import Transport
from bentpipe.daemon.fleet.resume import Evidence
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.native.tls import TlsClientContext
from bentpipe.proto.asking import AnswerError, Asking
from bentpipe.proto.events import HeaderList
from bentpipe.proto.first_settings import Announcement
from bentpipe.proto.health import SERVICE_PATH, encode_request

log = logging.getLogger("bentpipe.edge")

BOOT_ID_KEY, UPTIME_KEY = b"bentpipe-boot-id", b"bentpipe-uptime-s"
BOOT_ID_CHARS = 64
"""A boot id is a UUID, 36 characters; what is longer is none."""


class BootIdQuery:
    """Asks over connections of its own, by the TLS that the satellites are configured with.

    `hear` is told what a satellite's SETTINGS say, for the clients to come.
    """

    def __init__(
        self,
        satellite_tls: Mapping[SatelliteKey, tuple[TlsClientContext, str | None]],
        hear: Callable[[SatelliteKey, Announcement], None],
    ) -> None:
        self._satellite_tls = satellite_tls
        self._hear = hear

    async def ask(self, key: SatelliteKey, address: Address) -> Evidence | None:
        """Ask. None if the satellite cannot be asked or says nothing; never raises an Exception."""
        tls, server_name = self._satellite_tls.get(key, (None, None))
        transport = await dial_at_once(address, tls, server_name)
        if transport is None:
            log.info("no witness", extra={"fields": {"satellite": str(key), "error": "it could not be reached"}})
            return None
        try:
            asked = await _ask(transport)
            self._hear(key, asked.announced)
            return read_evidence(asked.headers)
        except Exception as exc:  # whatever it is: the books have one finding less
            log.info("no witness", extra={"fields": {"satellite": str(key), "error": str(exc)}})
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


def read_evidence(headers: HeaderList) -> Evidence | None:
    """Read what the answer's metadata say; None if that is nothing. Malformed values count as not given."""
    boot_id, uptime_s = "", None
    for name, value in headers:
        if name == BOOT_ID_KEY and value.isascii() and 0 < len(value) <= BOOT_ID_CHARS:
            boot_id = value.decode()
        elif name == UPTIME_KEY:
            uptime_s = _seconds(value)
    return Evidence(boot_id, uptime_s) if boot_id or uptime_s is not None else None


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
