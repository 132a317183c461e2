"""From a CI's token to one of ours: what is checked, that it is done once, and what ends it."""

import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bentpipe.config.accounts import OidcIssuerSection, OidcRuleSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.authority import TableAuthority
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.accounts.contract import Credentials, Scope
from bentpipe.daemon.accounts.exchange import (
    NO_ISSUER,
    NO_RULE,
    NOT_A_TOKEN,
    USED,
    WRONG_ALGORITHM,
    Exchange,
    Result,
)
from bentpipe.daemon.accounts.issuer_keys import UNKNOWN_KEY, IssuerKeys
from bentpipe.daemon.accounts.sessions import Sessions
from bentpipe.daemon.accounts.signing_key import new_key
from bentpipe.daemon.errors import StoreError, TokensUnknown, Unauthenticated
from bentpipe.daemon.registry.accounts import StoredRevocation
from bentpipe.daemon.registry.sqlite_accounts import SqliteAccountStore

RSA, OTHER_RSA = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
GITHUB, GITLAB = "https://token.actions.githubusercontent.com", "https://gitlab.example"
KEY = new_key()
HOUR_S = 3600


def keys_of(private: rsa.RSAPrivateKey, kid: str) -> bytes:
    made: dict[str, object] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
    return json.dumps({"keys": [{**made, "kid": kid}]}).encode()


async def get(url: str, ca: Path | None) -> bytes:
    return keys_of(RSA if url.startswith(GITHUB) else OTHER_RSA, "k")


def id_token(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = RSA,
    *,
    alg: str = "RS256",
    header: Mapping[str, object] | None = None,
    **changed: object,
) -> str:
    now = int(time.time())
    usual = {
        "iss": GITHUB,
        "aud": "bentpipe",
        "iat": now,
        "nbf": now - 600,
        "exp": now + 300,
        "jti": f"{time.time_ns()}",
        "sub": "repo:acme/app:ref:refs/heads/main",
        "repository": "acme/app",
        "repository_id": "123",
        "ref": "refs/heads/main",
        "event_name": "push",
    }
    claims = {name: value for name, value in {**usual, **changed}.items() if value is not None}
    headers = {"kid": "k", **(header or {})}
    return jwt.encode(claims, key, alg, headers)


class Host:
    """The accounts of one host."""

    def __init__(self, path: Path) -> None:
        rules = [
            OidcRuleSection(name="gh", issuer="gh", claims={"repository_id": "123"}, grants=("acme/builder",)),
            OidcRuleSection(
                name="gl",
                issuer="gl",
                claims={"project_id": "7"},
                grants=("beta/*",),
                scopes=("manage",),
                job_life="1h",
            ),
        ]
        sections = [
            OidcIssuerSection(name=name, issuer=issuer, audience="bentpipe", keys_url=f"{issuer}/keys")
            for name, issuer in (("gh", GITHUB), ("gl", GITLAB))
        ]
        self.sessions = Sessions("f")
        self.sessions.sign_with(KEY)
        self.admission = Admission([], rules=rules, sessions=self.sessions)
        self.store = SqliteAccountStore(path)
        self.issuers = [IssuerKeys(section, get=get) for section in sections]
        self.exchange = Exchange(self.admission, self.issuers, rules, self.store)
        self.authority = TableAuthority(self.admission, Certificates([]), self.exchange, session_life_s=HOUR_S)

    def start(self, nursery: trio.Nursery) -> None:
        for issuer in self.issuers:
            nursery.start_soon(issuer.run_fetches)

    async def refresh(self) -> None:
        self.admission.replace_stored([], await self.store.accounts())

    async def refusal(self, token: str) -> str:
        with pytest.raises(Unauthenticated) as refused:
            await self.authority.exchange(token)
        return str(refused.value)


@pytest.fixture
async def host(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Host]:
    made = Host(tmp_path / "ledger.sqlite")
    made.start(nursery)
    yield made
    await made.store.aclose()


