"""Several corpora mixed in one run, readable without torch."""

from dataclasses import dataclass, field

from conclugen.fields import IDENTITY, choose, require

SCOPES = ("across", "within")


@dataclass(frozen=True)
class CorporaConfig:
    """What mixing corpora means for learning; without several corpora nothing.

    Attributes:
        names: The corpora that are mixed, in the order of their names; empty: one data set. A job fills it in.
        standardize: Features are standardised by the moments of the mixture ("joint") or of each row's own "corpus",
            which takes away what tells corpora apart in each feature.
        negatives: Contrastive negatives come from "across" corpora or from "within" the row's own, so that none is
            recognised by its corpus.
        clusters: K-means clusters rows "across" corpora or those "within" each corpus by themselves.
    """

    names: tuple[str, ...] = field(default=(), metadata=IDENTITY)
    standardize: str = field(default="joint", metadata=IDENTITY)
    negatives: str = field(default="across", metadata=IDENTITY)
    clusters: str = field(default="across", metadata=IDENTITY)

    def __post_init__(self) -> None:
        choose("corpora.standardize", self.standardize, ("joint", "corpus"))
        choose("corpora.negatives", self.negatives, SCOPES)
        choose("corpora.clusters", self.clusters, SCOPES)
        require(
            tuple(sorted(set(self.names))) == self.names, "corpora.names", self.names, "distinct names in their order"
        )


def by_corpus(modality: str, corpus: str) -> str:
    """Under which a standardisation holds the moments of one corpus."""
    return f"{modality}@{corpus}"
