"""What holds for every test.

Hypothesis judges values, never how long they took (that is bench/'s). The asserts of `beds` tell what they compared, as
those of tests do.
"""

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("beds")
settings.register_profile("bentpipe", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("coverage", parent=settings.get_profile("bentpipe"), derandomize=True, max_examples=20)
settings.load_profile("bentpipe")
