"""Every kind of credential against everything that it might do, by a table; and how rights end."""

import hashlib
import itertools
import time

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from beds.client_certificates import certificate
from bentpipe.config.accounts import CertificateSection, OidcRuleSection, TokenSection
from bentpipe.daemon.accounts import admission as admission_module
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.accounts.authority import TableAuthority
from bentpipe.daemon.accounts.certificates import Certificates
from bentpipe.daemon.accounts.contract import Credentials, Org, Scope
from bentpipe.daemon.accounts.exchange import Exchange
from bentpipe.daemon.accounts.principal import Origin
from bentpipe.daemon.accounts.sessions import Sessions, TokenPurpose
from bentpipe.daemon.accounts.signing_key import new_key
from bentpipe.daemon.errors import NoSuchSatellite, TokensUnknown, Unauthenticated
from bentpipe.daemon.model import Grant, SatelliteKey
from bentpipe.daemon.registry.accounts import StoredAccounts, StoredOrg, StoredRevocation
from bentpipe.daemon.registry.contract import StoredToken

HOUR_S = 3600.0
KEY = new_key()
NAMES = st.text("abc-", min_size=1, max_size=4).map(lambda text: f"a{text}z")


def hashed(secret: str) -> str:
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()


def stored(name: str, grants: tuple[str, ...] = ("acme/*",), **more: object) -> StoredToken:
    return StoredToken(name, hashed(name), grants, 1, **more)  # type: ignore[arg-type]


class Bed:
    """A daemon's tables with one credential of each kind, and a clock."""

    def __init__(self) -> None:
        self.now = time.time()
        self.sessions = Sessions("f", lambda: self.now)
        self.sessions.sign_with(KEY)
        rules = [
            OidcRuleSection(name="main", issuer="gh", claims={"repository_id": "1"}, grants=("acme/builder",)),
            OidcRuleSection(name="other-repository", issuer="gh", claims={"repository_id": "2"}, grants=("beta/*",)),
        ]
        configured = [TokenSection(name="fixed", hash=hashed("fixed"), grants=("acme/*",))]
        self.admission = Admission(configured, rules=rules, sessions=self.sessions, now=lambda: self.now)
        self.tokens = (
            stored("user"),
            stored("manager", scopes=("manage",)),
            stored("narrow", ("acme/b*",)),
            stored("other-org", ("beta/*",), scopes=("manage",)),
            stored("expired", expires_us=int((self.now - 1) * 1e6)),
            stored("ending", expires_us=int((self.now + 600) * 1e6)),
            stored("second", principal="user"),
        )
        self.admission.replace_stored(self.tokens)
        exchange = Exchange(self.admission, [], rules, None)
        self.authority = TableAuthority(
            self.admission, Certificates([]), exchange, session_life_s=HOUR_S, now=lambda: self.now
        )

    def job(self, rule: str = "main", exchange: str = "0a", at_us: int = 5) -> str:
        return self.sessions.issue(
            TokenPurpose.JOB, Origin(f"rule:{rule}", exchange, at_us), self.now + 6 * HOUR_S
        ).token

    def session(self, token: str) -> str:
        return self.authority.log_in(token).token

    def may(self, token: str | None, scope: Scope, org: str, name: str | None) -> bool | type[Exception]:
        try:
            return self.authority.authenticate(Credentials(token)).may(scope, org, name)
        except Unauthenticated as exc:
            return type(exc)


DOES = {
    "list": (Scope.USE, "acme", None),
    "use": (Scope.USE, "acme", "builder"),
    "use another": (Scope.USE, "acme", "x"),
    "use one that is not there": (Scope.USE, "acme", "b-new"),
    "launch": (Scope.MANAGE, "acme", "b-new"),
    "delete": (Scope.MANAGE, "acme", "builder"),
    "use of another org": (Scope.USE, "beta", "builder"),
    "list of another org": (Scope.USE, "beta", None),
}
NOBODY = dict.fromkeys(DOES, Unauthenticated)


