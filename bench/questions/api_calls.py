"""The control API beside splices: the tail of calls on spliced connections while 1,000 API calls come each second.

The API's calls are GetSatellite with a session, as the Earthly CLI makes them, over TLS on CONNECTIONS warm connections.
Every answer is compared with the right one. `here`: at the daemon that has the spliced connections. All of bentpipe is on
one core, so the calls take time from the engine's thread. `elsewhere` is the control: the same calls at another daemon on
the same core. If `here` cost more than that, Python would be on the data path. `api_` values are of the API's own calls;
`trio_us_per_call` is the CPU time of the daemon's control plane for each.
"""

import contextlib
import dataclasses
import http.client
import json
import ssl
from typing import Literal

import grpc

from bench.lab import ORG, Lab, LabError
from bench.load import Load, LoadSpec, Phase, UnaryCall
from bench.peers.base import Peer
from bench.peers.ours import Bentpipe
from bench.session import Session
from bentpipe.proto import compute_pb2 as pb

QUESTION = "api_calls"
TITLE = "API calls beside spliced connections"
SHOWN = (
    *("p50_us", "p99_us", "p99.9_us", "failed"),
    *("api_p50_us", "api_p99_us", "api_p99.9_us", "api_answered", "api_failed", "trio_us_per_call"),
)
CALLS = LoadSpec("rate", (Phase(2000, 1.0),), connections=8)
"""On spliced connections. SECONDS of them are enough that some lie beyond p99.9."""
SECONDS, QUICK_SECONDS = 4.0, 3.0
API_CALLS_PER_S = 1000.0
CONNECTIONS = 16
REPETITIONS = 5
"""More than other questions have: it is about a tail."""
GET = "/api.public.compute.Compute/GetSatellite"
UNUSED = "unused"
"""A satellite that sleeps all the time, so that there is one right answer."""
DEADLINE_S = 10.0

Where = Literal["nowhere", "here", "elsewhere"]
WHERE: tuple[Where, ...] = ("nowhere", "here", "elsewhere")


@dataclasses.dataclass(frozen=True, slots=True)
class Api:
    """A daemon's API: a session for it, and the call with its right answer."""

    session: str
    call: UnaryCall

    def load(self, lab: Lab, peer: Peer, seconds: float) -> Load:
        """The generator of its calls."""
        spec = LoadSpec(
            "rate", (Phase(API_CALLS_PER_S, seconds),), connections=CONNECTIONS, task="call", call=self.call
        )
        return Load(peer.ports["tls"], str(lab.ca), self.session, spec)


def run(session: Session) -> None:
    """Every case, interleaved."""
    ours, other = _daemon(), _daemon()
    other.name = f"{ours.name} beside"
    with session.running([ours, other]) as peers:
        if len(peers) == 2:
            apis = {peer.name: _api(session.lab, peer) for peer in peers}
            repetitions = session.effort.repetitions if session.effort.quick else REPETITIONS
            session.interleave(
                peers[:1],
                WHERE,
                lambda peer, where: _measure(session, ours, other if where == "elsewhere" else ours, where, apis),
                repetitions=repetitions,
            )


def _daemon() -> Bentpipe:
    made = Bentpipe()
    made.satellites += [(UNUSED, ())]
    made.api = True
    return made


def _api(lab: Lab, peer: Peer) -> Api:
    """Log in as the CLI does, and ask once with another client for the answer. Raises LabError."""
    port = peer.ports["tls"]
    connection = http.client.HTTPSConnection(
        "localhost", port, timeout=DEADLINE_S, context=ssl.create_default_context(cafile=str(lab.ca))
    )
    with contextlib.closing(connection):
        connection.request("POST", "/api/v0/account/login", headers={"Authorization": f"token {peer.token}"})
        login = json.loads(connection.getresponse().read())
    if "token" not in login:
        raise LabError(f"no session: {login}")
    body = pb.GetSatelliteRequest(org_id=ORG, name=UNUSED).SerializeToString()
    credentials = grpc.ssl_channel_credentials(lab.ca.read_bytes())
    # The address in the answer is where the API was asked; the generator says "localhost", which is port 443.
    options = [("grpc.default_authority", "localhost")]
    with grpc.secure_channel(f"localhost:{port}", credentials, options=options) as channel:
        get = channel.unary_unary(GET, lambda message: message, lambda data: data)
        try:
            answer = get(body, metadata=[("authorization", f"Bearer {login['token']}")], timeout=DEADLINE_S)
        except grpc.RpcError as exc:
            raise LabError(f"no answer: {exc}") from exc
    found = pb.GetSatelliteResponse.FromString(answer)
    if found.status != pb.SATELLITE_STATUS_SLEEP or not found.is_managed:
        raise LabError(f"not the right answer: {found}")
    return Api(login["token"], UnaryCall(GET, body.hex(), answer.hex()))


def _measure(session: Session, ours: Bentpipe, target: Bentpipe, where: Where, apis: dict[str, Api]) -> None:
    seconds = QUICK_SECONDS if session.effort.quick else SECONDS
    calls = dataclasses.replace(CALLS, phases=(Phase(CALLS.phases[0].rate, seconds),))
    values: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(ours.load(session.lab, "plain", calls))
        api = None if where == "nowhere" else apis[target.name].load(session.lab, target, seconds)
        if api is not None:
            stack.enter_context(api)
            before_s = target.thread_cpu_s()["trio"]
            api.begin()
        phase = load.run().phases[0]
        if api is not None:
            asked = api.report().phases[0]
            used_s = target.thread_cpu_s()["trio"] - before_s
            values = {f"api_{name}": value for name, value in asked.quantiles_us().items()} | {
                "api_answered": float(asked.answered),
                "api_failed": float(asked.failed),
                "trio_us_per_call": used_s / max(asked.answered, 1) * 1e6,
            }
    values |= {**phase.quantiles_us(), "failed": float(phase.failed)}
    session.record(QUESTION, ours.name, {"api calls": where}, values, {"latency_ns": phase.latency})
