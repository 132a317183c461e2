"""Random clients and tables for a data plane that admits by itself, and what the control plane would say of each client."""

import dataclasses
import enum
import hashlib
import random
from collections.abc import Iterator

import hpack

from beds.fuzz.openings import Openings
from beds.fuzz.requests import Requests
from bentpipe.config.accounts import TokenSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.dataplane.first_requests import own_paths
from bentpipe.daemon.edge.identity import Claim, Identities, TlsIdentity
from bentpipe.daemon.errors import BentpipeError
from bentpipe.daemon.registry.accounts import StoredAccounts, StoredOrg
from bentpipe.daemon.registry.contract import StoredToken
from bentpipe.proto.errors import GreetingError
from bentpipe.proto.events import HeaderList, RequestHeaders
from bentpipe.proto.first_settings import Announcement
from bentpipe.proto.frames import ACK, END_HEADERS, END_STREAM, HEADER_BYTES, PREFACE, FrameType, frame, parse_header
from bentpipe.proto.greeting import Greeting
from bentpipe.proto.request import MetadataError, parse_request

SECRETS = ("", "s1", "s2", "s3", "s4")
ORGS, NAMES = ("acme", "beta", "gone"), ("one", "one2", "two", "b-1")
GRANTS = ("acme/*", "acme/one", "acme/b-*", "beta/one*", "gone/*", "beta/*")
WIDE_GRANTS = (*GRANTS, *("acme/*", "beta/*") * 3)
DOMAIN = "sat.example"
OURS = Announcement(7, 1000)
OUR_FRAME = OURS.frame()
MARKER = 0xFAFA
"""A setting that no peer knows (RFC 9113 §6.5.2: it is ignored). Its value tells the clients apart."""
SERVER_NAMES = (
    None,
    "localhost",
    f"one.acme.{DOMAIN}",
    f"x.{DOMAIN}",
    f"b-1.beta.{DOMAIN}.",
    f"ONE.ACME.{DOMAIN.upper()}",
)
FEW_PATHS = (*(b"/a.B/C",) * 3, b"/api.public.compute.Compute/GetSatellite")
PATHS = (*(b"/a.B/C",) * 12, b"/api.public.compute.Compute/GetSatellite", b"/grpc.health.v1.Health/Check", b"*")


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def random_admission(chance: random.Random, now_s: float, of: tuple[str, ...] = GRANTS) -> Admission:
    """Tokens of the configuration and of the store, the same in both at times; an org that is revoked."""

    def grants() -> tuple[str, ...]:
        return tuple(chance.sample(of, chance.randrange(1, 4)))

    admission = Admission(
        [
            TokenSection(name=f"c{number}", hash=f"sha256:{digest_of(secret)}", grants=grants(), principal="alice")
            for number, secret in enumerate(chance.sample(SECRETS, 3))
        ],
        now=lambda: now_s,
    )
    stored = [
        StoredToken(
            *(f"s{number}", f"sha256:{digest_of(secret)}", grants(), 0),
            scopes=chance.choice((("use",), ("manage",), ())),
            expires_us=chance.choice((None, int((now_s - 3600) * 1e6), int((now_s + 3600) * 1e6))),
        )
        for number, secret in enumerate(chance.sample(SECRETS, 3))
    ]
    admission.replace_stored(stored, StoredAccounts(orgs=(StoredOrg("gone", 0, 1),)))
    return admission


def random_request(chance: random.Random) -> HeaderList:
    """A request whose fields come never, once or twice."""
    fields = [(b":method", chance.choice((b"POST", b"POST", b"POST", b"GET"))), (b":path", chance.choice(FEW_PATHS))]
    for key, values in ((b"satellite_org", ORGS), (b"satellite_name", NAMES), (b"satellite_token", SECRETS)):
        for _ in range(chance.choice((0, 1, 1, 1, 1, 1, 2))):
            spelt = key if chance.random() < 0.7 else key.replace(b"_", b"-")
            fields.append((spelt, chance.choice(values).encode()))
    if chance.random() < 0.2:
        fields.append((b"authorization", b"Bearer " + chance.choice(SECRETS).encode()))
    return tuple(fields)


class PortKind(enum.Enum):
    """The listeners of the data plane."""

    PLAIN = "plain"
    TLS = "tls"
    API = "api"
    DOMAIN = "domain"
    """TLS, and server names are satellites'."""
    CLIENT_CA = "client-ca"
    ONE_REQUEST = "one-request"


