"""Which stages of a run are done, so that the same command continues with the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conclugen.common.atomic import write_json
from conclugen.common.reading import read_mapping
from ray_jobs.run_folder import DATA, RunFolder


@dataclass
class Stages:
    """What is done, kept in the run's folder: a stage whose inputs have not changed is not done again."""

    folder: Path
    number: int = 0

    def begin(self, what: str) -> None:
        self.number += 1
        print(f"\n{self.number}  {what}", flush=True)

    def told(self) -> str:
        """What is done and what the same command will do, for a run that was stopped between its stages."""
        try:
            ended = list(read_mapping(self._path))
        except (OSError, ValueError):
            ended = []
        if RunFolder(self.folder).model.exists():
            ended.append("pretrain")
        if not ended:
            return "nothing was finished; the same command starts over"
        return f"run {self.folder.name}: done are {', '.join(ended)}; the same command continues with the rest"

    def done(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the stage ended with these inputs."""
        try:
            return bool(read_mapping(self._path).get(name) == json.loads(json.dumps(inputs, default=str)))
        except (OSError, ValueError):
            return False

    def end(self, name: str, inputs: Mapping[str, Any]) -> None:
        try:
            known = read_mapping(self._path)
        except (OSError, ValueError):
            known = {}
        write_json(self._path, known | {name: json.loads(json.dumps(inputs, default=str))})

    @property
    def _path(self) -> Path:
        return self.folder / DATA / "stages.json"
