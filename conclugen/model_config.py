"""Sizes and formulae of the heads (`conclugen.layers.heads`), readable without torch."""

from dataclasses import dataclass, field

from conclugen.fields import IDENTITY, choose, require

ACTIVATIONS = ("relu", "none")
INITIALISATIONS = ("uniform", "orthogonal")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and formulae of the heads; the defaults are the published formulae.

    Sizes of a projection or a decoder have no effect where no active task has one.

    Attributes:
        representation_dim: Width R of representations.
        projection_dim: Width P of the projection.
        reconstruction_hidden_dim: Hidden width H of the decoders.
        own_width_modalities: Of the modalities learned, those whose gated unit keeps the feature width; a linear map
            then leads to R.
        representation_activation: What ends the gated unit: "relu" or "none".
        projection_activation: What ends the projection: "relu" or "none".
        initialisation: Of the gated units' outer maps: "uniform" (torch's default), or "orthogonal", which keeps
            distances between inputs and so begins from a representation that has lost little of them.
        projection_shrink: The projection's hidden width is R over this.
        standardize: Standardise features by buffers fitted on the training rows, then cut them to +-input_clip.
        input_clip: Largest size of a standardised feature, in standard deviations.
        feature_mask: Share of input features set to 0 during training, drawn for each row and step; not of views that a
            task makes for itself.
    """

    representation_dim: int = field(default=4096, metadata=IDENTITY)
    projection_dim: int = field(default=512, metadata=IDENTITY)
    reconstruction_hidden_dim: int = field(default=1024, metadata=IDENTITY)
    own_width_modalities: tuple[str, ...] = field(default=("audio",), metadata=IDENTITY)
    representation_activation: str = field(default="relu", metadata=IDENTITY)
    projection_activation: str = field(default="relu", metadata=IDENTITY)
    initialisation: str = field(default="uniform", metadata=IDENTITY)
    projection_shrink: int = field(default=8, metadata=IDENTITY)
    standardize: bool = field(default=False, metadata=IDENTITY)
    input_clip: float = field(default=8.0, metadata=IDENTITY)
    feature_mask: float = field(default=0.0, metadata=IDENTITY)

    def __post_init__(self) -> None:
        for name in ("representation_dim", "projection_dim", "reconstruction_hidden_dim", "projection_shrink"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "1 or more")
        choose("model.representation_activation", self.representation_activation, ACTIVATIONS)
        choose("model.projection_activation", self.projection_activation, ACTIVATIONS)
        choose("model.initialisation", self.initialisation, INITIALISATIONS)
        require(self.input_clip > 0, "model.input_clip", self.input_clip, "a number above 0")
        require(0 <= self.feature_mask < 1, "model.feature_mask", self.feature_mask, "0 <= share < 1")
