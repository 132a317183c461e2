"""Makes one file of the responder's modules, which a satellite's machine image has. It runs on the edge host.

The file stays readable: an operator who meets it on a satellite, or in a traceback, shall understand it.
"""

import ast
import importlib.metadata
import importlib.resources
from collections.abc import Iterator, Mapping

PACKAGE = "bentpipe.daemon.responder"
MODULES = (
    "hpack",
    "wire",
    "http2",
    "scheduling",
    "settings",
    "looks",
    "machine",
    "network",
    "buildkit",
    "boot",
    "disk",
    "kills",
    "service",
    "server",
    "main",
)
"""Each one after those that it imports."""
OLDEST_PYTHON = (3, 9)
"""Amazon Linux 2023's."""


class BundleError(Exception):
    """The modules cannot be one file; `str()` says why."""


def bundle() -> str:
    """Return the whole program. Raises BundleError."""
    folder = importlib.resources.files(PACKAGE)
    sources = {name: folder.joinpath(f"{name}.py").read_text() for name in MODULES}
    return join_modules(sources, importlib.metadata.version("bentpipe"))


def join_modules(sources: Mapping[str, str], version: str) -> str:
    """Join modules, given in the order of their imports. Raises BundleError if two give one name two meanings."""
    imports: set[str] = set()
    owners: dict[str, str] = {}
    parts = []
    for module, source in sources.items():
        tree = ast.parse(source, feature_version=OLDEST_PYTHON)
        dropped: set[int] = set()
        for node in tree.body:
            for name in _defined(node):
                if owners.setdefault(name, module) != module:
                    raise BundleError(f"{name} is defined in {owners[name]} and in {module}")
            if isinstance(node, ast.Import | ast.ImportFrom):
                dropped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
                imports.update(_needed(node, module, sources))
        kept = [line for number, line in enumerate(source.splitlines(), 1) if number not in dropped]
        parts.append("\n".join(kept).strip())
    head = f'"""The responder of bentpipe {version}."""\n\nfrom __future__ import annotations'
    text = "\n\n".join([head, "\n".join(sorted(imports)), *parts]) + "\n"
    ast.parse(text, feature_version=OLDEST_PYTHON)
    return text.replace('VERSION = "source"', f'VERSION = "{version}"')


def _needed(node: ast.Import | ast.ImportFrom, module: str, sources: Mapping[str, str]) -> Iterator[str]:
    """The imports that the file needs: each name by itself, so that none is there twice. Raises BundleError."""
    if isinstance(node, ast.Import):
        yield from (f"import {each.name}" for each in node.names)
        return
    package, _, ours = (node.module or "").rpartition(".")
    if package == PACKAGE:
        if ours not in list(sources)[: list(sources).index(module)]:
            raise BundleError(f"{module} imports {ours}, which does not come before it")
        if any(each.asname for each in node.names):
            raise BundleError(f"{module} gives another name to something of {ours}")
    elif node.module != "__future__":
        yield from (f"from {node.module} import {each.name}" for each in node.names)


def _defined(node: ast.stmt) -> Iterator[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        yield from (each.id for each in ast.walk(target) if isinstance(each, ast.Name))
