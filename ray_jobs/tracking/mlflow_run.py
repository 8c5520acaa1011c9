"""One run on an MLflow server: found or made by its identity, compared with what the journal says, and written to."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from conclugen.common import uris
from ray_jobs.tracking.journal import RunIdentity, tracked_name
from ray_jobs.tracking.mlflow_environment import artifact_location

_log = logging.getLogger(__name__)

IDENTITY_TAG = "conclugen.run_id"
PARENT_TAG = "conclugen.parent"
MLFLOW_PARENT_TAG = "mlflow.parentRunId"
_MLFLOW_NAME_TAG = "mlflow.runName"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # or the page opens with prompts and traces
_SOURCE = {"mlflow.source.name": "conclugen", "mlflow.source.type": "LOCAL"}
_DIGEST = re.compile(r"-[0-9a-f]{10}$")

METRICS_PER_REQUEST = 1000
PARAMS_PER_REQUEST = 100
PARAM_LENGTH = 6000
TAG_LENGTH = 5000
NAME_LENGTH = 250
DATA_SET_LENGTH = 500
DIGEST_LENGTH = 36

# An answer that says the request itself is wrong: sending it again cannot help.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"}
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_EXISTS = {"RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"}


class OutsideStoreError(ValueError):
    """A store that came with the journal would write outside of its own folder."""


class RunGoneError(RuntimeError):
    """The run was deleted on the server, or the server has lost it."""


class MlflowRun:
    """The run of a journal on one server.

    Args:
        client: `mlflow.MlflowClient`.
        tracking_uri: where the client points; decides where a new experiment keeps its artifacts.
        identity: from the journal's first record.
        artifacts_below: folder that artifacts must stay in; None: wherever the server keeps them. A SQLite store that
            came with the journal may be somebody else's, and its experiments may name any place to write to.
    """

    def __init__(
        self, client: Any, tracking_uri: str, identity: RunIdentity, artifacts_below: Path | None = None
    ) -> None:
        self._client = client
        self._uri = tracking_uri
        self._identity = identity
        self._artifacts_below = artifacts_below
        self._experiment: str | None = None
        self._parent_is_set = identity.parent is None
        self._params: dict[str, str] | None = None
        self._histories: dict[str, set[tuple[int, int]]] = {}
        self.run_id = ""

    # ------------------------------------------------------------------ finding or making the run

    def attach(self, known_run_id: str | None) -> bool:
        """Find the run by its identity tag, or make it. Returns whether it was made just now and is surely empty.

        Args:
            known_run_id: the server's id for it at the last time, which is then checked first. Where several runs have
                this identity (a request that was thought lost arrived late), those without metrics are put away.
        """
        self.forget()
        self._experiment = None
        if known_run_id is not None and self._is_ours(known_run_id):
            self.run_id = known_run_id
            return False
        found = self._runs_of(self._identity.run_id)
        if not found:
            self.run_id = self._create()
            return True
        found.sort(key=lambda run: (not run.data.metrics, run.info.run_id))
        self.run_id = found[0].info.run_id
        for spare in found[1:]:
            if not spare.data.metrics:
                _log.warning("MLflow: put away run %s, an empty double of %s", spare.info.run_id, self.run_id)
                self._client.delete_run(spare.info.run_id)
        return False

    def is_gone(self) -> bool:
        """Whether the run was deleted on the server."""
        return not self._is_ours(self.run_id)

    def nest(self) -> None:
        """Put the run under its parent, as soon as the parent is there (it may be sent later than its children)."""
        parent = self._identity.parent
        if self._parent_is_set or parent is None:
            return
        found = self._runs_of(parent)
        run_id = found[0].info.run_id if found else None
        if run_id is None and self._get_run(parent) is not None:
            run_id = parent  # given as the server's own id
        if run_id is not None:
            self._client.set_tag(self.run_id, MLFLOW_PARENT_TAG, run_id)
            self._parent_is_set = True

    def missing(self, records: Iterable[Mapping[str, Any]]) -> list[str]:
        """What the server lacks, asked again: the run, its place under its parent, its status, its metrics up to their
        last steps, its parameters. Artifacts are not compared; names that the server refused count as missing too."""
        self.forget()
        found = self._get_run(self.run_id)
        if found is None or found.info.lifecycle_stage != "active":
            return ["the run"]
        lacking = []
        if self._identity.parent is not None and MLFLOW_PARENT_TAG not in found.data.tags:
            lacking.append("its place under its parent, which is not there (send the parent's folder)")
        steps: dict[str, int] = {}
        status, params = None, set()
        for record in records:
            if record["kind"] == "metrics":
                for name in record["values"]:
                    key = allowed_name(tracked_name(record["series"], name))
                    steps[key] = max(record["step"], steps.get(key, record["step"]))
            elif record["kind"] == "params":
                params |= {allowed_name(name) for name in record["values"]}
            elif record["kind"] == "status":
                status = record["status"]
        if status is not None and found.info.status != status:
            lacking.append(f"its status, {status}")
        there = found.data.metrics
        late = [key for key, step in steps.items() if key not in there or not self._has_step(key, step)]
        absent = sorted(params - set(found.data.params))
        for what, names in (("metric", late), ("parameter", absent)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lacking.append(f"{what} {names[0]!r}{more}")
        return lacking

    def _has_step(self, key: str, step: int) -> bool:
        return any(found >= step for found, _ in self._history(key, step))

    def forget(self) -> None:
        """Forget what the server was seen to have: after a request of unknown outcome it may have more."""
        self._params = None
        self._histories.clear()

    def _is_ours(self, run_id: str) -> bool:
        run = self._get_run(run_id)
        return (
            run is not None
            and run.info.lifecycle_stage == "active"
            and run.data.tags.get(IDENTITY_TAG) == self._identity.run_id
        )

    def _get_run(self, run_id: str) -> Any | None:
        try:
            return self._client.get_run(run_id)
        except Exception as error:
            if says_absent(error) or is_refusal(error):
                return None
            raise

    def _runs_of(self, identity: str) -> list[Any]:
        condition = f"tags.`{IDENTITY_TAG}` = '{identity}'"
        return list(self._client.search_runs([self._experiment_id()], condition, max_results=100))

    def _experiment_id(self) -> str:
        if self._experiment is None:
            name = self._identity.experiment
            found = self._client.get_experiment_by_name(name)
            if found is None:
                try:
                    self._experiment = self._client.create_experiment(name, artifact_location(self._uri), _KIND)
                    return self._experiment
                except Exception as error:
                    if error_code(error) not in _EXISTS:
                        raise
                found = self._client.get_experiment_by_name(name)
            if found.lifecycle_stage != "active":
                raise RuntimeError(
                    f"MLflow experiment {name!r} is deleted on the server: restore it, and sending continues"
                )
            self._experiment = found.experiment_id
        return self._experiment

    def _create(self) -> str:
        identity = self._identity
        tags = {IDENTITY_TAG: identity.run_id, _MLFLOW_NAME_TAG: identity.name, **_SOURCE}
        if identity.parent is not None:
            tags[PARENT_TAG] = identity.parent
        run = self._client.create_run(
            self._experiment_id(), start_time=identity.start_time, tags=tags, run_name=identity.name
        )
        return run.info.run_id

    # ------------------------------------------------------------------ sending

    def send_metrics(self, records: Sequence[Mapping[str, Any]], doubtful: Sequence[bool]) -> None:
        """Send `metrics` records in requests of at most 1000 numbers.

        Args:
            records: in the journal's order.
            doubtful: for each record, whether the server may have it already; its numbers are then looked up in the
                metric's history, by step and time, and only the missing ones are sent.
        """
        from mlflow.entities import Metric

        metrics = []
        for record, doubt in zip(records, doubtful, strict=True):
            for name, value in record["values"].items():
                key = allowed_name(tracked_name(record["series"], name))
                if doubt and (record["step"], record["time"]) in self._history(key, record["step"]):
                    continue
                metrics.append(Metric(key, value, record["time"], record["step"]))
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])

    def send_params(self, values: Mapping[str, Any]) -> None:
        """Send parameters. MLflow's are immutable: a changed one becomes the tag `changed.<name>`, its new value."""
        from mlflow.entities import Param, RunTag

        if self._params is None:
            self._params = dict(self._client.get_run(self.run_id).data.params)
        new, changed = {}, {}
        for name, value in values.items():
            key, text = allowed_name(name), str(value)[:PARAM_LENGTH]
            if key not in self._params:
                new[key] = text
            elif self._params[key] != text:
                changed[f"changed.{key}"[:NAME_LENGTH]] = text[:TAG_LENGTH]
        for part in _parts(new, PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, params=[Param(key, text) for key, text in part.items()])
            self._params.update(part)
        for part in _parts(changed, PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, tags=[RunTag(key, text) for key, text in part.items()])

    def send_tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = {allowed_name(name): text[:TAG_LENGTH] for name, text in values.items()}
        for part in _parts(tags, PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, tags=[RunTag(key, text) for key, text in part.items()])

    def send_inputs(self, datasets: Sequence[Mapping[str, Any]]) -> None:
        """Say which data sets the run reads; a server that knows one already keeps it once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=each["name"][:DATA_SET_LENGTH],
                    digest=each["digest"][:DIGEST_LENGTH],
                    source_type="shards",
                    source=json.dumps({"uri": each["source"]}),
                    profile=json.dumps({"num_rows": each["rows"]}),
                ),
                tags=[InputTag("mlflow.data.context", each["context"])],
            )
            for each in datasets
        ]
        self._client.log_inputs(self.run_id, datasets=inputs)

    def send_artifact(self, path: Path, target: str) -> None:
        """Store a file, or a folder's content. Raises FileNotFoundError when it is no longer there, and
        OutsideStoreError where the store would write it outside of `artifacts_below`."""
        self._check_store()
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), target or None)
        elif path.is_file():
            self._client.log_artifact(self.run_id, str(path), target or None)
        else:
            raise FileNotFoundError(f"artifact {path} is no longer there")

    def _check_store(self) -> None:
        if self._artifacts_below is None:
            return
        uri = self._client.get_run(self.run_id).info.artifact_uri
        parts = urlsplit(uri)
        local = parts.scheme in ("", "file") and not parts.netloc
        if not local or not Path(os.path.realpath(unquote(parts.path))).is_relative_to(self._artifacts_below):
            raise OutsideStoreError(
                f"the store keeps this run's artifacts at {uris.public(uri)}, outside of {self._artifacts_below}; "
                "nothing is written there. Move the folder away from that mlflow.db, or name another by --tracking_uri"
            )

    def send_model(self, path: Path, target: str, registered_name: str | None) -> None:
        """Store a model folder and register it, once for this run and place."""
        self.send_artifact(path, target)
        if registered_name is None:
            return
        source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{target}"
        try:
            self._client.create_registered_model(registered_name)
        except Exception as error:
            if error_code(error) not in _EXISTS:
                raise
        quote = '"' if "'" in registered_name else "'"
        versions = self._client.search_model_versions(f"name = {quote}{registered_name}{quote}")
        if not any(version.run_id == self.run_id and version.source == source for version in versions):
            self._client.create_model_version(registered_name, source, self.run_id)

    def send_status(self, status: str, time: int) -> None:
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
        else:
            self._client.set_terminated(self.run_id, status=status, end_time=time)

    def _history(self, key: str, first_step: int) -> set[tuple[int, int]]:
        """(step, time) of every number of a metric that the server has from a step on; kept until `forget`.

        Later records of a metric have later steps, so what was kept for the first doubtful one serves them all.
        """
        if key not in self._histories:
            history = self._client.get_metric_history(self.run_id, key)
            self._histories[key] = {(metric.step, metric.timestamp) for metric in history if metric.step >= first_step}
        return self._histories[key]


def error_code(error: BaseException) -> str:
    """MLflow's name for what went wrong; empty for other errors."""
    return getattr(error, "error_code", "") or ""


