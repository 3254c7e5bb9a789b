"""How a world moves, learnt: a Gaussian of s' − s given (s, b, θ), one pair of networks per run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bilevel_envs.core.noise import Noise
from bilevel_envs.networks.temporal_differences import xavier

LEAST_LOG_DEVIATION = (
    -7.0
)  # of s' − s in units of its own deviation: no world is taken for more exact than a thousandth
INSIDE = 1.645  # standard deviations that hold 90 % of a Gaussian


@dataclass(frozen=True)
class DynamicsFit:
    """How learnt dynamics are fitted.

    Attributes:
      hidden: width of each hidden layer of the mean's network, and of that of the deviation.
      first_steps, steps: Adam steps of the first fit, and of each that follows.
      minibatch: transitions per step.
      learning_rate: of Adam at the beginning of a fit; it falls to 0 towards the end.
    """

    hidden: tuple[int, ...] = (64, 64)
    first_steps: int = 3_000
    steps: int = 200
    minibatch: int = 256
    learning_rate: float = 3e-3


class GaussianDynamics:
    r"""s' = s + μ(s, b, θ) + σ(s, b, θ) ε, ε ~ N(0, I), in independent entries.

    μ is fitted by least squares and log σ by maximum likelihood at that μ, so that entries which hardly vary do not
    keep μ from being learnt. Inputs and s' − s are shifted and scaled by the first data's mean and deviation.

    Args:
      how: the particulars.
    """

    def __init__(self, how: DynamicsFit | None = None) -> None:
        self.how = how or DynamicsFit()
        self.mean: list[Tensor] = []  # layers of each run: weight [R, in, out], bias [R, 1, out], weight, ...
        self.spread: list[Tensor] = []
        self.scales: list[Tensor] = []  # of inputs and of s' − s: mean and deviation each, [R, 1, d]
        self._adam: torch.optim.Adam | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of s' − s, [R, K, n] each, at x = (s, b, θ) [R, K, d]; differentiable in x."""
        assert self.mean, "fit first"
        mean, log_deviation = self._scaled((x - self.scales[0]) / self.scales[1])
        return self.scales[2] + self.scales[3] * mean, self.scales[3].log() + log_deviation

    def fit(self, x: Tensor, moved: Tensor, used: Tensor, noise: Noise) -> None:
        """Some Adam steps, from where the last fit ended.

        Args:
          x: (s, b, θ), [R, K, d].
          moved: s' − s, [R, K, n].
          used: which transitions count, bool [R, K]; at least one of each run.
          noise: draws the first weights and the minibatches.
        """
        how, steps = self.how, self.how.steps
        if not self.mean:
            sizes = (x.shape[-1], *how.hidden, moved.shape[-1])
            self.mean, self.spread = ([one.requires_grad_() for one in xavier(sizes, noise)] for _ in range(2))
            self.scales = [*_moments(x, used), *_moments(moved, used)]
            steps = how.first_steps
        if self._adam is None:
            self._adam = torch.optim.Adam([*self.mean, *self.spread])
        x, moved = (x - self.scales[0]) / self.scales[1], (moved - self.scales[2]) / self.scales[3]
        for step, chosen in enumerate(_minibatches(used, how.minibatch, steps, noise)):
            self._adam.param_groups[0]["lr"] = how.learning_rate * (1 - step / steps)
            x_now, moved_now = (table[torch.arange(len(table))[:, None], chosen] for table in (x, moved))
            mean, log_deviation = self._scaled(x_now)
            off = mean - moved_now
            likelihood = (off.detach() * (-log_deviation).exp()).square() / 2 + log_deviation
            loss = (off.square() / 2 + likelihood).mean((1, 2)).sum()
            self._adam.zero_grad()
            loss.backward()
            self._adam.step()

    def quality(self, x: Tensor, moved: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """How well transitions `held` out, bool [R, K], are told, [R] each; NaN where there are fewer than two.

        Returns:
          R² of s' − s in that entry of the state where it is least, and the share of all entries inside 90 % intervals.
          Entries that do not move are left out.
        """
        with torch.no_grad():
            mean, log_deviation = self(x)
        count = held.sum(1)[:, None]
        middle = (moved * held[..., None]).sum(1, keepdim=True) / count[..., None]
        total = ((moved - middle).square() * held[..., None]).sum(1)
        left = ((moved - mean).square() * held[..., None]).sum(1)
        moves = total > 0
        told = torch.where(moves, 1 - left / total, torch.inf).amin(1)
        inside = ((moved - mean).abs() <= INSIDE * log_deviation.exp()) & held[..., None] & moves[:, None]
        share = inside.sum((1, 2)) / (count[:, 0] * moves.sum(1))
        known = (count[:, 0] > 1) & moves.any(1)
        return torch.where(known, told, torch.nan), torch.where(known, share, torch.nan)

    def copies(self, count: int) -> GaussianDynamics:
        """The same for `count` times as many runs, copy j of run i at j·R + i."""
        other = GaussianDynamics(self.how)
        for name in ("mean", "spread", "scales"):
            setattr(other, name, [part.detach().repeat(count, 1, 1) for part in getattr(self, name)])
        return other

    def state_dict(self) -> dict[str, object]:
        """Weights, scales and Adam's memory."""
        parts = {name: [part.detach().clone() for part in getattr(self, name)] for name in ("mean", "spread", "scales")}
        return parts | {"adam": None if self._adam is None else copy.deepcopy(self._adam.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.scales = [part.clone() for part in state["scales"]]
        self.mean, self.spread = ([one.clone().requires_grad_() for one in state[name]] for name in ("mean", "spread"))
        self._adam = None
        if state["adam"] is not None:
            self._adam = torch.optim.Adam([*self.mean, *self.spread])
            self._adam.load_state_dict(copy.deepcopy(state["adam"]))

    def _scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log deviation at scaled inputs, in the units of scaled moves."""
        return _smooth(self.mean, x), LEAST_LOG_DEVIATION + torch.nn.functional.softplus(
            _smooth(self.spread, x) - LEAST_LOG_DEVIATION
        )


def _smooth(layers: list[Tensor], x: Tensor) -> Tensor:
    """The networks' outputs, [R, K, D]; with SiLU between, because derivatives are what is asked for."""
    for index in range(0, len(layers), 2):
        if index:
            x = torch.nn.functional.silu(x)
        x = torch.baddbmm(layers[index + 1], x, layers[index])
    return x


def _moments(x: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the used entries, 1 where all are equal, [R, 1, d]."""
    share = used[..., None] / used.sum(1)[:, None, None]
    mean = (x * share).sum(1, keepdim=True)
    deviation = ((x - mean).square() * share).sum(1, keepdim=True).sqrt()
    return mean, torch.where(deviation > 1e-12, deviation, 1.0)


def _minibatches(used: Tensor, size: int, steps: int, noise: Noise) -> Iterator[Tensor]:
    """Numbers of transitions that are used, drawn with replacement, [R, size] for each step."""
    counts = used.sum(1, keepdim=True)
    order = used.int().sort(dim=1, descending=True, stable=True).indices
    for _ in range(steps):
        drawn = (torch.from_numpy(noise.uniform(size)) * counts).long()
        yield order.gather(1, drawn)
