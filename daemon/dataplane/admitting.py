"""Brings clients to awake satellites without asking the control plane, as far as it has told how: see planes/snapshots.py.

    arrives ─▶ first request ─▶ admitted by the tables ─▶ satellite connected ─▶ its first frame ─▶ joined
       └─────────────┴───────────────────┴─────────────────────────┴───────────────────┴─▶ offered to the control plane

Until it is joined a client can always be offered instead: it has heard nothing of its satellite, and the satellite has got
no request of it. The offer has what the client has said, and a mark of what it was told.

All of this is on one thread, with the tables. So between the last look at the tables and the join nothing can change.
"""

import collections
import functools
import ipaddress
import logging
import socket
import time
from collections.abc import Callable

import trio

from bentpipe.daemon.connections.dial_once import SatelliteTls, numeric
from bentpipe.daemon.connections.greeters import Greeters
from bentpipe.daemon.connections.native_greeting import NativeGreeting
from bentpipe.daemon.connections.port import Port
from bentpipe.daemon.dataplane.admission_tables import (
    AdmissionTables,
    Admitted,
    GrantedToken,
    SatelliteGate,
    Unadmitted,
)
from bentpipe.daemon.dataplane.clients import ClientLine, ClientStream
from bentpipe.daemon.dataplane.first_requests import FirstRequests
from bentpipe.daemon.dataplane.halves import start_connecting, tls_of
from bentpipe.daemon.dataplane.openings import LaneStart
from bentpipe.daemon.dataplane.stream import BROKEN, DATA, END, HUNG_UP, Order, Stream
from bentpipe.daemon.dataplane.streams import Streams
from bentpipe.daemon.logs import log_limited
from bentpipe.daemon.model import SatelliteKey
from bentpipe.daemon.planes.records import LINK_ID, ArrivalFlag, GoFlag, GoRecord, OpenRecord
from bentpipe.daemon.planes.snapshots import AdmittedRecord, boot_us
from bentpipe.daemon.planes.splice_tag import NO_HOST, SpliceTag
from bentpipe.daemon.records.record import Record
from bentpipe.daemon.tasks import Owner, contained
from bentpipe.native.first_settings import FirstSettingsReader, NotSettings, ServerSettings
from bentpipe.native.joiner import News, StreamId
from bentpipe.native.lane import LaneOptions
from bentpipe.native.sock_diag import ListenerLookup
from bentpipe.native.tls import TlsError
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.events import Event, PingAnswered, RequestHeaders
from bentpipe.proto.limits import HEADER_FIELDS
from bentpipe.proto.trace_context import trace_context

log = logging.getLogger("bentpipe.dataplane")

REQUEST_S = 2.0
"""For the first request. A client that needs longer is offered to the control plane, which has the deadline for it."""
SILENT_CLIENTS = 1_024
"""Clients whose first request has not come, at most, with up to 128 KiB each (native/src/lane.c). The control plane limits
strangers by the configuration and knows which of them to give up, so one more has the oldest of them offered to it."""
REACH_S = 1.0
"""For the satellite's connection and its first frame. If it needs longer, the control plane looks at its machine."""
LATE_LOOK_S = 0.25
JOIN_MS = 10_000
"""As the control plane's GO."""


class OwnHalf(Stream):
    """A connection to a satellite that this process has made for a client of its own."""

    def __init__(self, sock: socket.socket, native: StreamId, streams: Streams, admitting: "Admitting") -> None:
        self._admitting: Admitting | None = admitting
        super().__init__(LINK_ID, sock, native, streams, self._let_go, self._reached)
        self.reads_here = True

    def leave(self) -> None:
        """The client does not need it any more."""
        self._admitting = None
        if not self._freed:
            self.give(Order.RESET)

    def take(self, news: News) -> bool:
        """See Stream."""
        passed_on = super().take(news)
        if self._admitting is not None and self.order is None:
            if news.flags & DATA:
                self._admitting.satellite_said(news.data)
            if news.flags & (END | BROKEN | HUNG_UP) and self._admitting is not None:
                self._admitting.give_up(Unadmitted.UNREACHED)
        return passed_on

    def _reached(self) -> None:
        if self._admitting is not None:
            self._admitting.connected()

    def _let_go(self, news: News) -> None:
        if self.order is Order.JOIN:
            return  # the join has it
        self.take_back().close()
        if self._admitting is not None:
            self._admitting.give_up(Unadmitted.UNREACHED)


