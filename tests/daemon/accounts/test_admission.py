import hashlib

import pytest

from bentpipe.config.accounts import TokenSection
from bentpipe.daemon.accounts.admission import Admission
from bentpipe.daemon.errors import NoSuchSatellite, Unauthenticated
from bentpipe.daemon.model import Grant, SatelliteKey
from bentpipe.daemon.registry.contract import StoredToken


def token(name: str, secret: str, *grants: str) -> TokenSection:
    return TokenSection(name=name, hash="sha256:" + hashlib.sha256(secret.encode()).hexdigest(), grants=grants)


@pytest.mark.parametrize(
    ("grant", "org", "name", "covered"),
    [
        ("acme/one", "acme", "one", True),
        ("acme/one", "acme", "one2", False),
        ("acme/one", "other", "one", False),
        ("acme/b-*", "acme", "b-1", True),
        ("acme/b-*", "acme", "c-1", False),
        ("acme/*", "acme", "anything", True),
        ("acme/*", "acme2", "anything", False),
    ],
)
def test_grants(grant: str, org: str, name: str, covered: bool) -> None:
    assert Grant.parse(grant).covers(SatelliteKey(org, name)) is covered


def test_every_token_finds_its_own_principal() -> None:
    admission = Admission([token("one", "s1", "acme/*"), token("two", "s2", "acme/x")])
    assert [admission.authenticate(secret).name for secret in ("s1", "s2")] == ["one", "two"]


@pytest.mark.parametrize("secret", [None, "", "s3", "s1 ", "é"])
def test_no_or_wrong_token(secret: str | None) -> None:
    with pytest.raises(Unauthenticated):
        Admission([token("one", "s1", "acme/*")]).authenticate(secret)


def test_the_hash_of_an_empty_token_admits_nobody() -> None:
    with pytest.raises(Unauthenticated):
        Admission([token("empty", "", "acme/*")]).authenticate("")


def test_foreign_satellites_do_not_exist() -> None:
    admission = Admission([token("one", "s1", "acme/x")])
    with pytest.raises(NoSuchSatellite) as error:
        admission.authorize(admission.authenticate("s1"), SatelliteKey("secret-org", "secret-name"))
    assert "secret" not in error.value.peer_hint


def test_a_changed_configuration_counts_at_once_and_the_stores_tokens_stay() -> None:
    admission = Admission([token("one", "s1", "acme/*")])
    kept = token("kept", "s2", "acme/*")
    admission.replace_stored([StoredToken(kept.name, kept.hash, kept.grants, 0)])
    old = admission.authenticate("s1")
    before = admission.version
    admission.replace_configured([token("new", "s3", "acme/*")], [])
    assert not admission.holds(before, [old]), "who was admitted is asked again"
    assert [admission.authenticate(secret).name for secret in ("s2", "s3")] == ["kept", "new"]
    with pytest.raises(Unauthenticated):
        admission.authenticate("s1")
    assert admission.names == {"kept", "new"}


def test_the_stores_tokens_come_and_go_and_the_configurations_stay() -> None:
    admission = Admission([token("one", "s1", "acme/*")])
    for grants, stored in (("acme/x", True), ("acme/y", True), ("", False)):
        section = token("two", "s2", grants or "acme/z")
        admission.replace_stored([StoredToken(section.name, section.hash, section.grants, 0)] if stored else [])
        if stored:
            assert [Grant.parse(grants)] == list(admission.authenticate("s2").grants)
        else:
            with pytest.raises(Unauthenticated):
                admission.authenticate("s2")
        assert admission.authenticate("s1").name == "one"


def test_the_configurations_token_counts_before_the_stores_of_the_same_hash() -> None:
    admission = Admission([token("one", "s1", "acme/x")])
    section = token("wider", "s1", "acme/*")
    admission.replace_stored([StoredToken(section.name, section.hash, section.grants, 0)])
    assert admission.authenticate("s1").name == "one"


def test_all_tokens_and_their_changes() -> None:
    told: list[int] = []
    admission = Admission([token("one", "s1", "acme/*", "acme/b-*", "acme/x")])
    admission.on_change(lambda: told.append(admission.version))
    (principal,) = admission.tokens().values()
    assert list(map(str, principal.grants)) == ["acme/*", "acme/b-*", "acme/x"]
    admission.replace_configured([token("two", "s2", "acme/*")], ())
    assert told == [1]
    assert [each.name for each in admission.tokens().values()] == ["two"]
