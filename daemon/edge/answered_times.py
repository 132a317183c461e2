"""How long a connection that the daemon answers itself may last: for health checks, and for the control API."""

import random

AGE_GRACE_S = 5.0
"""Between saying that a connection is too old and closing it: the client opens another for what it asks next."""
AGE_JITTER = 0.1
"""The fraction of its age by which a connection ends earlier or later (grpc-go: the same)."""
SEND_DEADLINE_S = 10.0
"""For the client to take what is sent to it; if it does not read, the connection ends."""


def varied_s(age_s: float) -> float:
    """Vary an age in seconds by AGE_JITTER: otherwise clients that came together would come again together."""
    return age_s * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)
