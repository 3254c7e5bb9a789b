"""What learnt and observed followers give: their errors against exact ones, and what they cost.

python benchmarks/followers.py sac        # building thermal control: a quarter of an hour on one core
python benchmarks/followers.py lead       # leading that agent, three seeds: an hour; or "lead 100"
python benchmarks/followers.py soft-dqn   # four rooms: four minutes
python benchmarks/followers.py observed   # four rooms and a random MDP: five minutes
python benchmarks/followers.py tax        # tax design with SoftDQN: twenty minutes
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.noise import Noise
from bilevel_envs.envs.four_rooms import STATE
from bilevel_envs.followers import ObservedFollower, Riccati, SB3Follower, SoftValueIteration
from bilevel_envs.followers.sb3.shortfall import sampled_shortfall
from bilevel_envs.parameterizations import Budget
from bilevel_envs.worlds.linear_quadratic.model import Quadratic
from leaders import BCHG, NaivePGD, exact

BUILDING, ROOMS, TAX = "BiLevel/BuildingThermalControl-v0", "BiLevel/FourRooms-v0", "BiLevel/TaxDesign-v0"
OUTER = int(sys.argv[2]) if len(sys.argv) > 2 else 30  # iterations for which the building is led


class TenDegrees(BaseFeaturesExtractor):
    """Observations in units of ten degrees."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, space.shape[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The extractor's output."""
        return x / 10


def sac(first_steps: int = 50_000, steps: int = 2_000, seed: int = 0) -> SB3Follower:
    """The agent of `examples/sb3_follower.py`."""
    nets = {"net_arch": [64, 64], "activation_fn": torch.nn.SiLU, "features_extractor_class": TenDegrees}
    return SB3Follower(
        "SAC",
        steps,
        first_steps=first_steps,
        envs=4,
        gradient_steps=4,
        reward_scale=200.0,
        action_range=30.0,
        episode_steps=20,
        buffer="keep",
        learning_rate=lambda left: 1e-3 * left + 3e-5,
        learning_starts=500,
        buffer_size=100_000,
        tau=0.02,
        policy_kwargs=nets,
        seed=seed,
    )


class Told:
    """A follower that gives the response it was told."""

    beta = None

    def __init__(self, best: Any) -> None:
        self.best = best

    def best_response(self, model: Any, preferences: Any, start: Any = None) -> Any:
        """What it was told."""
        return self.best


