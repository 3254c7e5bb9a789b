"""Runs in MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from leaders.training.tracker import KILLED, Tracker, TrackerKeywords

if TYPE_CHECKING:
    from mlflow.entities import Run

KEY = "bilevel_run"  # the tag by which a run is found again
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # unless the user says more


class MLflowCallback(Tracker):
    """Writes a run to MLflow; see `Tracker` for what is logged and how a run ends.

    A metric's step is the number of iterations, or of environment steps with `axis="env_steps"`. A server that does not
    answer holds up learning for some 20 seconds, once a minute, unless MLFLOW_HTTP_REQUEST_MAX_RETRIES and
    MLFLOW_HTTP_REQUEST_TIMEOUT say otherwise.

    Args:
      folder: where the run's id is noted, in mlflow.json, so that a later process goes on in the same run.
      name: of the run; MLflow invents one if None.
      parameters: settings to log beside the leader's own.
      axis: what metrics are logged against, "iterations" or "env_steps".
      experiment: the experiment's name; MLFLOW_EXPERIMENT_NAME, or else "bilevel", if None.
      tracking_uri: of the server or the database; MLFLOW_TRACKING_URI, or else MLflow's own default, if None.

    Raises:
      ImportError: without MLflow.
    """

    kind = "mlflow"

    def __init__(
        self,
        *,
        experiment: str | None = None,
        tracking_uri: str | None = None,
        **shared: Unpack[TrackerKeywords],
    ) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ImportError("`MLflowCallback` needs MLflow: pip install 'bilevel-envs[mlflow]'") from error
        super().__init__(**shared)
        self._experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "bilevel")
        self._uri, self._make = tracking_uri, MlflowClient
        self._run = ""

    def _begin(self, run: str, parameters: Mapping[str, str]) -> int:
        from mlflow.entities import Param

        with _patience():
            self._client = self._make(tracking_uri=self._uri)
            found = self._found(run)
            if found is None:
                found = self._client.create_run(self._experiment_id(), run_name=self._name, tags={KEY: run})
            self._run = found.info.run_id
            self._client.update_run(self._run, status="RUNNING")
            left = [Param(name, text) for name, text in parameters.items() if name not in found.data.params]
            self._client.log_batch(self._run, params=left)
            return int(found.data.metrics.get("iterations", -1))

    def _found(self, run: str) -> Run | None:
        """The run with this key; None if there is none."""
        found = self._client.search_runs([self._experiment_id()], f"tags.{KEY} = '{run}'", max_results=1)
        return found[0] if found else None

    def _experiment_id(self) -> str:
        """The experiment's id; another process may make the experiment at the same moment."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return found.experiment_id
        try:
            return self._client.create_experiment(self._experiment)
        except MlflowException:
            found = self._client.get_experiment_by_name(self._experiment)
            if found is None:
                raise
            return found.experiment_id

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        with _patience():
            self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in metrics.items()])

    def _upload(self, paths: Iterable[Path]) -> None:
        with _patience():
            for path in paths:
                self._client.log_artifact(self._run, str(path))

    def _finish(self, status: str) -> None:
        with _patience():
            self._client.set_terminated(self._run, status)

    def _abandon(self, run: str) -> None:
        with _patience():
            self._client = self._make(tracking_uri=self._uri)
            found = self._found(run)
            if found is not None and found.info.status == "RUNNING":
                self._client.set_terminated(found.info.run_id, KILLED)


@contextmanager
def _patience() -> Iterator[None]:
    """How long MLflow waits for a server that does not answer: its own default is some minutes."""
    lent = {name: text for name, text in PATIENCE.items() if name not in os.environ}
    os.environ.update(lent)
    try:
        yield
    finally:
        for name in lent:
            os.environ.pop(name, None)
