"""A Stable-Baselines3 agent as the follower."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_envs._checks import check_choice, check_count, check_number
from bilevel_envs.follower import BestResponse, FollowerError, Missing
from bilevel_envs.followers.network_policies import (
    NetworkActionValues,
    NetworkCategorical,
    NetworkGaussian,
    NetworkQ,
    NetworkV,
)
from bilevel_envs.followers.riccati import Riccati
from bilevel_envs.followers.soft_value_iteration import SoftValueIteration
from bilevel_envs.linear_quadratic import LinearQuadraticModel
from bilevel_envs.noise import Noise
from bilevel_envs.policies import BoltzmannPolicy
from bilevel_envs.tabular import Table, TabularModel

STARTS = ("warm", "cold")
BUFFERS = ("clear", "keep", "relabel")
SCHEDULES = ("response", "total")
EPISODES = 64  # that measure a response's soft return where nothing exact is to be had
SMALL = 1e-3  # of the discount, beyond which an episode is not followed for that
GIVEN = {"gamma": "γ_F, which the problem has", "env": "the environment", "seed": "`seed` of the follower"}


class SB3Follower:
    r"""Learns to live at θ with an algorithm of Stable-Baselines3, one agent per run, and goes on learning as θ moves.

    What it can give depends on the algorithm:

    ==========================  =======================  ================================================
    algorithm                   g and log g              soft Q and V
    ==========================  =======================  ================================================
    SAC (vectors)               squashed Gaussian        least of its critics; E_b[Q − β log g]
    SoftDQN (discrete actions)  softmax(Q / β)           its network; β log Σ exp(Q / β)
    DQN (discrete actions)      greedy, with its ε       not available: wrap it in ``ObservedFollower``
    PPO, A2C                    its own distribution     not available: wrap it in ``ObservedFollower``
    ==========================  =======================  ================================================

    Where states are countable, the networks are read out at every state and the answer is a table. Densities, Q and V
    are in the environment's units, whatever the agent's are. SAC and SoftDQN learn the problem's own objective,
    E Σ γ_F^t (r_F + β H(g)); PPO and A2C are given β as their entropy coefficient, which is another objective.

    The residual is, where the world is a table, the exact shortfall of the soft return from its optimum; where it is
    linear-quadratic, the same over 64 episodes; elsewhere how much the mean reward per step rose
    from the third to the last quarter of the training. Costs `steps` environment steps per response and run, counted as
    ``follower_steps``, and the algorithm's gradient steps: some 3 to 8 ms each on one core for networks of this size.

    Args:
      algorithm: "SAC", "SoftDQN", "DQN", "PPO", "A2C", or a subclass of SB3's ``BaseAlgorithm``.
      steps: environment steps of a response (PPO and A2C round up to whole rollouts).
      first_steps: of the first response; None for `steps`.
      total_steps: of all responses; what comes after answers with what has been learnt. None for no end.
      start: "warm" goes on with the agent of the last response, "cold" begins with a new one.
      buffer: transitions of earlier θ: "clear" forgets them, "keep" learns from them as they are, "relabel" gives them
        the reward that they have at the new θ (worlds whose model knows r_F; where θ moves the dynamics, what follows
        a step stays as it was).
      schedule: schedules of learning rate and exploration run through once per "response" or over all `total_steps`.
      envs: environments stepped side by side.
      beta: overrides the problem's β.
      reward_scale: rewards are divided by it on their way to the agent; β, Q and V are converted.
      action_range: what SAC's 1 stands for, −1 for its negative, a number or a list of one per entry; a tuple (low,
        high) says both; None for the bounds of the action space. Optimal actions that fill a thousandth of their space
        are hard to learn.
      model_file: a zip of SB3's ``save`` from which agents begin.
      seed: run i learns with the stream of (seed, i).
      policy: SB3's.
      kwargs: further arguments of the algorithm.

    Raises:
      ValueError: if an argument does not fit, by name.
    """

    def __init__(
        self,
        algorithm: str | type = "SAC",
        steps: int = 20_000,
        *,
        first_steps: int | None = None,
        total_steps: int | None = None,
        start: str = "warm",
        buffer: str = "clear",
        schedule: str = "response",
        envs: int = 1,
        beta: float | None = None,
        reward_scale: float = 1.0,
        action_range: Any = None,
        model_file: str | Path | None = None,
        seed: int = 0,
        policy: Any = "MlpPolicy",
        **kwargs: Any,
    ) -> None:
        self.algorithm, self.policy, self.kwargs = _class_of(algorithm), policy, kwargs
        self.steps = check_count(steps, "steps")
        self.first_steps = self.steps if first_steps is None else check_count(first_steps, "first_steps")
        self.total_steps = None if total_steps is None else check_count(total_steps, "total_steps")
        check_choice(start, STARTS, "start")
        check_choice(buffer, BUFFERS, "buffer")
        check_choice(schedule, SCHEDULES, "schedule")
        if schedule == "total" and total_steps is None:
            raise ValueError('`total_steps` must be given with schedule="total", got None')
        self.start, self.buffer, self.schedule = start, buffer, schedule
        self.envs, self.seed = check_count(envs, "envs"), check_count(seed, "seed", at_least=0)
        if beta is not None:
            check_number(beta, "beta", above=0, remedy="β is the follower's entropy coefficient")
        self.beta = beta
        check_number(reward_scale, "reward_scale", above=0)
        self.reward_scale, self.action_range = float(reward_scale), action_range
        self.model_file = None if model_file is None else Path(model_file)
        for name in sorted(set(GIVEN) & set(kwargs)):
            raise ValueError(f"`{name}` must not be given to the algorithm: it is {GIVEN[name]}")
        if self.soft and {"ent_coef", "beta"} & set(kwargs):
            raise ValueError("`ent_coef` must not be given: it is β, in the units of the agent's rewards")
        self.agents: list[Any] = []
        self.responses = self.spent = 0
        self._residual: Tensor | None = None

    def __repr__(self) -> str:
        told = {"steps": self.steps, "start": self.start, "buffer": self.buffer, "seed": self.seed, **self.kwargs}
        said = ", ".join(f"{name}={value!r}" for name, value in told.items())
        return f"SB3Follower({self.algorithm.__name__!r}, {said})"

    @property
    def kind(self) -> str:
        """Which of the known algorithms this is one of, or "other"."""
        names = [one.__name__ for one in self.algorithm.__mro__]
        return next((name for name in ("SAC", "SoftDQN", "DQN", "PPO", "A2C") if name in names), "other")

    @property
    def soft(self) -> bool:
        """Whether it learns the problem's own objective."""
        return self.kind in ("SAC", "SoftDQN")

    # What a leader asks ---------------------------------------------------------------------------------------

    def respond(self, env: Any, theta: np.ndarray, model: Any, start: Any = None, learn: bool = True) -> BestResponse:
        """Trains at θ, and answers with what has been learnt.

        Args:
          env: the `BilevelWrapper`.
          theta: ``[R, *θ.shape]``.
          model: its model at θ.
          start: has no influence.
          learn: False to answer without training.

        Raises:
          FollowerError: if a network is not finite after training.
          FileNotFoundError: if `model_file` is not there.
        """
        if not learn and not self.agents:
            raise FollowerError("the follower has learnt nothing yet: let the leader `learn` first")
        runs, before = len(theta), self.spent
        if learn:
            paid = [self._train(env, theta, model, run) for run in range(runs)]
            self.spent = before + max((taken for taken, _ in paid), default=0)
            self.responses += 1
        if len(self.agents) not in (1, runs):
            raise ValueError(f"`theta` must have as many runs as were trained ({len(self.agents)}), got {runs}")
        best = self._tables(env, model) if isinstance(model, TabularModel) else self._networks(env)
        if learn:
            improved = [_improvement(rewards) for _, rewards in paid]
            self._residual = self._shortfall(env, theta, model, best, improved)
        assert self._residual is not None
        return BestResponse(*best, residual=self._residual, optimal=False, steps=self.spent - before)

    def state_dict(self) -> dict[str, Any]:
        """The agents as SB3 saves them, with their replay buffers where those are kept."""
        with_buffers = self.buffer != "clear" and self.start == "warm"
        return {
            "agents": [_as_bytes(agent.save) for agent in self.agents],
            "buffers": [_as_bytes(agent.save_replay_buffer) for agent in self.agents if _stores(agent)]
            if with_buffers
            else [],
            "responses": self.responses,
            "spent": self.spent,
            "residual": self._residual,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.agents = [self.algorithm.load(_as_file(content), device="cpu") for content in state["agents"]]
        for agent, content in zip(self.agents, state["buffers"], strict=False):
            agent.load_replay_buffer(_as_file(content))
        self.responses, self.spent, self._residual = state["responses"], state["spent"], state["residual"]

    # Training -------------------------------------------------------------------------------------------------

    def _train(self, env: Any, theta: np.ndarray, model: Any, run: int) -> tuple[int, list[float]]:
        """One run's agent learns at its θ; how many steps it took, and its mean rewards, call by call."""
        first = run >= len(self.agents) or self.start == "cold"
        budget = self.first_steps if self.responses == 0 else self.steps
        if self.total_steps is not None:
            budget = min(budget, self.total_steps - self.spent)
        if budget <= 0 and run < len(self.agents):
            return 0, []
        with _seeded(self.seed, run, self.responses) as seed:
            world = self._world(env, theta[run], seed)
            agent = self._agent(world, env.preferences) if first else self.agents[run]
            if first:
                self.agents[run : run + 1] = [agent]
            agent.action_space.seed(seed)
            agent.set_env(world)
            fresh = agent.num_timesteps == 0
            if _stores(agent) and not fresh:
                self._prepare_buffer(agent, model, run)
            taken = agent.num_timesteps
            self._schedule(agent, taken, max(budget, 1))
            try:
                agent.learn(max(budget, 1), reset_num_timesteps=fresh)
            finally:
                agent.__dict__.pop("_update_current_progress_remaining", None)
                world.close()
            agent._logger = None  # it may hold files, and belongs to this response
        for name, weights in agent.get_parameters().items():
            _check_weights(name, weights, run)
        return agent.num_timesteps - taken, world.paid

    def _agent(self, world: Any, preferences: Any) -> Any:
        """A new agent, or the one in `model_file`."""
        beta = preferences.beta / self.reward_scale
        own: dict[str, Any] = {"SAC": {"ent_coef": beta}, "SoftDQN": {"beta": beta}}.get(self.kind, {})
        if self.kind in ("PPO", "A2C"):
            own = {"ent_coef": beta}
        own = own | copy.deepcopy(self.kwargs) | {"gamma": preferences.gamma_follower}
        if self.model_file is not None:
            if not self.model_file.is_file():
                raise FileNotFoundError(f"`model_file` must be a zip of SB3's save; there is none at {self.model_file}")
            agent = self.algorithm.load(self.model_file, env=world, device="cpu", custom_objects=own)
            agent.num_timesteps = 0
            return agent
        return self.algorithm(self.policy, world, device="cpu", **own)

    def _world(self, env: Any, theta: np.ndarray, seed: int) -> Any:
        """The follower's environment at one θ."""
        envs = env.copies(self.envs, theta)
        low, high = self._range(envs.single_action_space) if self.kind == "SAC" else (None, None)
        bonus = 0.0
        if low is not None and high is not None:  # entropy per unit of the environment's action, not of [−1, 1]
            bonus = env.preferences.beta * float(np.log((high - low) / 2).sum())
        make = import_module("bilevel_envs.followers.sb3_env").FollowerVecEnv
        return make(envs, self.reward_scale, bonus, low, high, seed)

    def _range(self, space: Any) -> tuple[np.ndarray, np.ndarray]:
        """What −1 and 1 stand for, [m] each."""
        told = self.action_range
        if told is None:
            low, high = space.low, space.high
        else:
            low, high = told if isinstance(told, tuple) else (-np.asarray(told), told)
        low, high = (np.broadcast_to(np.asarray(x, float), space.shape).copy() for x in (low, high))
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ValueError(f"`action_range` must give finite bounds, low below high; got {low} and {high}")
        return low, high

    def _prepare_buffer(self, agent: Any, model: Any, run: int) -> None:
        if self.buffer == "clear":
            agent.replay_buffer.reset()
        elif self.buffer == "relabel":
            store, size = agent.replay_buffer, agent.replay_buffer.size()
            reward = self._reward_at(model, run, store.observations[:size], store.actions[:size])
            store.rewards[:size] = ((reward + agent.env.bonus) / self.reward_scale).astype(np.float32)

    def _reward_at(self, model: Any, run: int, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """r_F at the new θ of stored steps, [K, envs]."""
        if isinstance(model, TabularModel) and observation.ndim == 3 and observation.shape[-1] == 1:
            table = model.r_follower[run if len(model.r_follower) > 1 else 0].numpy()
            return table[observation[..., 0].astype(int), action[..., 0].astype(int)]
        if isinstance(model, LinearQuadraticModel):
            low, high = self._range_of_model
            real = low + (high - low) * (action.astype(float) + 1) / 2
            r = model.r_follower(torch.from_numpy(observation).double()[None], torch.from_numpy(real)[None])
            return r[run if len(r) > 1 else 0].numpy()
        raise ValueError(
            '`buffer` must be "clear" or "keep" here: rewards at a new θ are known for tables with observation="index" '
            'and for linear-quadratic worlds; got "relabel"'
        )

    def _schedule(self, agent: Any, taken: int, budget: int) -> None:
        """Lets SB3's schedules run once per response, or once over all of them."""
        begun, whole = (taken, budget) if self.schedule == "response" else (0, self.total_steps)

        def update(now: int, _: int) -> None:
            agent._current_progress_remaining = max(0.0, 1.0 - (now - begun) / whole)  # type: ignore[operator]

        agent._update_current_progress_remaining = update

    # Answers --------------------------------------------------------------------------------------------------

    def _tables(self, env: Any, model: TabularModel) -> tuple[Any, Any, Any]:
        """g, Q_F and V_F read out at every state."""
        seen, beta = env.observations(model.states), env.preferences.beta
        log_probs, q = [], []
        for agent in self.agents:
            tensor = agent.policy.obs_to_tensor(seen)[0]
            with torch.no_grad():
                if self.kind in ("SoftDQN", "DQN"):
                    values = agent.q_net(tensor).double() * self.reward_scale
                    q.append(values)
                    log_probs.append(_boltzmann(values, beta) if self.kind == "SoftDQN" else _greedy(values, agent))
                else:
                    log_probs.append(_log_probs(agent, tensor))
        policy = BoltzmannPolicy(torch.stack(log_probs))
        if self.kind != "SoftDQN":
            return policy, self._missing("Q_F"), self._missing("V_F")
        table = torch.stack(q)
        return policy, Table(table), Table(beta * torch.logsumexp(table / beta, -1))

    def _networks(self, env: Any) -> tuple[Any, Any, Any]:
        """g, Q_F and V_F as functions of states that are vectors."""
        beta, space, scale = env.preferences.beta, env.action_space, self.reward_scale
        missing = self._missing("Q_F"), self._missing("V_F")
        if self.kind in ("SoftDQN", "DQN"):
            values = tuple(_scaled(agent.q_net, scale) for agent in self.agents)
            if self.kind == "DQN":
                return NetworkCategorical(
                    tuple(_greedily(f, a) for f, a in zip(values, self.agents, strict=True))
                ), *missing
            return (
                NetworkCategorical(tuple(_softly(f, beta) for f in values)),
                NetworkActionValues(values, beta),
                NetworkActionValues(values, beta),
            )
        if hasattr(space, "n"):
            return NetworkCategorical(tuple(_categorical(agent) for agent in self.agents)), *missing
        if self.kind != "SAC":
            one = torch.ones(space.shape, dtype=torch.float64)
            low, high = torch.from_numpy(space.low).double(), torch.from_numpy(space.high).double()
            networks = tuple(_normal(agent, low, high) for agent in self.agents)
            return NetworkGaussian(networks, low * one, high * one, squashed=False), *missing
        low, high = (torch.from_numpy(x) for x in self._range(space))
        policy = NetworkGaussian(tuple(_squashed(agent) for agent in self.agents), low, high)
        q = NetworkQ(tuple(_least(agent) for agent in self.agents), policy, scale, -beta * policy.log_volume)
        return policy, q, NetworkV(q, beta)

    def _missing(self, what: str) -> Missing:
        return Missing(
            f"{what} is not available from {self.algorithm.__name__}, whose values are not soft: wrap the follower, "
            'ObservedFollower(SB3Follower(...)), which estimates them from what it does, or take "SAC" or "SoftDQN"'
        )

    def _shortfall(self, env: Any, theta: np.ndarray, model: Any, best: Any, improved: list[float]) -> Tensor:
        """The residual of each run, [R]; see the class."""
        preferences, policy = env.preferences, best[0]
        if isinstance(model, TabularModel):
            optimum = SoftValueIteration().best_response(model, preferences).v.values
            own = soft_evaluation(model, policy, preferences.gamma_follower, preferences.beta)
            return (model.initial * (optimum - own)).sum(-1)
        if isinstance(model, LinearQuadraticModel) and isinstance(policy, NetworkGaussian):
            return self._sampled_shortfall(env, theta, model, policy, EPISODES)
        return torch.tensor(improved, dtype=torch.float64)

    def _sampled_shortfall(
        self, env: Any, theta: np.ndarray, model: LinearQuadraticModel, policy: NetworkGaussian, episodes: int
    ) -> Tensor:
        """The exact optimum of the soft return less a sampled one, the same first states in both, [R]."""
        gamma, beta = env.preferences.gamma_follower, env.preferences.beta
        truth = Riccati().best_response(model, env.preferences)
        horizon = int(np.ceil(np.log(SMALL) / np.log(gamma)))
        noise = Noise([[self.seed, run, self.responses, 1] for run in range(len(theta))])
        best = BestResponse(policy, None, None, torch.zeros(1), optimal=False)
        batch = env.rollout(theta, best, noise, rows=episodes, horizon=horizon, whole_episodes=True)
        reward = batch.r_follower - beta * policy.log_prob(batch.state, batch.action)
        own = (gamma ** batch.step.double() * reward * batch.valid).sum(-1)
        return (truth.v(batch.state[:, :, 0]) - own).mean(-1)

    @property
    def _range_of_model(self) -> tuple[np.ndarray, np.ndarray]:
        world = self.agents[0].env
        return world.low, world.high


def soft_evaluation(model: TabularModel, policy: BoltzmannPolicy, gamma: float, beta: float) -> Tensor:
    """The soft value of a policy, V(s) = E_g[r_F − β log g + γ V(s')], [R, S]."""
    log_g = policy.log_probs.clamp(min=-1e30)  # 0 · log 0 is 0
    reward = (policy.probs * (model.r_follower - beta * log_g)).sum(-1)
    return model.resolvent(policy.probs, gamma, reward)


@contextmanager
def _seeded(*entropy: int) -> Iterator[int]:
    """SB3 draws from global streams: they are seeded, lent, and put back; one thread, for networks are small."""
    seed, *others = (int(x) for x in np.random.SeedSequence(entropy).generate_state(3) % (2**31))
    before, drawn, threads = np.random.get_state(), random.getstate(), torch.get_num_threads()  # noqa: NPY002
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(others[0])  # noqa: NPY002
            random.seed(others[1])
            yield seed
    finally:
        np.random.set_state(before)  # noqa: NPY002
        random.setstate(drawn)
        torch.set_num_threads(threads)


def _class_of(algorithm: str | type) -> Any:
    base = import_module("stable_baselines3.common.base_class").BaseAlgorithm
    if isinstance(algorithm, str):
        check_choice(algorithm, ("SAC", "SoftDQN", "DQN", "PPO", "A2C", "TD3", "DDPG"), "algorithm")
        home = "bilevel_envs.followers.soft_dqn" if algorithm == "SoftDQN" else "stable_baselines3"
        return getattr(import_module(home), algorithm)
    if not isinstance(algorithm, type) or not issubclass(algorithm, base):
        raise TypeError(f"`algorithm` must be a name or a subclass of SB3's BaseAlgorithm, got {algorithm!r}")
    return algorithm


def _stores(agent: Any) -> bool:
    return getattr(agent, "replay_buffer", None) is not None


def _as_bytes(save: Any) -> Tensor:
    file = io.BytesIO()
    save(file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _as_file(content: Tensor) -> io.BytesIO:
    return io.BytesIO(content.numpy().tobytes())


def _check_weights(name: str, weights: Any, run: int) -> None:
    for key, tensor in weights.items() if isinstance(weights, dict) else ():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
            raise FollowerError(f"training of run {run} left {name}.{key} with NaN or infinite entries")


def _improvement(rewards: list[float]) -> float:
    """Mean reward per step in the last quarter of a training, less that in the quarter before."""
    quarter = len(rewards) // 4
    if not quarter:
        return float("nan")
    return float(np.mean(rewards[-quarter:]) - np.mean(rewards[-2 * quarter : -quarter]))


# What the agents' networks say, as functions of observations [K, n].


def _boltzmann(q: Tensor, beta: float) -> Tensor:
    return torch.log_softmax(q / beta, -1)


def _greedy(q: Tensor, agent: Any) -> Tensor:
    """log g of DQN: the best action, and any with what is left of its exploration."""
    share, actions = agent.exploration_rate, q.shape[-1]
    return torch.log(torch.nn.functional.one_hot(q.argmax(-1), actions) * (1 - share) + share / actions)


def _log_probs(agent: Any, seen: Any) -> Tensor:
    return torch.log_softmax(agent.policy.get_distribution(seen).distribution.logits.double(), -1)


def _scaled(network: Any, scale: float) -> Any:
    return lambda x: network(x).double() * scale


def _softly(values: Any, beta: float) -> Any:
    return lambda x: _boltzmann(values(x), beta)


def _greedily(values: Any, agent: Any) -> Any:
    return lambda x: _greedy(values(x), agent)


def _categorical(agent: Any) -> Any:
    return lambda x: _log_probs(agent, x)


def _squashed(agent: Any) -> Any:
    return lambda x: torch.cat(agent.actor.get_action_dist_params(x)[:2], -1)


def _normal(agent: Any, low: Tensor, high: Tensor) -> Any:
    half, middle = ((high - low) / 2).float(), ((high + low) / 2).float()

    def network(x: Tensor) -> Tensor:
        normal = agent.policy.get_distribution(x).distribution
        return torch.cat([(normal.mean - middle) / half, torch.log(normal.stddev / half)], -1)

    return network


def _least(agent: Any) -> Any:
    return lambda x, b: torch.cat(agent.critic(x, b), 1).min(1, keepdim=True).values
