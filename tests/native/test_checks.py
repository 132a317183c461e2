"""The engine's runtime assertions: each mutant of the engine is stopped by one, and a release build has none.

A mutant is the engine with one line changed, so that an invariant breaks. The driver gives it connections until it aborts.
"""

import dataclasses
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from beds.driver_build import NATIVE, compile_objects, driver_sources, link_driver

RELEASE_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2")
DEADLINE_S = 60


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One line of the engine changed, and the invariant that then breaks."""

    name: str
    file: str
    line: str
    changed: str
    broken: str
    """The condition, as the engine prints it."""


MUTANTS = (
    Mutant(
        "a byte is dropped from the stash",
        "pump.c",
        "    d->stash_bytes = bytes;",
        "    d->stash_bytes = bytes - 1;",
        "!live || d->taken == bytes + in_flight",
    ),
    Mutant(
        "a byte is delivered twice",
        "pump.c",
        "        data += put;\n        bytes -= (size_t)put;",
        "        data += put - 1;\n        bytes -= (size_t)put - 1;",
        "!live || d->taken == bytes + in_flight",
    ),
    Mutant(
        "the rest of a batch is forgotten",
        "tls_batch.c",
        "        *spare = NULL;\n    }\n    BP_CHECK_TLS",
        "        *spare = NULL;\n        tls->batch = NULL;\n    }\n    BP_CHECK_TLS",
        "meter->batch_waits == (tls->batch != NULL)",
    ),
    Mutant(
        "the end overtakes the last bytes",
        "pump.c",
        "    if (flushed == -EAGAIN || d->starved)\n        return PUMP_BLOCKED;",
        "    if (flushed == -EAGAIN)\n        d->eof = true, flushed = 0;",
        "d->eof && !d->shut && !bp__direction_in_flight(d)",
    ),
    Mutant(
        "a pipe is lost",
        "pipe_pool.c",
        "    t->pooled++;",
        "    (void)t;",
        "pipes == atomic_load(&t->pipes_open)",
    ),
    Mutant(
        "the ready list loses count",
        "ready.c",
        "    t->ready_count++;",
        "    (void)t;",
        "(t->ready == NULL) == (t->ready_count == 0)",
    ),
    Mutant(
        "nothing waits for room at the destination",
        "splice.c",
        "            wanted |= in->write_wants_read ? EPOLLIN : EPOLLOUT;",
        "            wanted |= 0;",
        "!in_flight || (to->registered && (to->watched & (d->write_wants_read ? EPOLLIN : EPOLLOUT)))",
    ),
    Mutant(
        "an ended splice stays on its thread's list",
        "splice.c",
        "        t->splices = s->next;\n    if (s->next)",
        "        (void)t;\n    if (s->next)",
        "atomic_load(&s->reason) == BP_LIVE",
    ),
    Mutant(
        "a splice is published while its socket is open",
        "splice.c",
        "        close_leg(&s->leg[id], !clean, s->broken == 1 - id);",
        "        if (id == CLIENT)\n            close_leg(&s->leg[id], !clean, s->broken == 1 - id);",
        "s->leg[id].fd < 0 || reason == BP_GIVEN_BACK",
    ),
    Mutant(
        "another thread runs a splice",
        "engine.c",
        "    s->thread = t;\n",
        "    s->thread = &engine->threads[(t - engine->threads + 1) % engine->thread_count];\n",
        "s->thread == t",
    ),
    Mutant(
        "a meter stays with the thread",
        "tls.c",
        "    bp__tls_bio_meter(NULL);\n    if (done != 1) {",
        "    if (done != 1) {",
        "!meter || !of",
    ),
)

SCRIPT = """faults 0 0 0 1
open 0 0 0 4096
send 0 0 600000
recv 0 1 1000
pause 200000
send 0 1 600000
fin 0 0
pause 100000
end 0
open 1 0 0 0
send 1 0 500000
recv 1 1 500000
fin 1 0
end 1
open 2 1 1 0
send 2 0 100
recv 2 1 100
fin 2 0
fin 2 1
end 2
open 3 0 1 4096
send 3 0 600000
recv 3 1 1000
pause 200000
send 3 1 600000
fin 3 0
pause 100000
end 3
check
"""
"""A peer that reads slowly, a stream, TLS, and a peer that reads TLS slowly; each ended by both sides."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    trustme = pytest.importorskip("trustme")
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    blobs = {"cert.pem": issued.cert_chain_pems[0], "key.pem": issued.private_key_pem, "ca.pem": authority.cert_pem}
    for name, blob in blobs.items():
        (folder / name).write_bytes(blob.bytes())
    return [folder / name for name in blobs]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the engine and its driver are linked from, by the name of the source."""
    return compile_objects(driver_sources(), tmp_path_factory.mktemp("objects"))


def copy_of_engine(folder: Path) -> Path:
    """The folder native/ without what was built in it."""
    copy = folder / "native"
    shutil.copytree(NATIVE, copy, ignore=shutil.ignore_patterns("*.so", "_engine.c", "__pycache__"))
    return copy


def run(program: Path, certificates: list[Path]) -> subprocess.CompletedProcess[str]:
    """Run the driver with SCRIPT, in mode auto."""
    return subprocess.run(
        [program, "auto", *certificates], input=SCRIPT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_the_engine_holds_its_invariants(tmp_path: Path, certificates: list[Path], objects: dict[str, Path]) -> None:
    program = tmp_path / "driver"
    link_driver(objects.values(), program)
    done = run(program, certificates)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"^end ", done.stdout, re.MULTILINE)) == 4


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_stopped_by_an_assertion(
    mutant: Mutant, tmp_path: Path, certificates: list[Path], objects: dict[str, Path]
) -> None:
    text = (NATIVE / "src" / mutant.file).read_text()
    assert text.count(mutant.line) == 1, "the line to change is not there, or not once"
    changed = tmp_path / mutant.file
    changed.write_text(text.replace(mutant.line, mutant.changed))
    program = tmp_path / "driver"
    link_driver((objects | compile_objects([changed], tmp_path)).values(), program)
    done = run(program, certificates)
    assert done.returncode == -signal.SIGABRT, (done.returncode, done.stdout, done.stderr)
    assert f"engine: invariant broken: {mutant.broken} (" in done.stderr


def test_a_release_build_has_none_of_it(tmp_path: Path) -> None:
    """Its object code is that of the same sources without any assertion."""
    names = re.findall(
        r"^#define (BP_(?:ASSERT|CHECK|DEBUG_ONLY)\w*)\(", (NATIVE / "src/check.h").read_text(), re.MULTILINE
    )
    bare = copy_of_engine(tmp_path)
    macros = "\n".join(f"#define {name}(...) {'' if name == 'BP_DEBUG_ONLY' else '((void)0)'}" for name in set(names))
    (bare / "src/check.h").write_text(
        f'#ifndef BP_CHECK_H\n#define BP_CHECK_H\n#include "internal.h"\n{macros}\n#endif\n'
    )
    assert len(set(names)) >= 8
    for source in sorted((NATIVE / "src").glob("*.c")):
        code = []
        for folder in (NATIVE, bare):
            compiled = tmp_path / "source.o"
            path = folder / "src" / source.name
            subprocess.run(["gcc", *RELEASE_FLAGS, f"-I{folder / 'include'}", "-c", path, "-o", compiled], check=True)
            dump = subprocess.run(["objdump", "-d", "-r", compiled], check=True, capture_output=True, text=True).stdout
            code.append(dump.partition("Disassembly")[2])
        assert code[0] == code[1], source.name
        assert "bp__check" not in code[0]
