"""Every job and command of the project, by name: what a console script, the documentation and the tests go by.

A module is imported when its command is asked for; that alone imports neither torch nor Ray, MLflow or media.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from conclugen.common.options import Command

# Name -> the module whose COMMAND it is, in the order in which one meets them.
JOBS = {
    "demo": "ray_jobs.demo.command",
    "build_shards": "ray_jobs.build_shards",
    "extract_features": "ray_jobs.extract_features",
    "pretrain": "ray_jobs.pretrain",
    "evaluate": "ray_jobs.evaluate",
    "embed": "ray_jobs.embed",
    "tracking": "ray_jobs.tracking.__main__",
    "sweep": "tuning.sweep.job",
    "sweep replay": "tuning.sweep.replay",
    "ablate": "tuning.ablate",
    "report": "tuning.report.__main__",
    "corpus": "shards.corpus.__main__",
    "author_features": "shards.adapters.author_features",
    "word_error_rate": "shards.transcripts.word_error_rate",
}
# Commands of `python -m shards`.
SHARDS = ("check", "pack", "index", "convert-pickle", "verify", "stats", "split")


def load(name: str) -> Command:
    """The command of that name; KeyError for none."""
    if name in SHARDS:
        from shards.commands import COMMANDS

        return COMMANDS[name]
    command: Command = import_module(JOBS[name]).COMMAND
    return command


def commands() -> Iterator[Command]:
    """All of them."""
    for name in (*JOBS, *SHARDS):
        yield load(name)
