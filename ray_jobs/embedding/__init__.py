"""New clips and whole corpora through a run's encoders and its model."""

from conclugen.common import extras

extras.require("this job", "ray")
