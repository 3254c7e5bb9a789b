"""What leaders add to a kind of world: its critics, the form of an estimator there, and what goes with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from bilevel_envs.core.checks import check_choice, lacking
from leaders.config import PUBLISHED_STEPS, EstimatorConfig, Forms, LeaderConfig
from leaders.critics.critic import Critic, CriticCapabilities, capabilities_of

CRITIC_METHODS = ("fit", "values", "copies", "state_dict", "load_state_dict")
READ_POLICY = ("empirical", "expected_sarsa", "lstd", "exact")  # critics that take the follower's g at its word
WITHOUT_Q = ("naive_pgd", "hpgd_realised")  # estimators that do not read Q_L


@dataclass(frozen=True)
class Facts:
    """What a leader's configuration depends on in a world, and in the follower that responds there.

    Attributes:
      world: its kind.
      problem: the problem's class, for messages.
      gamma: γ_L.
      advised: settings that the problem recommends.
      blocks: parts of θ that the published form clips apart.
      features: number of features of a quadratic critic; 0 where states are countable.
      quadratic_reward: whether the leader's reward is a quadratic of (s, b).
      leader_actions: A of a finite game whose follower sees the leader's move; 0 elsewhere.
      theta_size: entries of θ.
      actions: discrete ones at states that are vectors, which critics read one-hot; 0 elsewhere.
      hides_moves: whether θ moves the transitions of a world in which log p is not known.
      moves_start: whether θ moves the first states of such a world.
      reads_components: whether rewards are functions of components that steps log, so that no θ is in log p.
      learns: whether the follower learns, or is observed.
      optimal: whether the follower's response is the soft optimum of the model.
    """

    world: LeaderWorld
    problem: str
    gamma: float
    advised: Mapping[str, object] = field(default_factory=dict)
    blocks: Mapping[str, slice] | None = None
    features: int = 0
    quadratic_reward: bool = True
    leader_actions: int = 0
    theta_size: int = 0
    actions: int = 0
    hides_moves: bool = False
    moves_start: bool = False
    reads_components: bool = False
    learns: bool = False
    optimal: bool = True

    @property
    def only_rewards(self) -> bool:
        """Whether θ is known to be in the rewards alone, so that no V_F of the follower has a weight."""
        return self.reads_components and not self.hides_moves


@dataclass(frozen=True)
class CriticEntry:
    """A critic that a name stands for.

    Attributes:
      kind: its class.
      make: makes one from the settings, the facts, and whether θ moves transitions.
    """

    kind: type
    make: Callable[[EstimatorConfig, Facts, bool], Critic]


class LeaderWorld:
    """A kind of world, as leaders see it; objects of one class are equal, and so are copies.

    Attributes:
      name: that of the kind in `bilevel_envs.worlds`.
      vectors: whether states are vectors.
      critics: what the critics' names stand for.
    """

    name: ClassVar[str]
    vectors: ClassVar[bool] = False
    critics: ClassVar[dict[str, CriticEntry]]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def form(self, forms: Forms, preset: str | None, leader: str, facts: Facts) -> EstimatorConfig:
        """The form of a leader here, before anybody has said anything.

        Raises:
          ValueError: if the leader does not go with this kind of world.
        """
        raise NotImplementedError

    def published_steps(self, forms: Forms, facts: Facts) -> LeaderConfig:
        """The leader's settings in its published form."""
        return PUBLISHED_STEPS

    def for_follower(self, form: EstimatorConfig, facts: Facts) -> EstimatorConfig:
        """The recommended form with the follower that there is.

        The closed form of ∇Q_F − ∇V_F is an optimal follower's. The g of one that learns or is observed may be an
        estimate: where the critic would take it at its word, state values take its place, and a network where the
        leader's reward is not quadratic.
        """
        if form.gradient == "analytic" and not facts.optimal:
            form = replace(form, gradient="pathwise")
        if not facts.learns or form.critic not in READ_POLICY:
            return form
        if facts.quadratic_reward:
            return replace(form, critic="state_values")
        return replace(form, critic="td", network_of="both", gradient="score")

    def default_batch(self, config: EstimatorConfig, facts: Facts) -> int:
        """Transitions per outer iteration, unless the user or the problem says otherwise."""
        return config.batch_size

    def check(self, config: EstimatorConfig, facts: Facts) -> None:
        """Raises ValueError if a setting is not supported in this kind of world."""
        raise NotImplementedError

    def fits_guiding(self, config: EstimatorConfig, facts: Facts) -> bool:
        """Whether ∇Q_F is fitted unless the user says otherwise."""
        return False

    def capabilities(self, critic: object) -> CriticCapabilities:
        """Those of a critic, or of the one that a name stands for."""
        if isinstance(critic, str):
            check_choice(critic, self.critics, "critic")
            return capabilities_of(self.critics[critic].kind)
        return capabilities_of(critic)

    def critic(self, config: EstimatorConfig, facts: Facts, theta_moves: bool, leader: str) -> Critic:
        """The critic that the settings name, or are.

        Args:
          config: the settings.
          facts: of the world.
          theta_moves: whether θ moves the transitions of a table.
          leader: the leader's class, for messages.

        Raises:
          ValueError: if there is none of that name here, or it does not go with the leader.
          TypeError: if an object lacks methods.
        """
        if isinstance(config.critic, str):
            check_choice(config.critic, self.critics, "critic")
            return self.critics[config.critic].make(config, facts, theta_moves)
        missing = lacking(config.critic, CRITIC_METHODS)
        if missing or isinstance(config.critic, type):
            wanted = f"one of {', '.join(self.critics)}, or an object with {', '.join(CRITIC_METHODS)}"
            raise TypeError(f"`critic` must be {wanted}; got {config.critic!r}")
        if not capabilities_of(config.critic).reads_action and config.estimator not in WITHOUT_Q:
            raise ValueError(
                f'`critic` must read actions, of="action" or "both", for {leader}, whose guiding weight is made '
                'of Q_L; got of="state"'
            )
        return config.critic


def vector_forms(forms: Forms, leader: str, facts: Facts) -> Mapping[str | None, EstimatorConfig]:
    """A leader's forms where states are vectors, by preset.

    Raises:
      ValueError: if it counts on tables; says which leaders do not.
    """
    if forms.linear is not None:
        return forms.linear
    instead = (
        'BCHG(env, dynamics="learnt"), or CMAES, RandomSearch or ZerothOrder, which only compare returns'
        if facts.hides_moves
        else "BCHG"
    )
    raise ValueError(
        f"`env` must be a table for {leader}: numbered states, and a model that gives their rewards; "
        f"{facts.problem} is none: take {instead}"
    )


def rate_of(config: EstimatorConfig) -> Any:
    """η as a number, or an array of one per run."""
    rate = config.critic_learning_rate
    return np.asarray(rate, dtype=float) if np.ndim(rate) else rate


def check_vectors(config: EstimatorConfig) -> None:
    """Refuses what counts on states that repeat."""
    if config.estimator == "bc_hg_shared":
        raise ValueError("`shared` must be False where states are vectors, which seldom repeat; got True")
