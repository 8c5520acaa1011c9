"""Options of `conclugen export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """A finished run's model as a folder to be shared, in the layout of a model hub.

    Holds the weights (safetensors), their configuration, a card made from the run itself (data, encoders with their
    licences, measured scores, limits), and the heads as a program for torch.export, for ONNX where its libraries are
    installed. `conclugen.load` reads it back. Nothing is uploaded.

    Attributes:
        run: A finished pretraining run in `output`; given without an option.
        output: Folder of all runs.
        folder: Where the model goes; none: `export` in the run's folder.
        licence: Of the weights, as the hub calls it (apache-2.0, cc-by-nc-4.0); none: the card says that it is open.
        programs: Write the heads as programs, too.
        overwrite: Replace an export in the folder.
    """

    run: str
    output: Path = Path("outputs")
    folder: Path | None = None
    licence: str | None = None
    programs: bool = True
    overwrite: bool = False
