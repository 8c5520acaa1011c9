"""What an ablation needs to know, as one typed configuration."""

from dataclasses import asdict, dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conclugen import PretrainConfig, fields
from conclugen.common import paths
from conclugen.config import RECIPES
from conclugen.evaluation.config import CHEAP_BASELINES, SLOW_BASELINES, JudgingConfig
from conclugen.tasks import registry
from ray_jobs.run_config import DEFAULT_OUTPUT
from shards.access import SHARED_FOLDER, refuse_url
from tuning.systems import METHOD

SECTIONS = ("combinations", "presets", "modalities", "configurations", "baselines")
# What the names of their rows begin with.
CONFIGURED = "configurations/"


@dataclass(frozen=True)
class SizeOptions:
    """What every cell takes from the ablation rather than from its preset, the same for all of them.

    Attributes:
        representation_dim: Width R of the representation.
        projection_dim: Width P of the projection.
        global_batch: Rows of an optimiser step.
        epochs: Length of each pretraining.
    """

    representation_dim: int = 512
    projection_dim: int = 128
    global_batch: int = 256
    epochs: int = 40

    def apply(self, config: PretrainConfig) -> PretrainConfig:
        """A configuration at these sizes. No task starts after the last epoch."""
        overrides: dict[str, Any] = {
            "global_batch": self.global_batch,
            "epochs": self.epochs,
            "model": {"representation_dim": self.representation_dim, "projection_dim": self.projection_dim},
            "tasks": {},
        }
        for searched in _SIZED:
            group, *path = searched.path.split(".")
            if group != "tasks" or path[0] in config.tasks.active:
                place = overrides.setdefault(group, {})
                for name in path[:-1]:
                    place = place.setdefault(name, {})
                place[path[-1]] = getattr(self, searched.name)
        sized = config.changed(overrides)
        within = {n: registry.get(n).within(task, self.epochs) for n, task in sized.tasks.active.items()}
        return replace(sized, tasks=replace(sized.tasks, **within))


