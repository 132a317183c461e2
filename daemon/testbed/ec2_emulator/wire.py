"""EC2's Query protocol: flattened form parameters in, XML out. Knows no action."""

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias
from xml.sax.saxutils import escape

NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
REQUEST_ID = "59dbff89-35bd-4eac-99ed-be587EXAMPLE"

Element: TypeAlias = "str | bool | int | float | datetime.datetime | Mapping[str, Element] | Sequence[Element] | None"
"""A value that becomes XML. A mapping is a structure (None is left out), a sequence is a list of <item>."""

Params: TypeAlias = Mapping[str, str]


@dataclasses.dataclass
class ApiError(Exception):
    """EC2's answer instead of a result."""

    code: str
    message: str
    status: int = 400


def normal(name: str) -> str:
    """`Filter.3.Value.1` is `Filter.N.Value.N`."""
    return re.sub(r"\.\d+(?=\.|$)", ".N", name)


def check_known(action: str, params: Params, known: frozenset[str]) -> None:
    """Refuse parameters that the emulator would otherwise ignore silently."""
    for name in params:
        if name not in ("Action", "Version") and normal(name) not in known:
            raise ApiError("UnknownParameter", f"The parameter {name} is not recognized by this emulator of {action}")


def strings(params: Params, prefix: str) -> list[str]:
    """The list `prefix`.1, `prefix`.2 and so on, in its order."""
    found: list[str] = []
    while (value := params.get(f"{prefix}.{len(found) + 1}")) is not None:
        found.append(value)
    return found


def structures(params: Params, prefix: str) -> list[dict[str, str]]:
    """The list of structures `prefix`.1.X, `prefix`.2.X and so on; each with its own keys, flattened."""
    found: list[dict[str, str]] = []
    while True:
        start = f"{prefix}.{len(found) + 1}."
        one = {name.removeprefix(start): value for name, value in params.items() if name.startswith(start)}
        if not one:
            return found
        found.append(one)


def flag(params: Params, name: str, default: bool = False) -> bool:
    """A boolean parameter."""
    value = params.get(name)
    if value is None:
        return default
    if value not in ("true", "false"):
        raise ApiError("InvalidParameterValue", f"Invalid value '{value}' for {name}: expected true or false")
    return value == "true"


def number(params: Params, name: str) -> int | None:
    """An integer parameter; None if it is not given."""
    value = params.get(name)
    if value is None:
        return None
    if not value.isdigit():
        raise ApiError("InvalidParameterValue", f"Invalid value '{value}' for {name}: expected an integer")
    return int(value)


def answer(action: str, result: Mapping[str, Element]) -> bytes:
    """An action's result as the XML that EC2 answers with."""
    name = f"{action}Response"
    inner = f"<requestId>{REQUEST_ID}</requestId>" + _render(result)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="{NAMESPACE}">{inner}</{name}>'.encode()


def error_answer(error: ApiError) -> bytes:
    """An error as the XML that EC2 answers with."""
    inner = f"<Error><Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message></Error>"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors>{inner}</Errors>'
        f"<RequestID>{REQUEST_ID}</RequestID></Response>"
    ).encode()


def _render(value: Element) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return escape(value)
        case int() | float():
            return str(value)
        case datetime.datetime():
            return value.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        case Mapping():
            return "".join(f"<{key}>{_render(each)}</{key}>" for key, each in value.items() if each is not None)
        case None:
            return ""
        case _:
            return "".join(f"<item>{_render(each)}</item>" for each in value)
