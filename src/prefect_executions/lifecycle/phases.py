"""The phases that the scripts of a descriptor Method go through."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """The phases of a descriptor Method, in their order; those that have a script are Deploy, Execute and Undeploy."""

    LAUNCH = "launch"
    """What runs the scripts is made ready: the plan, the image, the process or container."""
    DEPLOY = "deploy"
    EXECUTE = "execute"
    FETCH = "fetch"
    """What was left in the data folder becomes the outputs."""
    UNDEPLOY = "undeploy"
    DESTROY = "destroy"
    """What ran the scripts is removed."""
