"""Which rule a CI job's token matches. Pure: claims in, a rule out.

Rules match single claims and never `sub`, in which an issuer joins several values, in a format that repositories can change
and that names could be chosen for. Every claim of a rule must be there, as a string, and match. So a claim that is missing
or has another type matches nothing.
"""

import re
from collections.abc import Iterable, Mapping

from bentpipe.config.accounts import OidcRuleSection

EVENT, UNSAFE_EVENT = "event_name", "pull_request_target"
"""GitHub runs a workflow on this event with the rights of the repository, while a fork's pull request decides what it
builds. A rule takes such a job only if it names the event. PyPI refuses it too."""


def find_rule(rules: Iterable[OidcRuleSection], issuer: str, claims: Mapping[str, object]) -> OidcRuleSection | None:
    """The first rule of the issuer (its name in the configuration) that all of its claims match; None if there is none."""
    return next((rule for rule in rules if rule.issuer == issuer and _matches(rule, claims)), None)


def _matches(rule: OidcRuleSection, claims: Mapping[str, object]) -> bool:
    if claims.get(EVENT) == UNSAFE_EVENT and EVENT not in rule.claims:
        return False
    return all(claims.get(name) == value for name, value in rule.claims.items()) and all(
        _fits(claims.get(name), pattern) for name, pattern in rule.patterns.items()
    )


def _fits(value: object, pattern: str) -> bool:
    """Whether a string fits a pattern, in which `*` stands for any characters but "/" and ":"."""
    if not isinstance(value, str):
        return False
    return re.fullmatch("[^/:]*".join(map(re.escape, pattern.split("*"))), value) is not None
