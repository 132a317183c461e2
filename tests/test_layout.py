"""The five top-level folders are the packages of `bentpipe`, and are importable by that name alone."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOPS = ("daemon", "native", "config", "proto")


def declared_packages() -> dict[str, str]:
    tree = ast.parse((ROOT / "setup.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "PACKAGES":
            return dict(ast.literal_eval(node.value))
    raise AssertionError("setup.py has no PACKAGES")


def test_every_package_is_declared_and_every_declared_one_is_there() -> None:
    found = {
        "bentpipe." + ".".join(init.parent.relative_to(ROOT).parts): str(init.parent.relative_to(ROOT))
        for top in TOPS
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert declared_packages() == found


def test_no_folder_of_modules_lacks_its_init() -> None:
    folders = {path.parent for top in TOPS for path in (ROOT / top).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_lock_pins_all_that_the_project_asks_for() -> None:
    """`make lock` makes it so; a dependency that was added by hand is not forgotten."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    asked = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(each for one in extras for each in one),
    ]
    names = {re.split(r"[^A-Za-z0-9._-]", each)[0].lower() for each in asked}
    pinned = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert sorted(names - pinned) == []


def test_one_name_is_one_class() -> None:
    """A public class of the product has its name alone, so that a reader who finds the name has found the thing."""
    found: dict[str, list[str]] = {}
    for top in TOPS:
        for path in (ROOT / top).rglob("*.py"):
            if path.stem.endswith("_pb2"):
                continue  # generated: the messages have the names that the wire gives them
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_nothing_imported_a_second_copy_under_a_bare_name() -> None:
    import bentpipe.daemon.service.serve  # the root of all imports

    assert bentpipe.daemon.service.serve
    second = [
        name
        for name, module in sys.modules.items()
        if name.partition(".")[0] in TOPS and str(ROOT) in str(getattr(module, "__file__", ""))
    ]
    assert second == []


def test_what_tests_share_is_a_bed() -> None:
    """A folder of tests has tests and fixtures. What several use is in tests/beds; programs in it are modules of it."""
    alone = {ROOT / "tests/native/guest/init.py"}  # the first process of a guest, which has no import path
    found = {path for path in (ROOT / "tests").rglob("*.py") if "beds" not in path.parts} - alone
    assert [path for path in found if not path.name.startswith("test_") and path.name != "conftest.py"] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["pytest"]["ini_options"]["pythonpath"] == ["tests", "build/bench"]
