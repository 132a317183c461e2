"""Every method by every kind of credential, over the wire and by the daemon's own tables: what is answered, what is done."""

import hashlib
import time
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
import trio
from google.protobuf.message import Message

from beds.hosts.api_host import ApiHost
from beds.machines.memory_provider import MemoryProvider
from beds.quoted import without_id
from bentpipe.config.accounts import OidcRuleSection
from bentpipe.config.model import ProcessSection, SatelliteSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.authority import TableAuthority
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.accounts.exchange import Exchange
from bentpipe.daemon.accounts.principal import Origin
from bentpipe.daemon.accounts.sessions import Sessions, TokenPurpose
from bentpipe.daemon.accounts.signing_key import new_key
from bentpipe.daemon.api.compute import SERVICE_PATH, Compute, Specs
from bentpipe.daemon.api.reservations import Reservations
from bentpipe.daemon.api.statuses import StateBoard
from bentpipe.daemon.fleet import satellite as satellite_module
from bentpipe.daemon.fleet.context import FleetContext
from bentpipe.daemon.fleet.fleet import Fleet
from bentpipe.daemon.model import Address, SatelliteKey
from bentpipe.daemon.registry.contract import StoredToken
from bentpipe.proto import compute_pb2 as pb

Code = grpc.StatusCode
HOUR_S = 3600.0
RULES = [
    OidcRuleSection(name="main", issuer="gh", claims={"repository_id": "1"}, grants=("acme/a",)),
    OidcRuleSection(name="wrong-repository", issuer="gh", claims={"repository_id": "2"}, grants=("beta/*",)),
]
METHODS: dict[str, Callable[[str, str], Message]] = {
    "ListSatellites": lambda org, name: pb.ListSatellitesRequest(org_id=org),
    "GetSatellite": lambda org, name: pb.GetSatelliteRequest(org_id=org, name=name),
    "WakeSatellite": lambda org, name: pb.WakeSatelliteRequest(org_id=org, name=name),
    "SleepSatellite": lambda org, name: pb.SleepSatelliteRequest(org_id=org, name=name),
    "ReserveSatellite": lambda org, name: pb.ReserveSatelliteRequest(org_id=org, name=name),
    "LaunchSatellite": lambda org, name: pb.LaunchSatelliteRequest(org_id=org, name=name),
    "UpdateSatellite": lambda org, name: pb.UpdateSatelliteRequest(org_id=org, name=name),
    "DeleteSatellite": lambda org, name: pb.DeleteSatelliteRequest(org_id=org, name=name, force=True),
}
NOBODY = dict.fromkeys(METHODS, Code.UNAUTHENTICATED)
FOREIGN = {
    **dict.fromkeys(METHODS, Code.NOT_FOUND),
    "ListSatellites": Code.OK,
    "LaunchSatellite": Code.PERMISSION_DENIED,
}
USER = {
    **dict.fromkeys(METHODS, Code.PERMISSION_DENIED),
    **dict.fromkeys(("ListSatellites", "GetSatellite", "WakeSatellite", "ReserveSatellite"), Code.OK),
}
MANAGER = {
    **dict.fromkeys(METHODS, Code.OK),
    **dict.fromkeys(("LaunchSatellite", "UpdateSatellite", "DeleteSatellite"), Code.UNIMPLEMENTED),
}
EXPECTED = {
    "no token": NOBODY,
    "a bad token": NOBODY,
    "an expired token": NOBODY,
    "a revoked token": NOBODY,
    "a session of a revoked token": NOBODY,
    "another org's": FOREIGN,
    "another satellite's": FOREIGN,
    "a job of the wrong repository": FOREIGN,
    "a user's": USER,
    "a user's session": USER,
    "a job's": USER,
    "a manager's": MANAGER,
    "a manager's session": MANAGER,
}


def stored(name: str, grants: tuple[str, ...] = ("acme/*",), **more: object) -> StoredToken:
    token_hash = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    return StoredToken(name, token_hash, grants, 1, **more)  # type: ignore[arg-type]


