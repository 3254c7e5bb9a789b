"""What trained networks give a leader: policies and soft values at states that are vectors, one network per run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor

Network = Callable[..., Tensor]
TINY = 1e-6  # squashed actions are kept so far inside their interval
NODES = 9  # of Gauss–Hermite quadrature
AT_ONCE = 5_000  # states whose soft values are taken together
DRAWS = 32  # of the follower's action, for its soft value


def run_by_run(networks: Sequence[Network], *inputs: Tensor) -> Tensor:
    """Applies network i to run i's inputs [R, ..., d_i], flattened between; [R, ..., D], float64.

    Raises:
      ValueError: if the first inputs, which are states, do not lead with R.
    """
    state, outputs = inputs[0], []
    if state.ndim < 2 or len(state) != len(networks):
        raise ValueError(
            f"`state` must have a leading runs axis, of length {len(networks)}, before a vector; got shape "
            f"{list(state.shape)}: a single state of a single run is state[None]"
        )
    for index, network in enumerate(networks):
        flat = [x[index].reshape(-1, x.shape[-1]).float() for x in inputs]
        outputs.append(network(*flat).double())
    return torch.stack(outputs).reshape(*state.shape[:-1], -1)


def _in_parts(function: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    """A function of states [R, ..., n], so many at a time that memory is no concern."""
    flat = state.reshape(len(state), -1, state.shape[-1])
    done = torch.cat([function(part) for part in flat.split(max(1, AT_ONCE // len(flat)), 1)], 1)
    return done.view(*state.shape[:-1], *done.shape[2:])


@dataclass(frozen=True)
class NetworkGaussian:
    """Actions whose size between `low` and `high` is Gaussian, squashed by tanh or not, with independent entries.

    Attributes:
      networks: per run, observations [K, n] → mean and log deviation side by side, [K, 2m].
      low, high: what −1 and 1 mean in the environment's units, [m].
      squashed: whether tanh stands between the Gaussian and the action; otherwise draws are clipped, and the density is
        that of what was not clipped.
    """

    networks: tuple[Network, ...]
    low: Tensor
    high: Tensor
    squashed: bool = True

    @property
    def action_shape(self) -> tuple[int, ...]:
        """[m]."""
        return (len(self.low),)

    @property
    def log_volume(self) -> float:
        """log of the change of volume from [−1, 1]^m to the environment's units."""
        return float(((self.high - self.low) / 2).log().sum())

    def sample(self, state: Tensor | np.ndarray, uniform: Tensor | np.ndarray) -> Tensor:
        """Actions [R, ..., m] in the environment's units from `uniform` in [0, 1), shaped like them."""
        normal = torch.from_numpy(ndtri(np.clip(np.asarray(uniform), np.finfo(float).tiny, 1 - 1e-16)))
        with torch.no_grad():
            return self.real(self.drawn(torch.as_tensor(state), normal))

    def drawn(self, state: Tensor, normal: Tensor) -> Tensor:
        """Actions in [−1, 1] from standard normal numbers, differentiable in the state."""
        mean, log_deviation = run_by_run(self.networks, state).chunk(2, -1)
        u = mean + log_deviation.exp() * normal
        return u.tanh().clamp(-1 + TINY, 1 - TINY) if self.squashed else u.clamp(-1, 1)

    def log_prob(self, state: Tensor, action: Tensor) -> Tensor:
        """log g(b | s) per unit of the environment's action, [R, ...]."""
        with torch.no_grad():
            return self.log_density(torch.as_tensor(state), self.scaled(action)) - self.log_volume

    def log_density(self, state: Tensor, scaled: Tensor) -> Tensor:
        """log density of actions in [−1, 1], [R, ...]; differentiable."""
        mean, log_deviation = run_by_run(self.networks, state).chunk(2, -1)
        inside = scaled.clamp(-1 + TINY, 1 - TINY)
        u = self._unsquashed(inside, mean) if self.squashed else scaled
        volume = torch.log1p(-(inside**2)).sum(-1) if self.squashed else 0.0
        white = (u - mean) / log_deviation.exp()
        return -(white**2 / 2 + log_deviation + np.log(2 * np.pi) / 2).sum(-1) - volume

    def _unsquashed(self, inside: Tensor, mean: Tensor) -> Tensor:
        """What tanh was applied to; of a saturated action, whatever beyond its edge is likeliest."""
        u = inside.atanh()
        high, low = inside >= 1 - 2 * TINY, inside <= -1 + 2 * TINY
        return torch.where(high, u.maximum(mean), torch.where(low, u.minimum(mean), u))

    def moments(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the action at states [R, ..., n], [R, ..., m], and its covariance, [R, ..., m, m], by quadrature."""
        points, weights = np.polynomial.hermite_e.hermegauss(NODES)
        with torch.no_grad():
            mean, log_deviation = run_by_run(self.networks, torch.as_tensor(state)).chunk(2, -1)
            u = mean[..., None] + log_deviation.exp()[..., None] * torch.from_numpy(points)
            action = self.real((u.tanh() if self.squashed else u).movedim(-1, 0)).movedim(0, -1)
            share = torch.from_numpy(weights / weights.sum())
            middle = (action * share).sum(-1)
            return middle, torch.diag_embed(((action - middle[..., None]) ** 2 * share).sum(-1))

    def real(self, scaled: Tensor) -> Tensor:
        """From [−1, 1] to the environment's units."""
        return self.low + (self.high - self.low) * (scaled + 1) / 2

    def scaled(self, action: Tensor) -> Tensor:
        """And back."""
        return 2 * (action - self.low) / (self.high - self.low) - 1

    def tiled(self, copies: int) -> Self:
        """For so many times as many runs."""
        return replace(self, networks=self.networks * copies)


@dataclass(frozen=True)
class NetworkQ:
    """Q_F(s, b) of soft actor-critics, in the environment's units.

    Attributes:
      networks: per run, observations [K, n] and actions in [−1, 1] [K, m] → [K, 1].
      policy: whose action it values.
      scale: what the agent's unit of reward is worth.
      shift: added, in the units of the follower's reward.
    """

    networks: tuple[Network, ...]
    policy: NetworkGaussian
    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        """At states [R, ..., n] and actions [R, ..., m], [R, ...]."""
        with torch.no_grad():
            return self.at_scaled(state, self.policy.scaled(action))

    def at_scaled(self, state: Tensor, scaled: Tensor) -> Tensor:
        """At actions in [−1, 1]; differentiable."""
        return self.scale * run_by_run(self.networks, state, scaled)[..., 0] + self.shift

    def tiled(self, copies: int) -> Self:
        """For so many times as many runs."""
        return replace(self, networks=self.networks * copies, policy=self.policy.tiled(copies))


@dataclass(frozen=True)
class NetworkV:
    """V_F(s) = E_b[Q_F(s, b) − β log g(b|s)], a mean over the same well-spread draws at every state.

    Attributes:
      q: Q_F.
      beta: β.
    """

    q: NetworkQ
    beta: float

    def __call__(self, state: Tensor) -> Tensor:
        """At states [R, ..., n], [R, ...]."""
        with torch.no_grad():
            return _in_parts(self._mean, torch.as_tensor(state))

    def gradient(self, state: Tensor) -> Tensor:
        """∇V_F at states [R, ..., n], shaped like them."""
        return _in_parts(self._slope, state)

    def _slope(self, state: Tensor) -> Tensor:
        leaf = state.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self._mean(leaf).sum(), leaf)
        return gradient

    def _mean(self, state: Tensor) -> Tensor:
        policy = self.q.policy
        (size,) = policy.action_shape
        spread = qmc.Sobol(size, seed=0).random(DRAWS)
        normal = torch.from_numpy(ndtri(np.clip(spread, 1e-9, 1 - 1e-9)))
        many = state[..., None, :].expand(*state.shape[:-1], DRAWS, -1)
        action = policy.drawn(many, normal)
        log_g = policy.log_density(many, action) - policy.log_volume
        return (self.q.at_scaled(many, action) - self.beta * log_g).mean(-1)

    def tiled(self, copies: int) -> Self:
        """For so many times as many runs."""
        return replace(self, q=self.q.tiled(copies))


