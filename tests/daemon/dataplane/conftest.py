"""A data plane as a process, one for each module, and a scripted control plane that sits."""

from collections.abc import Iterator

import pytest

from beds.planes.scripted import PlaneBed, ScriptedControl, plane_bed


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneBed]:
    with plane_bed(tmp_path_factory.mktemp("plane")) as bed:
        yield bed


@pytest.fixture
def control(bed: PlaneBed) -> Iterator[ScriptedControl]:
    control = bed.control(take_over=True)
    yield control
    control.close()
    bed.close_connections()
