"""A run's exported model with what it needs to judge new clips: the encoders of its features, and a probe."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors.numpy import save_file

import conclugen
from conclugen import reach, storage
from conclugen.common import uris
from conclugen.common.atomic import atomic_path, write_json
from conclugen.common.names import did_you_mean
from conclugen.common.options import build
from conclugen.common.reading import inside, read_json
from conclugen.encoders import EncoderInfo
from conclugen.evaluation.config import ProbeConfig
from conclugen.evaluation.features import Scaling
from conclugen.evaluation.judge import fit_probe
from conclugen.evaluation.probe import Probe
from conclugen.evaluation.protocol import Fold, Protocol, Split
from conclugen.evaluation.solvers import Linear
from ray_jobs import evaluation
from ray_jobs.extraction.plan import Recipe, recipe_of
from ray_jobs.options.evaluate import EvaluateJob
from ray_jobs.run_config import ShardsConfig
from ray_jobs.run_folder import RunFolder
from shards import Manifest
from shards.access import is_url

_TENSORS, _DOCUMENT, _SCORES = "probe.safetensors", "probe.json", "scores.json"
_SCHEMA, _VERSION = "conclugen-probe", 1


@dataclass(frozen=True)
class LabelProbe:
    """A probe on the run's representations. label: what it predicts; classes: names of its outputs; fusion: of the
    representations it was fitted on."""

    label: str
    classes: tuple[str, ...]
    fusion: str
    probe: Probe

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, K): of the classes, or of each label; of a continuous label the values."""
        vectors = np.asarray(embeddings, np.float64)
        return self.probe.raw(vectors) if self.probe.kind == "continuous" else self.probe.probabilities(vectors)