@dataclass(frozen=True)
class NetworkCategorical:
    """Discrete actions at states that are vectors.

    Attributes:
      networks: per run, observations [K, n] → log-probabilities [K, B].
    """

    networks: tuple[Network, ...]
    action_shape: tuple[int, ...] = ()

    def action_nodes(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Every action at states [R, K, n], [R, K, B], with its probability as weight."""
        probs = self.log_probs(state).exp()
        return torch.arange(probs.shape[-1]).expand(probs.shape), probs

    def log_probs(self, state: Tensor) -> Tensor:
        """log g at states [R, ..., n], [R, ..., B]."""
        with torch.no_grad():
            return run_by_run(self.networks, torch.as_tensor(state))

    def sample(self, state: Tensor | np.ndarray, uniform: Tensor | np.ndarray) -> Tensor:
        """Actions by inverse CDF, [R, ...]."""
        cdf = self.log_probs(torch.as_tensor(state)).exp().cumsum(-1)
        cdf[..., -1] = 1.0
        return (cdf <= torch.as_tensor(uniform)[..., None]).sum(-1)

    def log_prob(self, state: Tensor, action: Tensor) -> Tensor:
        """log g(b | s), [R, ...]."""
        return self.log_probs(state).gather(-1, action[..., None])[..., 0]

    def expect(self, q: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
        """E_b[q(s, b)], [R, ...]; `q(state)` gives [..., B]."""
        return (self.log_probs(state).exp() * q(state)).sum(-1)

    def tiled(self, copies: int) -> Self:
        """For so many times as many runs."""
        return replace(self, networks=self.networks * copies)


@dataclass(frozen=True)
class NetworkActionValues:
    """Q_F with one output per discrete action, or V_F = β log Σ_b exp(Q_F / β) without an action.

    Attributes:
      networks: per run, observations [K, n] → [K, B], in the follower's units.
      beta: β.
    """

    networks: tuple[Network, ...]
    beta: float

    def __call__(self, state: Tensor, action: Tensor | None = None) -> Tensor:
        """At states [R, ..., n], [R, ...]."""
        with torch.no_grad():
            q = run_by_run(self.networks, torch.as_tensor(state))
        if action is None:
            return self.beta * torch.logsumexp(q / self.beta, -1)
        return q.gather(-1, action[..., None])[..., 0]

    def gradient(self, state: Tensor) -> Tensor:
        """∇V_F at states [R, ..., n], shaped like them."""
        leaf = torch.as_tensor(state).detach().clone().requires_grad_()
        v = self.beta * torch.logsumexp(run_by_run(self.networks, leaf) / self.beta, -1)
        (slope,) = torch.autograd.grad(v.sum(), leaf)
        return slope

    def tiled(self, copies: int) -> Self:
        """For so many times as many runs."""
        return replace(self, networks=self.networks * copies)
