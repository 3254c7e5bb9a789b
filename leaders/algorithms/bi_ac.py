"""Bi-AC: an actor and a critic with the backup of a stage game."""

from __future__ import annotations

from typing import ClassVar, Unpack

import gymnasium as gym

from leaders.algorithms.replay import check_replay
from leaders.config import EstimatorConfig, Forms, is_published
from leaders.estimators.trajectory import TrajectoryLeader
from leaders.keywords import EstimatorKeywords


class BiAC(TrajectoryLeader):
    r"""Bi-AC: first-order policy gradient for the leader of a game, with the backup of a stage game in its critic.

    .. math::

        Q_L(s, a, b) = r_L + \gamma_L \max_{a'} Q_L(s', a', b^*(s', a')),
        \qquad b^*(s, a) = \arg\max_b g(b | s, a)

    The guiding weight is 0 as in ``NaivePGD``. The critic supposes a leader that commits anew in every state, while the
    follower
    replies to the policy that the leader has: where only a mixed policy keeps the follower interested, as in the toy
    Markov game, it promises what will not come.

    Args:
        env: a ``BilevelWrapper`` around a finite game whose follower sees the leader's move.
        preset: None or ``"paper"``: networks for policy and critic, Adam, replay, target networks that move by 1 % per
            outer iteration (``leaders.paper.actor_critic`` lists the choices).
        replay: with the preset, learn from all transitions so far (the default) or from the last batch.

    References:
        The baseline "Bi-AC" of arXiv:2603.14867.
    """

    name: ClassVar[str] = "bi-ac"
    without: ClassVar[frozenset[str]] = frozenset({"control_variate", "critic", "gradient", "guiding"})

    def __init__(
        self,
        env: gym.Env,
        *,
        preset: str | None = None,
        replay: bool | None = None,
        **keywords: Unpack[EstimatorKeywords],
    ) -> None:
        check_replay(replay, preset)
        replay = True if replay is None and is_published(preset) else replay
        default = EstimatorConfig("naive_pgd", critic="stage_game", control_variate="none")
        super().__init__(env, {"preset": preset, "replay": replay}, keywords, Forms({None: default, "paper": default}))
