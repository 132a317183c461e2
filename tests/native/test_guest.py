"""Boots a small guest whose kernel has TLS, and runs the tests of kTLS in it: the engine's, and the model-based one.

The guest is User-mode Linux of Debian (package user-mode-linux, its tls module), on the host's own file system.
`guest/whole_xstate.c` lets it run on processors with AMX.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from beds.driver_build import build_driver

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "guest"
TESTS = ("tests/native/test_tls.py", "tests/native/test_ktls_floods.py", "tests/native/test_model.py")
EXAMPLES = int(os.environ.get("BENTPIPE_GUEST_EXAMPLES", "40"))
"""Of the model-based test, in each mode; the guest is several times slower than its host."""
BOOT_DEADLINE_S = 240 + EXAMPLES
FETCH_DEADLINE_S = 120
MODULES = ("gf128mul", "ghash-generic", "ctr", "gcm", "tls")
"""In the order of their needs: AES-GCM, which the kernel would ask modprobe for, and TLS."""


def kernel() -> tuple[Path, list[Path]]:
    """Find or fetch the guest's kernel and its modules. Skips, in words, where that cannot be."""
    if os.uname().machine != "x86_64":
        pytest.skip("kTLS was NOT tested: User-mode Linux runs on x86-64 only")
    FOLDER.mkdir(parents=True, exist_ok=True)
    program = FOLDER / "files/usr/bin/linux.uml"
    if not program.exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            pytest.skip("kTLS was NOT tested: no apt to fetch user-mode-linux with")
        for old in FOLDER.glob("*.deb"):
            old.unlink()
        fetch = ["apt-get", "download", "user-mode-linux"]
        try:
            subprocess.run(fetch, cwd=FOLDER, check=True, capture_output=True, timeout=FETCH_DEADLINE_S)
        except (subprocess.SubprocessError, OSError) as exc:
            pytest.skip(f"kTLS was NOT tested: user-mode-linux cannot be fetched: {exc}")
        [package] = FOLDER.glob("*.deb")
        subprocess.run(["dpkg", "-x", package, FOLDER / "files"], check=True)
        package.unlink()
    modules = [path for name in MODULES for path in (FOLDER / "files").rglob(f"{name}.ko")]
    if len(modules) != len(MODULES):
        pytest.skip(f"kTLS was NOT tested: this user-mode-linux has of {MODULES} only {modules}")
    return program, modules


@pytest.mark.skipif("BENTPIPE_GUEST" in os.environ, reason="this is the guest")
def test_ktls_in_a_guest_that_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    program, modules = kernel()
    build_driver("none")
    for name in ("output", "code", "tls_stat"):
        (FOLDER / name).unlink(missing_ok=True)
    preloaded = FOLDER / "whole_xstate.so"
    source = ROOT / "tests/native/guest/whole_xstate.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", source, "-o", preloaded, "-ldl"], check=True)
    init = FOLDER / "init"
    init.write_text(f'#!/bin/sh\nexec "{sys.executable}" -B "{ROOT / "tests/native/guest/init.py"}"\n')
    init.chmod(0o755)
    boot = [
        str(program),
        "mem=512M",
        "root=none",
        "rootfstype=hostfs",
        "rootflags=/",
        "rw",
        f"init={init}",
        "con0=null,fd:1",
        "con=null",
        f"GUEST_FOLDER={FOLDER}",
        f"GUEST_MODULES={','.join(map(str, modules))}",
        f"GUEST_ROOT={ROOT}",
        f"GUEST_TESTS={','.join(TESTS)}",
        f"GUEST_EXAMPLES={EXAMPLES}",
    ]
    console = subprocess.run(
        boot,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=BOOT_DEADLINE_S,
        check=False,
        env={**os.environ, "LD_PRELOAD": str(preloaded)},
    )
    assert (FOLDER / "code").exists(), console.stdout.decode(errors="replace")[-4000:]
    output = (FOLDER / "output").read_text()
    assert (FOLDER / "code").read_text() == "0", output
    with capsys.disabled():
        print("\nin the guest:", output.strip().splitlines()[-1])
    statistics = dict(line.split() for line in (FOLDER / "tls_stat").read_text().splitlines())
    assert int(statistics["TlsTxSw"]) > 0, "the guest's kernel encrypted nothing"
    assert "no kTLS on this kernel" not in output