class Bed:
    def __init__(self) -> None:
        now_us = int(time.time() * 1e6)
        sessions = Sessions("f")
        sessions.sign_with(new_key())
        admission = Admission([], rules=RULES, sessions=sessions)
        tokens = [
            stored("user"),
            stored("manager", scopes=("manage",)),
            stored("narrow", ("acme/b",), scopes=("manage",)),
            stored("other-org", ("beta/*",), scopes=("manage",)),
            stored("expired", expires_us=now_us - 1),
            stored("revoked"),
        ]
        admission.replace_stored(tokens)
        authority = TableAuthority(
            admission, Certificates([]), Exchange(admission, [], RULES, None), session_life_s=HOUR_S
        )

        def job(rule: str) -> str:
            return sessions.issue(TokenPurpose.JOB, Origin(f"rule:{rule}", "0a", now_us), time.time() + HOUR_S).token

        self.credentials: dict[str, str | None] = {
            "no token": None,
            "a bad token": "bad",
            "an expired token": "expired",
            "a revoked token": "revoked",
            "a session of a revoked token": authority.log_in("revoked").token,
            "another org's": "other-org",
            "another satellite's": "narrow",
            "a job of the wrong repository": job("wrong-repository"),
            "a user's": "user",
            "a user's session": authority.log_in("user").token,
            "a job's": job("main"),
            "a manager's": "manager",
            "a manager's session": authority.log_in("manager").token,
        }
        admission.replace_stored([token for token in tokens if token.name != "revoked"])
        self.provider = MemoryProvider()
        sections = []
        for org, name in (("acme", "a"), ("acme", "b"), ("beta", "z")):
            self.provider.add(f"{org}.{name}", pending_s=0.01, stopping_s=0.01)
            process = ProcessSection.model_validate({"command": ["sleep", "{port}"]})
            sections.append(SatelliteSection.model_validate({"org": org, "name": name, "process": process}))
        board = StateBoard()
        self.fleet = Fleet(sections, FleetContext(self.provider, board.observe), max_held=100)
        specs = {satellite.key: Specs("linux/amd64", "process") for satellite in self.fleet.satellites}
        compute = Compute(self.fleet, specs, board, Reservations(), "edge:1")
        self.host = ApiHost(compute.methods, authority)

    async def ask(
        self, method: str, credential: str, org: str = "acme", name: str = "a"
    ) -> tuple[object, str, list[bytes]]:
        """The status, its words and the messages of a call."""
        token = self.credentials[credential]
        metadata = [("authorization", f"Bearer {token}")] if token is not None else []
        request = METHODS[method](org, name).SerializeToString()

        def run() -> tuple[object, str, list[bytes]]:
            messages: list[bytes] = []
            with grpc.insecure_channel("{}:{}".format(*self.host.address)) as channel:
                call = channel.unary_stream(SERVICE_PATH + method)(request, metadata=metadata, timeout=20)
                try:
                    messages.extend(call)
                except grpc.RpcError as exc:
                    return exc.code(), without_id(exc.details()), messages
            return Code.OK, "", messages

        return await trio.to_thread.run_sync(run)

    def done(self) -> list[str]:
        """What the provider was asked to do to any machine."""
        return [call for machine in self.provider.machines.values() for call in machine.calls]


@pytest.fixture
async def bed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bed]:
    async def listens(address: Address, tell: Callable[[str], None]) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(satellite_module, "wait_listening", listens)
    made = Bed()
    async with trio.open_nursery() as nursery:
        await nursery.start(made.fleet.run)
        nursery.start_soon(made.host.run)
        yield made
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("credential", EXPECTED)
async def test_every_method(bed: Bed, credential: str) -> None:
    found = {method: await bed.ask(method, credential) for method in METHODS}
    assert {method: code for method, (code, _, _) in found.items()} == EXPECTED[credential]
    if EXPECTED[credential] in (NOBODY, FOREIGN):
        assert bed.done() == []
        assert bed.fleet.get(SatelliteKey("acme", "a")).wakes == 0


@pytest.mark.parametrize(
    "credential", ["another org's", "another satellite's", "a job of the wrong repository", "a user's"]
)
async def test_what_is_not_the_callers_and_what_does_not_exist_look_the_same(bed: Bed, credential: str) -> None:
    for method in METHODS.keys() - {"ListSatellites"}:
        foreign = [("acme", "a")] if credential != "a user's" else [("beta", "z")]
        absent = (
            [("acme", "nothing"), ("nowhere", "a")] if credential != "a user's" else [("beta", "no"), ("nowhere", "a")]
        )
        answers = {str(await bed.ask(method, credential, org, name)) for org, name in (*foreign, *absent)}
        assert len(answers) == 1, method


async def test_a_list_names_nothing_foreign(bed: Bed) -> None:
    for credential, names in (
        ("another satellite's", ["b"]),
        ("a job's", ["a"]),
        ("another org's", []),
        ("a user's", ["a", "b"]),
    ):
        _, _, [message] = await bed.ask("ListSatellites", credential)
        assert [each.name for each in pb.ListSatellitesResponse.FromString(message).instances] == names
