"""Contract suites and test beds that several folders share: their asserts are rewritten by pytest as those of tests are.

Where they live is in pyproject.toml, `pythonpath`.
"""

import pytest

pytest.register_assert_rewrite(
    "coordination_contract",
    "emulated_ec2",
    "emulated_fleet",
    "local_processes",
    "provider_contract",
    "registry_contract",
    "rows_contract",
    "store_contract",
)
