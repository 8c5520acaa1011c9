"""Which stages of a run are done, so that the same command continues with the rest, and what they warned of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conclugen.common.atomic import write_json
from conclugen.common.reading import read_mapping
from ray_jobs.run_folder import DATA, RunFolder


@dataclass
class Stages:
    """What is done, kept in the run's folder: a stage whose inputs have not changed is not done again.

    heard: what is warned of, as it grows (`screen.warnings_heard`).
    """

    folder: Path
    number: int = 0
    heard: list[str] = field(default_factory=list)
    _stage: str = ""
    _from: int = 0  # of `heard`: where the stage began
    _warned: dict[str, list[str]] = field(default_factory=dict)

    def begin(self, what: str, name: str = "") -> None:
        """name: of the stage, under which its warnings are listed."""
        self.part(name)
        self.number += 1
        print(f"\n{self.number}  {what}", flush=True)

    def part(self, name: str) -> None:
        """Begin a part of the stage whose warnings are kept by themselves."""
        self.note()
        self._stage, self._from = name, len(self.heard)
        self._warned.pop(name, None)

    def forget(self) -> None:
        """What earlier starts warned of: all of it is done anew."""
        self._warnings.unlink(missing_ok=True)

    def again(self) -> None:
        """Some of the stage was done by an earlier start, and what that warned of still holds."""
        self._warned[self._stage] = self._known().get(self._stage, [])

    def note(self) -> None:
        """Keep what was warned of until now, beside what later stages of an earlier start did."""
        if not self._stage:
            return
        own = dict.fromkeys([*self._warned.get(self._stage, ()), *self.heard[self._from :]])
        self._warned[self._stage] = list(own)
        if self._warnings.parent.is_dir() and (own or self._warnings.exists()):
            write_json(self._warnings, self._known() | self._warned, sort_keys=False)

    def warned(self) -> dict[str, list[str]]:
        """Stage -> what it warned of, in the order of the stages of this start."""
        self.note()
        return {stage: lines for stage, lines in self._warned.items() if lines}

    def _known(self) -> dict[str, list[str]]:
        try:
            found = read_mapping(self._warnings)
        except (OSError, ValueError):
            return {}
        return {stage: [str(line) for line in lines] for stage, lines in found.items() if isinstance(lines, list)}

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
    def _warnings(self) -> Path:
        return self.folder / DATA / "warnings.json"

    @property
    def _path(self) -> Path:
        return self.folder / DATA / "stages.json"
