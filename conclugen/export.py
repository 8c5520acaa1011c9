"""The trained heads as a folder of their own, and the Embedder that reads it back."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conclugen import fields, storage
from conclugen.beside_raw import FUSION as RAW_FUSION
from conclugen.beside_raw import BesideRaw
from conclugen.common import plugins, uris
from conclugen.common.extras import MissingExtraError, needed_for
from conclugen.common.options import build
from conclugen.config import PretrainConfig, known_tasks
from conclugen.corpora import CorporaConfig
from conclugen.layers.heads import RepresentationHead
from conclugen.layers.standardize import Standardize
from conclugen.model_config import ModelConfig
from conclugen.tasks import Task, registry
from conclugen.training.pretrainer import Pretrainer

SCHEMA, VERSION = "conclugen-model", 2
TENSORS, DOCUMENT, CARD = "model.safetensors", "config.json", "MODEL_CARD.md"
HUB = "hf://"
_HUB_NAME = re.compile(r"hf://(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>(?!.*\.\.)\w[\w.+/-]*))?")
_CHUNK_ROWS = 4096
_DECODES_FILES = "conclugen.files"  # entry points: (embedder, paths, fusion, ...) -> (n, width)
_BESIDE = "beside_raw"  # in the document, and before the tensors' names
_WHOLE = "tasks"  # before the tensors' names of tasks, as in a model


class ExportError(ValueError):
    """A folder that is not a complete exported model, is damaged, or was written in an unknown version."""


def save(
    folder: str | Path,
    pretrainer: Pretrainer,
    info: Mapping[str, Any] | None = None,
    beside_raw: BesideRaw | None = None,
) -> None:
    """Write the representation heads and the standardisation as `folder`, whole or not at all.

    info: JSON-able facts for the reader (data digest, metrics). beside_raw: scales of the fusion `concat+raw`, fitted
    on training rows; without them the model does not offer it. Raises NonFiniteLossError for a state that a bad step
    has touched.
    """
    state, _ = pretrainer.state()
    prefix = "model/"
    whole = [name for name in pretrainer.config.tasks.active if registry.get(name).learns_whole()]
    kept = ("heads.", "standardize.", *(f"tasks.{name}." for name in whole))
    tensors = {name.removeprefix(prefix): x for name, x in state.items() if name.removeprefix(prefix).startswith(kept)}
    if beside_raw is not None:
        tensors |= {f"{_BESIDE}.{name}": x for name, x in beside_raw.state_dict().items()}
    config = pretrainer.config
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "digest": storage.tensors_digest(tensors),
        "widths": {m: pretrainer.widths[m] for m in config.modalities},
        "config": config.to_dict(),
        _BESIDE: beside_raw is not None,
        "providers": registry.providers(config.tasks.active),
        "info": {
            **(info or {}),
            "steps": pretrainer.step_number,
            "epochs": float(pretrainer.step_number / pretrainer.steps_per_epoch),
        },
    }
    storage.write_folder(folder, tensors, {DOCUMENT: storage.document_text(document), CARD: _card(document)}, TENSORS)


def load(folder: str | Path, device: str | torch.device = "cpu") -> "Embedder":
    """The exported model of a folder, or of a model hub: `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION`.

    Raises ExportError naming file, found and expected, or what the hub says.
    """
    path = _from_hub(folder) if isinstance(folder, str) and folder.startswith(HUB) else Path(folder)
    document = storage.read_document(
        path / DOCUMENT, SCHEMA, VERSION, ("digest", "widths", "config", "info"), ExportError
    )
    for name in ("widths", "config", "info"):
        if not isinstance(document[name], dict):
            raise ExportError(
                f"{path / DOCUMENT}: {name} is {document[name]!r}, expected a mapping; export the model again"
            )
    try:
        known_tasks(document["config"], document.get("providers"))
    except ValueError as cause:
        raise ExportError(f"{path / DOCUMENT}: {cause}") from cause
    tensors = storage.read_tensors(path / TENSORS, document["digest"], ExportError)
    try:
        model = build(ModelConfig, document["config"]["model"], path="model")
        widths = {str(m): int(width) for m, width in document["widths"].items()}
        kept = {name: document["config"].get(name) for name in ("preset", "recipe", "seed", "precision")}
        info = {**document["info"], **kept}
        # On no device: sizes that the document claims take no memory before the tensors are found to have them.
        with torch.device("meta"):
            corpora = build(CorporaConfig, document["config"].get("corpora", {}), path="corpora")
            whole = _whole(document["config"], widths)
            embedder = Embedder(model, widths, info, bool(document.get(_BESIDE)), path.absolute(), corpora, whole)
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError, OverflowError) as cause:
        raise ExportError(f"{path / DOCUMENT}: {cause}; export the model again") from cause
    dtype = torch.float64 if info["precision"] == "float64" else torch.float32
    try:
        # Copies: what was read may lie in the file itself, which may be replaced.
        copies = {name: x.to(device, dtype, copy=True) for name, x in tensors.items()}
        embedder.modules.load_state_dict(copies, assign=True)
    except RuntimeError as cause:
        raise ExportError(f"{path / TENSORS}: the tensors do not fit {DOCUMENT}: {cause}") from cause
    return embedder


def _from_hub(address: str) -> Path:
    """The folder that the hub's model lies in: as it was downloaded before, else downloaded now."""
    found = _HUB_NAME.fullmatch(address)
    if found is None:
        raise ExportError(f"{address}: expected {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION")
    with needed_for(f"a model of a hub, {address}"):
        import huggingface_hub
    name, revision = found["name"], found["revision"]
    wanted = [TENSORS, DOCUMENT, CARD, "README.md"]
    try:
        try:
            place = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted)
        except Exception:  # no network, or no hub: what was downloaded before is as good
            place = huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True)
    except Exception as cause:
        raise ExportError(f"{address}: {type(cause).__name__}: {uris.scrub(cause)}"[:500]) from cause
    return Path(place)


