"""The responder is one file, which needs nothing but the standard library of the oldest Python that satellites have."""

import ast
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from beds.peers.responder_process import ResponderProcess, oldest_python, run_briefly
from bentpipe.daemon.responder.bundle import MODULES, OLDEST_PYTHON, BundleError, bundle, join_modules

ROOT = Path(__file__).parents[3]


ENROL = "enrol"
"""A program of its own."""


def test_it_has_all_modules_and_imports_the_standard_library_alone() -> None:
    tree = ast.parse(bundle(), feature_version=OLDEST_PYTHON)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= sys.stdlib_module_names
    assert not imported & {"site", "bentpipe"}


def test_the_program_that_enrols_is_one_file_for_the_oldest_python() -> None:
    tree = ast.parse((ROOT / "daemon" / "responder" / f"{ENROL}.py").read_text(), feature_version=OLDEST_PYTHON)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {each.module if isinstance(each, ast.ImportFrom) else each.names[0].name for each in imports}
    assert {(name or "").partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_every_module_of_the_package_is_in_it() -> None:
    names = {path.stem for path in (ROOT / "daemon" / "responder").glob("*.py")} - {"__init__", "bundle", ENROL}
    assert set(MODULES) == names
    assert len(MODULES) == len(names)


def test_the_version_is_in_it() -> None:
    assert f'\nVERSION = "{version("bentpipe")}"\n' in bundle()


def test_one_name_with_two_meanings_is_refused() -> None:
    with pytest.raises(BundleError, match="LIMIT is defined in a and in b"):
        join_modules({"a": "LIMIT = 1\n", "b": "LIMIT: int = 2\n"}, "1")
    with pytest.raises(BundleError, match="f is defined in a and in b"):
        join_modules({"a": "def f() -> None: ...\n", "b": "class f: ...\n"}, "1")


def test_a_module_before_what_it_imports_is_refused() -> None:
    later = "from bentpipe.daemon.responder.b import x\n"
    with pytest.raises(BundleError, match="a imports b"):
        join_modules({"a": later, "b": "x = 1\n"}, "1")
    with pytest.raises(BundleError, match="another name"):
        join_modules({"b": "x = 1\n", "a": "from bentpipe.daemon.responder.b import x as y\n"}, "1")


def test_syntax_that_the_oldest_python_has_not_is_refused() -> None:
    with pytest.raises(SyntaxError):
        join_modules({"a": "match 1:\n    case _: pass\n"}, "1")


@pytest.mark.skipif(oldest_python() is None, reason="the oldest Python is not here")
def test_it_runs_with_the_oldest_python() -> None:
    with ResponderProcess({}, python=oldest_python() or "") as responder:
        status = responder.wait_status("machine", "disk", "network")
    assert status.cpus >= 1


def test_it_runs_with_ours() -> None:
    with ResponderProcess({}, python=sys.executable) as responder:
        responder.wait_status("machine", "disk", "network")


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_wrong_arguments(arguments: list[str]) -> None:
    done = run_briefly(arguments)
    assert done.returncode == 64
    assert done.stderr.startswith("usage: ")


def test_settings_that_cannot_be_used(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("settings") / "responder.json"
    path.write_text('{"listen": "nowhere"}')
    done = run_briefly([str(path)])
    assert done.returncode == 78
    assert done.stderr == f"<3>{path}: listen must be HOST:PORT, for example [::]:9571\n"