class Admitting:
    """One client, until it is joined or offered."""

    def __init__(self, admissions: "Admissions", client: ClientStream, port: Port) -> None:
        self.client = client
        self.late_at = trio.current_time() + REQUEST_S
        self._all = admissions
        self._port = port
        self._greeting = admissions.greeters.make()
        self._greeting.announce(admissions.tables.announced)
        self._greeting.take_removed()  # from now on they are remembered
        self._fed = 0
        """Offset in the client's stream up to which the greeting has read."""
        self._admitted: Admitted | None = None
        self._half: OwnHalf | None = None
        self._introduction: FirstSettingsReader | None = None
        self._heard: ServerSettings | None = None
        self._read_bytes = 0
        self._sent_bytes = 0
        self._trace: tuple[str, str] = "", ""
        self._moments: list[int] = []

    # -- the client ----------------------------------------------------------------------------------------------------

    def hear(self, data: bytes) -> None:
        """The client has said more. Its transcript has it already."""
        if self._admitted is not None:
            return  # it is behind the request: the join reads it
        greeting, events = self._greeting, []
        try:
            events = greeting.receive_data(data, trio.current_time())
            is_sound = not (isinstance(greeting, NativeGreeting) and greeting.stopped is not None)
        except GreetingError:
            is_sound = False
        self._fed = self.client.transcript.end
        if is_sound and not any(isinstance(event, RequestHeaders) for event in events):
            greeting.end_of_first_flight()
        self._say()
        if is_sound:
            self._judge(events)
        else:
            self.give_up(Unadmitted.UNUSUAL)  # the control plane reads it again, and has the words

    def _say(self) -> None:
        for at, size in self._greeting.take_removed():
            self.client.transcript.drop(at, size)
        if words := self._greeting.data_to_send():
            self.client.add_words(words)
        self.client.mark = self._greeting.mark

    def _judge(self, events: list[Event]) -> None:
        requests = [event for event in events if isinstance(event, RequestHeaders)]
        others = [event for event in events if not isinstance(event, RequestHeaders | PingAnswered)]
        if others or self._greeting.leaving or len(requests) > 1:
            self.give_up(Unadmitted.UNUSUAL)
        elif requests:
            self._ask(requests[0])

    def _ask(self, first: RequestHeaders) -> None:
        self._note_moment()
        found = self._find(first)
        if isinstance(found, Unadmitted):
            self.give_up(found)
            return
        self._admitted = found
        self._all.has_asked(self)
        self._note_moment()
        self._connect(found)

    def _find(self, first: RequestHeaders) -> Admitted | Unadmitted:
        read = self._all.requests.read(self._greeting, first, self.client.origin.server_name, self._port)
        if read is None:
            return Unadmitted.UNUSUAL
        self._trace = trace_context(((b"traceparent", read.traceparent), (b"tracestate", read.tracestate)))
        key = SatelliteKey(read.org, read.name)
        return self._all.tables.admit(read.digest, key, boot_us(), _wall_us())

    # -- the satellite -------------------------------------------------------------------------------------------------

    def _connect(self, admitted: Admitted) -> None:
        self.late_at = trio.current_time() + REACH_S
        gate = admitted.gate
        target = numeric(gate.address)
        trust = self._all.find_trust(gate.trust) if gate.trust else None
        if target is None or (gate.trust and trust is None):
            self.give_up(Unadmitted.UNREACHED)
            return
        asked = OpenRecord(LINK_ID, gate.address.port, 0, gate.address.host, gate.trust, gate.server_name)
        sock: socket.socket | None = None
        try:
            sock = start_connecting(target)
            tls = None if trust is None else tls_of(trust, sock, asked)
            native = self._all.streams.joiner.connect(sock.fileno(), tls, round(1000 * REACH_S))
        except (OSError, TlsError, UnicodeError):  # the control plane tries again, and has the words
            if sock is not None:
                sock.close()
            self.give_up(Unadmitted.UNREACHED)
            return
        self._half = OwnHalf(sock, native, self._all.streams, self)
        self._half.let_read()

    def connected(self) -> None:
        """The satellite has accepted the connection, and its TLS is complete."""
        admitted, half = self._admitted, self._half
        if admitted is None or half is None:
            return
        self._note_moment()
        if not self._is_owner(admitted):
            self.give_up(Unadmitted.STRANGER)
        elif not self._greeting.spoke:
            self._moments.append(0)
            self._all.streams.after_news(self._join)
        else:
            announced = self._greeting.announced
            self._introduction = FirstSettingsReader(announced.streams, announced.window_bytes)
            opening = self._greeting.opening
            self._sent_bytes = len(opening)
            half.add_words(opening)

    def _is_owner(self, admitted: Admitted) -> bool:
        """Whether the connection has reached the process that the control plane knows there.

        Nobody else can have got it while that one's socket listens. So this is asked after the connection was made.
        """
        gate = admitted.gate
        if not gate.owned:
            return True
        try:
            found = self._all.lookup.find(ipaddress.ip_address(gate.address.host).packed, gate.address.port)
        except (OSError, ValueError) as exc:  # no sock_diag in this kernel, or no AF_NETLINK in this sandbox
            log_no_sock_diag(exc)
            return False
        if found is None:
            return False
        return found.inode in gate.inodes if gate.inodes else found.uid == gate.uid

    def satellite_said(self, data: bytes) -> None:
        """The satellite has said something."""
        admitted, half, introduction = self._admitted, self._half, self._introduction
        if admitted is None or half is None or introduction is None or self._heard is not None:
            return  # the join reads it
        self._read_bytes = half.transcript.end
        try:
            self._heard = introduction.receive_data(data)
        except NotSettings:
            self.give_up(Unadmitted.UNREACHED)
            return
        if self._heard is not None:
            self._note_moment()
            self._all.streams.after_news(self._join)

    # -- how it ends ---------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Nothing waits between this look at the tables and the join."""
        client, greeting, all_, admitted, half = self.client, self._greeting, self._all, self._admitted, self._half
        if client.admission is not self or admitted is None or half is None:
            return  # it was given up meanwhile
        if not all_.tables.still_holds(admitted, boot_us(), _wall_us()):
            self.give_up(Unadmitted.CHANGED)
            return
        if client.order is not None or client.broken or half.order is not None or half.broken or half.over:
            self.give_up(Unadmitted.UNREACHED)
            return
        go = GoRecord(
            id=client.id,
            half=LINK_ID,
            flags=GoFlag.ACK_OWED if greeting.awaiting_ack else GoFlag.NONE,
            client_from=self._sent_bytes,
            frame_at=self._fed - (greeting.unframed_bytes if greeting.awaiting_ack else 0),
            half_from=self._read_bytes,
            deadline_ms=JOIN_MS,
            tag=tag_of(admitted.gate, admitted.token, client.origin.host, client.record).encode(),
            words=b"" if self._heard is None else self._heard.words,
        )
        joined = functools.partial(all_.tables.joined, admitted)
        if not all_.join(client, half, go, self._record(admitted, go), joined):
            self.give_up(Unadmitted.UNREACHED)
            return
        self._admitted = None
        all_.admitted += 1
        all_.over(self)
        self._half = None
        client.admission = None

    def _record(self, admitted: Admitted, go: GoRecord) -> AdmittedRecord:
        heard = self._heard
        return AdmittedRecord(
            id=self.client.id,
            gate=admitted.gate.number,
            start_us=0,
            age_us=self._age_us,
            up=self.client.heard_bytes,
            down=self.client.sent_bytes,
            streams=0 if heard is None else heard.streams,
            window_bytes=0 if heard is None else heard.window_bytes,
            peer=self.client.origin.peer,
            tag=go.tag,
            traceparent=self._trace[0],
            tracestate=self._trace[1],
            moments=tuple(self._moments),
        )

    @property
    def _age_us(self) -> int:
        return max(1, round(1e6 * (trio.current_time() - self.client.since)))

    def _note_moment(self) -> None:
        self._moments.append(self._age_us)

    @property
    def goes_through(self) -> int | None:
        """The number of its gate, if it was admitted."""
        return None if self._admitted is None else self._admitted.gate.number

    def give_up_late(self) -> None:
        """It needs too long."""
        self.give_up(Unadmitted.SILENT if self._admitted is None else Unadmitted.UNREACHED)

    def give_up(self, why: Unadmitted) -> None:
        """Offer the client to the control plane, with all that it has said. Idempotent."""
        if self.client.admission is self:
            self.end()
            self._all.unadmitted[why] += 1
            self._all.line.enter_again(self.client)

    def end(self) -> None:
        """Let go of what is under way for the client."""
        self.client.admission = None
        self._all.over(self)
        if self._admitted is not None:
            self._all.tables.give_back(self._admitted)
            self._admitted = None
        half, self._half = self._half, None
        if half is not None:
            half.leave()


