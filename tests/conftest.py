"""What holds for every test: hypothesis judges values, never how long they took (that is bench/'s)."""

from hypothesis import HealthCheck, settings

settings.register_profile("bentpipe", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bentpipe")