def guiding_of(best: Any, theta: np.ndarray, critic: str, reaction: str = "fitted", samples: int = 20) -> np.ndarray:
    """Estimates of the guiding term, 50 episodes each, as BC-HG less Naive-PGD on the same trajectories."""
    found = []
    for make, how in ((BCHG, {"guiding": reaction}), (NaivePGD, {})):
        leader = make(BilevelWrapper(gym.make(BUILDING), Told(best)), critic=critic, gradient="pathwise", **how)
        leader.policy.raw.data[:] = torch.from_numpy(np.log(theta / (1 - theta)))
        found.append(leader.gradient_samples(samples, episodes=50))
    return found[0] - found[1]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two vectors."""
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def measure_sac() -> None:
    """Errors after 50,000 steps at θ = 0.5, and what the guiding term is worth."""
    env, theta = BilevelWrapper(gym.make(BUILDING), sac()), np.full(8, 0.5)
    started = time.perf_counter()
    best = env.best_response(theta)
    truth = Riccati().best_response(env.model(theta).detach(), env.preferences)
    model = env.model(theta).detach()
    optimum = float(truth.v.constant[0] + (truth.v.matrix[0] * model.initial[0]).sum())
    short = sampled_shortfall(
        env, theta[None], model, best.policy, env.preferences, episodes=2_000, noise=Noise([[0, 1]])
    )
    share = float(short[0]) / -optimum
    print(
        f"{best.steps} steps, {time.perf_counter() - started:.0f} s: short of the optimum {optimum:.1f} by {share:.2%}"
    )
    batch = env.rollout(theta, truth, Noise([1]), rows=100, horizon=100)
    s, b = batch.state, batch.action
    for name, own, true in (
        ("log g", best.policy.log_prob(s, b), truth.policy.log_prob(s, b)),
        ("V_F", best.v(s), truth.v(s)),
        ("Q_F", best.q(s, b), truth.q(s, b)),
    ):
        off = own - true
        print(
            f"  {name}: median |error| {float(off.abs().median()):.1f}, mean {float(off.mean()):.1f}; "
            f"the truth varies by {float(true.std()):.1f}"
        )
    slope, steep = best.v.gradient(s), truth.v.gradient(s)
    print(f"  grad V_F: relative error {float((slope - steep).norm() / steep.norm()):.2f}")
    guiding = exact.hypergradient_parts(env, theta)[1]
    watched = ObservedFollower(Told(best), 20_000).respond(env.task(theta, model), theta[None], model)
    print(f"  the guiding term is {np.linalg.norm(guiding):.0f} long")
    for name, response in (("exact", truth), ("its own values", best), ("watched, 20,000 transitions", watched)):
        for reaction in ("sampled", "fitted"):
            found = guiding_of(response, theta, "state_values", reaction)
            angles = np.quantile([cosine(one, guiding) for one in found], (0.25, 0.5, 0.75))
            print(
                f"  {name}, {reaction}: cosine of one estimate {angles.round(2)}, of the mean of {len(found)} "
                f"{cosine(found.mean(0), guiding):.2f}; median length {np.median(np.linalg.norm(found, axis=1)):.0f}"
            )
    print("  cosine with Riccati's policy, exact critic and V_F off by a share of its matrix:")
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 4, 4)))
    for off in (0.0, 0.1, 0.3, 1.0, 3.0):
        angles = []
        for one in noise:
            wrong = (one + one.T) / (one + one.T).norm() * truth.v.matrix[0].norm() * off
            v = Quadratic(truth.v.matrix + wrong, truth.v.constant)
            response = replace(truth, v=v, optimal=False)
            angles.append(cosine(guiding_of(response, theta, "exact", samples=10).mean(0), guiding))
            if off == 0.0:
                break
        print(f"    {off:4.0%}: {np.mean(angles):.3f} (worst of {len(angles)}: {min(angles):.3f})")


def measure_lead(seeds: Iterable[int] = range(3)) -> None:
    """How far some iterations lead agents that were trained at θ = 0.5."""
    lead("Riccati", Riccati())
    lead("Riccati, direct term alone", Riccati(), NaivePGD)
    for seed in seeds:
        agent = sac(seed=seed)
        BilevelWrapper(gym.make(BUILDING), agent).best_response(np.full(8, 0.5))
        trained = agent.state_dict()
        for name, watched, make in (
            ("its own values", False, BCHG),
            ("watched", True, BCHG),
            ("direct term alone", False, NaivePGD),
        ):
            agent = sac(seed=seed)
            agent.load_state_dict(copy.deepcopy(trained))
            lead(f"agent {seed}, {name}", ObservedFollower(agent, 5_000) if watched else agent, make)


def lead(name: str, follower: Any, make: type[BCHG] | type[NaivePGD] = BCHG) -> None:
    """Where so many outer iterations end."""
    started = time.perf_counter()
    env = BilevelWrapper(gym.make(BUILDING), follower)
    leader = make(env, seed=0, batch_size=2_000, learning_rate=0.1)
    start = exact.objective(env.unwrapped, leader.theta)
    leader.learn(OUTER)
    end = exact.objective(env.unwrapped, leader.theta)
    print(
        f"led, {name}: J_L from {start:.1f} to {end:.1f} after {OUTER} iterations; "
        f"{int(leader.history['follower_steps'][-1, 0])} steps of the follower, {time.perf_counter() - started:.0f} s",
        flush=True,
    )


def soft_dqn(beta: float, steps: int = 80_000) -> SB3Follower:
    """Sixteen environments, eight gradient steps for each of theirs."""
    return SB3Follower(
        "SoftDQN",
        steps,
        envs=16,
        beta=beta,
        gradient_steps=8,
        train_freq=1,
        batch_size=256,
        learning_rate=lambda left: 1e-3 * left + 2e-5,
        learning_starts=1_000,
        buffer_size=50_000,
        target_update_interval=16,
        tau=0.02,
        exploration_fraction=0.5,
        exploration_final_eps=0.05,
        policy_kwargs={"net_arch": [128, 128]},
    )


def measure_soft_dqn() -> None:
    """KL from the exact soft-optimal policy, averaged over the states that are visited."""
    for beta in (5e-2, 5e-3):
        env = BilevelWrapper(gym.make(ROOMS), soft_dqn(beta))
        started, theta = time.perf_counter(), env.unwrapped.theta
        best = env.best_response(theta)
        truth = SoftValueIteration(beta=beta).best_response(env.model(theta).detach(), env.preferences)
        batch = env.rollout(theta, best, Noise([0]), rows=100, horizon=200)
        log_p, log_q = truth.policy.log_probs[0], best.policy.log_probs[0]
        divergence = (log_q.exp() * (log_q - log_p)).sum(-1)[batch.state[batch.valid]]
        off = (best.v.values - truth.v.values)[0].abs()[batch.state[batch.valid]].mean()
        print(
            f"beta {beta:g}: KL {float(divergence.mean()):.4f}, |error of V_F| {float(off):.4f}, shortfall "
            f"{float(best.residual[0]):.4f}; {best.steps} steps, {time.perf_counter() - started:.0f} s"
        )


def measure_observed() -> None:
    """Cosine to the exact hypergradient against the number of observations; ten runs beside the white box."""
    raw = np.zeros(105)
    raw[STATE[3, 5]] = 5.5  # the budget before the top corridor: the follower is torn
    worlds = {
        "four rooms, corridor blocked": (ROOMS, lambda: Budget(raw[None], -0.2)),
        "random MDP": ("BiLevel/RandomMDP-v0", lambda: None),
    }
    for name, (world, policy) in worlds.items():
        for method in ("counts", "network"):
            for count in (300, 1_000, 10_000, 100_000):
                env = BilevelWrapper(gym.make(world), ObservedFollower(None, count, method=method, steps=2_000))
                how: dict[str, Any] = {"critic": "exact", "learning_rate": 1e-12, "policy": policy()}
                leader = BCHG(env, **how).learn(1)
                truth, (direct, guiding) = (
                    f(env, leader.theta) for f in (exact.hypergradient, exact.hypergradient_parts)
                )
                found = leader.gradient_samples(10, episodes=500).mean(0)
                white = BCHG(BilevelWrapper(gym.make(world)), critic="exact", policy=leader.policy)
                usual = white.gradient_samples(10, episodes=500).mean(0)
                print(
                    f"{name}, {method}, {count} observed: cosine {cosine(found, truth):.3f}, relative bias "
                    f"{np.linalg.norm(found - usual) / np.linalg.norm(truth):.3f} (white {cosine(usual, truth):.3f}, "
                    f"direct alone {cosine(direct, truth):.3f}, |guiding|/|direct| "
                    f"{np.linalg.norm(guiding) / np.linalg.norm(direct):.1f})",
                    flush=True,
                )
    for name, follower in (
        ("white box", SoftValueIteration()),
        ("observed", ObservedFollower(None, 1_000, forget=0.1)),
    ):
        env = BilevelWrapper(gym.make(ROOMS), follower)
        noisy = {"critic": "expected_sarsa", "cross_fit": False, "tail": "keep", "control_variate": "none"}
        how = {"learning_rate": 0.02, "exploration": "none", **noisy}
        value = BCHG(env, runs=10, seed=0, **how).learn(3_000).history["leader_value"]
        print(f"{name}: J_L {value[-300:].mean():.4f} over the last 300 of 3,000 iterations, ten runs")


class Assets(BaseFeaturesExtractor):
    """Assets in units of twenty, their positive part and which side of zero they are on; and the household's type."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, space.shape[0] + 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The extractor's output."""
        assets = x[:, :1] / 20
        return torch.cat([assets, assets.relu(), (4 * assets).tanh(), x[:, 1:]], 1)


def household(first_steps: int = 120_000, steps: int = 10_000) -> SB3Follower:
    """A household that learns by SoftDQN which hours to work and how much to spend."""
    return SB3Follower(
        "SoftDQN",
        steps,
        first_steps=first_steps,
        envs=16,
        gradient_steps=8,
        train_freq=1,
        batch_size=512,
        reward_scale=10.0,
        buffer="keep",
        buffer_size=50_000,
        learning_rate=lambda left: 1e-3 * left + 2e-5,
        learning_starts=1_000,
        target_update_interval=16,
        tau=0.02,
        exploration_fraction=0.5,
        exploration_final_eps=0.1,
        policy_kwargs={"net_arch": [128, 128], "features_extractor_class": Assets},
    )


def measure_tax() -> None:
    """BC-HG with a household that learns."""
    env, started = BilevelWrapper(gym.make(TAX), household()), time.perf_counter()
    leader = BCHG(env, seed=0, critic="exact", learning_rate=0.06)

    def say(*_: Any) -> bool:
        history = leader.history
        print(
            f"{leader.progress.iterations}: F {history['leader_value'][-1, 0]:.2f}, under its own policy "
            f"{history['leader_value_actual'][-1, 0]:.2f}, short by {history['optimality_gap'][-1, 0]:.2f}, "
            f"θ {leader.theta.round(2)}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
        return True

    leader.learn(40, callback=say)
    print(f"F at the end: {exact.objective(env, leader.theta):.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    MEASURES = {
        "sac": measure_sac,
        "lead": measure_lead,
        "soft-dqn": measure_soft_dqn,
        "observed": measure_observed,
        "tax": measure_tax,
    }
    MEASURES[sys.argv[1]]()