TLS_PORTS = frozenset((PortKind.TLS, PortKind.DOMAIN, PortKind.CLIENT_CA))
KINDS = (
    *(*(PortKind.PLAIN,) * 6, *(PortKind.TLS,) * 3, *(PortKind.DOMAIN,) * 3, *(PortKind.API,) * 2),
    *(*(PortKind.CLIENT_CA,) * 2, PortKind.ONE_REQUEST),
)


class Step(enum.Enum):
    """What a client does besides sending."""

    HEAR = enum.auto()
    """Wait for the first SETTINGS."""
    ACK = enum.auto()
    """Acknowledge what has come of SETTINGS."""
    RESET = enum.auto()
    """Leave by RST."""
    FIN = enum.auto()
    """Say nothing more, and listen."""
    PAUSE = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class ClientCase:
    """One client: where it connects, and what it does. In the end it waits for the satellite's last words."""

    number: int
    kind: PortKind
    speaks_tls: bool
    server_name: str | None
    steps: tuple[bytes | Step, ...]

    @property
    def leaves_early(self) -> bool:
        """Whether it does not wait for the end."""
        return Step.RESET in self.steps or Step.FIN in self.steps


def random_client(seed: int, number: int) -> ClientCase:
    """One of them, the same one for the same seed and number."""
    chance = random.Random(f"{seed}/{number}")
    kind = chance.choice(KINDS)
    speaks_tls = kind in TLS_PORTS and chance.random() < 0.9
    server_name = chance.choice(SERVER_NAMES) if speaks_tls else None
    steps: list[bytes | Step] = [PREFACE + _settings(chance, (MARKER, number))]
    if chance.random() < 0.85:
        steps += _honest(chance)
    else:
        steps.append(_hostile(chance))
    for early in (Step.RESET, Step.FIN):
        if chance.random() < 0.05:
            at = chance.randrange(len(steps) + 1)
            steps[at:] = [early]
    return ClientCase(number, kind, speaks_tls, server_name, tuple(_cut(chance, steps)))


def _honest(chance: random.Random) -> list[bytes | Step]:
    steps: list[bytes | Step] = [_quiet(chance) for _ in range(chance.choice((0, 0, 1, 2)))]
    waits = chance.random() < 0.4
    if waits:
        steps.append(Step.HEAR)
        steps += [Step.ACK] * chance.choice((0, 1, 1))
        steps += [_quiet(chance) for _ in range(chance.choice((0, 0, 1)))]
    stream = 1
    steps.append(_headers(chance, stream))
    for _ in range(chance.choice((0, 0, 1, 3, 6))):
        match chance.randrange(8):
            case 0:
                stream += 2
                steps.append(_headers(chance, stream))
            case 1 | 2 | 3:
                steps.append(frame(FrameType.DATA, 0, stream, chance.randbytes(chance.choice((0, 5, 100, 9_000)))))
            case 4:
                steps.append(Step.PAUSE)
            case 5:
                steps.append(Step.ACK)
            case _:
                steps.append(_quiet(chance))
    return steps


def _quiet(chance: random.Random) -> bytes:
    match chance.randrange(5):
        case 0:
            return frame(FrameType.WINDOW_UPDATE, 0, 0, chance.randrange(1, 1 << 20).to_bytes(4))
        case 1 | 2:
            return frame(FrameType.PING, 0, 0, chance.randbytes(8))
        case 3:
            return frame(FrameType.PRIORITY, 0, 1, bytes(4) + b"\x10")
        case _:
            return _unknown(chance)


def _unknown(chance: random.Random) -> bytes:
    payload = chance.randbytes(chance.randrange(40))
    return len(payload).to_bytes(3) + b"\xfa\0" + bytes(4) + payload


def _settings(chance: random.Random, *more: tuple[int, int]) -> bytes:
    entries = [*more, *(chance.choice(((1, 4096), (2, 0), (4, 1 << 20), (5, 16_384), (6, 1 << 15))) for _ in range(3))]
    return frame(FrameType.SETTINGS, 0, 0, b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in entries))


