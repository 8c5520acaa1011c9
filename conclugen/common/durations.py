"""Seconds as people read them in progress lines."""

from __future__ import annotations

import math


def clock(seconds: float) -> str:
    """`00:41:00`; hours go on beyond 24; `--:--:--` for what is not known yet (NaN, infinite or negative)."""
    if not math.isfinite(seconds) or seconds < 0:
        return "--:--:--"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{left:02d}"
