"""The settings of leaders: what every leader takes, how an estimate is made, and the published choices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice
from bilevel_envs.networks.temporal_differences import DEFAULT_FIT, PUBLISHED_FIT, Fit

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")
PerRun = float | Sequence[float] | np.ndarray  # a number, or one per run

CONTROL_VARIATES = ("constant", "quadratic", "none")
EXPLORATIONS = ("none", "restarts")
DYNAMICS = ("known", "learnt")


@dataclass(frozen=True)
class LeaderConfig:
    """What every leader takes.

    Attributes:
      learning_rate: step size, a number or one per run.
      learning_rate_decay: the step size is multiplied by it, a number in (0, 1], after every outer iteration; 0.97
        halves it in 23. Constant steps end by going back and forth around the optimum; shrinking ones converge,
        far from it if they shrink too soon: Adam's add up to some learning_rate / (1 − learning_rate_decay).
      optimizer: "sgd" or "adam"; Adam by default, because hypergradients range over many orders of magnitude.
      max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none. Estimates have heavy tails at small β, and one
        outlier would otherwise slow Adam down for thousands of iterations.
      policy: a module whose `forward()` is θ, or the name of one that the environment has; None for its default.
      runs: number of stacked runs; None for a single one without a runs axis.
      seed: run i uses the stream of seed + i; or one seed per run.
      verbose: 0 for silence, 1 for a table now and then.
      tensorboard_log: folder for TensorBoard's events, or None.
      evaluate_every: outer iterations from one exact `leader_value` in the history to the next, which is NaN between;
        the last iteration of `learn` has one. None for every iteration, unless an evaluation takes more than a tenth of
        a second and a quarter of the rest of the iteration; the log then says how often.
      contexts: numbers of the contexts that are drawn from, one for each run and outer iteration, in a problem that has
        contexts; None for all. A world that draws its own in every episode is left to do so, unless this is given or
        the policy reads the context.
      blocks: parts of a run's raw parameters that are clipped apart; None to clip all together.
    """

    learning_rate: PerRun = 0.05
    learning_rate_decay: float = 1.0
    optimizer: str = "adam"
    max_grad_norm: float = 1.0
    policy: torch.nn.Module | str | None = None
    runs: int | None = None
    seed: int | Sequence[int] = 0
    verbose: int = 0
    tensorboard_log: str | Path | None = None
    evaluate_every: int | None = None
    contexts: Sequence[int] | None = None
    blocks: Mapping[str, slice] | None = None


@dataclass(frozen=True)
class EstimatorConfig:
    """How a leader turns trajectories into a hypergradient.

    Attributes:
      estimator: its name, a key of `leaders.functional.guiding.ESTIMATORS`.
      critic: how Q_L is learnt: "empirical" (the default for tables: solved in the empirical model of all transitions
        so far), "expected_sarsa", "sarsa" or "monte_carlo" for tables, "lstd" for linear-quadratic worlds, "td" (a
        network) or "exact" for both, "state_values" without any policy of the follower's (the default in tables and
        linear-quadratic worlds with followers that learn or are observed), or an object with the methods of
        `leaders.critics.critic.Critic`. Games and environments of which no model is known take "td" (their default) and
        "state_values". Mean returns, "monte_carlo", are noisy where a state
        has many successors (docs: "Estimators").
      critic_learning_rate: η of learnt tables, a number or one per run.
      critic_start: their first entries, "zeros" or "normal".
      control_variate: state control variate, "constant", "quadratic" (linear-quadratic worlds), "none" or a function
        state → [..., F]; it needs two episodes in a batch, else nothing is subtracted. Without effect for
        `gradient="analytic"`, whose closed form is centred already, and for `guiding="fitted"`.
      cross_fit: judge each half of a batch's episodes by a critic that was fitted to the other half and to earlier
        batches (the default), or, with False, all of it by one that was fitted to it as well, which is biased. It fits
        a critic three times: with `critic="td"` an iteration takes three times as long.
      tail: episodes that the batch cuts: "continue" continues them in the world as other episodes show it, "keep"
        counts them as far as they go, "drop" leaves them out (a batch in which none ends then moves nothing),
        "reference" is the published form.
      score_weight: weight of ∇log p: "td_error" or "value"; "clipped" is the published form for continuous worlds.
      batch_size: transitions per outer iteration and run; None for 100, for `MBHG` 500 in each of its two batches, in
        linear-quadratic worlds 1,000, or what a quadratic critic of a larger one needs, and 2,000 where no model is
        known.
      rows: trajectories side by side that make up a batch; None for the fewest that the time limit allows (10 without
        one); with `tail="continue"` for the fewest that go on until discounting has left a twentieth.
      sampler: "fused" draws from the model itself, "steps" drives `reset` and `step`.
      gradient: what is used beside trajectories in a linear-quadratic world: "score" nothing but the score ∇log p,
        "pathwise" the derivative of the mean of the next state, "analytic" (the default there) all matrices, with
        ∇Q_F − ∇V_F in closed form. Tables take "score"; see `dynamics` for worlds where they are learnt.
      guiding: ∇Q_F as trajectories collect it, "sampled", or fitted as a function of (s, b), "fitted". With a quadratic
        critic that is a polynomial: the default in linear-quadratic worlds unless `gradient="analytic"`. It has a tenth
        to a fiftieth of the noise, and a bias where ∇Q_F is no such polynomial, because the follower's policy bends.
        With a network as critic it is a network, one output per entry of θ: the default where states are vectors, no
        model is known and θ has no more than 300 entries.
      dynamics: how θ moves p: "known" from the model, or where that is hidden (`ConfigurableDynamics`) "learnt": a
        Gaussian network of the next state, fitted to transitions at θ and at perturbed θ, 8,000 of these before the
        first estimate and a quarter of the batch's beside each one, all of them counted. With `gradient="pathwise"`,
        the default there, both players' ∇V is taken along ∂s'/∂θ, and with `guiding="fitted"` Q_L and ∇Q_F one step
        ahead for every action; "score" takes ∇log p, which is of no use where moves are nearly certain. First states
        are taken as free of θ.
      perturbation: how far θ is perturbed there, as a share of its interval, to either side.
      exploration: "restarts" spends the first iteration on trials of the policy's vertices and of random draws, by
        successive halving on sampled returns, and goes on from the best of them; "none" begins at the policy's start.
      network: how networks are fitted.
      network_of: what the critic's network reads, "action" (and the state), the "state" alone, or "both", a network
        each.
    """

    estimator: str
    critic: Any = "empirical"
    critic_learning_rate: PerRun = 0.5
    critic_start: str = "zeros"
    control_variate: str | Callable[[Tensor], Tensor] = "constant"
    cross_fit: bool = True
    tail: str = "continue"
    score_weight: str = "td_error"
    batch_size: int = 100
    rows: int | None = None
    sampler: str = "fused"
    gradient: str = "score"
    guiding: str = "sampled"
    dynamics: str = "known"
    perturbation: float = 0.25
    exploration: str = "none"
    network: Fit = DEFAULT_FIT
    network_of: str = "action"


@dataclass(frozen=True)
class Forms:
    """The forms of one leader, by preset: None for the recommended one, "paper" for the published one.

    Attributes:
      tables: for countable states.
      linear: for linear-quadratic worlds; None for a leader that does not go with them.
      declared: for worlds without a known model; None for a leader that needs one.
      published_rate: step size of the published form in linear-quadratic worlds.
    """

    tables: Mapping[str | None, EstimatorConfig]
    linear: Mapping[str | None, EstimatorConfig] | None = None
    declared: EstimatorConfig | None = None
    published_rate: float = 0.1


@dataclass(frozen=True)
class PublishedGame:
    """The published form of a leader in a game: an actor-critic with settings of its own.

    Attributes:
      settings: of the leader.
      policy: name of its parameterisation; None for the environment's default.
      batch_size: transitions per outer iteration and run.
      rows: trajectories side by side.
    """

    settings: Mapping[str, object]
    policy: str | None
    batch_size: int
    rows: int


PUBLISHED_STEPS = LeaderConfig(learning_rate=0.1, optimizer="sgd")  # and the clip at 1, the default

# Every choice of the published four-rooms code (arXiv:2603.14867; listed in the docs).
PUBLISHED_TABLES = EstimatorConfig(
    "bc_hg_shared",
    critic="sarsa",
    critic_learning_rate=0.5,
    critic_start="normal",
    control_variate="none",
    tail="reference",
    score_weight="value",
    cross_fit=False,
)
# For linear-quadratic worlds: the recommended form, and the published one (arXiv:2603.14867; values from the code).
LINEAR = EstimatorConfig(
    "bc_hg", batch_size=1_000, critic="lstd", control_variate="quadratic", tail="keep", gradient="analytic"
)
PUBLISHED_LINEAR = EstimatorConfig(
    "bc_hg",
    batch_size=10_000,
    rows=10,
    critic="td",
    control_variate="none",
    tail="keep",
    score_weight="clipped",
    network=PUBLISHED_FIT,
    cross_fit=False,
)
# For worlds without a known model, with followers that learn.
DECLARED = EstimatorConfig("bc_hg", batch_size=2_000, critic="td", tail="keep", sampler="steps", network_of="both")


def is_published(preset: object) -> bool:
    """Whether a preset asks for the published form; refuses what is no preset."""
    check_choice(preset, (None, "paper"), "preset")
    return preset is not None


def changed(config: C, arguments: Mapping[str, object]) -> C:
    """A frozen dataclass with those of its fields that stand in `arguments`, and not as None.

    NumPy's whole numbers become ints, which do not overflow.
    """
    names = {field.name for field in fields(config)}
    values = {name: value for name, value in arguments.items() if name in names and value is not None}
    return replace(config, **{k: int(v) if isinstance(v, np.integer) else v for k, v in values.items()})


def differs(value: object, default: object) -> bool:
    """Whether a setting is another than the default, entry by entry for arrays."""
    return type(value) is not type(default) or bool(np.any(value != default))


def selected(
    config: DataclassInstance, always: Collection[str] = (), without: Collection[str] = ()
) -> dict[str, object]:
    """The fields of a configuration that differ from their defaults, and those that are shown always."""
    found: dict[str, object] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in without and (field.name in always or differs(value, field.default)):
            found[field.name] = value
    return found


def described(arguments: dict[str, object]) -> dict[str, object]:
    """Arguments as JSON; what cannot be written is named, so that `load` can ask for it."""

    def one(value: object) -> object:
        if isinstance(value, (Tensor, np.ndarray, np.generic)):
            return value.tolist()
        if isinstance(value, (list, tuple)):
            return [one(entry) for entry in value]
        if isinstance(value, Path):
            return str(value)
        return value if isinstance(value, (str, int, float, NoneType)) else {"object": type(value).__name__}

    return {name: one(value) for name, value in arguments.items()}