def only(*what: str) -> dict[str, object]:
    return {name: name in what for name in DOES}


ALL_USE = ("list", "use", "use another", "use one that is not there")
ALLOWED: dict[str, dict[str, object]] = {
    "nothing": {**NOBODY},
    "bad": {**NOBODY},
    "expired": {**NOBODY},
    "revoked": {**NOBODY},
    "use only": only(*ALL_USE),
    "configuration": only(*ALL_USE),
    "second token": only(*ALL_USE),
    "manage": only(*ALL_USE, "launch", "delete"),
    "narrow": only("list", "use", "use one that is not there"),
    "other org": only("use of another org", "list of another org"),
    "job": only("list", "use"),
    "job of the wrong repository": only("use of another org", "list of another org"),
    "job of a rule that is gone": {**NOBODY},
    "job of a revoked rule": {**NOBODY},
    "job of a revoked exchange": {**NOBODY},
}


def credential(bed: Bed, kind: str) -> str | None:
    token = {
        "nothing": None,
        "bad": "bp_bad",
        "expired": "expired",
        "revoked": "gone",
        "use only": "user",
        "configuration": "fixed",
        "second token": "second",
        "manage": "manager",
        "narrow": "narrow",
        "other org": "other-org",
        "job": bed.job(),
        "job of the wrong repository": bed.job("other-repository"),
        "job of a rule that is gone": bed.job("gone"),
        "job of a revoked rule": bed.job(),
        "job of a revoked exchange": bed.job(),
    }[kind]
    revoked = {
        "job of a revoked rule": StoredRevocation("rule:main", 5, None),
        "job of a revoked exchange": StoredRevocation("exchange:0a", 5, 9),
    }.get(kind)
    if revoked is not None:
        bed.admission.replace_stored(bed.tokens, StoredAccounts(revocations=(revoked,)))
    return token


@pytest.mark.parametrize(("kind", "what"), [*itertools.product(ALLOWED, DOES)])
def test_every_credential_does_what_the_table_says(kind: str, what: str) -> None:
    bed = Bed()
    assert bed.may(credential(bed, kind), *DOES[what]) == ALLOWED[kind][what]


@pytest.mark.parametrize(("kind", "what"), [*itertools.product(ALLOWED, DOES)])
def test_a_session_does_what_its_credential_does(kind: str, what: str) -> None:
    bed = Bed()
    token = credential(bed, kind)
    if ALLOWED[kind][what] is Unauthenticated:
        with pytest.raises(Unauthenticated):
            bed.authority.log_in(token or "")
        return
    assert bed.may(bed.session(token or ""), *DOES[what]) == ALLOWED[kind][what]


def test_the_satellites_port_takes_sessions_and_jobs_as_it_takes_tokens() -> None:
    bed = Bed()
    for token in ("user", bed.session("user"), bed.job(), bed.session(bed.job())):
        bed.admission.authorize(bed.admission.authenticate(token), SatelliteKey("acme", "builder"))
        with pytest.raises(NoSuchSatellite):
            bed.admission.authorize(bed.admission.authenticate(token), SatelliteKey("beta", "builder"))


def test_a_revocation_ends_sessions_at_once_and_accesses_in_use() -> None:
    bed = Bed()
    session = bed.session("user")
    access = bed.authority.authenticate(Credentials(session))
    assert (access.name, access.may(Scope.USE, "acme", "x"), access.holds()) == ("user", True, True)
    bed.admission.replace_stored([token for token in bed.tokens if token.name != "user"])
    assert (access.holds(), access.may(Scope.USE, "acme", "x"), access.orgs()) == (False, False, ())
    with pytest.raises(Unauthenticated):
        bed.authority.authenticate(Credentials(session))


