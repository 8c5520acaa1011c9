"""The published formulae against values computed by the method's authors' implementation (golden.json)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conclugen.latents import Latents, Presence
from conclugen.layers.heads import GatedUnit
from conclugen.tasks.clustering import assignment_losses, joint_features
from conclugen.tasks.contrastive import Contrastive, ContrastiveConfig
from conclugen.tasks.reconstruction import squared_errors
from conclugen.tasks.simclr import Simclr, SimclrConfig

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
MODALITIES = ("video", "audio", "text")
B, D, K = 24, 16, 5


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=0.0, abs=1e-6)


class Inputs:
    """The seeded inputs, drawn in the order that golden.json states."""

    def __init__(self) -> None:
        g = np.random.Generator(np.random.PCG64(20261123))
        self.P = {m: torch.from_numpy(unit(g.standard_normal((B, D)))) for m in MODALITIES}
        self.L = torch.stack([torch.from_numpy(g.standard_normal((B, K))) for _ in MODALITIES])
        self.C = torch.from_numpy(g.standard_normal((K, K)))
        self.labels = torch.from_numpy(g.integers(0, K, B))
        self.X = torch.from_numpy(g.standard_normal((2 * B, D)))
        self.R = [
            tuple(torch.from_numpy(g.standard_normal((B, d))) for _ in range(2))
            for _, d in (("video", 11), ("audio", 7), ("text", 5))
        ]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def value(start: str) -> float:
    (found,) = [v for name, v in GOLDEN["values"].items() if name.startswith(start)]
    return found


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs()


def contrastive(z: list[Tensor]) -> float:
    names = tuple(f"m{i}" for i in range(len(z)))
    everywhere = torch.ones(len(z), B, dtype=torch.bool)
    presence = Presence(everywhere, everywhere, torch.arange(B), None, 0)
    return float(Contrastive(ContrastiveConfig())(Latents(names, {}, {}, torch.stack(z), presence, 0, 0)))


@pytest.mark.parametrize(
    ("modalities", "name"),
    [
        (("video", "audio", "text"), "contrastive video-audio + audio-text + text-video"),
        (("video", "text"), "contrastive video-text"),
    ],
)
def test_contrastive(inputs: Inputs, modalities: tuple[str, ...], name: str) -> None:
    assert contrastive([inputs.P[m] for m in modalities]) == close(value(name))


def test_contrastive_of_one_pair(inputs: Inputs) -> None:
    expected = GOLDEN["values"]["contrastive video-audio"]
    assert contrastive([inputs.P["video"], inputs.P["audio"]]) == close(expected)


def test_clustering_joint(inputs: Inputs) -> None:
    present = torch.ones(3, B, dtype=torch.bool)
    scores = joint_features(inputs.L, present) @ inputs.C.T
    loss = assignment_losses(scores, inputs.labels, present[0], 0.001).sum() / B
    assert float(loss) == close(value("clustering joint"))


def test_clustering_individual(inputs: Inputs) -> None:
    everywhere = torch.ones(B, dtype=torch.bool)
    losses = [assignment_losses(L @ inputs.C.T, inputs.labels, everywhere, 0.001).sum() / B for L in inputs.L]
    assert float(sum(losses)) == close(value("clustering individual"))


def test_simclr(inputs: Inputs) -> None:
    everywhere = torch.ones(2, B, dtype=torch.bool)
    presence = Presence(everywhere, everywhere, torch.arange(B), None, 0)
    loss = Simclr(SimclrConfig())(Latents(("a", "b"), {}, {}, inputs.X.reshape(2, B, D), presence, 0, 0))
    assert float(loss) == close(value("simclr"))


def test_reconstruction(inputs: Inputs) -> None:
    everywhere = torch.ones(B, dtype=torch.bool)
    loss = sum(squared_errors(prediction, target, everywhere).sum() / B for prediction, target in inputs.R)
    assert float(loss) == close(value("reconstruction"))


def test_gated_unit() -> None:
    g = np.random.Generator(np.random.PCG64(5))
    unit_ = GatedUnit(12, 8).double()
    with torch.no_grad():
        for layer in (unit_.input, unit_.gate, unit_.output):
            layer.weight.copy_(torch.from_numpy(0.3 * g.standard_normal(tuple(layer.weight.shape))))
            layer.bias.copy_(torch.from_numpy(0.3 * g.standard_normal(8)))
    out = unit_(torch.from_numpy(g.standard_normal((4, 12)))).detach()
    golden = GOLDEN["gated_embedding_unit"]["values"]
    assert float(out.sum()) == close(golden["sum of outputs"])
    assert float(out.square().sum()) == close(golden["sum of squares"])
    assert out[0].tolist() == close(golden["first row"])
