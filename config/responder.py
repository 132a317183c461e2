"""The section of a satellite's responder: the small program on the satellite that tells the daemon how its machine is."""

from typing import Literal

from pydantic import Field

from bentpipe.config.base import DurationS, Section

RESPONDER_PORT = 9571
"""Of the responder in the images that bentpipe renders, by default."""


class AbuseSection(Section):
    """What is done if a satellite seems to mine or to compute for somebody, instead of building."""

    action: Literal["off", "notify", "sleep", "cut"] = "off"
    """off: the score is in the report and the metrics only. notify: the log says it too. sleep: the satellite
    sleeps as soon as no client is connected, though it says that builds run. cut: its connections are cut first."""
    score: int = Field(default=75, ge=1, le=100)
    """From this score on."""


class ResponderSection(Section):
    """The responder listens on the satellite's own host. It is asked with `[satellite.tls]`, if there is such a section."""

    port: int = Field(default=RESPONDER_PORT, ge=1, le=65535)
    interval_s: DurationS = Field(default=15.0, ge=1, le=300, alias="interval")
    """Time between readings while the satellite is awake."""
    deadline_s: DurationS = Field(default=5.0, gt=0, le=60, alias="deadline")
    """Of one reading."""
    trust_builds_s: DurationS = Field(default=86_400.0, gt=0, alias="trust_builds")
    """For how long after its last client's last traffic a satellite is kept awake by its own word that builds run."""
    abuse: AbuseSection = AbuseSection()
