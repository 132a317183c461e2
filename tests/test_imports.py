"""DESIGN.md's table is the law of imports: `.importlinter` says the same, row by row, and each of its contracts can fail."""

import configparser
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOPS = ("config", "daemon", "native", "proto")
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"
LINT_DEADLINE_S = 100.0
"""A run takes some seconds; beside other tests on few cores it takes many."""
NAMED = re.compile(r"`([^`]+)`")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: a module, what it may import of ours, and which foreign modules it may not import."""

    module: str
    allowed: frozenset[str]
    """All rows' modules, if it may import everything."""
    foreign: frozenset[str]
    only_from: tuple[str, str] | None
    """(module, importer): of the row's own modules, only this one may import that one."""


def module_of(path: str) -> str:
    return "bentpipe." + path.removesuffix("/").removesuffix(".py").replace("/", ".")


def table() -> list[tuple[str, str]]:
    """(first cell, last cell) of each row under "Folders"."""
    section = (ROOT / "DESIGN.md").read_text().partition("\n## Folders\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    return [(NAMED.findall(cells[0])[0], cells[-1]) for cells in rows[2:]]


def rows() -> dict[str, Row]:
    """The table's rows by module. Raises AssertionError for a cell that is not in one of the forms that DESIGN uses."""
    cells = table()
    ours = frozenset(module_of(path) for path, _ in cells)
    found = {}
    for path, cell in cells:
        first, _, rest = cell.partition("; ")
        foreign: frozenset[str] = frozenset()
        only_from = None
        if rest.startswith("nor "):
            foreign = frozenset(NAMED.findall(rest))
        elif rest:
            match = re.fullmatch(r"`([^`]+)` by `([^`]+)` alone", rest)
            assert match, cell
            only_from = (module_of(match[1]), module_of(match[2]))
        if first == "everything":
            allowed = ours
        elif first == "nothing":
            allowed = frozenset()
        else:
            assert re.fullmatch(r"`[^`]+`(, `[^`]+`)*", first), cell
            allowed = frozenset(module_of(each) for each in NAMED.findall(first))
        assert allowed <= ours, f"{path} may import what has no row: {allowed - ours}"
        found[module_of(path)] = Row(module_of(path), allowed, foreign, only_from)
    return found


def outer_of(module: str) -> str | None:
    """The row's module that `module` is inside of; None if it is a row of the outermost kind."""
    return next((each for each in rows() if module.startswith(f"{each}.")), None)


def forbidden(row: Row) -> frozenset[str]:
    """What the row's contract forbids: all other rows that it does not name, and the foreign modules that it names.

    A folder inside a row's folder is that row's to others. Its own contract cannot forbid the whole folder around it
    (import-linter refuses a module that is inside another of the same contract), so it names its neighbours one by one.
    """
    ours = frozenset(module for module in rows() if outer_of(module) is None)
    closed = frozenset({row.only_from[0]} if row.only_from else ())
    around = outer_of(row.module)
    neighbours = frozenset(children(around)) if around else frozenset()
    return ((ours | neighbours) - row.allowed - {row.module, around or ""}) | row.foreign | closed


def contracts() -> dict[str, configparser.SectionProxy]:
    """`.importlinter`'s contracts by their ids."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    prefix = "importlinter:contract:"
    return {name.removeprefix(prefix): parser[name] for name in parser.sections() if name.startswith(prefix)}


def contract_id(module: str) -> str:
    return module.removeprefix("bentpipe.").replace(".", "-")


def copy_of_the_tree(to: Path) -> Path:
    """The packages' modules as `bentpipe`, in a folder of their own."""
    for top in TOPS:
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.c", "*.h", "src", "include")
        shutil.copytree(ROOT / top, to / "bentpipe" / top, ignore=ignored)
    return to


def lint(tree: Path) -> tuple[int, str]:
    command = [str(LINT_IMPORTS), "--config", str(ROOT / ".importlinter"), "--no-cache", "--no-logo"]
    environment = {**os.environ, "COLUMNS": "250", "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LINT_DEADLINE_S, check=False
    )
    return done.returncode, done.stdout + done.stderr


def plant(tree: Path, importer: str, imported: str) -> str:
    """Let a module of `importer` import `imported`. Returns its name."""
    path = tree.joinpath(*importer.split("."))
    if path.is_dir():
        importer = f"{importer}.planted"
        path = path / "planted"
    with path.with_suffix(".py").open("a") as file:
        file.write(f"\nimport {imported}\n")
    return importer


def children(package: str) -> Iterator[str]:
    """The packages and modules that are directly in a package of ours."""
    for path in ROOT.joinpath(*package.split(".")[1:]).iterdir():
        if (path / "__init__.py").exists() or (path.suffix == ".py" and path.stem != "__init__"):
            yield f"{package}.{path.stem}"


def units() -> Iterator[str]:
    """What must have a row: each top-level folder but `daemon/`, and each package and module of that."""
    for top in TOPS:
        if top != "daemon":
            yield f"bentpipe.{top}"
    yield from children("bentpipe.daemon")


def test_every_package_and_module_has_one_row() -> None:
    outermost = [module_of(path) for path, _ in table() if outer_of(module_of(path)) is None]
    assert sorted(outermost) == sorted(units())


def test_a_row_inside_another_is_a_folder_that_is_there() -> None:
    inside = [module for module in rows() if outer_of(module) is not None]
    assert inside == ["bentpipe.daemon.image.programs", "bentpipe.daemon.fleet.machine"]
    assert all((ROOT.joinpath(*module.split(".")[1:]) / "__init__.py").exists() for module in inside)


def test_the_daemon_itself_imports_nothing() -> None:
    """It has no row, since every row of its parts is below it."""
    assert "import" not in (ROOT / "daemon" / "__init__.py").read_text().partition('"""')[2].partition('"""')[2]


def test_the_table_has_no_circle() -> None:
    left = rows()
    while left:
        free = [module for module, row in left.items() if not (row.allowed - {module}) & left.keys()]
        assert free, f"they may import each other: {sorted(left)}"
        for module in free:
            del left[module]


def test_one_contract_a_row_and_none_that_the_table_lacks() -> None:
    assert sorted(contracts()) == sorted(contract_id(module) for module in rows())


@pytest.mark.parametrize("module", sorted(rows()))
def test_the_contract_forbids_what_the_row_does_not_name(module: str) -> None:
    row = rows()[module]
    contract = contracts()[contract_id(module)]
    assert contract["type"] == "forbidden"
    assert contract["source_modules"].split() == [module]
    assert sorted(contract["forbidden_modules"].split()) == sorted(forbidden(row))
    ignored = [f"{row.only_from[1]} -> {row.only_from[0]}.**"] if row.only_from else []
    assert contract.get("ignore_imports", "").strip().splitlines() == ignored
    keys = {"name", "type", "source_modules", "forbidden_modules", "allow_indirect_imports"}
    assert set(contract) == keys | ({"ignore_imports"} if ignored else set())


def test_every_violation_breaks_the_contract_of_its_row(tmp_path: Path) -> None:
    """All that can be planted at once: lint-imports names each of them."""
    tree = copy_of_the_tree(tmp_path)
    planted = [(plant(tree, row.module, each), each) for row in rows().values() for each in sorted(forbidden(row))]
    code, said = lint(tree)
    assert code == 1, said
    assert f"Contracts: 0 kept, {len(rows())} broken." in said
    assert [f"{importer} -> {each}" for importer, each in planted if f"{importer} -> {each} " not in said] == []


def test_the_tree_as_it_is_keeps_all_and_one_violation_breaks_one(tmp_path: Path) -> None:
    tree = copy_of_the_tree(tmp_path)
    code, said = lint(tree)
    assert code == 0, said
    assert f"Contracts: {len(rows())} kept, 0 broken." in said
    plant(tree, "bentpipe.daemon.fleet", "bentpipe.daemon.edge.session")
    code, said = lint(tree)
    assert code == 1, said
    assert f"Contracts: {len(rows()) - 1} kept, 1 broken." in said
    assert "bentpipe.daemon.fleet.planted -> bentpipe.daemon.edge.session" in said
