"""Credentials for every test."""

import pytest


@pytest.fixture(autouse=True)
def _credentials(aws_credentials: None) -> None:
    """For every test here."""
