"""README's two commands in a clean Debian: `make demo` as a whole; of `make test` its set-up, and two of its folders."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from beds.booted.machine import CLEAN
from beds.booted.root import SUITES, booted_root
from beds.peers.builds import ROOT, Missing

pytestmark = [pytest.mark.slow, pytest.mark.untraced]

DEADLINE_S = 3600.0
"""It installs a compiler and some eighty Python packages, and runs tests. At a load of 10 it took 14 minutes."""
TREE = "root/bentpipe"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
OF_REGISTRIES = ("PIP_", "http_proxy", "https_proxy", "no_proxy")
"""Variables by which this machine reaches package registries."""
ENTER = """
set -eu
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount --rbind /dev dev
shift 2
exec chroot . "$@"
"""
AS_README_SAYS = f"""
cd /{TREE}
make demo
make setup
.venv/bin/pytest --collect-only -q | tail -n 1
.venv/bin/pytest -q -p no:cacheprovider tests/proto tests/config
"""


@pytest.fixture(params=SUITES)
def layers(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A root of the suite, and the layer above it with this tree, in which `make` alone is installed."""
    try:
        base = booted_root(request.param)
    except Missing as exc:
        pytest.skip(str(exc))
    upper = tmp_path / "upper"
    for folder in (upper / TREE, upper / "etc", tmp_path / "work", tmp_path / "root"):
        folder.mkdir(parents=True)
    for name in ("resolv.conf", "hosts"):
        (upper / "etc" / name).write_bytes(Path("/etc", name).read_bytes())
    (upper / "root/authorities.pem").write_bytes(AUTHORITIES.read_bytes())
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["xargs", "-0", "cp", "--parents", "-t", upper / TREE], cwd=ROOT, input=names, check=True)
    return base, tmp_path


def test_they_do_their_own_set_up(layers: tuple[Path, Path]) -> None:
    base, folder = layers
    known = {name: value for name, value in os.environ.items() if name.startswith(OF_REGISTRIES)}
    variables = {**known, "HOME": "/root", "PIP_CERT": "/root/authorities.pem"}
    inside = [*CLEAN, *(f"{name}={value}" for name, value in variables.items())]

    enter = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", ENTER, "sh", str(base), str(folder))

    def run(script: str) -> tuple[int, str]:
        said = folder / "said"
        with said.open("wb") as output:
            command = [*enter, *inside, "sh", "-euc", script]
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=DEADLINE_S, check=False
                )
            except subprocess.TimeoutExpired:
                pytest.fail(f"it does not end: {said.read_text(errors='replace')[-3000:]}")
        return done.returncode, said.read_text(errors="replace")

    code, said = run("apt-get update && apt-get install --yes --no-install-recommends make")
    if code != 0:
        pytest.skip(f"no package registry: {said[-300:]}")
    code, said = run(AS_README_SAYS)
    assert code == 0, said[-3000:]
    assert "the daemon drained and ended with exit code 0" in said
    assert "tests collected" in said
    assert re.search(r"^\d+ passed", said, re.MULTILINE), said[-3000:]
