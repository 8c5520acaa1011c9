"""The exported model as MLflow loads it: this file is copied into the model folder and run there (models from code).

No object is pickled: the folder holds this source, the `conclugen` package and the exported safetensors.
"""

from typing import Any

import mlflow
import numpy as np


class EmbeddingModel(mlflow.pyfunc.PythonModel):
    """`predict({modality: (B, D) float32})` -> (B, R') float32; a row with a NaN counts as a missing modality.

    The parameter `fusion` is `concat`, `mean`, `concat+raw` or the name of one modality.
    """

    # MLflow asks for a type hint of `model_input`, to make a schema of it, and knows none for a dict of arrays.
    # Here the schema is the model's signature.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        import conclugen

        self.embedder = conclugen.load(context.artifacts["exported"])

    def predict(self, context, model_input, params=None):
        features = {modality: np.asarray(model_input[modality]) for modality in self.embedder.widths}
        fusion = (params or {}).get("fusion", "concat")
        return np.asarray(self.embedder.embed(features, fusion=fusion), dtype=np.float32)


mlflow.models.set_model(EmbeddingModel())
