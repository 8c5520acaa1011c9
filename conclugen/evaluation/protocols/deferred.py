"""What protocol files use of NumPy and of the judge, imported when it is first used.

A protocol is one file: its options, which `--help` and the refusal of a misspelt flag need at once, and its arithmetic.
So protocol files take these modules from here, and import at the top what the standard library alone needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conclugen.common.deferred import Deferred

if TYPE_CHECKING:
    import numpy as np

    from conclugen.evaluation import blocks as blocks
    from conclugen.evaluation import features as features
    from conclugen.evaluation import judge as judge
    from conclugen.evaluation import metrics as metrics
    from conclugen.evaluation import protocol as splits
    from conclugen.evaluation import solvers as solvers
    from conclugen.evaluation import statistics as statistics
else:
    np = Deferred("numpy")
    blocks, features, judge, metrics, splits, solvers, statistics = (
        Deferred(f"conclugen.evaluation.{name}")
        for name in ("blocks", "features", "judge", "metrics", "protocol", "solvers", "statistics")
    )

__all__ = ["blocks", "features", "judge", "metrics", "np", "solvers", "splits", "statistics"]
