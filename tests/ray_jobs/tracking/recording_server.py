"""An MLflow server in memory that ignores no repetition, and a client to it that fails where it is told to.

MLflow's SQL stores drop a number that comes twice with the same step and time; this one keeps all that it is sent, so a
a test sees what was sent twice.
"""

import itertools
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST


class RecordingServer:
    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, SimpleNamespace] = {}
        self.metrics: dict[str, list[tuple[str, int, int, float]]] = defaultdict(list)
        self.artifacts: dict[str, dict[str, str]] = defaultdict(dict)
        self.registered: list[str] = []
        self.versions: list[SimpleNamespace] = []
        self.refused_metrics: set[str] = set()
        self.log: list[str] = []
        self._numbers = itertools.count()

    def get_experiment_by_name(self, name):
        if name not in self.experiments:
            return None
        return SimpleNamespace(experiment_id=self.experiments[name], lifecycle_stage="active")

    def create_experiment(self, name, artifact_location=None, tags=None):
        if name in self.experiments:
            raise MlflowException("exists", RESOURCE_ALREADY_EXISTS)
        self.experiments[name] = str(next(self._numbers))
        return self.experiments[name]

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        run_id = f"run{next(self._numbers)}"
        info = SimpleNamespace(
            run_id=run_id,
            experiment_id=experiment_id,
            lifecycle_stage="active",
            status="RUNNING",
            start_time=start_time,
            end_time=None,
            artifact_uri=f"mem:/{run_id}",
        )
        data = SimpleNamespace(tags=dict(tags), params={}, metrics={})
        self.runs[run_id] = SimpleNamespace(info=info, data=data)
        return self.runs[run_id]

    def search_runs(self, experiment_ids, condition, max_results):
        tag, _, value = condition.removeprefix("tags.`").partition("` = ")
        return [
            run
            for run in self.runs.values()
            if run.info.experiment_id in experiment_ids
            and run.info.lifecycle_stage == "active"
            and run.data.tags.get(tag) == value.strip("'")
        ]

    def get_run(self, run_id):
        if run_id not in self.runs:
            raise MlflowException("no such run", RESOURCE_DOES_NOT_EXIST)
        return self.runs[run_id]

    def delete_run(self, run_id):
        self.get_run(run_id).info.lifecycle_stage = "deleted"

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        run = self.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            raise MlflowException("the run must be active", INVALID_PARAMETER_VALUE)
        for metric in metrics:
            if metric.key in self.refused_metrics:
                raise MlflowException(f"bad metric {metric.key}", INVALID_PARAMETER_VALUE)
        for param in params:
            if run.data.params.setdefault(param.key, param.value) != param.value:
                raise MlflowException("changing a param is not allowed", INVALID_PARAMETER_VALUE)
        for metric in metrics:
            self.metrics[run_id].append((metric.key, metric.step, metric.timestamp, metric.value))
            run.data.metrics[metric.key] = metric.value
        run.data.tags.update({tag.key: tag.value for tag in tags})

    def set_tag(self, run_id, key, value):
        self.get_run(run_id).data.tags[key] = value

    def get_metric_history(self, run_id, key):
        return [
            SimpleNamespace(key=k, step=step, timestamp=time, value=value)
            for k, step, time, value in self.metrics[run_id]
            if k == key
        ]

    def log_artifact(self, run_id, path, target):
        self.artifacts[run_id][f"{target or ''}/{Path(path).name}"] = Path(path).read_text()

    def log_artifacts(self, run_id, path, target):
        for file in Path(path).iterdir():
            self.log_artifact(run_id, file, target)

    def create_registered_model(self, name):
        if name in self.registered:
            raise MlflowException("exists", RESOURCE_ALREADY_EXISTS)
        self.registered.append(name)

    def search_model_versions(self, condition):
        return [version for version in self.versions if f"name = '{version.name}'" == condition]

    def create_model_version(self, name, source, run_id):
        self.versions.append(SimpleNamespace(name=name, source=source, run_id=run_id))

    def update_run(self, run_id, status):
        self.get_run(run_id).info.status = status

    def set_terminated(self, run_id, status, end_time):
        info = self.get_run(run_id).info
        info.status, info.end_time = status, end_time


class ProcessDeathError(BaseException):
    """Stands for SIGKILL: nothing of the sender's memory survives it."""


class FaultyClient:
    """Passes calls on, and fails at one of them (or from it on).

    Args:
        call: number of the failing call, from 0.
        after: whether the server carries the call out before the answer is lost.
        error: what is raised.
        lasting: whether every later call fails as well, without reaching the server.
    """

    def __init__(self, server: Any, call: int, after: bool, error: type[BaseException], lasting: bool = False) -> None:
        self._server = server
        self._call, self._after, self._error, self._lasting = call, after, error, lasting
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._server, name)

        def passed_on(*args: Any, **kwargs: Any) -> Any:
            number = self.calls
            self.calls += 1
            if number != self._call and not (self._lasting and number > self._call):
                return method(*args, **kwargs)
            if self._after and number == self._call:
                method(*args, **kwargs)
            raise self._error(f"call {number}: {name}")

        return passed_on
