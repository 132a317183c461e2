"""The IAM policy of the documentation allows what the provider does to EC2, and nothing else."""

import json
from pathlib import Path

from bentpipe.daemon.providers.ec2.calls import Api

POLICY = Path(__file__).parents[4] / "config" / "iam-policy.json"
IMPLIED = {"CreateTags"}
"""Not called, but asked for by RunInstances with tags."""


def test_the_policy_names_the_calls_that_are_made() -> None:
    statements = json.loads(POLICY.read_text())["Statement"]
    listed = [each["Action"] if isinstance(each["Action"], list) else [each["Action"]] for each in statements]
    actions = {action for each in listed for action in each}
    assert {each.removeprefix("ec2:") for each in actions if each.startswith("ec2:")} == {
        api.value for api in Api
    } | IMPLIED
    unconditional = [each for each in statements if each["Resource"] == "*"]
    assert all(action.startswith("ec2:Describe") for each in unconditional for action in each["Action"])
