"""What a self-supervised task is: one class, in one file, that says everything the rest of the project asks of it.

    @dataclass(frozen=True)
    class MarginConfig:
        '''...

        Attributes:
            weight: Factor of this task's loss in the total.
        '''
        weight: float = field(default=1.0, metadata=SCHEDULABLE)

    class Margin(Task):
        '''Equation and source.'''
        name, title = "margin", "margin between matching and other rows"
        Config = MarginConfig

        @classmethod
        def inputs(cls, config, modalities):
            return Inputs(projection=True, representation=False)

        def forward(self, latents): ...   # this rank's share of the loss

`forward` returns the share of one rank: the sum over its own rows over the global count, so that the sum over ranks is
the loss of the global batch (`conclugen.distributed`). Files in this folder are found by themselves; another installed
package names its class in the entry point group `conclugen.tasks` (`conclugen.tasks.registry`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from conclugen.common import deferred
from conclugen.fields import finite, require
from conclugen.search_space import Range, Searched

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from conclugen.corpora import CorporaConfig
    from conclugen.latents import Latents, Presence
    from conclugen.model_config import ModelConfig
else:
    Module = object  # `Task.__new__` adds torch's, which a configuration can do without


@dataclass(frozen=True)
class View:
    """One passage of a modality through its head.

    Attributes:
        name: Under which a task finds it in its `Latents`; with the task's name in it, to be no other task's.
        modality: Whose head and standardisation it passes, one of those learned.
        source: The batch's modality that holds the features, as wide as `modality`; often `modality` itself.
        mask: Share of the features set to 0 during training, drawn for each row and step.
        purpose: Names the draws of the mask, so that no two views share them.
        swap: Masked features become those of another row of the global batch instead, drawn for each row and step: of
            the "same_group" or of "all"; 0 where there is no other. Empty: 0. The features travel to all ranks.
    """

    name: str
    modality: str
    source: str
    mask: float = 0.0
    purpose: str = ""
    swap: str = ""

    @property
    def input(self) -> str:
        """Name of its standardised features: views of the same ones share them."""
        return self.modality if self.source == self.modality else f"{self.source} as {self.modality}"


@dataclass(frozen=True)
class Inputs:
    """What a task reads.

    Attributes:
        views: Passages of its own; none: one view of each modality learned, which all such tasks share.
        together: A row counts only where all views are present, instead of each view by itself.
        projection: It reads projections (of the head that all modalities share).
        representation: It reads representations.
        groups: It reads which rows are of one group (a speaker).
        needs_groups: It can't do without: training on data that tells no groups is refused.
        masked_by: Field of its Config that sets the masks of its own views.
        targets: Modalities of the batch that no head of the task sees: `Latents.targets` has them under their names,
            standardised over the global batch, and `Presence` behind the views.
    """

    views: tuple[View, ...] = ()
    together: bool = False
    projection: bool = False
    representation: bool = True
    groups: bool = False
    needs_groups: bool = False
    masked_by: str = ""
    targets: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """Modalities that a batch must hold for the views, and as targets."""
        return tuple(dict.fromkeys((*(view.source for view in self.views), *self.targets)))


class Run(Protocol):
    """What a task may read of the run that it is built for; a `conclugen.config.PretrainConfig` has it."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that are learned, in order."""

    @property
    def model(self) -> ModelConfig:
        """Sizes and formulae of the heads."""

    @property
    def global_batch(self) -> int:
        """Rows of one optimiser step over all workers."""

    @property
    def seed(self) -> int:
        """Of every random draw."""

    @property
    def precision(self) -> str:
        """`float32`, `bfloat16` or `float64`."""

    @property
    def corpora(self) -> CorporaConfig:
        """What mixing corpora means for learning."""