_SIZED = [s for task in registry.registered().values() for s in task.searched if s.ablation is not None]
if TYPE_CHECKING:

    class SizesConfig(SizeOptions):
        """The sizes, and those that tasks have (`Searched.ablation`)."""

        def __init__(self, **sizes: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:
    SizesConfig = make_dataclass(
        "SizesConfig",
        [(searched.name, type(searched.ablation), field(default=searched.ablation)) for searched in _SIZED],
        bases=(SizeOptions,),
        namespace={
            "__module__": __name__,
            "__doc__": "\n".join(
                [
                    "What every cell takes from the ablation rather than from its preset, the same for all of them.",
                    "",
                    "    Attributes:",
                    *(f"        {searched.name}: {searched.help}" for searched in _SIZED),
                ]
            ),
        },
        frozen=True,
    )


@dataclass(frozen=True)
class AblateJob:
    """Which tasks, on which modalities, make the better representation? Every combination, judged alike.

    Attributes:
        datasets: Name -> folder of packed shards with labels and groups: `--data.ravdess FOLDER`.
        labels: Name -> class label, where a set has several.
        train_only: Name -> groups that are never tested, comma-separated: those that designs were chosen on.
        split_units: Name -> column whose values are on one side of a fold only: `group`, `meta.NAME` or `row`.
        speakers: Name -> column of speakers, whose rows are each other's negatives; none: the unit of the split.
        interval_units: Name -> column over whose values intervals and tests are; none: the unit of the split.
        configurations: Name -> what is a row of its own beside all `tasks` at `sizes`: a file that
            `ray_jobs.pretrain --config` takes (a sweep's `best.yaml`, say), its sizes and length included; or tasks
            with weights, `A+B:10`, or with another weighting, `share=A:0.5+B:0.5`, in each recipe at `sizes`.
        tasks: Tasks whose combinations are run, any registered ones.
        baselines: Rows beside the representations in the section of that name, each judged once a set, as
            `comparison.baselines` of an evaluation has them.
        sections: Of `combinations` (every non-empty set of `tasks`), `presets` (the published ones), `modalities`
            (subsets), `configurations` (those named above), `baselines` (untrained heads, raw features).
        recipes: Of `improved` and `paper`; every section is run in each, files of configurations in their own.
        seeds: Of pretraining, two at least: a table of one seed has no deviation.
        judging: Fractions of labels, draws, folds.
        sizes: Of every pretraining.
        parallel: Cells at a time; None: the cluster's CPUs.
        dry_run: Tell cells and cost, and stop.
        output: Folder of all ablations.
        name: Of this one, and of its parent run.
        experiment: MLflow experiment.
        tracking_uri: MLflow tracking URI; None: the local SQLite file below `output`.
    """

    datasets: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)
    train_only: dict[str, str] = field(default_factory=dict)
    split_units: dict[str, str] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    interval_units: dict[str, str] = field(default_factory=dict)
    configurations: dict[str, str] = field(default_factory=dict)
    tasks: tuple[str, ...] = METHOD
    baselines: tuple[str, ...] = CHEAP_BASELINES
    sections: tuple[str, ...] = SECTIONS
    recipes: tuple[str, ...] = ("improved", "paper")
    seeds: tuple[int, ...] = (127, 128, 129)
    judging: JudgingConfig = field(default_factory=JudgingConfig)
    sizes: SizesConfig = field(default_factory=SizesConfig)
    parallel: int | None = None
    dry_run: bool = False
    output: str = DEFAULT_OUTPUT
    name: str = "ablation"
    experiment: str = "conclugen"
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        refuse_url("output", self.output, SHARED_FOLDER)
        if not self.datasets:
            raise ValueError("datasets: none; name one at least: --data.NAME FOLDER (labelled shards)")
        for name in (*self.datasets, *self.configurations, self.name):
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"name {name!r}: expected letters, digits, - and _")
        for kind, names, allowed in (
            ("sections", self.sections, SECTIONS),
            ("recipes", self.recipes, RECIPES),
            ("baselines", self.baselines, (*CHEAP_BASELINES, *SLOW_BASELINES, "all")),
            ("tasks", self.tasks, tuple(registry.registered())),
            ("labels", tuple(self.labels), tuple(self.datasets)),
            ("train_only", tuple(self.train_only), tuple(self.datasets)),
            ("split_units", tuple(self.split_units), tuple(self.datasets)),
            ("speakers", tuple(self.speakers), tuple(self.datasets)),
            ("interval_units", tuple(self.interval_units), tuple(self.datasets)),
        ):
            for name in names:
                fields.choose(kind, name, allowed)
        if self.configurations and "configurations" not in self.sections:
            raise ValueError("configurations: given, but sections leave them out; add configurations to --sections")
        if self.sections == ("configurations",) and not self.configurations:
            raise ValueError("sections: configurations alone, and none is given: --configurations.NAME FILE")
        if not self.sections or not self.recipes or not self.tasks:
            raise ValueError("sections, recipes and tasks: name one at least of each")
        if len(set(self.seeds)) < 2 or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(
                f"seeds: {list(self.seeds)}; a mean with its deviation needs two different seeds at least: "
                "--seeds [127,128,129]"
            )
        if self.parallel is not None and self.parallel < 1:
            raise ValueError(f"parallel: {self.parallel}; expected 1 or more, or null for the cluster's CPUs")

    @property
    def folder(self) -> Path:
        return paths.absolute(self.output, "output") / self.name

    def settings(self) -> dict[str, Any]:
        """What must not change between starts on one folder; data sets, seeds, sections and recipes may be added."""
        judging = {name: value for name, value in asdict(self.judging).items() if name != "with_raw"}
        return {"judging": judging, "sizes": asdict(self.sizes)}

    @property
    def ordered_tasks(self) -> tuple[str, ...]:
        """`tasks` in the order in which every configuration has them."""
        return tuple(name for name in registry.registered() if name in self.tasks)
