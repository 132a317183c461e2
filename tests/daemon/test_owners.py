"""Every task that the daemon starts has an owner: read from the source, so that the next one without is loud."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWNED = {"run_owned", "start_owned"}
INSIDE = {
    ("api/grpc_connection.py", "self._watch_end"): "inside a session: it waits for the drain, and for a stranger's age",
    ("api/grpc_connection.py", "self._write"): "the connection's other direction, inside a session",
    ("edge/caller.py", "self._cancel_after_writable"): "a wait inside a session",
    ("edge/health_connection.py", "wait_readable"): "a wait inside a session",
    ("connections/replay.py", "self._downstream"): "the other direction, inside a session",
    ("edge/unless.py", "accompany"): "inside a session or a call, which is owned",
    ("fleet/whereabouts.py", "look"): "a look inside a search, which is owned",
    ("edge/plane_splicer.py", "plane.read_meters"): "several planes asked at once, inside a task that is owned",
    ("planes/link.py", "read"): "one direction of a link, whose owner decides what its end means",
    ("planes/link.py", "self._write_all"): "the other direction",
    ("planes/link.py", "wait_slow"): "a wait inside a link",
    ("providers/process/provider.py", "self._run_machines"): "sleeps in a nursery whose tasks are all owned",
    ("service/init_call.py", "serve"): "a whole daemon inside one command: what it raises ends that command",
    ("service/signals.py", "run"): "the root: what it raises ends the daemon, in words",
}
"""Tasks that end with a block of their caller, which is owned: their failure is that caller's."""


def sources() -> list[Path]:
    return [path for path in sorted((ROOT / "daemon").rglob("*.py")) if "demo" not in path.parts]


def nurseries(tree: ast.Module) -> set[str]:
    """Names and attributes by which a module knows nurseries."""
    found = {"nursery", "_nursery"}
    for node in ast.walk(tree):
        if isinstance(node, ast.withitem) and "open_nursery" in ast.unparse(node.context_expr) and node.optional_vars:
            found.add(ast.unparse(node.optional_vars))
        if isinstance(node, ast.arg) and node.annotation and "Nursery" in ast.unparse(node.annotation):
            found.add(node.arg)
    return found


def started(text: str) -> Iterator[tuple[str, int]]:
    """What is started in a nursery without an owner, and the line."""
    tree = ast.parse(text)
    known = nurseries(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        receiver = ast.unparse(node.func.value).rpartition(".")[2]
        if node.func.attr != "start_soon" and not (node.func.attr == "start" and receiver in known):
            continue
        # `outer.start_soon(inner.start, task)` starts `task` in `inner`.
        first, *rest = map(ast.unparse, node.args)
        task = rest[0] if rest and first.removesuffix(".start").rpartition(".")[2] in known else first
        if task not in OWNED:
            yield task, node.lineno


def test_no_task_is_started_without_an_owner() -> None:
    unowned = [
        (str(path.relative_to(ROOT / "daemon")), task, line)
        for path in sources()
        for task, line in started(path.read_text())
    ]
    assert [each for each in unowned if each[:2] not in INSIDE] == []
    assert set(INSIDE) - {(path, task) for path, task, _ in unowned} == set(), "no longer there"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("nursery.start_soon(run_owned, Owner('x'), poll)", []),
        ("nursery.start_soon(poll)", [("poll", 2)]),
        ("await nursery.start(self.run)", [("self.run", 2)]),
        ("await self._nursery.start(start_owned, Owner('x'), self.run)", []),
        ("starting.start_soon(nursery.start, each.run)", [("each.run", 2)]),
        ("starting.start_soon(nursery.start, start_owned, Owner('x'), each.run)", []),
        ("await provider.start(machine_id)", []),
    ],
)
def test_the_search_finds_what_it_looks_for(line: str, found: list[tuple[str, int]]) -> None:
    assert list(started(f"async def f(nursery: trio.Nursery, starting: trio.Nursery) -> None:\n    {line}")) == found
