"""Bi-AC: an actor and a critic with the backup of a stage game."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import torch

from leaders.algorithms.replay import check_replay
from leaders.config import Sampling, given
from leaders.estimators.trajectory import SampledLeader


class BiAC(SampledLeader):
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
        critic_learning_rate: as in ``BCHG``.
        critic_start: as in ``BCHG``.
        tail: as in ``BCHG``.
        score_weight: as in ``BCHG``.
        batch_size: transitions per outer iteration and run; None for the environment's advice, or 100.
        rows: as in ``BCHG``.
        sampler: ``"fused"`` or ``"steps"``.
        learning_rate: step size, a number or one per run.
        optimizer: ``"sgd"`` or ``"adam"``.
        max_grad_norm: ℓ2 clip of a run's raw gradient; inf for none.
        policy: a module whose ``forward()`` is θ, or the name of one that the environment has; None for its default.
        runs: number of stacked runs; None for a single one without a runs axis.
        seed: run i uses the stream of seed + i; or one seed per run.
        verbose: 0 for silence, 1 for a table now and then.
        tensorboard_log: folder for events, or None.

    References:
        The baseline "Bi-AC" of arXiv:2603.14867.
    """

    name: ClassVar[str] = "bi-ac"

    def __init__(
        self,
        env: gym.Env,
        *,
        preset: str | None = None,
        replay: bool | None = None,
        critic_learning_rate: Any = None,
        critic_start: str | None = None,
        cross_fit: bool | None = None,
        tail: str | None = None,
        score_weight: str | None = None,
        batch_size: int | None = None,
        rows: int | None = None,
        sampler: str | None = None,
        learning_rate: Any = None,
        optimizer: str | None = None,
        max_grad_norm: float | None = None,
        policy: torch.nn.Module | str | None = None,
        runs: int | None = None,
        seed: int | Sequence[int] = 0,
        verbose: int = 0,
        tensorboard_log: str | None = None,
    ) -> None:
        arguments = given(locals())
        check_replay(replay, preset)
        replay = True if replay is None and preset == "paper" else replay
        default = Sampling("naive_pgd", critic="stage_game", control_variate="none")
        super().__init__(env, arguments | {"replay": replay}, {None: default, "paper": default})