def test_a_new_token_of_a_revoked_ones_name_does_not_bring_its_sessions_back() -> None:
    bed = Bed()
    session = bed.session("user")
    bed.admission.replace_stored([StoredToken("user", hashed("another secret"), ("acme/*",), 2)])
    with pytest.raises(Unauthenticated):
        bed.admission.authenticate(session)


def test_rights_are_those_of_now_and_not_of_the_login() -> None:
    bed = Bed()
    session = bed.session("user")
    access = bed.authority.authenticate(Credentials(session))
    bed.admission.replace_stored([stored("user", ("acme/one",))])
    assert not access.may(Scope.USE, "acme", "x")
    assert access.may(Scope.USE, "acme", "one")
    assert not bed.may(session, Scope.USE, "acme", "x")


def test_a_session_lasts_an_hour_but_never_longer_than_its_credential() -> None:
    bed = Bed()
    for token, life_s in (("user", HOUR_S), ("ending", 600), (bed.job(), HOUR_S)):
        assert bed.authority.log_in(token).expiry.timestamp() == pytest.approx(bed.now + life_s, abs=1.01)
    session = bed.session("ending")
    access = bed.authority.authenticate(Credentials(session))
    bed.now += 601
    assert not access.holds()
    for token in (session, "ending"):
        with pytest.raises(Unauthenticated):
            bed.admission.authenticate(token)
    bed.now += HOUR_S


def test_a_session_cannot_be_prolonged() -> None:
    bed = Bed()
    with pytest.raises(Unauthenticated, match="log in with the token"):
        bed.authority.log_in(bed.session("user"))
    with pytest.raises(Unauthenticated, match="log in with the token"):
        bed.authority.log_in(bed.session(bed.job()))


def test_a_rule_that_is_allowed_again_takes_new_exchanges_alone() -> None:
    bed = Bed()
    old, new = bed.job(at_us=5), bed.job(exchange="0b", at_us=6)
    lifted = StoredRevocation("rule:main", 5, 1 << 62)
    bed.admission.replace_stored(bed.tokens, StoredAccounts(revocations=(lifted,)))
    bed.admission.check_rule("main")
    assert bed.may(old, Scope.USE, "acme", "builder") is Unauthenticated
    assert bed.may(new, Scope.USE, "acme", "builder") is True


def test_nothing_is_possible_in_a_revoked_org() -> None:
    bed = Bed()
    access = bed.authority.authenticate(Credentials("manager"))
    assert access.orgs() == (Org("acme", "acme"),)
    bed.admission.replace_stored(bed.tokens, StoredAccounts(orgs=(StoredOrg("acme", 1, 2),)))
    for kind in ("user", "manager", "fixed", bed.job()):
        assert not any(bed.may(kind, scope, "acme", "builder") for scope in Scope)
    assert access.orgs() == ()
    assert bed.may("other-org", Scope.USE, "beta", "x") is True
    bed.admission.replace_stored(bed.tokens, StoredAccounts(orgs=(StoredOrg("acme", 1),)))
    assert access.orgs() == (Org("acme", "acme"),)


def test_before_the_store_was_read_nobody_is_called_a_stranger() -> None:
    bed = Bed()
    other = Admission([], rules=[], sessions=Sessions("f"))
    other.expect_stored()
    for token in (bed.session("user"), bed.job(), "bp_any"):
        with pytest.raises(TokensUnknown):
            other.authenticate(token)


def test_while_the_store_fails_a_session_of_an_unknown_host_may_be_good() -> None:
    bed, other = Bed(), Sessions("f")
    other.sign_with(new_key())
    session = other.issue(TokenPurpose.SESSION, Origin("token:x"), time.time() + 60).token
    for store_fails, expected in ((False, Unauthenticated), (True, TokensUnknown), (False, Unauthenticated)):
        bed.admission.store_fails = store_fails
        with pytest.raises(expected):
            bed.admission.authenticate(session)
        for bad in ("bp_bad", session[:-4] + "AAAA" if not store_fails else "eyJ.eyJ.x"):
            with pytest.raises(Unauthenticated):
                bed.admission.authenticate(bad)
        assert bed.admission.authenticate(bed.session("user")).name == "user"


