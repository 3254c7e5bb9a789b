"""A Stable-Baselines3 agent as the follower."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bilevel_envs.core.checks import check_count, lacking, meant
from bilevel_envs.core.follower import (
    BestResponse,
    Capabilities,
    FollowerError,
    FollowerTask,
    Missing,
    Policy,
    ValueFunction,
)
from bilevel_envs.core.mdp import Model, Preferences
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers.sb3.agents import (
    arguments_of,
    check_networks,
    class_of,
    kind_of,
    load_networks,
    logged,
    scheduled,
    seeded,
    stores,
)
from bilevel_envs.followers.sb3.answers import functions, tables
from bilevel_envs.followers.sb3.drift import drift
from bilevel_envs.followers.sb3.progress import Paid, parts_of, running, scale_state
from bilevel_envs.followers.sb3.saved import State, agent_state, checked, restore_agent
from bilevel_envs.followers.sb3.settings import TrainingSettings
from bilevel_envs.followers.sb3.shortfall import improvement, shortfall
from bilevel_envs.followers.sb3.side_by_side import side_by_side
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.world import world_of

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.running_mean_std import RunningMeanStd
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    from bilevel_envs.followers.sb3.env import FollowerVecEnv

READS_MASKS = ("SoftDQN", "MlpPolicy", False)  # kind, policy, and whether observations are normalised
EPISODES = 64  # that measure a response's soft return where nothing exact is to be had
GIVEN = {
    "gamma": "γ_F, which the problem has",
    "env": "the environment",
    "device": "the CPU",
    "tensorboard_log": "the leader's, as what a file names must not say where others are written",
    "_init_setup_model": "SB3's own",
}


class SB3Follower:
    r"""Learns with an algorithm of Stable-Baselines3, one agent per run, and goes on learning as θ moves.

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

    Agents stay with the follower from one call to the next, and from one leader to the next: `reset` forgets them.

    It solves no equation, so its residual is NaN. Its optimality gap, what the soft return of its policy lacks of the
    optimum, is exact where the world is a table and sampled over 64 episodes where it is linear-quadratic; elsewhere
    it is not known. `improvement` is how much the mean reward per step rose from the third to the last quarter of the
    training, `drift` the KL divergence of its policy from that of the response before. Costs `steps` environment steps
    per response and run, counted as ``follower_steps``, and the algorithm's gradient steps: some 3 to 8 ms each on one
    core for networks of this size.

    Args:
      algorithm: "SAC", "SoftDQN", "DQN", "PPO", "A2C", or a subclass of SB3's ``BaseAlgorithm``; None for SoftDQN where
        actions are discrete, and SAC where they are vectors.
      steps: environment steps of a response (rounded up to whole rollouts). Up to its `learning_starts`, 100 by
        default, it only acts at random.
      first_steps: of the first response; None for `steps`.
      total_steps: of all responses; what comes after answers with what has been learnt. None for no end.
      start: "warm" goes on with the agent of the last response, "cold" begins with a new one.
      buffer: transitions of earlier θ: "clear" forgets them, "keep" learns from them as they are, "relabel" gives them
        the reward that they have at the new θ (worlds whose model knows r_F; where θ moves the dynamics, what follows
        a step stays as it was).
      schedule: schedules of learning rate and exploration run through once per "response" or over all `total_steps`.
      envs: environments stepped side by side.
      processes: how many runs' agents learn at the same time, each process forked anew for a response; results do not
        depend on it.
      episode_steps: episodes of the training are cut, and their values bootstrapped, after so many steps; None for the
        environment's own limit. Where states settle, shorter ones show the agent more of those it begins in.
      accuracy: with `most_steps`, a response goes on for `steps` more while it is not as accurate: while its optimality
        gap, or where that is not known its `improvement`, is larger.
      most_steps: after which it ends in any case.
      normalize: show the agent observations less their running mean, by their running deviation (SB3's
        ``VecNormalize``), kept from one response to the next.
      beta: overrides the problem's β.
      reward_scale: rewards are divided by it on their way to the agent; β, Q and V are converted.
      action_range: what SAC's 1 stands for, −1 for its negative, a number or a list of one per entry; a tuple (low,
        high) says both; None for the bounds of the action space. Optimal actions that fill a thousandth of their space
        are hard to learn.
      model_file: a zip of SB3's ``save`` whose networks agents begin with; nothing else in it is read.
      seed: run i learns with the stream of seed + i; the leader's own seed has no influence.
      policy: SB3's.
      kwargs: further arguments of the algorithm.

    Raises:
      ValueError: if an argument does not fit, by name.
    """

    def __init__(self, algorithm: str | type | None = None, steps: int = 20_000, **keywords: Any) -> None:
        own = {field.name for field in fields(TrainingSettings)}
        self.settings = TrainingSettings(steps, **{name: keywords[name] for name in keywords if name in own})
        self.chooses = algorithm is None
        self.algorithm = class_of("SAC" if algorithm is None else algorithm)
        self.kwargs: dict[str, object] = {name: keywords[name] for name in keywords if name not in own}
        self._check_arguments(arguments_of(class_of("SoftDQN")) if self.chooses else set())
        self.agents: list[BaseAlgorithm] = []
        self._kept: list[State] = []  # agents that were loaded and have not seen their environment yet
        self.responses = self.spent = 0
        self._gap: Tensor | None = None
        self._improvement: Tensor | None = None
        self._drift: Tensor | None = None
        self._scales: list[RunningMeanStd] = []  # of the observations, run by run, where they are normalised

    @property
    def beta(self) -> float | None:
        """The follower's own β; None for the problem's."""
        return self.settings.beta

    def _check_arguments(self, further: Collection[str] = ()) -> None:
        """Refuses with a ValueError arguments that the algorithm has no use for, or that are not to be chosen.

        Args:
          further: names that are allowed beside its own.
        """
        if self.settings.action_range is not None and self.kind != "SAC":
            raise ValueError(f"`action_range` must be None for {self.algorithm.__name__}: it scales SAC's actions")
        if self.settings.buffer != "clear" and self.kind in ("PPO", "A2C"):
            name, got = self.algorithm.__name__, self.settings.buffer
            raise ValueError(f'`buffer` must be "clear" for {name}, which stores nothing, got {got!r}')
        for name in sorted(set(GIVEN) & set(self.kwargs)):
            raise ValueError(f"`{name}` must not be given to the algorithm: it is {GIVEN[name]}")
        if self.kind != "other" and "ent_coef" in self.kwargs:
            raise ValueError("`ent_coef` must not be given: it is β, in the units of the agent's rewards")
        for name in ("batch_size", "buffer_size", "n_steps", "n_epochs"):
            if name in self.kwargs:
                check_count(self.kwargs[name], name)
        takes = arguments_of(self.algorithm)
        for name in sorted(set(self.kwargs) - takes - set(further)):
            hint = meant(name, [*takes, *(field.name for field in fields(TrainingSettings))])
            raise ValueError(f"neither SB3Follower nor {self.algorithm.__name__} has an argument `{name}`{hint}")

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={_said(value)}" for name, value in (self.settings.given | self.kwargs).items())
        return f"SB3Follower({None if self.chooses else self.algorithm.__name__!r}, {said})"

    @property
    def kind(self) -> str:
        """Which of the known algorithms this is one of, or "other"."""
        return kind_of(self.algorithm)

    @property
    def soft(self) -> bool:
        """Whether it learns the problem's own objective."""
        return self.kind in ("SAC", "SoftDQN")

    @property
    def gives_values(self) -> bool:
        """Whether Q_F and V_F are to be had."""
        return self.soft

    @property
    def capabilities(self) -> Capabilities:
        """It learns in every kind of world; whether an algorithm takes its actions, `check` says."""
        return Capabilities(gives_values=self.gives_values, learns=True, saves=True, checks=True)

    # What a leader asks ---------------------------------------------------------------------------------------

    def respond(
        self,
        task: FollowerTask,
        theta: np.ndarray,
        model: Model,
        init: BestResponse | None = None,
        learn: bool = True,
    ) -> BestResponse:
        """Trains at θ, and answers with what has been learnt.

        Args:
          task: its world at θ.
          theta: ``[R, *θ.shape]``.
          model: its model at θ.
          init: has no influence.
          learn: False to answer without training.

        Raises:
          FollowerError: if a network is not finite after training.
          FileNotFoundError: if `model_file` is not there.
        """
        self._choose(task)  # also to answer without training, where nothing is checked
        runs, before, known = len(theta), self.spent, len(self.agents or self._kept)
        if not learn and not known:
            raise FollowerError(
                "the follower has learnt nothing yet: call `best_response(theta)` of the wrapped environment, or let "
                "the leader `learn`, first"
            )
        if learn:
            self.check(task)
        if known not in ((0, runs) if learn else (1, runs)):
            raise ValueError(
                f"`runs` must be as many as the follower was trained with ({known}), got {runs}; its `reset()` forgets "
                "them"
            )
        self._wake(task)
        if learn:
            self._learn(task, runs)
        return BestResponse(
            *self._answer(task),
            residual=torch.full((runs,), float("nan"), dtype=torch.float64),
            optimal=False,
            steps=self.spent - before,
            optimality_gap=self._gap,
            improvement=self._improvement,
            drift=self._drift,
        )

    def reset(self) -> None:
        """Forgets everything: the next response begins with new agents and the first budget."""
        self.agents, self._kept, self.responses, self.spent = [], [], 0, 0
        self._gap, self._improvement, self._drift, self._scales = None, None, None, []

    def state_dict(self) -> dict[str, object]:
        """The agents' parameters and counters, with their replay buffers where those are kept; nothing is pickled."""
        with_buffers = self.settings.buffer != "clear" and self.settings.start == "warm"
        return {
            "agents": [agent_state(agent, with_buffers) for agent in self.agents] or self._kept,
            "responses": self.responses,
            "spent": self.spent,
            "optimality_gap": self._gap,
            "improvement": self._improvement,
            "drift": self._drift,
            "scales": [parts_of(one) for one in self._scales],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave; agents are made when the next response shows them their environment."""
        if state["agents"] and bool(state.get("scales")) != self.settings.normalize:
            raise ValueError(f"`normalize` must be as the agents were saved with, got {self.settings.normalize}")
        self.agents, self._kept = [], checked(state["agents"])
        self.responses, self.spent = state["responses"], state["spent"]
        self._gap, self._improvement = state["optimality_gap"], state["improvement"]
        self._drift = state.get("drift")
        self._scales = [running(*parts) for parts in state.get("scales", [])]

    # Training -------------------------------------------------------------------------------------------------

    def _learn(self, task: FollowerTask, runs: int) -> None:
        """Every run's agent learns at its θ, and goes on as long as it is not as accurate as was asked for."""
        known = len(self.agents) == runs and self.agents[0].observation_space == task.observation_space
        before = self._answer(task)[0] if known else None
        paid, lacking = [Paid() for _ in range(runs)], list(range(runs))
        while lacking:
            self._train_all(task, lacking, paid)
            self._gap = self._shortfall(task, self._answer(task)[0])
            if any(one.rewards for one in paid):
                self._improvement = torch.tensor([improvement(one.rewards) for one in paid], dtype=torch.float64)
            lacking = self._inaccurate(lacking, paid)
        if not any(one.steps for one in paid):  # all steps are spent, and the policy stays
            self._drift = torch.zeros(runs, dtype=torch.float64)
        elif before is not None:
            noise = Noise([[self.settings.seed + run, self.responses, 2] for run in range(runs)])
            self._drift = drift(task, self._answer(task)[0], before, [one.seen for one in paid], noise)
        self.spent += max(one.steps for one in paid)
        self.responses += 1

    def _train_all(self, task: FollowerTask, runs: list[int], paid: list[Paid]) -> None:
        """Some runs' agents learn at their θ, one after another or in processes of their own."""
        if min(self.settings.processes, len(runs)) == 1:
            for run in runs:
                self._train(task, run, paid[run])
            return

        def trained(run: int) -> tuple[State, Paid, list[Any] | None]:
            agent = self._train(task, run, paid[run])
            return agent_state(agent, True), paid[run], scale_state(agent)

        for run, found in zip(runs, side_by_side(trained, runs, self.settings.processes), strict=True):
            state, paid[run], scale = found
            if run == len(self.agents):
                self.agents.append(self._made(task, run))
            restore_agent(self.agents[run], state)
            if scale is not None:
                self._scales[run : run + 1] = [running(*scale)]

    def _made(self, task: FollowerTask, run: int) -> BaseAlgorithm:
        """A run's agent that has learnt nothing yet."""
        with seeded(self.settings.seed + run) as seed:
            world = self._world(task, run, seed)
            agent = self._agent(task, world)
            world.close()
        return agent

    def _choose(self, task: FollowerTask) -> None:
        """Takes the algorithm that goes with the actions, where none was given."""
        if self.chooses:
            self.algorithm = class_of("SoftDQN" if _acts_by_number(task) else "SAC")
            self._check_arguments()

    def _wake(self, task: FollowerTask) -> None:
        """Makes the agents that were loaded."""
        for run, state in enumerate(self._kept):
            agent = self._made(task, run)
            restore_agent(agent, state)
            self.agents.append(agent)
        self._kept = []

    def _inaccurate(self, runs: list[int], paid: list[Paid]) -> list[int]:
        """Those of some runs that have steps left and are not as accurate as was asked for."""
        wanted, most = self.settings.accuracy, self.settings.most_steps
        off = self._improvement if self._gap is None else self._gap
        if wanted is None or most is None or off is None:
            return []
        return [run for run in runs if paid[run].goes_on and paid[run].steps < most and not off[run] <= wanted]

    def _train(self, task: FollowerTask, run: int, paid: Paid) -> BaseAlgorithm:
        """One run's agent, once it has learnt at its θ for a while; adds to what that took and brought."""
        again, budget = paid.steps > 0, self._budget(paid)
        first = run >= len(self.agents) or (self.settings.start == "cold" and not again)
        if budget <= 0 and run < len(self.agents):
            paid.goes_on = False
            return self.agents[run]
        with seeded(self.settings.seed + run, self.responses, *([paid.steps] if again else [])) as seed:
            world = self._world(task, run, seed)
            shown = self._normalised(world, run, first) if self.settings.normalize else world
            agent = self._agent(task, shown) if first else self.agents[run]
            if first:
                self.agents[run : run + 1] = [agent]
            _check_spaces(agent, world)
            agent.action_space.seed(seed)
            agent.set_env(shown)
            if stores(agent) and agent.num_timesteps and not again:
                self._prepare_buffer(agent, world, task.model, run)
            taken = agent.num_timesteps
            self._teach(agent, max(budget, 1), emptied=self.settings.buffer == "clear" and not again)
            world.close()
        check_networks(agent, run)
        paid.add(agent.num_timesteps - taken, world)
        return agent

    def _teach(self, agent: BaseAlgorithm, budget: int, *, emptied: bool) -> None:
        """SB3's `learn` for so many steps, its buffer emptied or not before."""
        taken = agent.num_timesteps
        total = self.settings.total_steps if self.settings.schedule == "total" else None
        begun, whole = (taken, budget) if total is None else (0, total)
        waits_for = budget // 2 if taken and emptied else None
        with scheduled(agent, begun, whole, waits_for), logged(agent, taken == 0):
            try:
                agent.learn(budget, reset_num_timesteps=taken == 0)
            except AssertionError as error:
                raise ValueError(
                    f"SB3's {type(agent).__name__} refuses to learn with `envs` = {self.settings.envs} and "
                    f"{_said(self.kwargs) or 'no further arguments'}: {error}"
                ) from error

    def _budget(self, paid: Paid) -> int:
        """Steps of this response, or of its continuation."""
        settings = self.settings
        first = self.responses == 0 and paid.steps == 0 and settings.first_steps is not None
        budget = cast(int, settings.first_steps) if first else settings.steps
        if paid.steps and settings.most_steps is not None:
            budget = min(budget, settings.most_steps - paid.steps)
        return budget if settings.total_steps is None else min(budget, settings.total_steps - self.spent - paid.steps)

    def _normalised(self, world: FollowerVecEnv, run: int, first: bool) -> VecNormalize:
        """The environment with observations normalised, by what a run has seen so far; by nothing where it begins."""
        normalize = import_module("stable_baselines3.common.vec_env").VecNormalize
        env = normalize(world, norm_reward=False)
        if run < len(self._scales) and not first:
            env.obs_rms = self._scales[run]
        self._scales[run : run + 1] = [env.obs_rms]
        return env

    def _preferences(self, task: FollowerTask) -> Preferences:
        """The problem's, with this follower's own β if it has one; not those of a leader who supposes another."""
        preferences = task.problem.preferences
        return preferences if self.beta is None else replace(preferences, beta=self.beta)

    def check(self, task: FollowerTask) -> None:
        """Refuses with a ValueError what cannot be trained or answered in an environment, before anything is."""
        self._choose(task)
        space, countable = task.action_space, world_of(task.model).countable
        if not countable and not isinstance(space, gym.spaces.Discrete | gym.spaces.Box):
            raise ValueError(f"`env` must have actions in a Discrete or a Box to learn in, got {space}")
        discrete = _acts_by_number(task)
        fits = ("SoftDQN", "DQN", "PPO", "A2C") if discrete else ("SAC", "PPO", "A2C")
        if self.kind not in (*fits, "other"):
            what = "discrete actions" if discrete else "actions that are vectors"
            raise ValueError(f"`algorithm` must be one of {', '.join(fits)} for {what}, got {self.algorithm.__name__}")
        if self.kind == "SAC" and self.settings.action_range is None and not cast(gym.spaces.Box, space).is_bounded():
            raise ValueError(
                f"`action_range` must be given for SAC where the environment's actions have no bounds, {space}: the "
                "largest of each entry, or (lowest, largest)"
            )
        if self.settings.normalize and not isinstance(task.observation_space, gym.spaces.Box):
            raise ValueError(f"`normalize` must be False where observations are no Box, got {task.observation_space}")
        if task.problem.masks_actions and (self.kind, self.settings.policy, self.settings.normalize) != READS_MASKS:
            raise ValueError(
                f'`algorithm` must be "SoftDQN", with `policy` "MlpPolicy" and without `normalize`, where '
                f"{task.problem.title} gives masks of actions, which others do not read; got "
                f"{self.algorithm.__name__}, {self.settings.policy!r} and {self.settings.normalize}. Where it takes "
                'every action all the same, put a wrapper around it that takes "action_mask" out of `info`'
            )
        if self.settings.buffer == "relabel":
            self._check_relabelling(task)

    def _check_relabelling(self, task: FollowerTask) -> None:
        """Refuses stored steps whose rewards at a new θ cannot be known."""
        if not world_of(task.model).knows_rewards(task.observations, task.model):
            raise ValueError(
                '`buffer` must be "clear" or "keep" here: rewards at a new θ are known for tables with '
                'observation="index", for linear-quadratic worlds and for ConfigurableRewards; got "relabel"'
            )
        if world_of(task.model).reads_components(task.model):
            given = self.kwargs.get("replay_buffer_class")
            if given is not None:
                raise ValueError(
                    f'`replay_buffer_class` must not be given with buffer="relabel" here, where the buffer keeps '
                    f"components, got {given!r}"
                )

    def _agent(self, task: FollowerTask, world: VecEnv) -> BaseAlgorithm:
        """A new agent, with the networks in `model_file` if there is one."""
        preferences = self._preferences(task)
        beta = preferences.beta / self.settings.reward_scale
        own: dict[str, Any] = {"SAC": {"ent_coef": beta}, "SoftDQN": {"beta": beta}}.get(self.kind, {})
        if self.kind in ("PPO", "A2C"):
            own = {"ent_coef": beta}
        own = own | copy.deepcopy(self.kwargs) | {"gamma": preferences.gamma_follower}
        if self.settings.buffer == "relabel" and world_of(task.model).reads_components(task.model):
            kept = import_module("bilevel_envs.followers.sb3.buffers").ComponentsBuffer
            own = own | {"replay_buffer_class": kept}
        policy = self.settings.policy
        if task.problem.masks_actions:
            policy = import_module("bilevel_envs.followers.sb3.masked").MaskedPolicy
        file = None if self.settings.model_file is None else Path(self.settings.model_file)
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"`model_file` must be a zip of SB3's save; there is none at {file}")
        try:
            agent = self.algorithm(policy, world, device="cpu", **own)
        except (TypeError, ValueError, AssertionError, MemoryError) as error:
            names = ", ".join(f"`{name}`" for name in ("policy", *self.kwargs))
            raise ValueError(f"SB3's {self.algorithm.__name__} refuses its arguments {names}: {error}") from error
        if self.kind == "other" and lacking(agent.policy, ["get_distribution"]):
            raise ValueError(
                f"`algorithm` must have a policy with a distribution; {self.algorithm.__name__}'s has none"
            )
        if file is not None:
            load_networks(agent, file)
        return agent

    def _world(self, task: FollowerTask, run: int, seed: int) -> FollowerVecEnv:
        """The follower's environment at one run's θ."""
        envs = task.copies(self.settings.envs, task.theta[run], self.settings.episode_steps, run=run)
        low, high = self._range(envs.single_action_space) if self.kind == "SAC" else (None, None)
        bonus = 0.0
        if low is not None and high is not None:  # entropy per unit of the environment's action, not of [−1, 1]
            bonus = self._preferences(task).beta * float(np.log((high - low) / 2).sum())
        make = import_module("bilevel_envs.followers.sb3.env").FollowerVecEnv
        return make(envs, self.settings.reward_scale, bonus, low, high, seed)

    def _range(self, space: Any) -> tuple[np.ndarray, np.ndarray]:
        """What −1 and 1 stand for, [m] each."""
        given = self.settings.action_range
        if given is None:
            low, high = space.low, space.high
        else:
            low, high = given if isinstance(given, tuple) else (-np.asarray(given), given)
        try:
            low, high = (np.broadcast_to(np.asarray(x, float), space.shape).copy() for x in (low, high))
        except ValueError:
            raise ValueError(f"`action_range` must fit actions of shape {list(space.shape)}, got {given!r}") from None
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ValueError(f"`action_range` must give finite bounds, low below high; got {low} and {high}")
        return low, high

    def _prepare_buffer(self, agent: Any, world: FollowerVecEnv, model: Model, run: int) -> None:
        if self.settings.buffer == "clear":
            agent.replay_buffer.reset()
        elif self.settings.buffer == "relabel":
            store, size, kind = agent.replay_buffer, agent.replay_buffer.size(), world_of(model)
            seen = store.components if kind.reads_components(model) else store.observations
            reward = kind.stored_reward(model, run, seen[:size], world.in_units(store.actions[:size]))
            store.rewards[:size] = ((reward + world.bonus) / self.settings.reward_scale).astype(np.float32)

    # Answers --------------------------------------------------------------------------------------------------

    def _answer(self, task: FollowerTask) -> tuple[Policy, ValueFunction, ValueFunction]:
        """g, Q_F and V_F as they are now."""
        beta, scale, space = self._preferences(task).beta, self.settings.reward_scale, task.action_space
        if world_of(task.model).countable:
            seen = task.observations(cast(TabularModel, task.model).states)
            policy, q, v = tables(self.kind, self.agents, seen, beta, scale, self._scales)
        else:
            bounds = self._range(space) if self.kind == "SAC" else None
            policy, q, v = functions(self.kind, self.agents, len(task.theta), space, bounds, beta, scale, self._scales)
        return policy, self.missing("Q_F") if q is None else q, self.missing("V_F") if v is None else v

    def missing(self, what: str) -> Missing:
        """What stands for a value that this follower cannot give."""
        return Missing(
            f"{what} is not available from {self.algorithm.__name__}, whose values are not soft: wrap the follower, "
            'ObservedFollower(SB3Follower(...)), which estimates them from what it does, or take "SoftDQN" '
            '(discrete actions) or "SAC" (vectors)'
        )

    def _shortfall(self, task: FollowerTask, policy: Policy) -> Tensor | None:
        """How far each run is from the soft optimum, [R]; None where it is not known."""
        noise = Noise([[self.settings.seed + run, self.responses, 1] for run in range(len(task.theta))])
        return shortfall(task, policy, self._preferences(task), episodes=EPISODES, noise=noise)


