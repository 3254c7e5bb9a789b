"""Runs in Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Unpack, get_args

from bilevel_envs.core.checks import check_choice
from leaders.training.tracker import AXES, FAILED, FINISHED, KILLED, Tracker, TrackerKeywords

Mode = Literal["online", "offline", "disabled"]
EXIT_CODES = {FINISHED: 0, FAILED: 1, KILLED: 130}  # 130 is a shell's word for a process that was interrupted
PATIENCE = 60.0  # seconds to wait for a server, at the beginning and at the end


class WandbCallback(Tracker):
    """Writes a run to Weights & Biases; see `Tracker` for what is logged and how a run ends.

    `WANDB_MODE=offline` writes to a folder alone; `wandb sync` sends it later, the parts of a run that was resumed to
    one run. A run that was killed has the exit code 130 and `ended: KILLED` in its summary.

    Args:
      folder: where the run's id is noted, in wandb.json, so that a later process goes on in the same run; files of
        W&B's own go to its subfolder wandb. None for W&B's default.
      name: of the run; W&B invents one if None.
      parameters: settings to log beside the leader's own.
      axis: what metrics are drawn against, "iterations" or "env_steps".
      project: the project's name; WANDB_PROJECT, or else "bilevel", if None.
      mode: "online", "offline" or "disabled"; WANDB_MODE, or else "online", if None.

    Raises:
      ImportError: without wandb.
      ValueError: if `mode` is none of those.
    """

    kind = "wandb"

    def __init__(
        self,
        *,
        project: str | None = None,
        mode: Mode | None = None,
        **shared: Unpack[TrackerKeywords],
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("`WandbCallback` needs wandb: pip install 'bilevel-envs[wandb]'") from error
        check_choice(mode, (None, *get_args(Mode)), "mode")
        super().__init__(**shared)
        self._wandb, self._mode = wandb, mode
        self._project = project or os.environ.get("WANDB_PROJECT", "bilevel")

    def _begin(self, run: str, parameters: Mapping[str, str]) -> int:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=self._project,
            name=self._name,
            id=run,
            resume="allow",
            dir=None if self._folder is None else str(self._folder),
            mode=self._mode,
            config=dict(parameters),
            settings=self._wandb.Settings(console="off", init_timeout=PATIENCE, finish_timeout=PATIENCE),
        )
        for axis in AXES:
            self._run.define_metric(axis)
        self._run.define_metric("*", step_metric=self._axis)
        return int(self._run.summary.get("iterations", -1))  # of a run that is resumed online

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics))  # W&B's own step may only grow, and would refuse what is repeated after a kill

    def _upload(self, paths: Iterable[Path]) -> None:
        files = self._wandb.Artifact(f"run-{self._run.id}", type="run")
        for path in paths:
            files.add_file(str(path))
        self._run.log_artifact(files)

    def _finish(self, status: str) -> None:
        self._run.summary["ended"] = status
        self._run.finish(exit_code=EXIT_CODES[status])
