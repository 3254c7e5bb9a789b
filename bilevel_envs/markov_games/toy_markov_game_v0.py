"""A leader and a follower in three states (arXiv:2603.14867, section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from bilevel_envs.core.checks import check_choice
from bilevel_envs.core.mdp import BestKnown, Preferences
from bilevel_envs.games.pettingzoo_env import pettingzoo_forms
from bilevel_envs.games.tables import GameTables
from bilevel_envs.games.tabular import TabularGame

STATES, ACTIONS = "SAB", "sab"
LEADER_ACTIONS = 2
HORIZON = 150
_G = 0.99  # the discount for which variant 1_2f is tuned
_EVEN, _ODD = 1 + _G**2 + _G**4, _G + _G**3 + _G**5
INDIFFERENT = (8 * (1 + _G**4) - 3 * (_G**2 + _G**5) - 3 * _ODD) / (0.5 * _EVEN - 0.5 * (1 + _G**3))


@dataclass(frozen=True)
class _Variant:
    """What moves and what pays, in the notation `state,leader action,action>next state` and `...:reward`."""

    moves: str
    follower: str
    leader: str
    otherwise: float = 0.0  # the follower's reward where nothing is said
    horizon: int = HORIZON


_ONE = "S,0,a>A S,1,a>B S,0,b>B S,1,b>A A,*,s>S B,*,s>S"
_THREE = f"{_ONE} A,*,b>B"
_ALONE = "S,*,a>A A,*,s>S A,*,b>B B,*,s>S"
_FOUR = "S,*,a>A S,*,b>B A,0,s>S A,0,b>B A,1,*>S B,*,s>S"
_F3 = "A,*,s:1 A,*,b:-1"
VARIANTS = {
    "R1": _Variant(_FOUR, "S,*,a:1 S,*,b:1 A,0,b:1 A,1,*:-1", "S,*,a:1"),
    "R2": _Variant(_FOUR, "S,*,a:1 S,*,b:1 A,0,b:2 A,1,*:-1", "S,*,a:1"),
    "1_1a": _Variant(_ONE, "A,*,s:1 B,*,s:-1", "S,*,a:-1 S,*,b:1", horizon=100),
    "1_1b": _Variant(_ONE, "A,*,s:1 B,*,s:-1", "S,*,b:1", horizon=100),
    "1_2a": _Variant(_THREE, "S,*,b:2 A,*,s:3 A,*,b:8 B,*,s:-3", _F3),
    "1_2b": _Variant(_THREE, "S,*,b:2 A,*,s:3 A,*,b:8 B,*,s:-3", "A,*,s:1"),
    "1_2c": _Variant(_ALONE, "S,1,a:2 A,*,s:3 B,*,s:5", _F3),
    "1_2d": _Variant(_ALONE, "S,1,a:2 A,*,s:3 A,*,b:2 B,*,s:3", _F3),
    "1_2e": _Variant(f"{_ALONE} S,*,b>B", "S,1,a:2 A,*,s:3 A,*,b:8 B,*,s:-3", _F3),
    "1_2f": _Variant(f"{_ALONE} S,*,b>B", f"S,1,a:{INDIFFERENT} A,*,s:3 A,*,b:8 B,*,s:-3", _F3),
    "1_2g": _Variant(f"{_ALONE} S,*,b>B", f"S,1,a:{INDIFFERENT} A,*,s:3 A,*,b:8 B,*,s:-3", "A,*,s:2 A,*,b:1"),
    "2_1": _Variant(_THREE, "A,*,s:1 A,*,b:4 B,*,s:-1", "S,*,a:-1 S,*,b:1"),
    "2_2": _Variant("S,*,a>A A,0,s>S A,1,s>B A,0,b>B A,1,b>S B,*,s>S", "S,*,a:-1 B,*,s:4", _F3),
    "3_1a": _Variant(_THREE, "S,*,b:-3 A,*,s:2 A,*,b:2 B,*,s:0", "A,*,s:-1 A,*,b:1", otherwise=-1.0),
    "3_1b": _Variant(_THREE, "S,*,b:-3 A,*,s:2 A,*,b:2 B,*,s:0", "A,*,b:1", otherwise=-1.0),
    "3_2": _Variant("S,*,a>A A,*,s>S A,0,b>B B,*,s>S", "S,*,a:1 B,*,s:29", "A,*,s:1"),
}
# By exact maximisation over f(0|A), to 1e-6: leader's value under the soft-optimal follower.
OPTIMA = {"R1": (0.833544, 34.992641), "R2": (0.497363, 39.940211)}


@dataclass(frozen=True)
class ToyMarkovGame(TabularGame):
    r"""A leader wants the follower to take the long way, and must keep it in doubt to get it.

    Description:
        Three states S, A, B. In each the leader moves first, a in {0, 1}, then the follower, who sees a, answers with
        b in {s, a, b}. From S the follower goes to A (which pays the leader 1) or to B; both pay it 1. At A the
        leader's action decides: after 0 the follower may go on to B for another R, after 1 it pays 1 and is back in S.
        The leader would rather send it back at once, but a follower who expects that never comes to A. The best f(0|A)
        is strictly between 0 and 1, just above where the follower changes its mind. Moves τ are deterministic, and the
        follower faces the pairs (s, a):

        .. math::

            p(s', a' \mid s, a, b; f) = 1[s' = \tau(s, a, b)]\, f(a' \mid s') .

    Action Space:
        ``Discrete(3)``: s, a, b. The leader's: ``Discrete(2)``.

    Observation Space:
        ``MultiDiscrete([3, 2])``: the state (S, A, B) and the leader's action; with ``sees_leader=False``
        ``Discrete(3)``, the state alone. ``observation="index"``: s̄ = 2 s + a.

    Starting State:
        S.

    Configuration:
        θ = f, the leader's policy, [3, 2] with rows that sum to 1; uniform by default. Only f(0|A) matters. Gradients
        come with each row's mean removed. Parameterisation: softmax of raw logits, started at N(0, 0.2²); named
        "mlp": the published network, 3–64–64–2.

    Reward:
        The follower's, by variant; in R1 and R2: 1 from S to A or B, R = 1 or 2 from A to B, −1 at A after a = 1.

    Leader Reward:
        By variant; in R1 and R2: 1 for each move from S to A.

    Episode End:
        Never by itself; truncated after 150 steps.

    Information:
        ``leader_reward``; and ``step``, the 0-based index of the step.

    Arguments:
        ``variant``: "R1", "R2" (the paper's Figure 4), or one of the further games "1_1a" to "3_2".
        ``sees_leader``: whether the follower sees a before it moves. ``beta`` (0.05), ``gamma_leader``,
        ``gamma_follower`` (0.99).

    Advised:
        Leaders draw three episodes per iteration (``batch_size=450``) and take ``learning_rate=0.02`` and
        ``critic_learning_rate=0.2`` here by default.

    Best Known:
        R1: J_L = 34.9926 at f(0|A) = 0.8335; R2: 39.9402 at 0.4974, by exact maximisation over f(0|A).

    References:
        Kudo, Tanabe, Wachi, Akimoto: arXiv:2603.14867, section 5.3.

    Version History:
        v0: first release.
    """

    variant: str = "R2"
    sees_leader: bool = True
    beta: float = 0.05
    gamma_leader: float = 0.99
    gamma_follower: float = 0.99

    advised: ClassVar[dict[str, object]] = {"batch_size": 450, "critic_learning_rate": 0.2, "learning_rate": 0.02}
    labels: ClassVar[str] = STATES
    positions: ClassVar[np.ndarray] = np.array([[0.5, 0.2], [0.2, 0.75], [0.8, 0.75]])

    def __post_init__(self) -> None:
        check_choice(self.variant, VARIANTS, "variant")
        check_choice(self.sees_leader, (True, False), "sees_leader")
        _ = self.preferences  # refuses bad ones

    @property
    def horizon(self) -> int:
        """Steps of an episode in PettingZoo's forms."""
        return VARIANTS[self.variant].horizon

    @cached_property
    def preferences(self) -> Preferences:
        """γ_L, γ_F and β."""
        return Preferences(self.gamma_leader, self.gamma_follower, self.beta)

    @cached_property
    def tables(self) -> GameTables:
        """The game's tables, [3, 2, 3, ...]."""
        variant, shape = VARIANTS[self.variant], (len(STATES), LEADER_ACTIONS, len(ACTIONS))
        arrives = np.broadcast_to(np.arange(len(STATES))[:, None, None], shape).copy()
        for where, target in _entries(variant.moves, ">"):
            arrives[where] = STATES.index(target)
        rewards = []
        for text, otherwise in ((variant.leader, 0.0), (variant.follower, variant.otherwise)):
            table = np.full(shape, otherwise)
            for where, amount in _entries(text, ":"):
                table[where] = float(amount)
            rewards.append(torch.from_numpy(table))
        start = torch.eye(len(STATES), dtype=torch.float64)[0]
        return GameTables(torch.eye(len(STATES), dtype=torch.float64)[torch.from_numpy(arrives)], start, *rewards)

    def best_known(self, preferences: Preferences) -> BestKnown | None:
        """For the paper's variants and preferences, a follower who sees the leader's draw."""
        if self.variant not in OPTIMA or not self.sees_leader or preferences != Preferences(0.99, 0.99, 0.05):
            return None
        share, value = OPTIMA[self.variant]
        theta = np.full((len(STATES), LEADER_ACTIONS), 0.5)
        theta[STATES.index("A")] = share, 1 - share
        return BestKnown(value, f"over f(0|A), which alone matters, at {share}", "exact maximisation", theta)


env, raw_env, parallel_env = pettingzoo_forms(ToyMarkovGame, "toy_markov_game_v0")


def _entries(text: str, sign: str) -> list[tuple[tuple[int | slice, ...], str]]:
    """Where in [state, leader action, action], and what stands there."""
    entries: list[tuple[tuple[int | slice, ...], str]] = []
    for word in text.split():
        where, what = word.split(sign)
        state, leader_action, action = where.split(",")
        entries.append(
            (
                (
                    STATES.index(state),
                    slice(None) if leader_action == "*" else int(leader_action),
                    slice(None) if action == "*" else ACTIONS.index(action),
                ),
                what,
            )
        )
    return entries
