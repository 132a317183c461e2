"""What the tests of the emulator, and those that use it, share: boto3 clients, and its hand over HTTP."""

import json
import urllib.request
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from types_boto3_ec2 import EC2Client
    from types_boto3_ec2.type_defs import InstanceTypeDef

DEADLINE_S = 20.0
TAGS = {"bentpipe:fleet": "test", "bentpipe:satellite": "acme/one"}


def client_of(url: str, key: str = "AKIDONE") -> "EC2Client":
    return boto3.client(
        "ec2",
        endpoint_url=url,
        region_name="eu-central-1",
        aws_access_key_id=key,
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1, "mode": "standard"}, connect_timeout=5, read_timeout=20),
    )


def look(ec2: "EC2Client", instance_id: str) -> "InstanceTypeDef":
    answer = ec2.describe_instances(InstanceIds=[instance_id])
    return answer["Reservations"][0]["Instances"][0]


def post(url: str, **body: object) -> object:
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=DEADLINE_S) as answer:
        result: object = json.load(answer)["result"]
        return result
