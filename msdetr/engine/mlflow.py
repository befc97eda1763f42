"""A run in MLflow: its settings as parameters, what metrics.jsonl says as metrics (``train.mlflow``)."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import RunConfig, flatten
from ..errors import ConfigError
from .tracking import numbers

EXPERIMENT = "msdetr"  # where MLFLOW_EXPERIMENT_NAME does not say otherwise
_STATUS = {"finished": "FINISHED", "failed": "FAILED"}  # else KILLED
_PARAMETERS, _METRICS = 100, 1000  # at most so many in one request
_LONGEST = 500  # characters of a parameter's value


class MLflowRun:
    """A run of MLflow on the server that MLFLOW_TRACKING_URI names, else in ``mlflow.db`` beside the run directory.

    known: what ``identity`` said before, so that a run that resumes goes on in the same run of MLflow; steps that are done
    again are not logged again.
    A server that fails later is a warning, not the end of the training: metrics.jsonl has all the numbers.
    Raises ConfigError where it cannot be reached at the start.
    """

    def __init__(self, run_dir: Path, config: RunConfig, known: Mapping[str, Any] | None = None):
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir.parent / 'mlflow.db'}"
        self._logged: dict[str, int] = {}  # kind -> the last step that is there already
        self._failed = False
        try:
            self._client = MlflowClient(uri)
            run_id = self._resumed(uri, known)
            if run_id is None:
                run_id = self._client.create_run(self._experiment(), run_name=run_dir.name).info.run_id
                self._log_settings(run_id, config)
        except Exception as error:
            raise ConfigError(
                f"train.mlflow: {uri} cannot be used: {_line(error)}; set MLFLOW_TRACKING_URI to a server that answers, install "
                "the whole of mlflow for a local file, or set train.mlflow=false"
            ) from error
        self.identity = {"tracking_uri": uri, "run_id": run_id}

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if found is None else found.experiment_id

    def _resumed(self, uri: str, known: Mapping[str, Any] | None) -> str | None:
        """The id of the run that an earlier start of the same training made, None where it is gone or elsewhere."""
        if not known or known.get("tracking_uri") != uri:
            return None
        run_id = str(known.get("run_id"))
        try:
            self._client.update_run(run_id, status="RUNNING")
        except Exception:  # noqa: BLE001 (each store has errors of its own)
            return None
        for kind in ("train", "eval"):
            self._logged[kind] = max(
                (m.step for m in self._client.get_metric_history(run_id, f"{kind}/epoch")), default=-1
            )
        return run_id

    def _log_settings(self, run_id: str, config: RunConfig) -> None:
        from mlflow.entities import Param

        settings = [Param(path, str(value)[:_LONGEST]) for path, value in flatten(config).items() if value is not None]
        for first in range(0, len(settings), _PARAMETERS):
            self._client.log_batch(run_id, params=settings[first : first + _PARAMETERS])

    def add(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Every number of ``values`` as a metric, e.g. "train/loss"."""
        if self._failed or step <= self._logged.get(kind, -1):
            return
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(name, float(value), now, step) for name, value in numbers(values, kind)]
        try:
            for first in range(0, len(metrics), _METRICS):
                self._client.log_batch(self.identity["run_id"], metrics=metrics[first : first + _METRICS])
        except Exception as error:  # noqa: BLE001 (each store has errors of its own)
            self._failed = True
            warnings.warn(
                f"MLflow: {self.identity['tracking_uri']} failed after step {step}: {_line(error)}. Training goes on without it; "
                "metrics.jsonl has all the numbers",
                stacklevel=2,
            )

    def close(self, status: str) -> None:
        """Marks the run as ended."""
        with contextlib.suppress(Exception):
            self._client.set_terminated(self.identity["run_id"], status=_STATUS.get(status, "KILLED"))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
