"""The configuration that a run was started with, as it lies in the run's folder (`config.json`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conclugen import PretrainConfig


def read(path: Path) -> dict[str, Any]:
    """The whole of it as plain data. Raises ValueError naming a file that is not there or can't be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"found {type(content).__name__}, expected a mapping")
    except (OSError, ValueError, RecursionError) as cause:
        raise _unusable(path, cause) from cause
    return content


def pretraining(path: Path) -> PretrainConfig:
    """The method's part of it. Raises ValueError as `read`, and where that part is none."""
    content = read(path)
    try:
        return PretrainConfig.from_dict(content.get("pretrain"))  # type: ignore[arg-type]  # it tells what it is not
    except (TypeError, ValueError) as cause:
        raise _unusable(path, cause) from cause


def _unusable(path: Path, cause: Exception) -> ValueError:
    return ValueError(
        f"{path}: holds no configuration of a run ({cause}); start ray_jobs.pretrain again under the run's name, which "
        "writes it anew"
    )
