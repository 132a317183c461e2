"""Makes the contract suite and the helpers beside it importable, with pytest's rewriting of their asserts."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("provider_contract", "local_processes", "emulated_ec2")
