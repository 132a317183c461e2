"""Rules for CI jobs: what they match, and everything that they must never match."""

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from bentpipe.config.accounts import CHECKED_CLAIMS, ID_CLAIMS, OidcRuleSection
from bentpipe.config.load import ConfigErrors, load_config
from bentpipe.daemon.accounts.oidc_rules import find_rule

GITHUB = {
    "repository": "acme/app",
    "repository_id": "123",
    "repository_owner_id": "9",
    "ref": "refs/heads/main",
    "event_name": "push",
    "sub": "repo:acme/app:ref:refs/heads/main",
}


def rule(name: str = "r", issuer: str = "gh", **claims: str) -> OidcRuleSection:
    patterns = {key: value for key, value in claims.items() if "*" in value}
    exact = {key: value for key, value in claims.items() if key not in patterns}
    return OidcRuleSection(name=name, issuer=issuer, claims=exact, patterns=patterns, grants=("acme/*",))


def matches(one: OidcRuleSection, **changed: object) -> bool:
    claims = {key: value for key, value in {**GITHUB, **changed}.items() if value is not None}
    return find_rule([one], "gh", claims) is not None


def test_every_claim_must_match() -> None:
    one = rule(repository_id="123", ref="refs/heads/*")
    assert matches(one)
    assert matches(one, ref="refs/heads/x.y-z")
    for wrong in (
        {"repository_id": "1234"},
        {"repository_id": "12"},
        {"ref": "refs/tags/main"},
        {"ref": "refs/heads/a/b"},
    ):
        assert not matches(one, **wrong)


def test_the_first_rule_that_matches_counts_and_only_its_own_issuers() -> None:
    rules = [rule("main", repository_id="123", ref="refs/heads/main"), rule("any", repository_id="123")]
    found = find_rule(rules, "gh", GITHUB)
    assert found is not None
    assert found.name == "main"
    other = find_rule(rules, "gh", {**GITHUB, "ref": "refs/heads/x"})
    assert other is not None
    assert other.name == "any"
    assert find_rule(rules, "another", GITHUB) is None


@pytest.mark.parametrize("wrong", [None, "", 123, 123.0, True, ["123"], {"123": 1}])
def test_a_claim_that_is_missing_or_not_a_string_never_matches(wrong: object) -> None:
    assert not matches(rule(repository_id="123"), repository_id=wrong)
    assert not matches(rule(repository_id="123", ref="*"), ref=["x"] if wrong == "" else wrong)


def test_a_fork_that_decides_what_is_built_needs_a_rule_that_names_the_event() -> None:
    unsafe = {"event_name": "pull_request_target"}
    assert not matches(rule(repository_id="123"), **unsafe)
    assert not matches(rule(repository_id="123", event_name="*"), **unsafe)
    assert matches(rule(repository_id="123", event_name="pull_request_target"), **unsafe)


PIECES = st.text("ab.-[]?\\$^+|(){}", max_size=4)


@given(st.lists(PIECES, min_size=1, max_size=4), st.lists(st.text(max_size=4), min_size=4, max_size=4))
def test_a_star_stands_for_anything_but_slash_and_colon(literals: list[str], fillings: list[str]) -> None:
    pattern = "*".join(literals)
    filled = literals[0] + "".join(f + literal for f, literal in zip(fillings, literals[1:], strict=False))
    one = OidcRuleSection(
        name="r", issuer="gh", claims={"repository_id": "123"}, patterns={"ref": pattern or "*"}, grants=("acme/*",)
    )
    used = "".join(fillings[: len(literals) - 1])
    if pattern and not {"/", ":"} & set(used):
        assert matches(one, ref=filled)
    if {"/", ":"} & set(filled):
        assert not matches(one, ref=filled)


@given(st.text(min_size=1), st.text())
def test_an_exact_value_matches_itself_alone(value: str, other: str) -> None:
    one = OidcRuleSection(name="r", issuer="gh", claims={"repository_id": value}, grants=("acme/*",))
    assert matches(one, repository_id=value)
    assume(other != value)
    assert not matches(one, repository_id=other)


