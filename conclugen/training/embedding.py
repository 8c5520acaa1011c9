"""What a model makes of rows in evaluation mode; also a model of a moment, while another goes on learning."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from conclugen.batch import Batch
from conclugen.config import PretrainConfig
from conclugen.training.model import Trunk


@torch.no_grad()
def embed(model: Trunk, rows: Batch) -> dict[str, Tensor]:
    """Representation of each modality, (B, R); zero where the modality is not present."""
    model.eval()
    return {
        m: model.represent(m, rows.features[m], rows.corpus) * rows.present[m].unsqueeze(1)
        for m in model.config.modalities
    }


@torch.no_grad()
def project(model: Trunk, rows: Batch) -> dict[str, Tensor]:
    """Unit vectors (B, P) in the space that modalities share; empty for a model without projection."""
    if model.projection is None:
        return {}
    representations = embed(model, rows)
    present = torch.ones(1, rows.rows, dtype=torch.bool, device=rows.row.device)
    return {
        m: functional.normalize(model.projection(r.unsqueeze(0), present)[0], dim=1) for m, r in representations.items()
    }


class Frozen:
    """The model of a state, to embed rows with in another thread while training goes on with its own. It has no memory
    of its own: it is there as long as the state's tensors hold that state.

    config, widths: of the run. tensors: of `Pretrainer.state`, on one device.
    """

    def __init__(self, config: PretrainConfig, widths: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
        with torch.device("meta"):
            self._trunk = Trunk(config, widths)
        own = {name: tensors[f"model/{name}"] for name in self._trunk.state_dict()}
        self._trunk.load_state_dict(own, assign=True)
        first = next(iter(self._trunk.parameters()))
        self.device, self.dtype = first.device, first.dtype

    def embed(self, batch: Any) -> dict[str, Tensor]:
        """As `Pretrainer.embed`."""
        return embed(self._trunk, Batch.of(batch, self.device, self.dtype))

    def project(self, batch: Any) -> dict[str, Tensor]:
        """As `Pretrainer.project`."""
        return project(self._trunk, Batch.of(batch, self.device, self.dtype))