@dataclass(frozen=True)
class RunModel:
    """A finished run. recipe: how its features were made, None where its shards do not tell; modalities: modality ->
    columns of features; probe: of `evaluation`, None where none was asked for or none exists; evaluations: all that the
    run has."""

    name: str
    folder: Path
    embedder: conclugen.Embedder
    recipe: Recipe | None
    modalities: Mapping[str, tuple[str, ...]]
    probe: LabelProbe | None
    evaluation: str | None = None
    evaluations: tuple[str, ...] = ()

    @classmethod
    def open(
        cls, folder: RunFolder, label: str | None = None, device: str = "cpu", *, evaluation: str | None = None
    ) -> RunModel:
        """The run of a folder, with the probe of one of its evaluations.

        label, evaluation: which; None and None: the only one, or none. Raises ValueError for a run that is not
        finished, a label on which it was not evaluated, or on which it was evaluated several times.
        """
        if not folder.path.is_dir():
            runs = [path.parent.name for path in folder.path.parent.glob("*/model")]
            known = f"; {did_you_mean(folder.name, runs)}" if runs else ""
            raise ValueError(f"run {folder.name!r}: there is no folder {folder.path}{known}")
        if not folder.model.is_dir():
            raise ValueError(
                f"run {folder.name!r}: no exported model in {folder.model}; finish it with conclugen pretrain"
            )
        embedder = conclugen.load(folder.model, device)
        try:
            recipe, modalities = told_by(embedder)
        except ValueError as cause:
            raise ValueError(
                f"{folder.model / 'config.json'}: {cause}; run ray_jobs.pretrain, whose models say what they were "
                "trained on, or write it into the model's info yourself"
            ) from cause
        evaluations = _evaluations(folder)
        chosen = _chosen(folder.name, evaluations, label, evaluation)
        probe = None if chosen is None else _probe(folder, embedder, chosen, evaluations[chosen])
        return cls(folder.name, folder.path, embedder, recipe, modalities, probe, chosen, tuple(evaluations))

    @property
    def encoder_names(self) -> tuple[str, ...]:
        """Encoders that made the columns of the model's modalities. ValueError where that is not known."""
        if self.recipe is None:
            raise ValueError(
                f"run {self.name!r}: its shards do not tell which encoders made their features, so new clips can't be "
                "made into such features; pretrain on shards made by ray_jobs.extract_features, or embed features"
            )
        used = {column for name in self.embedder.modalities for column in self.modalities[name]}
        made = {item["column"]: str(item["name"]) for item in self.recipe.encoders}
        for column in sorted(used):
            if column not in made:
                raise ValueError(f"run {self.name!r}: column {column!r} is an augmented view, or of unknown origin")
        return tuple(name for column, name in made.items() if column in used)

    @property
    def provided(self) -> dict[str, str]:
        """Encoder -> who had it, as the model tells."""
        return {} if self.recipe is None else self.recipe.provided

    def identity(self, fusion: str) -> dict[str, Any]:
        """What embeddings and probabilities depend on, as plain data: those of another are not put beside them."""
        exported = json.loads((self.folder / "model" / "config.json").read_text())
        probe = None
        if self.probe is not None:
            scaling, linear = self.probe.probe.scaling, self.probe.probe.model
            arrays = (scaling.mean, scaling.deviation, linear.weight, linear.bias)
            numbers = b"".join(np.asarray(array, np.float64).tobytes() for array in arrays)
            probe = {"label": self.probe.label, "digest": xxhash.xxh3_128_hexdigest(numbers)}
        return {"model": exported["digest"], "fusion": fusion, "probe": probe}

    def check(self, infos: Sequence[EncoderInfo]) -> None:
        """Raise ValueError where these encoders are not those that made the model's features."""
        assert self.recipe is not None
        names = self.encoder_names
        used = tuple(item for item in self.recipe.encoders if item["name"] in names)
        Recipe(used, self.recipe.decoding).check(infos)

    def features(self, columns: Mapping[str, Sequence[np.ndarray | None]], rows: int) -> dict[str, np.ndarray]:
        """Modality -> (rows, width), a row NaN where one of its columns is missing. columns: of each column a vector or
        None for every row."""
        features = {}
        for modality, width in self.embedder.widths.items():
            values = np.full((rows, width), np.nan, np.float32)
            for row in range(rows):
                parts = [columns[column][row] for column in self.modalities[modality]]
                there = [part for part in parts if part is not None]
                if len(there) == len(parts):
                    values[row] = np.concatenate(there)
            features[modality] = values
        return features

    def nearer(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Modality -> (rows,) share of held-out clips that lie nearer to what the model knows, NaN where it is missing;
        nothing of a model that does not tell."""
        known = self.embedder.info.get("reach")
        if not isinstance(known, Mapping):
            return {}
        found = reach.distances(features, self.embedder.moments)
        return {
            name: np.array([reach.nearer(one, known[name]) if np.isfinite(one) else np.nan for one in values])
            for name, values in found.items()
            if isinstance(known.get(name), list)
        }

    def represent(self, features: Mapping[str, np.ndarray], fusion: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings (rows, R') and probabilities (rows, K), the latter None without a probe."""
        embeddings = self.embedder.embed(features, fusion).astype(np.float32)
        if self.probe is None:
            return embeddings, None
        same = self.probe.fusion == fusion
        return embeddings, self.probe.probabilities(
            embeddings if same else self.embedder.embed(features, self.probe.fusion)
        )


def told_by(embedder: conclugen.Embedder) -> tuple[Recipe | None, dict[str, tuple[str, ...]]]:
    """How a model's features were made, and modality -> columns of them, as the model tells it, or else the shards of
    the run in whose folder it lies. ValueError naming the entry that can't be used."""
    modalities = _composition(embedder)
    info = embedder.info
    if "features" not in info and embedder.folder is not None:
        info = {**info, **_shards_info(RunFolder(embedder.folder.parent))}
    recipe = recipe_of(info)
    _check_columns(embedder, modalities, recipe)
    return recipe, modalities


def _composition(embedder: conclugen.Embedder) -> dict[str, tuple[str, ...]]:
    """Modality -> columns of features, as the exported model tells it."""
    wanted = "expected a mapping from modalities to lists of columns"
    told = embedder.info.get("modalities")
    if told is None:
        raise ValueError(f"info.modalities is missing, {wanted}")
    if not isinstance(told, Mapping):
        raise ValueError(f"info.modalities is {_short(told)}, {wanted}")
    for name in embedder.modalities:
        columns = told.get(name)
        if not isinstance(columns, list) or not columns or not all(isinstance(column, str) for column in columns):
            found = "is missing" if name not in told else f"is {_short(columns)}"
            raise ValueError(f"info.modalities.{name} {found}, expected a list of one or more columns")
    return {name: tuple(told[name]) for name in embedder.modalities}


def _check_columns(
    embedder: conclugen.Embedder, modalities: Mapping[str, tuple[str, ...]], recipe: Recipe | None
) -> None:
    """Raise ValueError where the encoders' columns do not have the widths that the model takes."""
    widths = {} if recipe is None else {item["column"]: item["width"] for item in recipe.encoders}
    for name, columns in modalities.items():
        known = [widths[column] for column in columns if column in widths]
        if len(known) == len(columns) and sum(known) != embedder.widths[name]:
            raise ValueError(
                f"info.modalities.{name}: the columns {', '.join(columns)} are {sum(known)} wide together, "
                f"the model takes {embedder.widths[name]}"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shards_info(folder: RunFolder) -> dict[str, Any]:
    """What the manifest of the run's own shards says, for models that were exported without it."""
    data = folder.load_config().get("data") if folder.config.is_file() else None
    if not isinstance(data, dict) or not isinstance(data.get("folder"), str):
        return {}
    try:
        features = Manifest.open(_told_where(data["folder"])).info.get("features")
    except (OSError, ValueError):
        return {}
    return {} if features is None else {"features": features}


def _told_where(data: str) -> str:
    """The folder of data that a run names, printed where it is an address: the run may be somebody else's."""
    if is_url(data):
        print(f"note: reading {uris.public(data)}, an address that the run's folder names", file=sys.stderr, flush=True)
    return data


def _evaluations(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Name of each evaluation of the run -> the job that it is of."""
    paths = sorted(folder.evaluation.glob(f"[!.]*/{_SCORES}"))  # hidden is what a killed evaluation left
    for path in paths:
        inside(folder.path, path)  # its probe is written beside it
    return {path.parent.name: _evaluation_of(path) for path in paths}


def _chosen(run: str, known: Mapping[str, Mapping[str, Any]], label: str | None, name: str | None) -> str | None:
    """Name of the evaluation that is meant; None where none is asked for and there is not exactly one."""
    if name is not None:
        if name not in known:
            raise ValueError(f"evaluation: run {run!r} has no {name!r}, {did_you_mean(name, known)}")
        if label not in (None, known[name]["label"]):
            raise ValueError(f"evaluation: {name!r} is of label {known[name]['label']!r}, and --label is {label!r}")
        return name
    if label is None:
        return next(iter(known)) if len(known) == 1 else None
    found = [one for one, job in known.items() if job["label"] == label]
    if not found:
        hint = did_you_mean(label, {job["label"] for job in known.values()})
        raise ValueError(f"run {run!r} was not evaluated on a label {label!r}, {hint}; run conclugen evaluate")
    if len(found) > 1:
        listed = "; ".join(f"{one!r} ({_told(known[one])})" for one in found)
        raise ValueError(
            f"evaluation: must be chosen, for run {run!r} was evaluated on {label!r} {len(found)} times: {listed}"
        )
    return found[0]


def _told(job: Mapping[str, Any]) -> str:
    """What tells evaluations of one label apart."""
    data = job["data"]
    return f"{data.get('folder')!r}, views {data.get('view')!r} and {job['test_view']!r}, {job['fusion']!r}"


def _probe(folder: RunFolder, embedder: conclugen.Embedder, name: str, job: Mapping[str, Any]) -> LabelProbe:
    """The probe of an evaluation: as it was kept, or fitted again on the evaluation's own training rows."""
    place = folder.evaluation / name
    model = json.loads((folder.model / "config.json").read_text())["digest"]
    kept, wanted = _load(place, model, _settings(job)), (job["label"], job["fusion"], embedder.width(job["fusion"]))
    if kept is not None and (kept.label, kept.fusion, len(kept.probe.scaling.mean)) == wanted:
        return kept
    fitted = _fit(job, embedder)
    _save(place, fitted, model, _settings(job))
    return fitted


def _evaluation_of(path: Path) -> dict[str, Any]:
    """The job that an evaluation's scores are of."""
    try:
        job: dict[str, Any] = read_json(path, nan=True)["job"]
        absent = {"run", "label", "data", "test_view", "fusion"} - set(job)
        if absent:
            raise ValueError(f"job has no {min(absent)}")
        if not all(isinstance(job[name], str) for name in ("run", "label", "test_view", "fusion")):
            raise ValueError("job: a name is not text")
        for name in ("data", "comparison"):
            if not isinstance(job.get(name, {}), dict):
                raise ValueError(f"job.{name}: must be a mapping")
        ProbeConfig(class_weights=_settings(job)["class_weights"], select_by=_settings(job)["select_by"])
        _job_of(job)
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ValueError(
            f"{path}: is not an evaluation ({cause!r}); evaluate the run again, or remove {path.parent}"
        ) from cause
    return job


def _job_of(job: Mapping[str, Any]) -> EvaluateJob:
    """What its probe depends on. Raises OptionsError for a value that no evaluation has."""
    # An earlier version's job has other fields, or the same ones by another name.
    known = {name for field in fields(ShardsConfig) for name in (field.name, field.metadata.get("was"))}
    data = {name: value for name, value in job["data"].items() if name in known}
    own = {name: job[name] for name in ("run", "label", "test_view", "fusion", "interval_unit") if name in job}
    wanted = {**own, "data": data, "block_scales": _settings(job)["block_scales"]}
    return build(EvaluateJob, wanted, path="job")


def _settings(job: Mapping[str, Any]) -> dict[str, Any]:
    """By which the evaluation's probe is fitted, beside its rows; an earlier version's job has the defaults."""
    comparison = job.get("comparison", {})
    return {
        "class_weights": comparison.get("probe_weights", ProbeConfig.class_weights),
        "select_by": comparison.get("select_by", ProbeConfig.select_by),
        "block_scales": job.get("block_scales", EvaluateJob.block_scales),
        "split_unit": job["data"].get("split_unit", ShardsConfig.split_unit),
    }


def _fit(job: Mapping[str, Any], embedder: conclugen.Embedder) -> LabelProbe:
    settings, wanted = _settings(job), _job_of(job)
    _told_where(wanted.data.folder)
    read = evaluation.read_labelled(wanted, embedder.modalities)
    missing = {m: np.where(read.rows.present[m][:, None], x, np.nan) for m, x in read.rows.features.items()}
    blocks = evaluation.blocks_of(
        embedder.embed(missing, job["fusion"]).astype(np.float64), embedder.modalities, wanted
    )
    probe = evaluation.probe_config(settings["class_weights"], settings["select_by"])
    taught = Fold(0, read.fold.train_rows, np.empty(0, dtype=np.int64))
    protocol = Protocol(f"label {job['label']!r}", read.target, read.groups, (taught,), probe)
    split = Split(taught, 1.0, 0, taught.train_rows)
    fitted = fit_probe(protocol, blocks, split, allow_absent_classes=True).whole(blocks.matrix.shape[1])
    target, names = read.target, read.target.classes
    if target.kind == "continuous":
        names = (target.name,) if target.width == 1 else tuple(f"{target.name}_{i}" for i in range(target.width))
    return LabelProbe(target.name, names, job["fusion"], fitted)


def _save(place: Path, fitted: LabelProbe, model: str, settings: Mapping[str, Any]) -> None:
    probe = fitted.probe
    parts = {
        "mean": probe.scaling.mean,
        "deviation": probe.scaling.deviation,
        "weight": probe.model.weight,
        "bias": probe.model.bias,
    }
    tensors = {name: np.array(array, np.float64) for name, array in parts.items()}
    with atomic_path(place / _TENSORS) as temporary:
        save_file(tensors, temporary)
    document = {
        "schema": _SCHEMA,
        "version": _VERSION,
        "digest": storage.tensors_digest({name: torch.from_numpy(array) for name, array in tensors.items()}),
        "label": fitted.label,
        "classes": list(fitted.classes),
        "fusion": fitted.fusion,
        "kind": probe.kind,
        "strength": probe.strength,
        "model": model,
        "settings": dict(settings),
    }
    write_json(place / _DOCUMENT, json.loads(storage.document_text(document)))


def _load(place: Path, model: str, settings: Mapping[str, Any]) -> LabelProbe | None:
    """The kept probe; None where there is none for this very model and these settings, or it is damaged: it can be
    fitted again."""
    required = ("digest", "label", "classes", "fusion", "kind", "strength", "model")
    try:
        said = storage.read_document(place / _DOCUMENT, _SCHEMA, _VERSION, required, ValueError)
        if said["model"] != model or said.get("settings") != settings:
            return None
        x = {name: t.numpy() for name, t in storage.read_tensors(place / _TENSORS, said["digest"], ValueError).items()}
        linear, scaling = Linear(x["weight"], x["bias"]), Scaling(x["mean"], x["deviation"])
        classes, (width, outputs) = said["classes"], linear.weight.shape
        whole = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        whole &= said["kind"] in ("class", "multilabel", "continuous") and isinstance(said["strength"], int | float)
        shapes = (scaling.mean.shape, scaling.deviation.shape, linear.bias.shape, (len(classes),))
        whole &= shapes == ((width,), (width,), (outputs,), (outputs,))
        if not whole or not all(np.isfinite(array).all() for array in x.values()):
            return None
    except (ValueError, KeyError, TypeError):
        return None
    probe = Probe(said["kind"], scaling, linear, said["strength"], {})
    return LabelProbe(said["label"], tuple(classes), said["fusion"], probe)