@given(st.text(max_size=30), st.text("*ab/:", min_size=1, max_size=6))
def test_a_pattern_never_matches_across_a_separator(value: str, pattern: str) -> None:
    one = OidcRuleSection(
        name="r", issuer="gh", claims={"repository_id": "123"}, patterns={"ref": pattern}, grants=("acme/*",)
    )
    if matches(one, ref=value):
        for separator in "/:":
            assert value.count(separator) == pattern.count(separator)


@pytest.mark.parametrize("name", sorted(CHECKED_CLAIMS))
def test_no_rule_names_sub_or_what_is_checked_anyway(name: str) -> None:
    for table in ("claims", "patterns"):
        section = {"name": "r", "issuer": "gh", "claims": {"repository_id": "1"}, "grants": ["acme/*"]}
        section[table] = {**section.get(table, {}), name: "x"}  # type: ignore[dict-item]
        with pytest.raises(ValidationError, match="cannot be matched"):
            OidcRuleSection.model_validate(section)


CONFIG = """
[[listener]]
address = "127.0.0.1:0"
[[satellite]]
org = "acme"
name = "ci"
[satellite.process]
command = ["true", "{port}"]
[[oidc_issuer]]
name = "gh"
issuer = "https://token.actions.githubusercontent.com"
audience = "bentpipe"
[[oidc_rule]]
name = "main"
issuer = "gh"
claims = { repository_id = "1" }
grants = ["acme/*"]
"""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('issuer = "gh"', 'issuer = "gl"', "oidc_rule[0].issuer: there is no [[oidc_issuer]] named 'gl'"),
        ("{ repository_id", "{ repository", "oidc_rule[0].claims: one claim must be an id"),
        ('"acme/*"', '"beta/*"', "oidc_rule[0].grants: "),
        ("https://token", "http://token", "oidc_issuer[0]: issuer must be an https:// address"),
        ("https://token", "https://user@token", "oidc_issuer[0]: issuer must be an https:// address"),
        ('audience = "bentpipe"', "", "oidc_issuer[0].audience: missing"),
        ('audience = "bentpipe"', 'audience = "b"\nalgorithms = ["HS256"]', "oidc_issuer[0].algorithms[0]: "),
        ('audience = "bentpipe"', 'audience = "b"\nalgorithms = ["none"]', "oidc_issuer[0].algorithms[0]: "),
        ('audience = "bentpipe"', 'audience = "b"\nid_claims = ["sub"]', "oidc_issuer[0]: id_claims: 'sub'"),
        ('audience = "bentpipe"', 'audience = "b"\nca = "/nowhere"', "oidc_issuer[0].ca: cannot read /nowhere"),
        ("claims = {", 'job_life = "5m"\nclaims = {', "oidc_rule[0].job_life: "),
        (
            "claims = {",
            'patterns = { repository_id = "*" }\nclaims = {',
            "oidc_rule[0]: the claim 'repository_id' is in",
        ),
        ("claims = {", 'scopes = ["all"]\nclaims = {', "oidc_rule[0].scopes[0]: "),
        ("[[oidc_rule]]", '[store]\nkind = "none"\n[[oidc_rule]]', "oidc_rule: needs a store"),
    ],
)
def test_the_configuration_refuses_rules_that_do_not_fit(tmp_path: Path, old: str, new: str, problem: str) -> None:
    path = tmp_path / "bentpipe.toml"
    path.write_text(CONFIG)
    assert load_config(path).oidc_rule[0].job_life_s == 6 * 3600
    path.write_text(CONFIG.replace(old, new, 1) if old != 'issuer = "gh"' else CONFIG.replace(old, new))
    with pytest.raises(ConfigErrors) as found:
        load_config(path)
    assert problem in str(found.value)


def test_an_issuer_may_name_ids_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "bentpipe.toml"
    path.write_text(
        CONFIG.replace('audience = "bentpipe"', 'audience = "b"\nid_claims = ["team"]').replace("repository_id", "team")
    )
    assert load_config(path).oidc_rule[0].claims == {"team": "1"}
    assert "team" not in ID_CLAIMS