async def test_a_job_gets_a_token_that_lasts_as_long_as_it_may_and_does_what_its_rule_grants(host: Host) -> None:
    login = await host.authority.exchange(id_token())
    assert login.expiry.timestamp() == pytest.approx(time.time() + 6 * HOUR_S, abs=5)
    session = host.authority.log_in(login.token)
    assert session.expiry.timestamp() == pytest.approx(time.time() + HOUR_S, abs=5)
    for token in (login.token, session.token):
        access = host.authority.authenticate(Credentials(token))
        assert (access.name, access.writes, [org.id for org in access.orgs()]) == ("gh", False, ["acme"])
        assert access.may(Scope.USE, "acme", "builder")
        assert not access.may(Scope.USE, "acme", "other")
        assert not access.may(Scope.MANAGE, "acme", "builder")
    gitlab = id_token(OTHER_RSA, iss=GITLAB, project_id="7", repository_id=None, ref_protected="true")
    made = await host.authority.exchange(gitlab)
    assert made.expiry.timestamp() == pytest.approx(time.time() + HOUR_S, abs=5)
    assert host.authority.authenticate(Credentials(made.token)).may(Scope.MANAGE, "beta", "x")


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


P256 = ec.generate_private_key(ec.SECP256R1())
OTHER_JWK = jwt.algorithms.RSAAlgorithm.to_jwk(OTHER_RSA.public_key())


def refused() -> dict[str, tuple[str, str]]:
    """Made anew for each test, so that no token is old."""
    now = int(time.time())
    return {
        "another repository": (id_token(repository_id="124"), NO_RULE),
        "the id is a number": (id_token(repository_id=123), NO_RULE),
        "no id": (id_token(repository_id=None), NO_RULE),
        "a fork decides": (id_token(event_name="pull_request_target"), NO_RULE),
        "another issuer": (id_token(iss="https://evil.example"), NO_ISSUER),
        "issuer with a slash more": (id_token(iss=GITHUB + "/"), NO_ISSUER),
        "issuer is a list": (id_token(iss=None, sub="x"), NO_ISSUER),
        "no issuer": (id_token(iss=None), NO_ISSUER),
        "another issuer's key for GitHub's claims": (id_token(OTHER_RSA), "Signature verification failed"),
        "another's claims by its own key": (id_token(OTHER_RSA, iss=GITLAB), NO_RULE),
        "another audience": (id_token(aud="https://github.com/acme"), "Audience"),
        "several audiences": (id_token(aud=["bentpipe", "x"]), "strict"),
        "no audience": (id_token(aud=None), "aud"),
        "no end": (id_token(exp=None), "exp"),
        "no time of issue": (id_token(iat=None), "iat"),
        "expired": (id_token(exp=now - 31), "expired"),
        "not yet": (id_token(nbf=now + 3600), "not yet valid"),
        "from the future": (id_token(iat=now + 3600), "not yet valid"),
        "jti is a number": (id_token(jti=5), "JWT ID"),
        "jti is empty": (id_token(jti=""), "jti"),
        "unknown key": (id_token(header={"kid": "x"}), UNKNOWN_KEY),
        "kid a path": (id_token(header={"kid": "../../k"}), UNKNOWN_KEY),
        "alg none": (
            f"{part({'alg': 'none', 'kid': 'k'})}.{part({'iss': GITHUB, 'repository_id': '123'})}.",
            WRONG_ALGORITHM,
        ),
        "HS256": (jwt.encode({"iss": GITHUB}, "x" * 64, "HS256", {"kid": "k"}), WRONG_ALGORITHM),
        "RS512": (id_token(alg="RS512"), WRONG_ALGORITHM),
        "ES256": (id_token(P256, alg="ES256"), WRONG_ALGORITHM),
        "jku": (id_token(OTHER_RSA, header={"jku": "https://evil.example/keys"}), NOT_A_TOKEN),
        "jwk": (id_token(OTHER_RSA, header={"jwk": json.loads(OTHER_JWK)}), NOT_A_TOKEN),
        "one of our tokens": ("bp_" + "0" * 64, NOT_A_TOKEN),
        "empty": ("", NOT_A_TOKEN),
    }


@pytest.mark.parametrize("case", refused())
async def test_what_is_refused_and_why(host: Host, case: str) -> None:
    token, words = refused()[case]
    assert words in await host.refusal(token)


