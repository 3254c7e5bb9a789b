"""The outer loop: what every leader does, whatever its estimator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bilevel_envs.core.autograd import with_gradients
from bilevel_envs.core.checks import as_array, check_count, check_memory, check_seed
from bilevel_envs.core.follower import (
    BestResponse,
    FollowerError,
    UnsupportedModelError,
    check_compatible,
    check_worth,
    saves,
)
from bilevel_envs.core.mdp import Model, Parameterization
from bilevel_envs.core.noise import Noise
from bilevel_envs.worlds.responses import response_state
from bilevel_envs.wrapper import BilevelWrapper
from leaders import exact
from leaders.config import LeaderConfig, described, differs, selected
from leaders.estimate import Estimate
from leaders.evaluation import Evaluation
from leaders.exact.raw_parameters import theta_of
from leaders.keywords import document, parameters_of
from leaders.policy import model_at, policy_of
from leaders.training.callbacks import ProgressBar, as_callback, told_of_errors
from leaders.training.checkpoint import Checkpoint, Rows, follower_state, opened, write
from leaders.training.drawn_contexts import reads_context
from leaders.training.history import History
from leaders.training.optimizer import Ascent
from leaders.training.task import Task, task_of
from leaders.training.theta import one_line

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.logger import Logger

NUMBERS_OF_A_RUN = 200  # held beside θ, a random stream's above all
LOGGED = 10  # entries of θ in the logger
NOT_SHOWN = ("runs", "blocks", "verbose", "tensorboard_log")  # settings that `repr` leaves out


def check_wrapped(env: object) -> BilevelWrapper:
    """Returns `env`; refuses all but a BilevelWrapper."""
    if not isinstance(env, BilevelWrapper):
        raise TypeError(
            f"`env` must be a BilevelWrapper, which joins an environment and a follower, got {type(env).__name__}: "
            "wrap it, BilevelWrapper(env), outside of all other wrappers; a problem of your own first becomes an "
            "environment, such as TabularEnv(problem)"
        )
    return env


def _known(number: Tensor | None) -> Tensor | float:
    """A number of each run, [R]; NaN where there is none."""
    return float("nan") if number is None else number


def _short(value: object) -> str:
    """A setting on a line: numbers and words as they are, of objects the class."""
    if isinstance(value, (str, int, float, NoneType, np.number)):
        return str(value)
    if isinstance(value, (Sequence, np.ndarray)):
        return one_line(np.asarray(value))
    return type(value).__name__


@dataclass
class Progress:
    """How far a leader has come.

    Attributes:
      iterations: outer iterations done.
      best: the follower's last response, where the next one begins.
    """

    iterations: int = 0
    best: BestResponse | None = None


class Leader:
    """A trainer for one player's decision θ while another player answers; subclasses say how they estimate.

    Args:
      env: the environment with its follower.
      config: settings that all leaders share.
      arguments: what the subclass was constructed with, for `save`.
    """

    name: ClassVar[str] = "leader"
    differentiates: ClassVar[bool] = True  # whether θ must carry gradients back to the parameters
    draws_contexts: ClassVar[bool] = True  # whether it can be led in another context in every outer iteration
    gives_samples: ClassVar[bool] = False  # whether it offers `gradient_samples`
    looks_at_trajectories: ClassVar[bool] = False  # whether its constructor takes an estimator's keywords
    without: ClassVar[frozenset[str]] = frozenset()  # generated keywords that it does not take

    def __init_subclass__(cls) -> None:
        document(cls)

    def __init__(self, env: gym.Env, config: LeaderConfig, arguments: dict[str, object]) -> None:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{type(self).__name__} must be made outside of torch.inference_mode(), whose tensors cannot be trained"
            )
        self.env, self.config, self._arguments = check_wrapped(env), config, arguments
        self._stacked = config.runs is not None
        self.runs = 1 if config.runs is None else check_count(config.runs, "runs")
        each = NUMBERS_OF_A_RUN + 4 * math.prod(self.env.theta_space.shape)  # θ, its gradient, Adam's two
        check_memory(float(self.runs) * each, "runs", self.runs, "θ and random streams")
        self.seeds = self._run_seeds(config.seed)
        check_count(config.verbose, "verbose", at_least=0)
        if not isinstance(config.tensorboard_log, (str, Path, NoneType)):
            raise TypeError(f"`tensorboard_log` must be a folder's path, got {config.tensorboard_log!r}")
        self.noise = Noise(self.seeds)
        self.policy, self.contexts = policy_of(
            config.policy,
            self.env,
            self.runs,
            self.noise,
            differentiable=self.differentiates,
            contexts=config.contexts,
        )
        if self.contexts is not None and not self.draws_contexts:
            raise ValueError(
                f"`env` must have no contexts for {type(self).__name__}, which compares decisions in one world: take "
                "BCHG, HPGD, NaivePGD, SoBiRL or ExactGradient for a draw in every outer iteration"
            )
        self._ascent = Ascent(
            self.policy,
            self.runs,
            config.optimizer,
            config.learning_rate,
            config.max_grad_norm,
            config.learning_rate_decay,
            config.blocks,
        )
        self.history = History(self.runs)
        self.progress = Progress()
        self.evaluation = Evaluation(type(self).__name__, config.evaluate_every)
        self._logger: Logger | None = None
        with self._in_its_contexts():
            task = self.env.task(self._theta(differentiable=False))
            check_compatible(self.env.follower, task.model)
            self._check_model(task.model)
            check_worth(self.env.follower, task)

    # What a subclass provides ---------------------------------------------------------------------------------

    def _check_model(self, model: Model) -> None:
        """Refuses a world that it cannot lead, before anything is spent on it."""

    def _estimate(self, theta: Tensor, model: Model, best: BestResponse) -> Estimate:
        """The estimate at θ [R, ...], whose surrogate is differentiable through `model`."""
        raise NotImplementedError

    def _chosen(self) -> dict[str, object]:
        """The settings that `repr` shows: of the configuration, and the subclass's own arguments."""
        shared = {one.name for one in fields(LeaderConfig)}
        defaults = {one.name: one.default for one in parameters_of(type(self))}
        own = {
            name: value
            for name, value in self._arguments.items()
            if name not in shared and value is not None and differs(value, defaults[name])
        }
        return selected(self.config, ("learning_rate", "optimizer"), without=(*NOT_SHOWN, *self.without)) | own

    def _critic_state(self) -> dict[str, object]:
        """What the subclass learns beside θ."""
        return {}

    def _load_critic_state(self, state: dict[str, object]) -> None:
        """Puts it back."""

    # What a user calls ----------------------------------------------------------------------------------------

    @property
    def theta(self) -> np.ndarray:
        """What the leader commits to, ``[*θ.shape]``, or ``[R, *θ.shape]`` for stacked runs.

        Of a policy that reads contexts: in those drawn last, `contexts.now`; see `theta_in`.

        `learn` leaves the environment's own θ as it was: `env.unwrapped.configure(θ)` puts one in force.
        """
        theta = self._theta().detach().numpy().copy()
        return theta if self._stacked else theta[0]

    def theta_in(self, contexts: ArrayLike) -> np.ndarray:
        """What the leader commits to in contexts.

        Args:
          contexts: their numbers, [C].

        Returns:
          ``[C, *θ.shape]``, or ``[C, R, *θ.shape]`` for stacked runs.

        Raises:
          ValueError: if the problem has no contexts, or none of such a number.
        """
        if self.env.problem.contexts is None:
            raise ValueError(f"`theta_in` needs a problem with contexts; {self.env.problem.title} has none")
        index = np.atleast_1d(self.env.problem.contexts.checked(contexts, "contexts"))
        shape = (len(index), self.runs, *self.env.theta_space.shape)
        if reads_context(self.policy):
            seen = self.env.problem.contexts.seen(np.repeat(index, self.runs))  # the run's number varies fastest
            theta = theta_of(self.policy, "policy", differentiable=False, context=seen).double().reshape(shape)
        else:
            theta = self._theta().expand(shape)
        found = theta.detach().numpy().copy()
        return found if self._stacked else found[:, 0]

    def __repr__(self) -> str:
        """The task, how far the leader has come, the last leader value recorded, θ (both run 0's), and the settings.

        Of the settings: step size and optimiser, what a trajectory leader estimates with (estimator, critic, gradient,
        guiding term, batch), and whatever else differs from the defaults of `LeaderConfig` and `EstimatorConfig`.
        `last_leader_value`, left out where it is unknown, is the newest in `history["leader_value"]`: the value at a θ
        before an update, not at the θ shown, whose value `exact.objective(env, leader.theta)` computes.
        """
        spec = self.env.unwrapped.spec
        value = float(self.history.latest("leader_value")[0])
        run = "[0]" if self._stacked else ""
        parts = {
            "env": self.env.problem.title if spec is None else spec.id,
            "runs": self.runs,
            "iterations": self.progress.iterations,
            f"last_leader_value{run}": None if np.isnan(value) else f"{value:.5g}",
            f"theta{run}": one_line(self._theta().detach().numpy()[0]),
            **{setting: _short(value) for setting, value in self._chosen().items()},
        }
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in parts.items() if v is not None)})"

    @property
    def arguments(self) -> dict[str, object]:
        """What it was constructed with, as JSON; of what cannot be written, the class."""
        return described(self._arguments)

    @property
    def num_timesteps(self) -> int:
        """Environment steps spent by each run, under the name that SB3's callbacks look for."""
        return int(self.history.last("env_steps")[0])

    @property
    def logger(self) -> Logger:
        """The SB3 logger in use."""
        if self._logger is None:
            from stable_baselines3.common.logger import Logger, configure

            formats = ["stdout"] * bool(self.config.verbose) + ["tensorboard"] * bool(self.config.tensorboard_log)
            if formats:
                self._logger = configure(str(self.config.tensorboard_log or "") or None, formats)
            else:
                self._logger = Logger(folder=None, output_formats=[])
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Uses another SB3 logger."""
        self._logger = logger

    def get_env(self) -> None:
        """None: a leader has no SB3 VecEnv; here for SB3's callbacks."""
        return None

    @with_gradients
    def learn(
        self,
        total_iterations: int,
        callback: BaseCallback | Callable | list | None = None,
        log_interval: int = 100,
        progress_bar: bool = False,
    ) -> Self:
        """Takes so many more outer iterations.

        Args:
          total_iterations: how many.
          callback: SB3's `BaseCallback`s, functions `(locals, globals)`, or a list of them, called after each
            iteration; one that returns False ends the training. Callbacks that evaluate an SB3 model find none here.
          log_interval: outer iterations between two dumps of the logger: means over runs under `rollout/` and `train/`;
            of run 0, ten entries of θ at most and its ℓ2 norm under `theta/`, after the update.
          progress_bar: shows how far it is.

        Returns:
          The leader itself.
        """
        total_iterations = check_count(total_iterations, "total_iterations", at_least=0)
        log_interval = check_count(log_interval, "log_interval")
        callbacks = as_callback(callback)
        callbacks.init_callback(self)  # type: ignore[arg-type]
        with told_of_errors(callbacks), ProgressBar(progress_bar, total_iterations) as advance:
            callbacks.on_training_start(locals(), globals())
            started, steps = time.perf_counter(), self.num_timesteps
            for index in range(total_iterations):
                self._iterate(last=index == total_iterations - 1)
                callbacks.update_locals(locals())
                advance(float(self.history.latest("leader_value").mean()))
                if self.progress.iterations % log_interval == 0:
                    self._log(time.perf_counter() - started, self.num_timesteps - steps)
                if callbacks.on_step() is False:
                    break
            callbacks.on_training_end()
        return self

    @with_gradients
    def gradient_samples(
        self, count: int, *, raw: bool = False, episodes: int | None = None, seed: int | None = None
    ) -> np.ndarray:
        """Independent hypergradient estimates at the current θ, before clipping; changes nothing.

        They have the bias of the critic that makes them; `critic="exact"` has none. Each averages whole episodes, run
        to their end or until max(γ_L, γ_F)^H ≤ 1e-5: what is cut off counts for nothing, unless rewards grow along an
        episode nearly as fast as they are discounted (a building near θ = 0).

        Args:
          count: how many.
          raw: gradients in the raw parameters, flat, instead of in θ.
          episodes: how many episodes an estimate averages; None for 10, or the batch's rows if those are more.
          seed: another seed draws other samples; None for the leader's own at this iteration.

        Returns:
          ``[count, *θ.shape]``, or ``[count, R, *θ.shape]`` for stacked runs; with `raw` the last axes are flat.
        """
        if not self.gives_samples:
            raise NotImplementedError(f"`gradient_samples` is not offered by {type(self).__name__}")
        count = check_count(count, "count")
        seed = None if seed is None else check_seed(seed)
        episodes = None if episodes is None else check_count(episodes, "episodes")
        with self._in_its_contexts():
            gradients = self._samples(count, episodes, seed)  # ``[count, R, *θ.shape]``
        if raw:
            pulled = [exact.raw_gradient(self.policy, gradient, self.runs, self._features) for gradient in gradients]
            gradients = torch.stack(pulled)
        return (gradients if self._stacked else gradients[:, 0]).numpy()

    def _samples(self, count: int, episodes: int | None, seed: int | None) -> Tensor:
        raise NotImplementedError

    def save(self, path: str | Path, rows: Rows | None = None) -> None:
        """Writes all that is needed to go on, bit for bit, to a zip file; replaced at once, never half-written.

        Args:
          path: where.
          rows: a file beside it that keeps the history, so that a checkpoint writes the rows that are new alone; None
            to keep it in the zip file.
        """
        described_leader = {
            "leader": type(self).__name__,
            "arguments": self.arguments,
            "task": self._task,
            "noise": self.noise.state_dict(),
            "iterations": self.progress.iterations,
            "evaluation_interval": self.evaluation.interval,
            **({} if self.contexts is None else {"contexts": self.contexts.now.tolist()}),
        }
        state = {
            "policy": self.policy.state_dict(),
            "optimizer": self._ascent.state_dict(),
            "critic": self._critic_state(),
            "best": response_state(self.progress.best),
            "follower": follower_state(self.env.follower),
            "optimum": response_state(self.evaluation.optimum),
        }
        write(path, described_leader, state, self.history.state(), rows)

    @classmethod
    def load(cls, path: str | Path, env: gym.Env, **changed: object) -> Self:
        """A leader as it was saved.

        Args:
          path: what `save` wrote.
          env: the environment to go on in.
          changed: arguments that are to differ, such as `learning_rate` or `verbose`; objects that cannot be written to
            a file (`policy`, a critic of your own) must be given again here. `runs`, `seed`, `optimizer`, `preset` and
            the kind of critic are what the saved state is made of and stay.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if the file is none of ours, is another leader's, or was saved in another task than `env`.
        """
        arguments, checkpoint = opened(path, cls.__name__, changed)
        leader = cls(env, **arguments)
        leader._restore(checkpoint)
        return leader

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from what was saved."""
        checkpoint.check_task(self._task)
        state, saved = checkpoint.state, checkpoint.described
        with checkpoint.naming_itself():
            self.policy.load_state_dict(state["policy"])
            self._ascent.load_state_dict(state["optimizer"])
            with checkpoint.naming_misfits():
                self._load_critic_state(state["critic"])
            if saves(self.env.follower) and state["follower"] is not None:
                self.env.follower.load_state_dict(state["follower"])
            self.noise.load_state_dict(saved["noise"])
            if self.contexts is not None:
                self.contexts.now = np.array(saved["contexts"])
            self.history.load_state(checkpoint.history)
            if self.config.evaluate_every is None:
                self.evaluation.interval = check_count(saved.get("evaluation_interval", 1), "evaluation_interval")
        with self._in_its_contexts():
            model = self.env.model(self._theta().detach())
        self.progress = Progress(saved["iterations"], checkpoint.response("best", self.runs, model))
        self.evaluation.optimum = checkpoint.response("optimum", self.runs, model)

    # The iteration --------------------------------------------------------------------------------------------

    def _iterate(self, last: bool = False) -> None:
        if self.contexts is None:
            return self._iterate_once(last)
        self.contexts.draw(self.noise)
        with self._in_its_contexts():
            return self._iterate_once(last)

    def _in_its_contexts(self) -> AbstractContextManager[None]:
        """With `with`: the contexts drawn last; those in force for a leader that draws none."""
        return self.env.in_context(None if self.contexts is None else self.contexts.now)

    def _iterate_once(self, last: bool) -> None:
        theta = self._theta(differentiable=self.differentiates)  # [R, ...]
        model = self._model(theta, f"after {self.progress.iterations} outer iterations")  # differentiable in θ
        self._check_depends(theta, model)
        fixed = model.detach()
        best, estimate = self._estimated(theta, model, fixed)
        value, actual = self._evaluated(fixed, best, last, estimate.leader_value)
        explored = self._evaluated(*estimate.explored, last)[0] if estimate.explored else float("nan")
        grad_norm = self._ascend(estimate.surrogate)
        for surrogate in estimate.steps:
            grad_norm = self._ascend(surrogate())
        if estimate.proposal is not None:
            self._move(estimate.proposal, estimate.moves)
        self.history.append(
            env_steps=self.history.last("env_steps") + np.asarray(estimate.env_steps),
            follower_solves=self.history.last("follower_solves") + 1 + estimate.follower_solves,
            leader_value=value,
            leader_value_actual=actual,
            leader_return=estimate.leader_return,
            grad_norm=grad_norm,
            residual=best.residual,
            optimality_gap=_known(best.optimality_gap),
            follower_improvement=_known(best.improvement),
            follower_drift=_known(best.drift),
            episodes=estimate.episodes,
            follower_steps=self.history.last("follower_steps") + best.steps + estimate.follower_steps,
            coverage=estimate.coverage,
            visits_per_pair=estimate.visits_per_pair,
            explored_value=explored,
            promised_value=estimate.promised_value,
            dynamics_r2=estimate.dynamics_r2,
            dynamics_inside=estimate.dynamics_inside,
        )
        self.progress.best = best
        self.progress.iterations += 1

    def _estimated(self, theta: Tensor, model: Model, fixed: Model) -> tuple[BestResponse, Estimate]:
        """The follower's response at θ, and the estimate that is made with it; `fixed` is `model` without gradients."""
        best = self._response(theta.detach(), fixed)
        return best, self._estimate(theta, model, best)

    def _evaluated(
        self, model: Model, best: BestResponse, last: bool, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """J_L at θ under the optimal and under the actual follower, [R] each; NaN where it is not due.

        `known` is J_L under the optimal policy, where an estimate has found it.
        """
        if last or self.evaluation.due(self.progress.iterations):
            if known is not None and best.behavior_policy is best.policy:
                known = known.expand(self.runs)
                return known, known
            return self.evaluation.timed(model, best, self.env.preferences, self.runs)
        unknown = torch.full((self.runs,), float("nan"), dtype=torch.float64)
        return unknown, unknown

    def _ascend(self, surrogate: Tensor) -> Tensor:
        """One step of the optimiser along a surrogate and the regulariser; the norm of each run's gradient, [R]."""
        loss = -(surrogate + self._regulariser())
        self._ascent.zero_grad()
        if loss.requires_grad:
            loss.sum().backward()
        try:
            return self._ascent.step(self.progress.iterations)
        except FloatingPointError as error:
            raise FloatingPointError(f"outer iteration {self.progress.iterations}: {error}") from error

    @torch.no_grad()
    def _move(self, proposal: Mapping[str, Tensor], moves: Tensor | None) -> None:
        """Puts the raw parameters of those runs, None for all, where an estimate proposes."""
        named = dict(self.policy.named_parameters())
        for name, value in proposal.items():
            if moves is None or bool(moves.all()):
                named[name].copy_(value)
            elif self.runs > 1:  # of a single run, parameters need no runs axis
                named[name][moves] = value[moves]

    def _check_depends(self, theta: Tensor, model: Model) -> None:
        """Refuses a model of other runs than θ, and one none of whose tensors carries gradients to θ."""
        tensors = _tensors_of(model)
        moves = any(part.requires_grad for part in tensors)
        if model.runs != self.runs and (model.runs != 1 or moves):  # a model of one run may stand for all without θ
            raise ValueError(
                f"`model(theta)` of {self.env.problem.title} must be of {self.runs} runs, one for each "
                f"θ of {list(theta.shape)}, got {model.runs}: keep θ's leading axis in every table that depends on θ"
            )
        if self.differentiates and theta.requires_grad and tensors and not moves:
            raise ValueError(
                f"`model(theta)` of {self.env.problem.title} must depend on θ through torch operations, got a "
                f"{type(model).__name__} without gradients: was it detached, or made from NumPy arrays?"
            )

    def _model(self, theta: Tensor, when: str) -> Any:
        """The model at a θ that the policy yields; refuses θ outside its space with a message that says when."""
        return model_at(self.env, theta, when)

    def _response(self, theta: Tensor, model: Model, start: BestResponse | None = None) -> BestResponse:
        """The follower's response, begun from the last one or from `start`."""
        return self._asked(theta, model, self.progress.best if start is None else start)

    def _tried_model(self, theta: Tensor) -> Any:
        """The model at a θ that the leader tries."""
        return self._model(theta, f"tried in outer iteration {self.progress.iterations}")

    def _response_at(self, theta: Tensor, start: BestResponse | None = None) -> BestResponse:
        """The follower's response at a θ that the leader tries, begun from `start`."""
        return self._asked(theta, self._tried_model(theta).detach(), start)

    def _asked(self, theta: Tensor, model: Model, start: BestResponse | None) -> BestResponse:
        """The follower's response; its failures say at which iteration."""
        try:
            return self.env.best_response(theta, start, model=model)
        except UnsupportedModelError:
            raise
        except Exception as error:
            now = self.progress.iterations
            raise FollowerError(
                f"outer iteration {now}: the follower failed ({type(error).__name__}: {error}); θ and the history are "
                f"as they were after {now} iterations"
            ) from error

    @cached_property
    def _task(self) -> Task:
        """What a saved leader must find again."""
        return task_of(self.env)

    def _theta(self, *, differentiable: bool = False) -> Tensor:
        theta = theta_of(self.policy, "policy", differentiable=differentiable, context=self._features).double()
        return theta if theta.ndim > len(self.env.theta_space.shape) else theta[None]

    @property
    def _features(self) -> Tensor | None:
        """What the policy reads of the present contexts; None for one that reads none."""
        return self.contexts.features if self.contexts is not None and reads_context(self.policy) else None

    def _regulariser(self) -> Tensor:
        return self.policy.regulariser() if isinstance(self.policy, Parameterization) else torch.zeros(())

    def check_unregularised(self) -> None:
        """Refuses a policy with a regulariser, for leaders that compare what θ alone brings."""
        if getattr(type(self.policy), "regulariser", None) not in (None, Parameterization.regulariser):
            raise ValueError(f"`policy` must have no regulariser: {type(self).__name__} compares returns alone")

    def _run_seeds(self, seed: Any) -> list[int]:
        if not as_array(seed, "seed").shape:
            return [check_seed(seed) + run for run in range(self.runs)]
        if len(seed) != self.runs:
            raise ValueError(f"`seed` must be a number or one per run ({self.runs}), got {len(seed)} of them")
        return [check_seed(one) for one in seed]

    def _log(self, seconds: float, steps: int) -> None:
        for column, key in (
            ("leader_value", "rollout/leader_value"),
            ("leader_return", "rollout/leader_return"),
            ("episodes", "rollout/episodes"),
            ("grad_norm", "train/grad_norm"),
            ("residual", "train/follower_residual"),
            ("optimality_gap", "train/follower_optimality_gap"),
            ("follower_drift", "train/follower_drift"),
        ):
            mean = float(self.history.latest(column).mean())
            if not np.isnan(mean) or column in ("leader_value", "leader_return"):
                self.logger.record(key, mean)
        first = self._theta().detach().numpy()[0].ravel()
        for index, entry in enumerate(first[:LOGGED]):
            self.logger.record(f"theta/{index}", float(entry))
        self.logger.record("theta/norm", float(np.linalg.norm(first)))
        self.logger.record("time/iterations", self.progress.iterations)
        self.logger.record("time/env_steps", self.num_timesteps)
        self.logger.record("time/follower_solves", int(self.history.last("follower_solves")[0]))
        self.logger.record("time/fps", int(self.runs * steps / max(seconds, 1e-9)))
        self.logger.dump(self.progress.iterations)


def _tensors_of(part: object) -> list[Tensor]:
    """The tensors in the fields of a dataclass, and of those among them that are dataclasses."""
    if isinstance(part, Tensor):
        return [part]
    if not is_dataclass(part) or isinstance(part, type):
        return []
    return [tensor for one in fields(part) for tensor in _tensors_of(getattr(part, one.name))]