def _acts_by_number(task: FollowerTask) -> bool:
    """Whether actions are numbers, and no vectors."""
    return world_of(task.model).countable or isinstance(task.action_space, gym.spaces.Discrete)


def _check_spaces(agent: BaseAlgorithm, world: FollowerVecEnv) -> None:
    """Refuses an environment with other spaces than that in which an agent has learnt."""
    if agent.observation_space != world.observation_space or agent.action_space != world.action_space:
        raise ValueError(
            f"`env` must be one like that in which the follower has learnt, with {agent.observation_space} and "
            f"{agent.action_space}, got {world.observation_space} and {world.action_space}; its `reset()` "
            "forgets what it has learnt"
        )


def _said(value: object) -> str:
    """A value as text, without an address."""
    return value.__name__ if isinstance(value, type | FunctionType) else repr(value).split(" at 0x")[0]


def _signature() -> inspect.Signature:
    """The signature of `SB3Follower`: the algorithm, the training settings, and the algorithm's own arguments."""
    algorithm, _, rest = inspect.signature(SB3Follower).parameters.values()
    steps, *others = inspect.signature(TrainingSettings).parameters.values()
    return inspect.Signature([algorithm, steps, *(one.replace(kind=one.KEYWORD_ONLY) for one in others), rest])


SB3Follower.__signature__ = _signature()  # type: ignore[attr-defined]
