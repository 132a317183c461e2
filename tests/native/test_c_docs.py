"""Each C function of the engine says what it does, what each parameter is, what it returns, and which threads may call it.

The public functions are documented in include/bp.h, all others where they are defined.
"""

import re
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
HEADER = NATIVE / "include" / "bp.h"
FUNCTION = re.compile(r"^(?![ \t#/*}])([\w \*]*?)\b(\w+)\(((?:[^;{}()]|\([^()]*\))*)\)\s*(?=[;{])", re.MULTILINE)
"""The return type, the name and the parameters of a definition or a declaration at the beginning of a line."""
DOC = re.compile(r"/\*\*\n(?P<body>(?: \*[^\n]*\n)*?) \*/\n\Z")
MOST_LINES = 60
MOST_PARAMETERS = 8


def documentation(text: str, at: int) -> str:
    """The comment directly above, or nothing."""
    found = DOC.search(text[:at])
    return found["body"] if found else ""


def parameter_names(parameters: str) -> list[str]:
    """Names, in order. A parameter that is an array or a pointer has its name last."""
    if parameters.strip() in ("", "void"):
        return []
    return [(re.findall(r"\w+", re.sub(r"\[[^]]*\]", "", each)) or [""])[-1] for each in parameters.split(",")]


def complaints(path: Path) -> list[str]:
    """What the documentation of this file's functions lacks."""
    text = path.read_text()
    found = []
    for match in FUNCTION.finditer(text):
        returns, name, parameters = match.groups()
        public = name.startswith("bp_") and not name.startswith("bp__")
        if (path == HEADER) != public or "typedef" in returns:
            continue
        body = documentation(text, match.start())
        lacks = [f"@{each}" for each in parameter_names(parameters) if f"\n * @{each}: " not in body]
        described = re.findall(r"^ \* @(\w+): ", body, re.MULTILINE)
        lacks += [f"nothing: it has no @{each}" for each in described if each not in parameter_names(parameters)]
        if not body.startswith(f" * {name}() - "):
            lacks.append("its name and a line")
        if ("void" not in returns.split() or "*" in returns) != ("\n * Return: " in body):
            lacks.append("Return:")
        if "\n * Thread: " not in body:
            lacks.append("Thread:")
        found += [f"{path.name}: {name}: lacks {each}" for each in lacks]
    return found


def functions(path: Path) -> list[tuple[str, int, int]]:
    """Name, number of parameters and number of lines of each function that is defined."""
    text = path.read_text()
    found = []
    for match in FUNCTION.finditer(text):
        if text.startswith("{", match.end()):
            closing = "}\n" if text[match.end() :].split("\n")[0].endswith("}") else "\n}\n"
            end = text.index(closing, match.end()) + len(closing)
            found.append((match[2], len(parameter_names(match[3])), text.count("\n", match.start(), end)))
    return found


SOURCES = sorted((NATIVE / "src").glob("*.c"))
PROGRAMS = sorted(path for top in ("bench", "tests/native") for path in (NATIVE.parent / top).glob("*/*.c"))


@pytest.mark.parametrize("path", [*SOURCES, HEADER], ids=lambda path: path.name)
def test_each_function_is_documented(path: Path) -> None:
    assert not complaints(path)


@pytest.mark.parametrize("path", [*SOURCES, *PROGRAMS], ids=lambda path: path.name)
def test_no_function_is_long(path: Path) -> None:
    found = functions(path)
    assert found
    assert [name for name, parameters, lines in found if lines > MOST_LINES or parameters > MOST_PARAMETERS] == []


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    path = tmp_path / "some.c"
    path.write_text(
        "/**\n * one() - Do it\n * @here: Where\n *\n * Thread: any\n */\n"
        "static int one(struct leg *here, size_t bytes) {\n    return 0;\n}\n\nvoid *two(void) {\n    return 0;\n}\n"
    )
    assert complaints(path) == [
        "some.c: one: lacks @bytes",
        "some.c: one: lacks Return:",
        "some.c: two: lacks its name and a line",
        "some.c: two: lacks Return:",
        "some.c: two: lacks Thread:",
    ]
    assert functions(path) == [("one", 2, 3), ("two", 0, 3)]