class Task(Module):
    """A task's loss as a module, and on its class what configuration, sweeps, reports and help derive from it.

    Its parameters and buffers are kept in checkpoints by their names. Maps are `conclugen.layers.heads.Linear`, which
    the model initialises from the seed; other parameters get constants: nothing draws from an ambient generator.
    """

    name: ClassVar[str]
    """In configurations, flags, metrics (`loss/NAME`): letters, digits and _."""
    title: ClassVar[str]
    """What reports call it, in a few words; help has the first sentence of `Config`."""
    Config: ClassVar[type[Any]]
    """Frozen dataclass: each field with a kind (`conclugen.fields`), a default and an entry under `Attributes:`. It has
    a schedulable `weight`."""
    order: ClassVar[int] = 100
    """Position among the tasks of this package, in sums, tables and help; other packages' follow, by name."""
    row_wise: ClassVar[bool] = False
    """The loss is a sum over rows of what each row gives by itself, so parts of a rank's rows may be handed to it."""
    lower_precision: ClassVar[bool] = False
    """It has maps of its own, which run in the heads' precision (bfloat16); what it compares then must not."""
    similarities: ClassVar[bool] = False
    """Its products are similarities in blocks (`conclugen.blockwise`): computed again in the backward pass."""
    negatives: ClassVar[str] = "none"
    """Which rows it tells a row from: "none", "any", or "corpus" where it keeps to the row's own corpus if asked to."""
    recipes: ClassVar[Mapping[str, Any]] = {}
    """Recipe -> configuration; a recipe that is not here takes `Config()`."""
    presets: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Variants that the task is part of -> their modalities. Other packages may add variants, not join these."""
    weights: ClassVar[tuple[Range, Range]] = (Range(1e-4, 1.1), Range(0.05, 2.0))
    """Ranges from which sweeps draw its weight: published, laptop."""
    searched: ClassVar[tuple[Searched, ...]] = ()
    """What sweeps draw besides where the task is active."""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings (fields of Config) whose arithmetic differs, by name: tests train all of them on several ranks."""
    tiny: ClassVar[Mapping[str, Any]] = {}
    """Settings that make sense with a dozen rows and a few steps, for tests and examples."""
    measured: ClassVar[tuple[str, ...]] = ()
    """Names of its `measures`."""
    absent_as_null: ClassVar[bool] = False
    """Configurations that leave the task out say so. True of the tasks of the first version, whose saved keys say it;
    others leave no trace where they don't run, so that no configuration depends on what is installed."""

    config: Any

    if not TYPE_CHECKING:

        def __new__(cls, *arguments: Any, **options: Any) -> Task:
            deferred.bind(vars(sys.modules[cls.__module__]))
            return super().__new__(_as_module(cls))

    # ------------------------------------------------------------------ of the configuration; torch is not needed

    @classmethod
    def inputs(cls, config: Any, modalities: tuple[str, ...]) -> Inputs:
        """What it reads of these modalities. Raises ValueError, naming the field, where they can't serve it."""
        return Inputs()

    @classmethod
    def adapted(cls, config: Any, modalities: tuple[str, ...]) -> Any:
        """A recipe's configuration for a run that learns these modalities."""
        return config

    @classmethod
    def begins(cls, config: Any) -> int:
        """The first epoch (0-based) in which it counts."""
        return 0

    @classmethod
    def within(cls, config: Any, epochs: int) -> Any:
        """The configuration for a run of so few epochs: one that would never begin begins at once."""
        return config

    @classmethod
    def without_training_views(cls, config: Any) -> Any:
        """The configuration without what only training data holds, such as a stored second view."""
        return config

    @classmethod
    def flops(cls, config: Any, run: Run, widths: Mapping[str, int]) -> int:
        """Floating-point operations of its own matrix products in one step over the global batch, forward and backward
        (heads and projection are counted apart)."""
        return 0

    @classmethod
    def recipe(cls, name: str) -> Any:
        """Its configuration in a recipe."""
        return cls.recipes[name] if name in cls.recipes else cls.Config()

    # ------------------------------------------------------------------ of the module

    @classmethod
    def build(cls, config: Any, run: Run, widths: Mapping[str, int]) -> Task:
        """The task of a run; widths: modality -> feature width."""
        return cls(config)

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.corpora = 0  # how many are mixed; the model says so
        self._noted: dict[str, Tensor] = {}

    def forward(self, latents: Latents) -> Tensor:
        """This rank's share of the loss, 0-d, unweighted. Where there is nothing to compare it is a zero with a
        gradient path, on every rank."""
        raise NotImplementedError

    def active(self, epoch: int) -> bool:
        """Whether it counts in this epoch; before, `forward` gives a zero with a gradient path."""
        return epoch >= self.begins(self.config)

    def joint(self, representations: Mapping[str, Tensor], present_MB: Tensor) -> Tensor | None:
        """A representation (B, R) of each row as a whole, from those of its modalities, (B, R) each, and which are
        present (M, B); None: the task learns none. Exports hold it, and probes read it, under the task's name."""
        return None

    @classmethod
    def learns_whole(cls) -> bool:
        """Whether it gives a `joint` representation."""
        return cls.joint is not Task.joint

    def note(self, term: str, loss_B: Tensor, counted_B: Tensor, presence: Presence) -> None:
        """Keep what each of this rank's rows gives to a term of the loss, for the losses of single corpora
        (`conclugen.training.step_metrics`), where several are mixed. The loss is the sum over terms of the mean over
        counted rows. loss_B: (B,), 0 where a row does not count; parts of the rows may be noted one after another."""
        if not self.corpora or presence.corpus is None:
            return
        mine_BC = presence.corpus.unsqueeze(1) == loss_B.new_tensor(range(self.corpora), dtype=presence.corpus.dtype)
        mine_BC = mine_BC & counted_B.unsqueeze(1)
        sums_2C = mine_BC.new_zeros((2, self.corpora)).double()
        sums_2C[0] = (loss_B.detach().double().unsqueeze(1) * mine_BC).sum(0)
        sums_2C[1] = mine_BC.sum(0)
        self._noted[term] = self._noted[term] + sums_2C if term in self._noted else sums_2C

    def take_noted(self) -> Tensor | None:
        """(terms, 2, corpora) float64: sums and numbers of the rows noted since the last call; None where none are."""
        noted = list(self._noted.values())
        self._noted = {}
        return _stacked(noted) if noted else None

    def begin_epoch(self) -> None:
        """Called before the first step of each epoch."""

    def metrics(self) -> dict[str, Tensor]:
        """What a step reports of it beside the loss, equal on all ranks, 0-d by name; where it is active."""
        return {}

    def measures(self) -> dict[str, float]:
        """What of the last training step belongs into the measures of health: `measured`, or nothing before a step."""
        return {}

    @classmethod
    def warnings(cls, measures: Mapping[str, float]) -> list[str]:
        """A sentence for each sign of collapse in its `measures`: what was found, the likely cause, the remedy."""
        return []

    @classmethod
    def step_warnings(cls, metrics: Mapping[str, float]) -> list[str]:
        """A sentence for each fault of the data that `metrics` (means over some steps) show, with the remedy; each is
        printed once a run. Where there are any, it is asked again with what is known of the data as well
        (`conclugen.mates`): what nothing can be done about is not said."""
        return []

    def saved(self) -> dict[str, Any] | None:
        """JSON-able state that is not a tensor; None: it has none."""
        return None

    def check_saved(self, saved: Any) -> None:
        """Raise ValueError where `saved` is not a state of `saved`."""

    def restore(self, saved: Any) -> None:
        """Go on from what `saved` gave, after `check_saved`."""

    def compile_regions(self, options: Mapping[str, Any]) -> None:
        """Compile what pays (`conclugen.compilation`); options: of torch.compile."""


def check_weight(task: str, weight: float) -> None:
    """Raise ValueError unless a task's weight is a number above 0."""
    require(finite(weight) and weight > 0, f"tasks.{task}.weight", weight, "a number above 0")


def check_block_rows(task: str, value: int | None) -> None:
    """Raise ValueError unless a number of rows in a block is None or positive."""
    require(value is None or value >= 1, f"tasks.{task}.block_rows", value, "None or 1 or more rows")


def check_two_modalities(task: str, modalities: tuple[str, ...]) -> None:
    """Raise ValueError where there are none to compare."""
    require(len(modalities) >= 2, "modalities", modalities, f"two or more: the {task} task compares modalities")


def _stacked(tensors: list[Tensor]) -> Tensor:
    import torch

    return torch.stack(tensors)


@functools.cache
def _as_module(task: type[Task]) -> type[Task]:
    """The task as a torch module of the same name: its files say what it is without importing torch."""
    from torch import nn

    if issubclass(task, nn.Module):
        return task
    return type(task.__name__, (task, nn.Module), {"__module__": task.__module__, "__doc__": task.__doc__})