def _whole(config: Mapping[str, Any], widths: Mapping[str, int]) -> dict[str, Task]:
    """The tasks of a model that give a representation of the row as a whole, by name."""
    if not any(config["tasks"].get(name) for name, task in registry.registered().items() if task.learns_whole()):
        return {}
    run = PretrainConfig.from_dict(config).without_training_views()
    known = {name: registry.get(name) for name in run.tasks.active}
    return {n: task.build(run.tasks.active[n], run, widths) for n, task in known.items() if task.learns_whole()}


class Embedder:
    """Frozen features in, representations out. widths: modality -> expected feature width; info: what the model is;
    beside_raw: it holds the scales of the fusion `concat+raw`; folder: which it was loaded from; corpora: those that it
    learned from, where several; whole: its tasks that give a representation of the row as a whole, by name."""

    def __init__(
        self,
        config: ModelConfig,
        widths: dict[str, int],
        info: dict[str, Any],
        beside_raw: bool = False,
        folder: Path | None = None,
        corpora: CorporaConfig | None = None,
        whole: Mapping[str, Task] | None = None,
    ) -> None:
        self.widths, self.info, self.folder = widths, info, folder
        self.corpora = () if corpora is None else corpora.names
        self.corpus: str | None = None  # the one that rows are of where a call names none
        own = len(self.corpora) if corpora is not None and corpora.standardize == "corpus" else 0
        self.representation_dim = config.representation_dim
        activation, alone = config.representation_activation, config.own_width_modalities
        heads = {m: RepresentationHead(w, config.representation_dim, activation, m in alone) for m, w in widths.items()}
        scalers = {m: Standardize(w, config.input_clip, own) for m, w in widths.items() if config.standardize}
        parts: dict[str, nn.Module] = {"heads": nn.ModuleDict(heads), "standardize": nn.ModuleDict(scalers)}
        if beside_raw:
            parts[_BESIDE] = BesideRaw(len(widths) * self.representation_dim, widths)
        if whole:
            parts[_WHOLE] = nn.ModuleDict(whole)
        self.modules = nn.ModuleDict(parts).eval()

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.widths)

    @property
    def moments(self) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
        """Mean and deviation of each modality that is standardised, (D,) both."""
        scalers = self.modules["standardize"]
        assert isinstance(scalers, nn.ModuleDict)
        found = {name: module for name, module in scalers.items() if isinstance(module, Standardize)}
        return {name: (_numpy(module.mean), _numpy(module.deviation)) for name, module in found.items()}

    @property
    def fusions(self) -> tuple[str, ...]:
        """What `embed` knows."""
        return ("concat", "mean", *((RAW_FUSION,) if _BESIDE in self.modules else ()), *self.modalities, *self.whole)

    @property
    def whole(self) -> tuple[str, ...]:
        """Tasks that give a representation of the row as a whole."""
        return tuple(self._tasks)

    @property
    def _tasks(self) -> nn.ModuleDict:
        tasks = self.modules[_WHOLE] if _WHOLE in self.modules else nn.ModuleDict()
        assert isinstance(tasks, nn.ModuleDict)
        return tasks

    def width(self, fusion: str = "concat") -> int:
        """Numbers of a row that `embed` gives."""
        self.check_fusion(fusion)
        whole = len(self.widths) * self.representation_dim
        return {"concat": whole, RAW_FUSION: whole + sum(self.widths.values())}.get(fusion, self.representation_dim)

    def encode(self, paths: Sequence[str | Path], fusion: str = "concat", **options: Any) -> NDArray[np.float32]:
        """One vector for each video file: (n, width), decoded and encoded as the model's own features were.

        paths: of files, in the order of the rows; fusion: as in `embed`. options: of what decodes, which another part
        of the installation brings (`ray_jobs.embedding.files`): `texts`, what is said in each; `weights`, `mirror` and
        `plugin` of the encoders; `progress`. Raises ValueError for a file that can't be used, naming it, and for a
        model that does not tell how its features were made; MissingExtraError where nothing here decodes files.
        """
        self.check_fusion(fusion)
        if isinstance(paths, str | Path):
            raise TypeError(f"paths: found {str(paths)!r}, expected a list of files, such as [{str(paths)!r}]")
        found = plugins.installed(_DECODES_FILES)
        if not found:
            raise MissingExtraError('reading video files needs the jobs: pip install "conclugen[media,train]"')
        vectors: NDArray[np.float32] = found[0].load()(self, [str(path) for path in paths], fusion, **options)
        return vectors

    def check_fusion(self, fusion: str) -> None:
        """Raise ValueError unless `embed` knows it."""
        if fusion == RAW_FUSION and fusion not in self.fusions:
            raise ValueError(
                f"fusion: {fusion!r} needs scales of training rows, which this model was exported without; run "
                "conclugen pretrain of its run again: it exports the model again"
            )
        fields.choose("fusion", fusion, self.fusions)

    def represent(
        self, features: Any, corpus: str | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
        """Each modality's representation (B, R) and presence (B,).

        features: modality -> (B, D) array or tensor; None, or left out: missing in all rows; a row with a NaN: missing
        there. Or a `Batch`, or any object with `features` and `present` as it has them, which may hold modalities that
        the model does not know. Representations of missing rows are 0. corpus: the one of `corpora` that the rows are
        of, where the model standardises by corpus; None: another one, which gets the moments of all. Raises
        ValueError for unknown modalities and corpora, wrong widths, unequal rows, TypeError for anything else than a
        mapping or a batch.
        """
        return self._represent(self._arrays(features), corpus)

    def _arrays(self, features: Any) -> dict[str, NDArray[Any]]:
        return self._checked(features if isinstance(features, Mapping) else self._of_batch(features))

    def _represent(
        self, arrays: Mapping[str, NDArray[Any]], corpus: str | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
        corpus = self.corpus if corpus is None else corpus
        if corpus is not None:
            fields.choose("corpus", corpus, self.corpora)
        number = -1 if corpus is None else self.corpora.index(corpus)
        rows = len(next(iter(arrays.values())))
        representations, present = {}, {}
        for modality in self.modalities:
            if modality in arrays:
                representations[modality], present[modality] = self._represent_one(modality, arrays[modality], number)
            else:
                representations[modality] = np.zeros((rows, self.representation_dim), dtype=np.float32)
                present[modality] = np.zeros(rows, dtype=bool)
        return representations, present

    def embed(self, features: Any, fusion: str = "concat", corpus: str | None = None) -> NDArray[Any]:
        """One vector for each row.

        fusion: "concat" (B, M R), missing modalities 0; "mean" (B, R) over the modalities present; "concat+raw"
        (B, M R + sum of D), the first beside the raw features, each at half of the total variance on training rows
        (`conclugen.beside_raw`); one modality's name (B, R); or the name of a task that represents the row as a whole
        (`whole`), (B, R). features and corpus as in `represent`.
        """
        self.check_fusion(fusion)
        arrays = self._arrays(features)
        representations, present = self._represent(arrays, corpus)
        if fusion in ("concat", RAW_FUSION):
            whole = np.concatenate([representations[m] for m in self.modalities], axis=1)
            beside = self.modules[_BESIDE] if fusion == RAW_FUSION else None
            return beside.join(whole, arrays) if isinstance(beside, BesideRaw) else whole
        if fusion == "mean":
            count = np.stack([present[m] for m in self.modalities]).sum(0)
            total = np.stack([representations[m] for m in self.modalities]).sum(0)
            fused: NDArray[Any] = total / np.maximum(count, 1)[:, None].astype(total.dtype)
            return fused
        if fusion in self.whole:
            return self._joint(fusion, representations, present)
        return representations[fusion]

    @torch.no_grad()
    def _joint(
        self, task: str, representations: Mapping[str, NDArray[Any]], present: Mapping[str, NDArray[np.bool_]]
    ) -> NDArray[Any]:
        module = self._tasks[task]
        assert isinstance(module, Task)
        weight = next(module.parameters())
        present_MB = torch.as_tensor(np.stack([present[m] for m in self.modalities]), device=weight.device)
        r = {m: torch.as_tensor(representations[m]).to(weight.device, weight.dtype) for m in self.modalities}
        whole = module.joint(r, present_MB)
        assert whole is not None
        return _numpy(whole * present_MB.any(0).unsqueeze(1))

    @torch.no_grad()
    def _represent_one(self, modality: str, x: NDArray[Any], corpus: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        heads, scalers = self.modules["heads"], self.modules["standardize"]
        assert isinstance(heads, nn.ModuleDict) and isinstance(scalers, nn.ModuleDict)
        weight = next(heads[modality].parameters())
        missing = np.isnan(x).any(axis=1)
        chunks = []
        for start in range(0, len(x), _CHUNK_ROWS):
            rows = torch.as_tensor(x[start : start + _CHUNK_ROWS]).to(weight.device, weight.dtype)
            rows = torch.where(torch.as_tensor(missing[start : start + _CHUNK_ROWS, None], device=rows.device), 0, rows)
            own = torch.full((len(rows),), corpus, device=rows.device)
            rows = scalers[modality](rows, own) if modality in scalers else rows
            chunks.append(heads[modality](rows).cpu().numpy())
        r = np.concatenate(chunks) if chunks else np.zeros((0, self.representation_dim), dtype=np.float32)
        r[missing] = 0
        return r, ~missing

    def _of_batch(self, batch: Any) -> dict[str, NDArray[Any]]:
        """The features of a batch for the modalities that the model knows, NaN where a row lacks one or is padding."""
        if not isinstance(getattr(batch, "features", None), Mapping):
            raise TypeError(
                f"features: found {type(batch).__name__}, expected a mapping such as "
                f"{{{self.modalities[0]!r}: array of shape (rows, {self.widths[self.modalities[0]]})}}, or a Batch"
            )
        known = {m: _numpy(x) for m, x in batch.features.items() if m in self.widths}
        if not known:
            found = ", ".join(batch.features) or "nothing"
            raise ValueError(f"batch features: found {found}, expected one or more of {', '.join(self.modalities)}")
        masks = getattr(batch, "present", None) or {}
        row = getattr(batch, "row", None)
        for modality, x in known.items():
            mask = _numpy(masks[modality]).astype(bool) if modality in masks else np.ones(len(x), dtype=bool)
            real = np.ones(len(x), dtype=bool) if row is None else _numpy(row) >= 0
            for name, rows in ((f"present[{modality!r}]", mask), ("row", real)):
                if rows.shape != x.shape[:1]:
                    raise ValueError(f"batch {name}: found shape {rows.shape}, expected ({len(x)},) as the features")
            mask = mask & real
            if not mask.all():
                known[modality] = np.where(mask[:, None], x, np.nan)
        return known

    def _checked(self, features: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for modality, x in features.items():
            fields.choose("features", modality, self.modalities)
            if x is None:
                continue
            array = _numpy(x)
            if array.ndim != 2 or array.shape[1] != self.widths[modality]:
                raise ValueError(
                    f"features[{modality!r}]: found shape {array.shape}, expected (rows, {self.widths[modality]})"
                )
            arrays[modality] = array.astype(np.float64) if array.dtype.kind in "iub" else array
        if len({len(x) for x in arrays.values()}) != 1:
            found = {m: len(x) for m, x in arrays.items()} or "no modality"
            raise ValueError(f"features: found rows {found}, expected one or more modalities with equally many rows")
        return arrays


def _numpy(x: Any) -> NDArray[Any]:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _seen(document: Mapping[str, Any]) -> str:
    """Which corpora the model has seen, where it was told."""
    corpora = document["info"].get("corpora")
    if not isinstance(corpora, Mapping):
        return ""
    listed = ", ".join(
        f"{name} ({one['rows_seen']} rows, of {one['rows']} different ones)" for name, one in corpora.items()
    )
    return f"\nCorpora seen: {listed}. Scores on these are not of an unseen corpus.\n"


def _card(document: dict[str, Any]) -> str:
    config = document["config"]
    widths = ", ".join(f"{m} ({w})" for m, w in document["widths"].items())
    dim, raw = config["model"]["representation_dim"], sum(document["widths"].values())
    beside = f"""
Beside the raw features (`fusion="concat+raw"`): {dim * len(document["widths"])} + {raw} numbers, each half of equal
total variance on training rows. Take these: in the project's measurements the representation alone was ahead on one
corpus only, at 3 % of its labels. With all labels, where one modality carries nearly all, or where classes are rare, no
pretrained row was shown to be better than raw features: compare with those first, by `conclugen evaluate`.
"""
    return f"""# ConCluGen representation heads

Preset `{config["preset"]}`, recipe `{config["recipe"]}`, {document["info"]["steps"]} optimiser steps at a global batch
of {config["global_batch"]}. Input: frozen features {widths}. Output: {dim} numbers
for each modality.
{beside * document[_BESIDE]}{_seen(document)}
    import conclugen
    vectors = conclugen.load("this folder").embed({{"{next(iter(document["widths"]))}": features}})

Use: research on representations of human communication. The numbers carry traces of identity, sex, age and language of
the speakers; a classifier on top inherits the skew of its training data. Inferring emotions of people at work or in
education is prohibited in the European Union (Regulation 2024/1689, Article 5). The licence of the training data
applies to this model too.
"""
