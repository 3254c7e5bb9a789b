"""Small networks, one per run side by side, fitted to temporal differences."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bilevel_envs.core.checks import check_choice, check_count, keep_counts, keep_numbers
from bilevel_envs.core.noise import Noise

MOST = 3.0  # of an input that has been scaled
CHUNK = 4_000_000  # hidden values that are held at a time where no gradient is wanted


@dataclass(frozen=True)
class Fit:
    """How a network is fitted to a batch.

    Attributes:
      hidden: width of each hidden layer.
      steps: Adam steps per batch.
      minibatch: transitions per step; None for all of the batch.
      learning_rate: of Adam.
      max_grad_norm: ℓ2 clip of a run's gradient.
      refresh: steps between two copies of the network into the target; None for no target network: the network's
        present values are the target, without gradient.
      restart: begin every batch with the first network again, instead of where the last batch ended.
      on_sample: bootstrap from the pair that the trajectory visits next, and leave out steps where it is cut, instead
        of from an expectation under the policy at the next state.
      draws: actions drawn for an expectation; None for quadrature where actions are few, and 64 draws elsewhere.
      output: gain of the last layer's first weights.
      scaled: inputs are divided by their root mean square and rewards by theirs over 1 − γ, both of the first batch,
        inputs by more if one were larger than 3 otherwise. If False, inputs stay as they are, and so do rewards, unless
        `normalised`.
      normalised: rewards are divided by the batch's largest absolute one, and predictions multiplied by it.
    """

    hidden: tuple[int, ...] = (64, 64)
    steps: int = 200
    minibatch: int | None = 512
    learning_rate: float = 3e-3
    max_grad_norm: float = 1.0
    refresh: int | None = 25
    restart: bool = False
    on_sample: bool = False
    draws: int | None = None
    output: float = 1.0
    scaled: bool = True
    normalised: bool = False

    def __post_init__(self) -> None:
        keep_counts(self, "steps")
        for name in ("minibatch", "refresh", "draws"):
            if getattr(self, name) is not None:
                keep_counts(self, name)
        if not isinstance(self.hidden, (tuple, list)):
            raise TypeError(f"`hidden` must be a tuple of widths, got {self.hidden!r}")
        object.__setattr__(self, "hidden", tuple(check_count(width, "hidden") for width in self.hidden))
        for name in ("restart", "on_sample", "scaled", "normalised"):
            check_choice(getattr(self, name), (True, False), name)
        keep_numbers(self, "learning_rate", "max_grad_norm", "output", above=0)


DEFAULT_FIT = Fit()
# As the published code for building thermal control fits all of its networks (arXiv:2603.14867; values from the code).
PUBLISHED_FIT = Fit(
    steps=5_000,
    minibatch=None,
    learning_rate=1e-4,
    refresh=None,
    restart=True,
    on_sample=True,
    draws=256,
    output=0.01,
    scaled=False,
)


class TemporalDifference:
    r"""R multilayer perceptrons f with f(x_k) ≈ E Σ_j γ^j r_{k+j}, by semi-gradient regression on r + γ f(x').

    Args:
      gamma: γ.
      how: the particulars.
    """

    def __init__(self, gamma: float, how: Fit) -> None:
        self.gamma, self.how = gamma, how
        self.layers: list[Tensor] = []  # weight [R, in, out], bias [R, 1, out], weight, ...; float64: seeds stay apart
        self.first: list[Tensor] = []
        self.input_scale = self.output_scale = self.paid = torch.ones(1, 1, 1)
        self._adam: torch.optim.Adam | None = None

    @property
    def outputs(self) -> int:
        """D, 1 before the first fit."""
        return self.first[-1].shape[-1] if self.first else 1

    def __call__(self, x: Tensor) -> Tensor:
        """Values at x [R, ..., d], float64 [R, ..., D]."""
        assert self.layers, "fit first"
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        at_once = max(1, CHUNK // (flat.shape[0] * max(self.how.hidden, default=1)))
        with torch.no_grad():
            scaled = [through(self.layers, part / self.input_scale) for part in flat.split(at_once, 1)]
        return (torch.cat(scaled, 1) * self.output_scale * self.paid).view(*x.shape[:-1], -1)

    def gradient(self, x: Tensor) -> Tensor:
        """∇f of a single output at x [R, ..., d], shaped like x."""
        leaf = x.detach().reshape(x.shape[0], -1, x.shape[-1]).clone().requires_grad_()
        value = through(self.layers, leaf / self.input_scale) * self.output_scale * self.paid
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        return slope.view(x.shape)

    def fit(
        self,
        x: Tensor,
        reward: Tensor,
        used: Tensor,
        following: Callable[[Callable[[Tensor], Tensor]], Tensor],
        noise: Noise,
    ) -> None:
        """Fits to the transitions of a batch.

        Args:
          x: inputs, [R, K, d].
          reward: [R, K, D].
          used: which transitions count, bool [R, K].
          following: a function of f that gives E[f(x')] for each transition, 0 where nothing follows, [R, K, D].
          noise: draws the first weights and the minibatches.
        """
        how = self.how
        self._prepare(x, reward, used, noise)
        assert self._adam is not None
        x, reward = x / self.input_scale, reward / self.output_scale
        parts = self._minibatches(x.shape[1], noise)
        target = torch.empty(0)
        for step in range(how.steps):
            if how.refresh is None or step % how.refresh == 0:
                later = following(self) / self.output_scale
                target = reward + self.gamma * later
            chosen = next(parts)
            x_now, target_now, used_now = (one if chosen is None else _taken(one, chosen) for one in (x, target, used))
            off = (through(self.layers, x_now) - target_now).square().mean(-1) * used_now
            loss = (off.sum(1) / used_now.sum(1).clamp(min=1)).sum()
            self._adam.zero_grad()
            loss.backward()
            _clip(self.layers, how.max_grad_norm)
            self._adam.step()

    def _prepare(self, x: Tensor, reward: Tensor, used: Tensor, noise: Noise) -> None:
        """Draws the first weights, and keeps scales, layers and Adam fit for a batch."""
        how = self.how
        paid = (reward * used[..., None]).ne(0).any(1, keepdim=True).double()
        self.paid = torch.maximum(self.paid, paid) if self.layers else paid  # 0 where no return was ever had
        if not self.layers:
            count = used.sum(1).clamp(min=1)[:, None, None]
            self.first = _orthogonal((x.shape[-1], *how.hidden, reward.shape[-1]), how.output, noise)
            if how.scaled:
                self.input_scale = _rms(x, used, count)
                self.output_scale = _rms(reward, used, count) / (1 - self.gamma)
        if how.scaled:  # whatever is rare in the first batch, as entries of one-hot vectors are
            largest = (x * used[..., None]).abs().amax(1, keepdim=True)
            self.input_scale = torch.maximum(self.input_scale, largest / MOST)
        if not self.layers or how.restart:
            self.layers = [layer.clone().requires_grad_() for layer in self.first]
            self._adam = None
        if self._adam is None:
            self._adam = torch.optim.Adam(self.layers, lr=how.learning_rate)
        if how.normalised:
            largest = (reward * used[..., None]).abs().amax(1, keepdim=True)
            self.output_scale = torch.where(largest > 0, largest, 1.0)

    def _minibatches(self, steps: int, noise: Noise) -> Iterator[Tensor | None]:
        """Numbers of transitions, [R, size], each once before one comes again; None for all of them."""
        size = min(self.how.minibatch or steps, steps)
        while size == steps:
            yield None
        while True:
            order = torch.from_numpy(noise.permutation(steps))
            for first in range(0, steps - size + 1, size):
                yield order[:, first : first + size]

    def copies(self, count: int) -> TemporalDifference:
        """The same for `count` times as many runs, copy j of run i at j·R + i."""
        other = TemporalDifference(self.gamma, self.how)
        other.first = [layer.repeat(count, 1, 1) for layer in self.first]
        other.layers = [layer.detach().repeat(count, 1, 1).requires_grad_() for layer in self.layers]
        for name in ("input_scale", "output_scale", "paid"):
            scale = getattr(self, name)
            setattr(other, name, scale if len(scale) == 1 else scale.repeat(count, 1, 1))
        return other

    def state_dict(self) -> dict[str, object]:
        """Weights, scales and Adam's memory."""
        return {
            "first": [layer.clone() for layer in self.first],
            "layers": [layer.detach().clone() for layer in self.layers],
            "scales": [self.input_scale.clone(), self.output_scale.clone(), self.paid.clone()],
            "adam": copy.deepcopy(self._adam.state_dict()) if self._adam is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave; the particulars of the fit stay this one's own.

        Raises:
          ValueError: if the layers saved have other widths than `how.hidden`.
        """
        widths = tuple(layer.shape[-1] for layer in state["first"][:-2:2])
        if state["first"] and widths != tuple(self.how.hidden):
            raise ValueError(f"`hidden` must be that of the saved network, {widths}, got {self.how.hidden}")
        self.first = [layer.clone() for layer in state["first"]]
        self.layers = [layer.clone().requires_grad_() for layer in state["layers"]]
        self.input_scale, self.output_scale, self.paid = state["scales"]
        self._adam = None
        if state["adam"] is not None:
            self._adam = torch.optim.Adam(self.layers, lr=self.how.learning_rate)
            self._adam.load_state_dict(copy.deepcopy(state["adam"]))
            self._adam.param_groups[0]["lr"] = self.how.learning_rate


def through(layers: list[Tensor], x: Tensor) -> Tensor:
    """The networks' outputs, [R, K, D]."""
    for index in range(0, len(layers), 2):
        if index:
            x = x.relu()
        x = torch.baddbmm(layers[index + 1], x, layers[index])
    return x


def xavier(sizes: tuple[int, ...], noise: Noise) -> list[Tensor]:
    """First weights: Xavier-uniform, biases 0; weight [R, in, out], bias [R, 1, out], weight, ..., float64."""
    layers = []
    for inner, outer in pairwise(sizes):
        start = (6 / (inner + outer)) ** 0.5 * (2 * noise.uniform(inner, outer) - 1)
        layers += [torch.from_numpy(start), torch.zeros(noise.runs, 1, outer, dtype=torch.float64)]
    return layers


def _orthogonal(sizes: tuple[int, ...], output: float, noise: Noise) -> list[Tensor]:
    """First weights: orthogonal with gain √2, the last layer's with gain `output`; biases 0."""
    layers = []
    for index, (inner, outer) in enumerate(pairwise(sizes)):
        normal = torch.from_numpy(noise.normal(max(inner, outer), min(inner, outer)))
        q, r = torch.linalg.qr(normal)
        q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
        gain = output if index == len(sizes) - 2 else 2**0.5
        weight = gain * (q if inner >= outer else q.mT)
        layers += [weight.contiguous(), torch.zeros(noise.runs, 1, outer, dtype=weight.dtype)]
    return layers


def _rms(x: Tensor, used: Tensor, count: Tensor) -> Tensor:
    """Root mean square over the used entries, 1 where all are 0, [R, 1, d]."""
    size = ((x.square() * used[..., None]).sum(1, keepdim=True) / count).sqrt()
    return torch.where(size > 0, size, 1.0)


def _taken(table: Tensor, chosen: Tensor) -> Tensor:
    """Rows `chosen` [R, k] of a table [R, K, ...]."""
    return table[torch.arange(len(table))[:, None], chosen]


def _clip(layers: list[Tensor], most: float) -> None:
    """Scales each run's gradient down to the norm `most`."""
    gradients = [layer.grad for layer in layers if layer.grad is not None]
    norm = torch.stack([gradient.square().sum((1, 2)) for gradient in gradients]).sum(0).sqrt()
    scale = (most / norm.clamp(min=1e-30)).clamp(max=1.0)[:, None, None]
    for gradient in gradients:
        gradient.mul_(scale)
