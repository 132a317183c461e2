"""The present, where a certificate's dates are compared with a peer's clock."""

import datetime


def now() -> datetime.datetime:
    """Not a constant of a module: a certificate that lives for minutes has ended when a long run comes to it."""
    return datetime.datetime.now(datetime.UTC)
