"""AWS's descriptions of its services, which botocore reads anew for each client: a third of a second of CPU time for EC2."""

import functools

import botocore.loaders
import botocore.session


def read_models_once() -> None:
    """Let all clients of this process share what was read. Clients only read it."""
    botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)