def _headers(chance: random.Random, stream: int) -> bytes:
    pick = chance.random()
    if pick < 0.75:
        token = chance.choice(SECRETS[1:]).encode()
        proof = (b"satellite_token", token) if chance.random() < 0.7 else (b"authorization", b"Bearer " + token)
        org, name = chance.choice(ORGS[:2]).encode(), chance.choice(NAMES).encode()
        fields: HeaderList = (
            *((b":method", b"POST"), (b":path", chance.choice(PATHS)), (b"satellite_org", org)),
            *((b"satellite_name", name), proof),
        )
    elif pick < 0.93:
        fields = random_request(chance)
    else:
        fields = Requests(chance.randrange(1 << 30)).make().headers[:100]
    block = hpack.Encoder().encode(list(fields), huffman=chance.random() < 0.5)
    flags = END_STREAM * chance.randrange(2)
    cut = chance.randrange(len(block) + 1) if chance.random() < 0.2 or len(block) > 16_000 else len(block)
    if cut == len(block):
        return frame(FrameType.HEADERS, flags | END_HEADERS, stream, block)
    pieces = [block[at : at + 16_000] for at in range(cut, len(block), 16_000)]
    out = frame(FrameType.HEADERS, flags, stream, block[: min(cut, 16_000)])
    if cut > 16_000:
        pieces = [block[at : at + 16_000] for at in range(16_000, len(block), 16_000)]
    for number, piece in enumerate(pieces, 1):
        out += frame(FrameType.CONTINUATION, END_HEADERS if number == len(pieces) else 0, stream, piece)
    return out


def _hostile(chance: random.Random) -> bytes:
    said = b"".join(flight.data for flight in Openings(chance.randrange(1 << 30)).make())
    said = said.removeprefix(PREFACE)[:20_000]
    return (
        said if chance.random() < 0.5 else b"".join(each for each in _honest(chance) if isinstance(each, bytes)) + said
    )


def _cut(chance: random.Random, steps: list[bytes | Step]) -> Iterator[bytes | Step]:
    """What is said between two other steps goes as one, or in pieces that may end within a frame."""
    said = b""
    for step in (*steps, None):
        if isinstance(step, bytes):
            said += step
            continue
        while said:
            size = len(said) if chance.random() < 0.6 else chance.randrange(1, min(len(said), 200) + 1)
            yield said[:size]
            said = said[size:]
            if said and chance.random() < 0.3:
                yield Step.PAUSE
        if step is not None:
            yield step


# -- what must become of a client ------------------------------------------------------------------------------------


def frames_of(said: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and all bytes of each whole frame behind the preface; what is left comes last, as type -1."""
    at = len(PREFACE)
    while at + HEADER_BYTES <= len(said):
        header = parse_header(said[at : at + HEADER_BYTES])
        end = at + HEADER_BYTES + header.length
        if end > len(said):
            break
        yield header.type, header.flags, said[at:end]
        at = end
    if at < len(said):
        yield -1, 0, said[at:]


def without_ours(said: bytes, *, acked: bool, pings: list[bytes]) -> bytes:
    """What a client has said, without the first ACK if that was ours, and without the PINGs that we have answered."""
    out, pings = said[: len(PREFACE)], list(pings)
    for kind, flags, raw in frames_of(said):
        if acked and kind == FrameType.SETTINGS and flags & ACK:
            acked = False
        elif kind == FrameType.PING and not flags & ACK and raw[HEADER_BYTES:] in pings:
            pings.remove(raw[HEADER_BYTES:])
        else:
            out += raw
    return out


def first_request(said: bytes, *, spoke: bool) -> HeaderList | None:
    """The first request as the control plane would read it. None: there is none, or it refuses the client before."""
    greeting = Greeting()
    greeting.announce(OURS)
    try:
        greeting.receive_data(said[: len(PREFACE)], 0.0)
        if spoke:
            greeting.end_of_first_flight()
        for _, _, raw in frames_of(said):
            for event in greeting.receive_data(raw, 0.0):
                if isinstance(event, RequestHeaders):
                    return event.headers
    except GreetingError:
        pass
    return None


def claim_of(case: ClientCase, headers: HeaderList | None, admission: Admission) -> Claim | None:
    """Whom the control plane admits to which satellite. None: it refuses, it answers itself, or wants other proof."""
    refuses = case.kind is PortKind.ONE_REQUEST or case.kind is PortKind.CLIENT_CA
    if headers is None or refuses or (case.kind in TLS_PORTS and not case.speaks_tls):
        return None
    if dict(headers).get(b":path", b"").startswith(own_paths(serves_api=case.kind is PortKind.API)):
        return None
    identities = Identities(admission, Certificates(()))
    domain = DOMAIN if case.kind is PortKind.DOMAIN else None
    try:
        claim = identities.identify(parse_request(headers), TlsIdentity(case.server_name), domain)
        identities.authorize(claim)
    except (BentpipeError, MetadataError):
        return None
    return claim