def tag_of(gate: SatelliteGate, token: GrantedToken, host: str, record: Record) -> SpliceTag:
    """What a control plane must know of a client that was admitted here. `host`: the client's; "" if it has none."""
    return SpliceTag(
        *(gate.key, token.principal, token.principal, host or NO_HOST, token.credentials, gate.address),
        *(record.id, round(record.wall_s, 3)),
    )


def log_no_sock_diag(error: Exception) -> None:
    """The kernel does not say who listens, so local satellites count as strangers."""
    log_limited(log, "no sock_diag", "it cannot be seen which process listens", {"error": str(error)}, logging.WARNING)


def _wall_us() -> int:
    return time.time_ns() // 1000


Join = Callable[[ClientStream, Stream, GoRecord, AdmittedRecord, Callable[[], Callable[[], None]]], bool]


class Admissions:
    """All clients that this process may bring to their satellites."""

    def __init__(
        self,
        tables: AdmissionTables,
        line: ClientLine,
        streams: Streams,
        find_trust: Callable[[str], SatelliteTls | None],
        greeters: Greeters,
        join: Join,
    ) -> None:
        """`join` joins a client and a satellite, and tells the control plane; it returns False if nothing was done.

        It calls its last argument once it is joined. If no control plane sits, it calls what that returns at the end of the
        connection: nobody else gives the credit back.
        """
        self.tables = tables
        self.line = line
        self.streams = streams
        self.find_trust = find_trust
        self.greeters = greeters
        self.join = join
        self.requests = FirstRequests()
        self.lookup = ListenerLookup()
        if greeters.limits is not None:
            streams.joiner.admit(
                LaneOptions(
                    *(tables.native, greeters.limits, HEADER_FIELDS, SILENT_CLIENTS),
                    *(REQUEST_S, REACH_S, JOIN_MS / 1000),
                )
            )
        self.unadmitted: collections.Counter[Unadmitted] = collections.Counter()
        self.admitted = 0
        self._open: dict[Admitting, None] = {}
        self._silent: dict[Admitting, None] = {}
        """Those whose first request has not come, the oldest first."""

    def __len__(self) -> int:
        return len(self._open) + self.streams.joiner.lanes

    def lane_of(self, port: Port) -> LaneStart | None:
        """Where the clients of a port go that C may bring to their satellites; None if Python does it."""
        if not self.greeters.in_c or port.one_request:
            return None
        return LaneStart(self.streams.joiner, self.requests.rules(port))

    def begin(self, client: ClientStream, port: Port) -> bool:
        """Take a client whose first bytes are there, if that may be of use. Returns whether it was taken."""
        if port.one_request or not self.tables.may_admit(boot_us()):
            return False
        if client.origin.flags & ArrivalFlag.PLAINTEXT:
            return False  # the port demands TLS, and perhaps a certificate: the control plane has the words
        if client.origin.certificate:
            self.unadmitted[Unadmitted.CERTIFICATE] += 1
            return False
        if self.greeters.in_c:
            return False  # C has had it, and has left it to the control plane
        admitting = client.admission = Admitting(self, client, port)
        client.reads_here = True
        self._open[admitting] = self._silent[admitting] = None
        self.line.keep(client)
        admitting.hear(client.transcript.between(0, client.transcript.end))
        if len(self._silent) > SILENT_CLIENTS:
            with contained(Owner("admission")):
                next(iter(self._silent)).give_up(Unadmitted.SILENT)
        return True

    def has_asked(self, admitting: Admitting) -> None:
        """Its first request has come."""
        self._silent.pop(admitting, None)

    def over(self, admitting: Admitting) -> None:
        """It is joined, offered, or has ended."""
        self._open.pop(admitting, None)
        self._silent.pop(admitting, None)

    def shut(self, number: int) -> None:
        """Shut a gate: clients that are on their way through it are offered instead. Raises ProtocolBroken."""
        self.tables.shut_gate(number)
        for admitting in [each for each in self._open if each.goes_through == number]:
            with contained(Owner("admission")):
                admitting.give_up(Unadmitted.CHANGED)

    async def run_admissions(self) -> None:
        """Offer those that need too long, for ever."""
        while True:
            await trio.sleep(LATE_LOOK_S)
            now = trio.current_time()
            for admitting in [each for each in self._open if each.late_at <= now]:
                with contained(Owner("admission")):
                    admitting.give_up_late()
