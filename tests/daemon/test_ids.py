"""Ids that are joined from parts: other parts never give the same id, and ids are joined in one place only."""

import ast
import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bentpipe.config.base import NAME_PATTERN
from bentpipe.daemon.ids import JOINED, folder_name, machine_id_of, parts_of_reserve_tag, reserve_tag, satellite_tag
from bentpipe.daemon.model import MachineId, SatelliteKey

DAEMON = Path(__file__).parents[2] / "daemon"

FEW = st.from_regex(r"^[a%c]([a.b-]{0,2}[a%c])?$".replace("%c", string.ascii_lowercase[1]), fullmatch=True)
"""Names of few letters and many separators, so that other parts often look alike once they are joined."""
NAMES = st.one_of(FEW, st.from_regex(NAME_PATTERN, fullmatch=True))
PARTS = st.tuples(
    NAMES, st.builds(SatelliteKey, NAMES, NAMES), st.integers(0, 3), st.one_of(st.none(), st.integers(0, 3))
)


@pytest.mark.parametrize("kind", JOINED)
@given(one=PARTS, two=PARTS)
def test_other_parts_are_another_id(kind: str, one: object, two: object) -> None:
    (meant, made), (also_meant, also_made) = JOINED[kind](*one), JOINED[kind](*two)  # type: ignore[misc]
    assert (meant == also_meant) == (made == also_made)


@pytest.mark.parametrize("kind", JOINED)
@given(org=FEW, name=FEW, at=st.integers(0, 6))
def test_a_part_never_ends_where_another_begins(kind: str, org: str, name: str, at: int) -> None:
    """The likeliest mistake: the same letters and separators, cut in another place."""
    for separator in "./:#%- ":
        text = f"{org}{separator}{name}"
        for cut in range(1, len(text) - 1):
            if text[cut] == separator and (text[:cut], text[cut + 1 :]) != (org, name):
                keys = SatelliteKey(org, name), SatelliteKey(text[:cut], text[cut + 1 :])
                (_, one), (_, two) = (JOINED[kind]("f", key, at, None) for key in keys)
                assert one != two


@given(parts=PARTS)
@example(("f", SatelliteKey("a" + 62 * "." + "a", "a" + 62 * "." + "a"), 1, None))
def test_what_others_limit(parts: tuple[str, SatelliteKey, int, int | None]) -> None:
    for kind in ("launch token", "client token"):
        _, token = JOINED[kind](*parts)
        assert len(token) <= 64
        assert token.isascii()
    assert len(satellite_tag(parts[1])) <= 256  # EC2's limit of a tag's value
    folder = folder_name(machine_id_of(parts[1]))
    assert "/" not in folder
    assert len(folder) <= 255


def test_names_without_dots_keep_their_machine_id() -> None:
    assert machine_id_of(SatelliteKey("acme", "b-1_x")) == "acme.b-1_x"
    assert machine_id_of(SatelliteKey("acme.eu", "builder")) != machine_id_of(SatelliteKey("acme", "eu.builder"))


def test_folder_names_differ_as_ids_do() -> None:
    ids = ["a/b", "a.b", "a:b", "a%3Ab", "a%b", "a b", "a/b/c", "a.b/c", "a/b.c"]
    names = [folder_name(MachineId(each)) for each in ids]
    assert len(set(names)) == len(ids)
    assert not any("/" in name for name in names)
    assert names[0] == "a:b"


@given(size=st.from_regex(NAME_PATTERN, fullmatch=True), spare=st.from_regex("[0-9a-f]{32}", fullmatch=True))
def test_a_reserve_tag_is_taken_apart_again(size: str, spare: str) -> None:
    assert parts_of_reserve_tag(reserve_tag(size, "linux/amd64", spare)) == (size, "linux/amd64", spare)


@pytest.mark.parametrize("value", ["", "/", "what others wrote", "a/b", "a/b/c/d/"])
def test_a_reserve_tag_of_others_is_taken_apart_too(value: str) -> None:
    assert len(parts_of_reserve_tag(value)) == 3


def test_no_other_module_joins_org_and_name() -> None:
    """Every new id is made in `ids`, where the property above is tested."""
    joined = [
        f"{path.relative_to(DAEMON)}:{node.lineno}"
        for path in sorted(DAEMON.rglob("*.py"))
        if path.name not in ("ids.py", "model.py") and "demo" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr)
        and {"org", "name"} <= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    ]
    assert joined == []