def test_an_access_lists_the_tokens_of_its_principal() -> None:
    bed = Bed()
    for token in ("user", "second"):
        access = bed.authority.authenticate(Credentials(token))
        assert [summary.name for summary in access.tokens()] == ["user", "second"]
        assert access.email.count("@") == 1
        assert not access.writes
    assert bed.authority.authenticate(Credentials("manager")).writes


def test_a_token_and_a_certificate_must_both_allow_what_is_done() -> None:
    bed = Bed()
    der = certificate(x509.RFC822Name("dev@example.com"))
    section = CertificateSection.model_validate(
        {"name": "dev", "san": "EMAIL:dev@example.com", "grants": ["acme/b*"], "scopes": ["manage"]}
    )
    exchange = Exchange(bed.admission, [], [], None)
    authority = TableAuthority(bed.admission, Certificates([section]), exchange, session_life_s=HOUR_S)
    alone = authority.authenticate(Credentials(None, der))
    assert (alone.name, alone.writes, alone.may(Scope.MANAGE, "acme", "b1")) == ("dev", True, True)
    both = authority.authenticate(Credentials("user", der))
    assert (both.name, both.writes) == ("user", False)
    assert both.may(Scope.USE, "acme", "b1")
    assert not both.may(Scope.USE, "acme", "x")
    assert not both.may(Scope.MANAGE, "acme", "b1")
    with pytest.raises(Unauthenticated):
        authority.authenticate(Credentials("bad", der))
    stranger = certificate(x509.RFC822Name("somebody@example.com"))
    with pytest.raises(Unauthenticated):
        authority.authenticate(Credentials(None, stranger))
    assert authority.authenticate(Credentials("user", stranger)).may(Scope.USE, "acme", "x")


def test_a_token_whose_end_comes_nearer_ends_its_sessions_then() -> None:
    bed = Bed()
    session = bed.session("user")
    bed.admission.replace_stored([stored("user", expires_us=int((bed.now + 10) * 1e6))])
    assert bed.may(session, Scope.USE, "acme", "x") is True
    bed.now += 10
    assert bed.may(session, Scope.USE, "acme", "x") is Unauthenticated
    bed.admission.replace_stored([stored("user", expires_us=int((bed.now - 1) * 1e6))])
    assert bed.may(session, Scope.USE, "acme", "x") is Unauthenticated


def test_what_sessions_stand_for_is_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "CACHED_SESSIONS", 3)
    bed = Bed()
    for _ in range(2):
        for token in [bed.session("user") for _ in range(10)]:
            assert bed.may(token, Scope.USE, "acme", "x") is True
            assert len(bed.admission._by_session) <= 3


GRANTS = st.builds(lambda org, name, star: f"{org}/{name}{star}", NAMES, NAMES, st.sampled_from(["", "*"])) | NAMES.map(
    lambda org: f"{org}/*"
)


@given(st.lists(GRANTS, min_size=1, max_size=4), st.sets(st.sampled_from(Scope), min_size=1), NAMES, NAMES)
def test_nobody_may_more_than_a_grant_and_a_scope_say(
    grants: list[str], scopes: set[Scope], org: str, name: str
) -> None:
    names = tuple(scope.value for scope in scopes)
    admission = Admission(
        [TokenSection.model_validate({"name": "t", "hash": hashed("t"), "grants": grants, "scopes": names})]
    )
    principal = admission.authenticate("t")
    covered = any(Grant.parse(grant).covers(SatelliteKey(org, name)) for grant in grants)
    for scope in Scope:
        granted = scope in scopes or (scope is Scope.USE and Scope.MANAGE in scopes)
        assert admission.may(principal, scope, org, name) is (granted and covered)
        assert admission.may(principal, scope, org, None) is (
            granted and any(each.startswith(f"{org}/") for each in grants)
        )
