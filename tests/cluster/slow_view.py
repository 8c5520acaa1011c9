"""A view whose look-ups take a random time: read tasks then finish out of order."""

from __future__ import annotations

import random
import time

import numpy as np

from shards.planning.view import View


class SlowView(View):
    def indices(self, shard: int) -> np.ndarray:
        time.sleep(random.random() * 0.04)
        return super().indices(shard)


class FailingView(View):
    def indices(self, shard: int) -> np.ndarray:
        raise RuntimeError(f"cannot look up shard {shard}")