def is_refusal(error: BaseException) -> bool:
    """Whether the server understood the request and will never take it, or the thing to be sent is gone."""
    return error_code(error) in _REFUSALS or isinstance(error, FileNotFoundError)


def says_absent(error: BaseException) -> bool:
    """Whether the server says that what was addressed does not exist."""
    return error_code(error) in _ABSENT


def allowed_name(name: str) -> str:
    """A name that MLflow accepts, another one for each other name.

    MLflow allows letters, digits and `_-. :/`, and at most 250 characters; it takes names for paths. `@`, as in
    `recall@1`, becomes `:`. In any other name that is not allowed the characters are replaced by `_` and a digest of
    the whole name is put behind it, which also marks the names that look as if they had one.
    """
    plain = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name.replace("@", "a"))
    kept = name.replace("@", ":")
    parts = kept.split("/")
    fits = plain == name.replace("@", "a") and len(kept) <= NAME_LENGTH and not {"", ".", ".."} & set(parts)
    if fits and not kept.startswith("..") and not _DIGEST.search(kept):
        return kept
    cleaned = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
    cleaned = "/".join(part for part in cleaned.split("/") if part not in ("", ".", ".."))
    cleaned = re.sub(r"^\.\.+", "_", cleaned)
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{cleaned[: NAME_LENGTH - 11]}-{digest}"


def _parts(values: dict[str, str], size: int) -> Iterable[dict[str, str]]:
    items = list(values.items())
    return [dict(items[start : start + size]) for start in range(0, len(items), size)]
