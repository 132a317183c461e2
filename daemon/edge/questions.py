"""The questions that the daemon itself asks of a satellite that is awake, each on a connection of its own.

- Its responder, if the satellite has one, tells all that is known of the machine: `GetStatus` of `proto/responder.proto`.
- Any other satellite may be asked for its kernel's boot id and uptime by a Check of grpc.health.v1 on its own port. It may
  offer them in the answer's metadata: `bentpipe-boot-id` (/proc/sys/kernel/random/boot_id) and `bentpipe-uptime-s`
  (/proc/uptime).

`daemon/readings/` and `daemon/fleet/resume.py` judge the answers. A satellite that lies here changes nobody's rights: at
worst it is kept awake for longer, or is put to sleep in another way.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping

import trio

from bentpipe.daemon.connections.dial_once import SatelliteTls, reason_of
from bentpipe.daemon.connections.pacing import take_turn
from bentpipe.daemon.connections.transport import TransportError
from bentpipe.daemon.edge.channel import Channel
from bentpipe.daemon.edge.dial import Dials, dial_at_once, dial_here
from bentpipe.daemon.fleet.resume import BootInfo
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.readings.reading import BOOT_ID_CHARS, Reading, ReadingFailed, ReadResult, read_status
from bentpipe.proto.asking import AnswerError, Asking
from bentpipe.proto.events import HeaderList
from bentpipe.proto.first_settings import Announcement
from bentpipe.proto.health import SERVICE_PATH, encode_request
from bentpipe.proto.messages import encode_message

log = logging.getLogger("bentpipe.edge")

STATUS_PATH = "/bentpipe.responder.v1.Responder/GetStatus"
BOOT_ID_KEY, UPTIME_KEY = b"bentpipe-boot-id", b"bentpipe-uptime-s"


@dataclasses.dataclass(frozen=True, slots=True)
class ResponderTarget:
    """Where a satellite's responder listens, on the satellite's own host, and how long it has for an answer."""

    port: int
    deadline_s: float


class Questions:
    """Asks with the TLS that the satellites are configured with.

    `hear` is told what a satellite's SETTINGS say, for later clients.
    """

    def __init__(
        self,
        satellite_tls: Mapping[SatelliteKey, SatelliteTls],
        responders: Mapping[SatelliteKey, ResponderTarget],
        hear: Callable[[SatelliteKey, Announcement], None],
        dials: Dials = dial_here,
    ) -> None:
        """`dials` connects from the process that has the satellites' certificates."""
        self._dials = dials
        self._satellite_tls = satellite_tls
        self._responders = responders
        self._hear = hear

    async def read(self, key: SatelliteKey, address: Address) -> Reading:
        """Read the responder of the satellite, which has one and is at `address`. Raises ReadingFailed."""
        target = self._responders[key]
        with trio.move_on_after(target.deadline_s):
            try:
                responder = Address(address.host, target.port)
                transport = await self._dials(responder, self._satellite_tls.get(key), target.deadline_s)
            except Exception as exc:  # from the resolver, from TLS, or because no descriptor is left
                raise ReadingFailed(ReadResult.UNREACHABLE, reason_of(exc)) from exc
            try:
                asked = await _ask(transport, Asking(STATUS_PATH, encode_message(b"")))
                message = asked.message()
            except (TransportError, AnswerError) as exc:
                raise ReadingFailed(ReadResult.REFUSED, str(exc)) from exc
            finally:
                transport.close()
            return read_status(message)
        raise ReadingFailed(ReadResult.TIMEOUT, f"no answer in {target.deadline_s:g} s")

    async def boot_info(self, key: SatelliteKey, address: Address) -> BootInfo | None:
        """Ask a satellite that has no responder. Returns None if it cannot be asked or offers nothing; never raises an
        Exception.
        """
        # No client waits for the answer. If many satellites wake at once, their clients come first.
        await take_turn(last=True)
        transport = await dial_at_once(address, self._satellite_tls.get(key), self._dials)
        if transport is None:
            log.info("no boot id", extra={"fields": {"satellite": str(key), "error": "it could not be reached"}})
            return None
        try:
            asked = await _ask(transport, Asking(f"{SERVICE_PATH}Check", encode_request("")))
            self._hear(key, asked.announced)
            return read_boot_info(asked.headers)
        except Exception as exc:  # any failure: the wake's kind is then UNKNOWN in the ledger
            log.info("no boot id", extra={"fields": {"satellite": str(key), "error": str(exc)}})
            return None
        finally:
            transport.close()


async def _ask(transport: Channel, asking: Asking) -> Asking:
    """Make the call. Raises TransportError, AnswerError."""
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
