"""Contract suites and test beds that several folders share: their asserts are rewritten by pytest as those of tests are.

Where they live is in pyproject.toml, `pythonpath`. Also credentials for boto3.
"""

import functools

import botocore.loaders
import botocore.session
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

shared_loader = functools.cache(botocore.loaders.create_loader)


@pytest.fixture
def aws_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """As boto3 finds them, and none of the host's own. EC2's model is read once, not half a second for each client."""
    monkeypatch.setattr(botocore.session, "create_loader", shared_loader)
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIDONE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
