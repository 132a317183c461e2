"""How IAM evaluates one identity policy, as far as `config/iam-policy.json` uses it.

By AWS's "Policy evaluation logic" and "IAM JSON policy elements": allowed is what some statement allows; a statement
applies if action and resource match (with * and ?) and every condition holds; a key that the request does not have fails
its condition. An operator that is not here is an error, so that nothing is taken for granted. moto enforces actions only.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Authorization:
    """One question that AWS asks before it does something: RunInstances asks one for each resource that it touches."""

    action: str
    resource: str
    context: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _like(value: str, pattern: str) -> bool:
    # fnmatch's [ ] are letters in IAM.
    return fnmatch.fnmatchcase(value, pattern.replace("[", "[[]"))


def _arn(value: str, pattern: str) -> bool:
    parts, patterns = value.split(":", 5), pattern.split(":", 5)
    return len(parts) == len(patterns) and all(map(_like, parts, patterns))


OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda value, wanted: value == wanted,
    "StringLike": _like,
    "ArnEquals": _arn,
    # Of a request with one tag key: more of them are joined by commas, and equal none.
    "ForAllValues:StringEquals": lambda value, wanted: value == wanted,
    # "false" demands that the key is there, which is asked before.
    "Null": lambda value, wanted: wanted == "false" and bool(value),
    "Bool": lambda value, wanted: value.lower() == wanted.lower(),
}


def listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def applies(statement: Mapping[str, object], asked: Authorization) -> bool:
    known = {"Sid", "Effect", "Action", "Resource", "Condition"}
    assert statement.keys() <= known, statement.keys() - known
    if not any(_like(asked.action.lower(), each.lower()) for each in listed(statement["Action"])):  # type: ignore[arg-type]
        return False
    if not any(each == "*" or _arn(asked.resource, each) for each in listed(statement["Resource"])):  # type: ignore[arg-type]
        return False
    conditions: Mapping[str, Mapping[str, str | Sequence[str]]] = statement.get("Condition", {})  # type: ignore[assignment]
    return all(
        key in asked.context and any(OPERATORS[operator](asked.context[key], each) for each in listed(values))
        for operator, keys in conditions.items()
        for key, values in keys.items()
    )


def allows(statements: Sequence[Mapping[str, object]], asked: Authorization) -> bool:
    assert all(each["Effect"] == "Allow" for each in statements)
    return any(applies(each, asked) for each in statements)