async def test_a_jobs_token_of_ours_is_not_an_oidc_token_nor_the_other_way_round(host: Host) -> None:
    login = await host.authority.exchange(id_token())
    assert await host.refusal(login.token) in (NO_ISSUER, NOT_A_TOKEN)
    for token in (id_token(), id_token(aud="bentpipe/f", iss="bentpipe")):
        with pytest.raises(Unauthenticated):
            host.authority.authenticate(Credentials(token))
        with pytest.raises(Unauthenticated):
            host.authority.log_in(token)


@pytest.mark.parametrize("jti", ["one", None])
async def test_a_token_is_exchanged_once_over_all_hosts(tmp_path: Path, nursery: trio.Nursery, jti: str | None) -> None:
    hosts = [Host(tmp_path / "ledger.sqlite") for _ in range(4)]
    token = id_token(jti=jti)
    said: list[str] = []
    for host in hosts:
        host.start(nursery)

    async def exchange(host: Host) -> None:
        try:
            await host.authority.exchange(token)
            said.append("done")
        except Unauthenticated as exc:
            said.append(str(exc))

    async with trio.open_nursery() as asking:
        for host in hosts * 3:
            asking.start_soon(exchange, host)
    assert sorted(said) == sorted(["done"] + [USED] * 11)
    for host in hosts:
        await host.store.aclose()


async def test_the_same_id_of_another_issuer_is_another(host: Host) -> None:
    await host.authority.exchange(id_token(jti="1"))
    await host.authority.exchange(id_token(OTHER_RSA, iss=GITLAB, project_id="7", jti="1"))


async def test_what_is_refused_uses_no_token_up(host: Host) -> None:
    token = id_token(jti="1")
    sessions, host.admission.sessions = host.admission.sessions, Sessions("f")
    with pytest.raises(TokensUnknown):
        await host.authority.exchange(token)
    host.admission.sessions = sessions
    await host.store.put_revocation(StoredRevocation("rule:gh", 1, None))
    await host.refresh()
    assert "revoked" in await host.refusal(token)
    await host.store.put_revocation(StoredRevocation("rule:gh", 1, 1 << 62))
    await host.refresh()
    await host.authority.exchange(token)


async def test_a_revoked_rule_or_exchange_ends_tokens_and_sessions(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    one, two = [await host.authority.exchange(id_token()) for _ in range(2)]
    ids = [record.fields["exchange"] for record in caplog.records if "exchanged" in record.getMessage()]  # type: ignore[attr-defined]
    accesses = [
        host.authority.authenticate(Credentials(token))
        for login in (one, two)
        for token in (login.token, host.authority.log_in(login.token).token)
    ]
    await host.store.put_revocation(StoredRevocation(f"exchange:{ids[0]}", 1, 1 << 62))
    await host.refresh()
    assert [access.holds() for access in accesses] == [False, False, True, True]
    await host.store.put_revocation(StoredRevocation("rule:gh", time.time_ns() // 1000, None))
    await host.refresh()
    assert [access.holds() for access in accesses] == [False] * 4


async def test_while_the_store_fails_nothing_is_exchanged(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(used_id: str, *, until_us: int) -> bool:
        raise StoreError("the disk hangs")

    with pytest.raises(Unauthenticated):
        await host.authority.exchange(id_token(repository_id="9"))
    await host.authority.exchange(id_token())
    monkeypatch.setattr(host.store, "use_once", fails)
    with pytest.raises(StoreError):
        await host.authority.exchange(id_token())
    assert dict(host.exchange.results) == {Result.REFUSED: 1, Result.EXCHANGED: 1, Result.FAILED: 1}


async def test_before_the_store_was_read_nothing_is_exchanged(host: Host) -> None:
    host.admission.expect_stored()
    with pytest.raises(TokensUnknown):
        await host.authority.exchange(id_token())


async def test_neither_token_is_in_the_log(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    token = id_token()
    login = await host.authority.exchange(token)
    await host.refusal(token)
    await host.refusal(id_token(OTHER_RSA, iss=GITLAB, project_id="99", custom="x"))
    said = " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "acme/app" in said
    assert "'project_id': '99'" in said
    assert "custom" not in said
    for secret in (token, login.token, token.rpartition(".")[2], login.token.rpartition(".")[2]):
        assert secret not in said
