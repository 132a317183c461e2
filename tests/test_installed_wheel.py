"""What a user installs: the wheel, built from the source distribution, in an environment and an empty folder of its own."""

import ast
import dataclasses
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import trustme

from beds.pages.troubleshooting import pattern_of

ROOT = Path(__file__).parent.parent
SITE = Path(sysconfig.get_path("purelib"))
SETUP = (ROOT / "setup.py").read_text()
[PACKAGES] = (node.value for node in ast.parse(SETUP).body if isinstance(node, ast.Assign))
SOURCES = (
    *sorted({folder.partition("/")[0] for folder in ast.literal_eval(PACKAGES).values()}),
    "systemd",
    "debian",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
DEADLINE_S = 110.0
"""The demo with EC2 takes half a minute; beside other tests on few cores twice as long."""
DEMO_NEEDS = ("grpc", "trustme")
OURS = ("bentpipe", "__editable__", "_distutils_hack", "distutils-precedence")


@dataclasses.dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the wheel, and an empty folder to run it in."""

    python: Path
    folder: Path

    def bentpipe(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the installed command. The environment names neither this tree nor its packages."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [str(self.python.parent / "bentpipe"), *arguments],
            cwd=self.folder,
            env=clean | environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without network from the source distribution, which so has all that building needs."""
    tree = tmp_path_factory.mktemp("tree")
    out = tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_engine.c", "*.o")
    for each in SOURCES:
        source = ROOT / each
        if source.is_dir():
            shutil.copytree(source, tree / each, ignore=ignored)
        else:
            shutil.copy(source, tree / each)
    sdist = f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})"
    run(sys.executable, "-c", sdist, cwd=tree)
    (archive,) = out.glob("bentpipe-*.tar.gz")
    build = ("wheel", "--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", str(out))
    run(sys.executable, "-m", "pip", *build, str(archive), cwd=out)
    (built,) = out.glob("bentpipe-*.whl")
    return built


def install(wheel: Path, folder: Path, without: tuple[str, ...] = ()) -> Installed:
    """A fresh environment: the wheel, and links to what it depends on, except for what begins like one of `without`."""
    environment = folder / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", str(environment), cwd=folder)
    python = environment / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        str(wheel),
        cwd=folder,
    )
    site = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for each in SITE.iterdir():
        if not each.name.startswith((*OURS, *without)) and not (site / each.name).exists():
            (site / each.name).symlink_to(each)
    empty = folder / "empty"
    empty.mkdir()
    return Installed(python, empty)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(wheel, tmp_path_factory.mktemp("installed"))


def test_it_says_its_version(installed: Installed) -> None:
    done = installed.bentpipe("--version")
    assert (done.returncode, done.stdout.strip()) == (0, "bentpipe, version 0.1.0")


def test_it_runs_what_is_installed_and_not_this_tree(installed: Installed) -> None:
    code = "import bentpipe.daemon.service.serve as s, bentpipe.native.lib as n; print(s.__file__, n.__file__)"
    done = subprocess.run(
        [str(installed.python), "-P", "-c", code], cwd=installed.folder, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(installed.python.parents[1])) for path in done.stdout.split()), done.stdout


def test_it_brings_the_units_and_the_policy(installed: Installed) -> None:
    share = installed.python.parent.parent / "share" / "bentpipe"
    for name in ("systemd/bentpipe.service", "systemd/bentpipe.socket"):
        assert (share / name).read_bytes() == (ROOT / name).read_bytes()
    module = share / "modules-load.d/bentpipe.conf"
    assert module.read_bytes() == (ROOT / "systemd/modules-load.d/bentpipe.conf").read_bytes()
    assert (share / "needrestart/needrestart.conf").read_bytes() == (ROOT / "debian/needrestart.conf").read_bytes()
    for name in ("iam-policy.json", "sample.toml"):
        assert (share / name).read_bytes() == (ROOT / "config" / name).read_bytes()


def test_it_checks_the_sample_that_comes_with_it(installed: Installed, tmp_path: Path) -> None:
    sample = next(installed.python.parents[1].rglob("bentpipe/config/sample.toml")).read_text()
    issued = trustme.CA().issue_cert("localhost")
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    file = tmp_path / "bentpipe.toml"
    # Where the files are, and no more connections than this system's limit of descriptors may allow.
    ours = {
        "/etc/bentpipe/tls.pem": str(certificate),
        "credential:tls.key": str(key),
        "= 10000 ": "= 100 ",
        "= 5000\n": "= 50\n",
        "= 2000 ": "= 20 ",
        '"/run/bentpipe/': f'"{tmp_path}/',
        '"/var/lib/bentpipe/ledger': f'"{tmp_path}/ledger',
        '# region = "eu-central-1"  ': 'region = "eu-central-1"  ',
    }
    for theirs, own in ours.items():
        assert theirs in sample
        sample = sample.replace(theirs, own)
    file.write_text(sample)
    good = installed.bentpipe("check", str(file))
    assert good.returncode == 0, good.stderr
    file.write_text(sample.replace("[daemon]", "[daemon]\nno_such_key = 1"))
    wrong = installed.bentpipe("check", str(file))
    assert wrong.returncode == 2
    assert "no_such_key" in wrong.stderr


@pytest.mark.parametrize("option", [(), ("--ec2",)], ids=["processes", "ec2"])
def test_the_demo_keeps_its_promises(installed: Installed, option: tuple[str, ...]) -> None:
    done = installed.bentpipe("demo", *option, COLUMNS="200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(installed.folder.iterdir()) == []


@pytest.mark.parametrize("option", [(), ("--ec2",)], ids=["processes", "ec2"])
def test_without_the_extra_it_says_what_to_install(wheel: Path, tmp_path: Path, option: tuple[str, ...]) -> None:
    bare = install(wheel, tmp_path, without=DEMO_NEEDS)
    done = bare.bentpipe("demo", *option)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("which is not installed: pip install 'bentpipe[demo]'")
    assert "Traceback" not in done.stderr
    assert bare.bentpipe("--version").returncode == 0
    if not option:
        first = bare.bentpipe("init", PATH=str(bare.folder))
        assert pattern_of("`init` without buildkitd, and without the demo's extra").search(first.stderr)
        assert list(bare.folder.iterdir()) == []
