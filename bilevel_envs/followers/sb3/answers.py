"""What trained agents of SB3 answer: g, Q_F and V_F in the environment's units, None for what is not soft."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.follower import Policy, ValueFunction
from bilevel_envs.networks.policies import (
    Network,
    NetworkActionValues,
    NetworkCategorical,
    NetworkGaussian,
    NetworkQ,
    NetworkV,
)
from bilevel_envs.worlds.tabular.model import Table
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy

if TYPE_CHECKING:
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.running_mean_std import RunningMeanStd
    from stable_baselines3.sac.policies import Actor

EPSILON, MOST = 1e-8, 10.0  # of SB3's VecNormalize

Answer: TypeAlias = tuple[Policy, ValueFunction | None, ValueFunction | None]


def tables(
    kind: str, agents: Sequence[Any], seen: np.ndarray, beta: float, scale: float, scales: Sequence[RunningMeanStd] = ()
) -> Answer:
    """g, Q_F and V_F read out at every state of a table.

    Args:
      kind: which algorithm it is.
      agents: one per run.
      seen: what the follower sees in each state, [S] or [S, ...].
      beta: β.
      scale: what the agents' unit of reward is worth.
      scales: of the observations, one per agent; none where they are not normalised.
    """
    log_probs, q = [], []
    for number, agent in enumerate(agents):
        shown = _normaliser(scales[number])(torch.from_numpy(seen)).numpy() if scales else seen
        tensor = agent.policy.obs_to_tensor(shown)[0]
        with torch.no_grad():
            if kind not in ("SoftDQN", "DQN"):
                log_probs.append(_log_probs(agent.policy, tensor))
                continue
            values = agent.q_net(tensor).double() * scale
            q.append(values)
            log_probs.append(_boltzmann(values, beta) if kind == "SoftDQN" else _greedy(values, agent.exploration_rate))
    policy = BoltzmannPolicy(torch.stack(log_probs))
    if kind != "SoftDQN":
        return policy, None, None
    table = torch.stack(q)
    return policy, Table(table), Table(beta * torch.logsumexp(table / beta, -1))


def functions(
    kind: str,
    agents: Sequence[Any],
    runs: int,
    space: gym.Space,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    beta: float,
    scale: float,
    scales: Sequence[RunningMeanStd] = (),
) -> Answer:
    """g, Q_F and V_F as functions of states that are vectors, by copies of the networks as they are now.

    Args:
      kind: which algorithm it is.
      agents: one per run, or one for all.
      runs: R.
      space: the follower's actions.
      bounds: what SAC's −1 and 1 stand for, [m] each.
      beta: β.
      scale: what the agents' unit of reward is worth.
      scales: of the observations, one per agent; none where they are not normalised.
    """
    shown = [_normaliser(one) for one in scales] or [_as_it_is] * len(agents)

    def of_agents(network: Callable[..., Network], *further: Sequence[Any]) -> tuple[Network, ...]:
        each = zip(nets, shown, *further, strict=True)
        made = [_composed(network(net, *own), seen) for net, seen, *own in each]
        return tuple(made * (runs // len(agents)))

    nets = [_snapshot(agent.policy) for agent in agents]
    if kind == "SoftDQN":
        q = NetworkActionValues(of_agents(lambda net: _scaled(net.q_net, scale)), beta)
        return NetworkCategorical(tuple(_softly(f, beta) for f in q.networks)), q, q
    if kind == "DQN":
        shares = [agent.exploration_rate for agent in agents]
        return NetworkCategorical(of_agents(lambda net, share: _greedily(net.q_net, share), shares)), None, None
    if isinstance(space, gym.spaces.Discrete):
        return NetworkCategorical(of_agents(_categorical)), None, None
    if kind != "SAC":
        assert isinstance(space, gym.spaces.Box)
        low, high = torch.from_numpy(space.low).double(), torch.from_numpy(space.high).double()
        normal = of_agents(lambda net: _normal(net, low, high))
        return NetworkGaussian(normal, low, high, squashed=False), None, None
    assert bounds is not None
    low, high = (torch.from_numpy(bound) for bound in bounds)
    policy = NetworkGaussian(of_agents(lambda net: _squashed(net.actor)), low, high)
    own_q = NetworkQ(of_agents(lambda net: _least(net.critic)), policy, scale, -beta * policy.log_volume)
    return policy, own_q, NetworkV(own_q, beta)


def _snapshot(policy: Any) -> Any:
    """A copy of a policy's networks that further training does not touch."""
    file = io.BytesIO()
    policy.save(file)
    file.seek(0)
    return type(policy).load(file, device="cpu")


# Networks as functions of observations [K, n].


def _normaliser(scale: RunningMeanStd) -> Network:
    """Observations as SB3's `VecNormalize` shows them now."""
    mean, deviation = (torch.from_numpy(part.copy()) for part in (scale.mean, np.sqrt(scale.var + EPSILON)))
    return lambda x: ((x - mean) / deviation).clamp(-MOST, MOST).float()


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _composed(network: Network, seen: Network) -> Network:
    return lambda x, *more: network(seen(x), *more)


def _boltzmann(q: Tensor, beta: float) -> Tensor:
    return torch.log_softmax(q / beta, -1)


def _greedy(q: Tensor, share: float) -> Tensor:
    """log g of DQN: the best action, and any with what is left of its exploration."""
    actions = q.shape[-1]
    return torch.log(torch.nn.functional.one_hot(q.argmax(-1), actions) * (1 - share) + share / actions)


def _distribution(policy: ActorCriticPolicy, seen: Tensor) -> Any:
    return policy.get_distribution(seen).distribution  # torch's own, of which SB3's annotation says less


def _log_probs(policy: ActorCriticPolicy, seen: Tensor) -> Tensor:
    return torch.log_softmax(_distribution(policy, seen).logits.double(), -1)


def _scaled(network: Network, scale: float) -> Network:
    return lambda x: network(x).double() * scale


def _softly(values: Network, beta: float) -> Network:
    return lambda x: _boltzmann(values(x), beta)


def _greedily(values: Network, share: float) -> Network:
    return lambda x: _greedy(values(x).double(), share)


def _categorical(policy: ActorCriticPolicy) -> Network:
    return lambda x: _log_probs(policy, x)


def _squashed(actor: Actor) -> Network:
    return lambda x: torch.cat(actor.get_action_dist_params(x)[:2], -1)


def _normal(policy: ActorCriticPolicy, low: Tensor, high: Tensor) -> Network:
    half, middle = ((high - low) / 2).float(), ((high + low) / 2).float()

    def network(x: Tensor) -> Tensor:
        normal = _distribution(policy, x)
        return torch.cat([(normal.mean - middle) / half, torch.log(normal.stddev / half)], -1)

    return network


def _least(critic: Callable[..., tuple[Tensor, ...]]) -> Network:
    return lambda x, b: torch.cat(critic(x, b), 1).min(1, keepdim=True).values
