"""Generated code is what `make generate` makes of the .proto files, to the byte: nobody has edited it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.untraced

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "proto").glob("*.proto"))
ENDINGS = ("_pb2.py", "_pb2.pyi")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    source = folder / "source" / "bentpipe"
    source.mkdir(parents=True)
    (source / "proto").symlink_to(ROOT / "proto")
    options = [f"--python_out={folder}", f"--pyi_out={folder}", "-I", str(source.parent)]
    files = [f"bentpipe/proto/{path.name}" for path in PROTOS]
    subprocess.run([sys.executable, "-P", "-m", "grpc_tools.protoc", *options, *files], check=True, timeout=60)
    return folder / "bentpipe" / "proto"


def test_there_are_some_and_no_others() -> None:
    stems = {path.stem for path in PROTOS}
    assert stems
    assert {path.name for path in (ROOT / "proto").glob("*_pb2*")} == {f"{s}{e}" for s in stems for e in ENDINGS}


@pytest.mark.parametrize("stem", [path.stem for path in PROTOS])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_committed_code_is_what_is_generated(generated: Path, stem: str, ending: str) -> None:
    name = f"{stem}{ending}"
    assert (ROOT / "proto" / name).read_bytes() == (generated / name).read_bytes(), "run `make generate`"
