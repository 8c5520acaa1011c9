"""A finished run behind HTTP: what is asked, the model that answers, and Ray Serve around it."""

from conclugen.common import extras

extras.require("this job", "ray")
