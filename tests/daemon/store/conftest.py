"""Makes the contract suite beside it importable, with pytest's rewriting of its asserts."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("store_contract", "registry_contract", "coordination_contract", "rows_contract")
