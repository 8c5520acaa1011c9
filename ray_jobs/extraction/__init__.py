"""Clip shards to feature shards: the plan, a clip's way through the encoders, and the shards that result."""

from conclugen.common import extras

extras.require("this job", "ray")
