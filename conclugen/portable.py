"""An exported model's heads as a program of its own: `torch.export`, and ONNX where its libraries are installed.

Frozen features of each modality in, (B, D_m) each, a row of NaN where it is missing; the concatenated representation
(B, M R) out, as `Embedder.embed` gives it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from conclugen.common.atomic import atomic_path
from conclugen.export import Embedder

PROGRAM, ONNX = "heads.pt2", "heads.onnx"
TOLERANCE = 1e-5
_ROWS, _SEED = 7, 127  # of what both are compared on


class PortableError(ValueError):
    """The program does not give what the model gives."""


class Heads(nn.Module):
    """The model's standardisation and heads, as one function of all its modalities in their order."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        heads, scalers = embedder.modules["heads"], embedder.modules["standardize"]
        assert isinstance(heads, nn.ModuleDict) and isinstance(scalers, nn.ModuleDict)
        self.heads = nn.ModuleList([heads[m] for m in embedder.modalities])
        self.scalers = nn.ModuleList([scalers[m] if m in scalers else nn.Identity() for m in embedder.modalities])

    def forward(self, *features: Tensor) -> Tensor:
        """(B, D_m) of each modality -> (B, M R)."""
        found = []
        for x, scaler, head in zip(features, self.scalers, self.heads, strict=True):
            missing = torch.isnan(x).any(dim=1, keepdim=True)
            found.append(torch.where(missing, 0.0, head(scaler(torch.where(missing, 0.0, x)))))
        return torch.cat(found, dim=1)


def write(embedder: Embedder, folder: Path) -> list[Path]:
    """Write the program, and an ONNX model where `onnx` and `onnxscript` are installed; the files.

    Raises PortableError where a program's output differs from the model's by more than 1e-5.
    """
    heads = Heads(embedder).eval()
    inputs, expected = _sample(embedder)
    batch = torch.export.Dim("rows", min=1)
    shapes = {"features": tuple({0: batch} for _ in inputs)}
    program = torch.export.export(heads, inputs, dynamic_shapes=shapes)
    _compare(PROGRAM, program.module()(*inputs).detach().numpy(), expected)
    with atomic_path(folder / PROGRAM) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)
    written = [folder / PROGRAM]
    if all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript")):
        exported = torch.onnx.export(heads, inputs, dynamic_shapes=shapes, dynamo=True, input_names=embedder.modalities)
        assert exported is not None
        if importlib.util.find_spec("onnxruntime") is not None:
            _compare(ONNX, np.asarray(exported(*inputs)[0]), expected)
        with atomic_path(folder / ONNX) as temporary:
            exported.save(temporary)
        written.append(folder / ONNX)
    return written


def _sample(embedder: Embedder) -> tuple[tuple[Tensor, ...], np.ndarray]:
    """Rows in which each modality is missing once, and what the model makes of them."""
    rng = np.random.default_rng(_SEED)
    dtype = next(embedder.modules.parameters()).dtype
    arrays = {m: rng.normal(size=(_ROWS, width)) for m, width in embedder.widths.items()}
    for row, name in enumerate(arrays):
        arrays[name][row % _ROWS] = np.nan
    tensors = {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
    return tuple(tensors.values()), embedder.embed({name: x.numpy() for name, x in tensors.items()})


def _compare(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    apart = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not apart <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise PortableError(f"{name}: differs from the model by {apart:.3g}; report it, with the versions of torch")
