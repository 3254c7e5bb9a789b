"""Successive halving of starts on sampled returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.mdp import Parameterization
from bilevel_envs.core.noise import Noise

RUNGS = ((1, 32), (4, 8), (16, 1))  # episodes of each candidate, and how many are kept after them
DRAWS = 24  # random candidates beside the vertices
SPREAD = 3.0  # standard deviation of random candidates around the start, where the policy names none of its own


@dataclass(frozen=True)
class Found:
    """What halving found.

    Attributes:
      raw: the best candidate's raw parameters, [R, n].
      mean: its mean return in the last rung, [R].
      steps: environment steps spent, [R].
      solves: responses of the follower, per run.
      follower_steps: what those cost in steps, per run.
      episodes: sampled, per run.
    """

    raw: Tensor
    mean: Tensor
    steps: Tensor
    solves: int
    follower_steps: int
    episodes: int


def candidates(
    policy: torch.nn.Module, start: Tensor, seeds: Sequence[int], *, draws: int, vertices: bool = True
) -> list[Tensor]:
    """Raw parameters far apart, [K, n] for each run: the policy's vertices, and draws that depend on the run's seed.

    Args:
      policy: the leader's.
      start: its raw parameters, [R, n]; draws are spread around them where it names none of its own.
      seeds: of the runs.
      draws: how many.
      vertices: whether the vertices are among them.
    """
    hooks = policy if isinstance(policy, Parameterization) else Parameterization()
    corners = hooks.vertices() if vertices else None
    found = []
    for run, seed in enumerate(seeds):
        parts = [start[:0]] if corners is None else [corners.reshape(len(corners), -1)]
        if draws:
            noise = Noise([[seed, 3, draw] for draw in range(draws)])
            drawn = hooks.scattered(noise)
            if drawn is None:
                drawn = start[run] + SPREAD * torch.from_numpy(noise.normal(start.shape[1]))
            parts.append(drawn.reshape(draws, -1))
        found.append(torch.cat(parts).double())
    return found


def halved(
    raw: Tensor, trial: Callable[[Tensor, int], tuple[Rollout, int]], value: Callable[[Rollout], Tensor]
) -> Found:
    """The candidate with the largest sampled return, by trials of ever more episodes of ever fewer candidates.

    Args:
      raw: the candidates, [K, R, n].
      trial: raw parameters [R, n], episodes → a batch of so many there, and the follower's steps.
      value: a batch → its mean return, [R].
    """
    runs, steps = raw.shape[1], torch.zeros(raw.shape[1], dtype=torch.long)
    solves = follower_steps = sampled = 0
    mean = torch.zeros(len(raw), runs, dtype=torch.float64)
    for episodes, kept in RUNGS:
        for index, candidate in enumerate(raw):
            batch, spent = trial(candidate, episodes)
            mean[index] = value(batch)
            steps += batch.valid.sum((1, 2))
            solves, follower_steps, sampled = solves + 1, follower_steps + spent, sampled + episodes
        best = mean.argsort(dim=0, descending=True, stable=True)[:kept]  # [kept, R]
        raw = torch.stack([raw[best[:, run], run] for run in range(runs)], 1)
        mean = mean.gather(0, best)
    return Found(raw[0], mean[0], steps, solves, follower_steps, sampled)
