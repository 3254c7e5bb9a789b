"""What learnt and observed followers give: their errors against exact ones, and where leading them ends.

Writes the tables that `docs/followers.md` includes; what the data file holds is not measured again.

Run: python benchmarks/followers.py [--parts sac lead soft-dqn observed tax]
On one core a quarter of an hour (sac), two hours (lead), four minutes (soft-dqn), five (observed) and twenty (tax).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.checks import check_choice
from bilevel_envs.core.noise import Noise
from bilevel_envs.envs.four_rooms import STATE
from bilevel_envs.followers import ObservedFollower, Riccati, SB3Follower, SoftValueIteration
from bilevel_envs.followers.sb3.shortfall import sampled_shortfall
from bilevel_envs.parameterizations import Budget
from bilevel_envs.worlds.linear_quadratic.model import Quadratic
from leaders import BCHG, NaivePGD, exact, plots
from leaders.training.history import replace_file

BUILDING, ROOMS, TAX = "BiLevel/BuildingThermalControl-v0", "BiLevel/FourRooms-v0", "BiLevel/TaxDesign-v0"

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import Record  # noqa: E402

SHOWN = (30, 100)  # iterations of the building after which J_L is shown; the last for one agent alone
AGENTS = (0, 1, 2)
WATCHED = (300, 1_000, 10_000, 100_000)  # transitions


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


def measure_sac() -> dict[str, Any]:
    """Errors of SAC after 50,000 steps at θ = 0.5, and what the guiding term is worth."""
    env, theta = BilevelWrapper(gym.make(BUILDING), sac()), np.full(8, 0.5)
    best = env.best_response(theta)
    truth = Riccati().best_response(env.model(theta).detach(), env.preferences)
    model = env.model(theta).detach()
    optimum = float(truth.v.constant[0] + (truth.v.matrix[0] * model.initial[0]).sum())
    task = env.task(theta[None], model)
    short = sampled_shortfall(task, best.policy, env.preferences, episodes=2_000, noise=Noise([[0, 1]]))
    batch = env.rollout(theta, truth, Noise([1]), rows=100, horizon=100)
    s, b = batch.state, batch.action
    errors = {}
    for name, own, true in (
        ("log g", best.policy.log_prob(s, b), truth.policy.log_prob(s, b)),
        ("V_F", best.v(s), truth.v(s)),
        ("Q_F", best.q(s, b), truth.q(s, b)),
    ):
        errors[name] = [float((own - true).abs().median()), float(true.std())]
    slope, steep = best.v.gradient(s), truth.v.gradient(s)
    guiding = exact.hypergradient_parts(env, theta)[1]
    watched = ObservedFollower(Told(best), 20_000).respond(task, theta[None], model)
    estimates = {}
    for name, response in (
        ("exact follower", truth),
        ("the agent's own", best),
        ("observed, 20,000 transitions", watched),
    ):
        for reaction in ("sampled", "fitted"):
            found = guiding_of(response, theta, "state_values", reaction)
            angles = np.quantile([cosine(one, guiding) for one in found], (0.25, 0.5, 0.75))
            length = float(np.median(np.linalg.norm(found, axis=1)))
            estimates[f"{name} | {reaction}"] = [*angles.tolist(), cosine(found.mean(0), guiding), length]
    off = {}
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 4, 4)))
    for share in (0.1, 0.3, 1.0):
        angles = []
        for one in noise:
            wrong = (one + one.T) / (one + one.T).norm() * truth.v.matrix[0].norm() * share
            v = Quadratic(truth.v.matrix + wrong, truth.v.constant)
            response = replace(truth, v=v, optimal=False)
            angles.append(cosine(guiding_of(response, theta, "exact", samples=10).mean(0), guiding))
        off[f"{share:.0%}"] = [float(np.mean(angles)), min(angles)]
    return {
        "steps": int(best.steps),
        "optimum": optimum,
        "short": float(short[0]) / -optimum,
        "errors": errors,
        "error of the slope of V_F": float((slope - steep).norm() / steep.norm()),
        "length of the guiding term": float(np.linalg.norm(guiding)),
        "estimates": estimates,
        "V_F off by": off,
    }


def sac_table(found: dict[str, Any]) -> str:
    """The table of errors, that of estimates, and that of V_F off at random."""
    lines = [
        f"The soft return is {found['short']:.1%} short of the optimum of {_signed(found['optimum'], 0)}.",
        "At states that the optimal follower visits:",
        "",
        "| | median error | standard deviation of the truth |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {error:.1f} | {spread:.1f} |" for name, (error, spread) in found["errors"].items()]
    lines += [
        "",
        f"∇V_F is off by {found['error of the slope of V_F']:.0%}. Of 20 estimates of the guiding term",
        f"from 50 episodes each, against the exact term, which is {found['length of the guiding term']:.0f} long:",
        "",
        "| values | reaction | cosine of one estimate (quartiles) | of the mean | median length |",
        "|---|---|---|---|---|",
    ]
    for name, (low, median, high, mean, length) in found["estimates"].items():
        quartiles = ", ".join(_signed(x, 2) for x in (low, median, high))
        lines.append(f"| {name} | {quartiles} | {_signed(mean, 2)} | {length:,.0f} |")
    lines += [
        "",
        "With the exact policy and critic, and a V_F whose matrix is off at random (20 draws):",
        "",
        "| V_F is off by | cosine of a mean of ten estimates, mean of the draws | worst |",
        "|---|---|---|",
    ]
    lines += [
        f"| {share} | {_signed(mean, 2)} | {_signed(worst, 2)} |"
        for share, (mean, worst) in found["V_F off by"].items()
    ]
    return "\n".join(lines) + "\n"


def trained(seed: int) -> dict[str, Any]:
    """State of an agent that has learnt at θ = 0.5."""
    agent = sac(seed=seed)
    BilevelWrapper(gym.make(BUILDING), agent).best_response(np.full(8, 0.5))
    return agent.state_dict()


def lead(make: type[BCHG] | type[NaivePGD], follower: Any, iterations: int) -> list[float]:
    """J_L under an optimal follower before each update and after the last."""
    env = BilevelWrapper(gym.make(BUILDING), follower)
    leader = make(env, seed=0, batch_size=2_000, learning_rate=0.1).learn(iterations)
    values = [*leader.history["leader_value"][:, 0], exact.objective(env.unwrapped, leader.theta)]
    return [round(float(value), 3) for value in values]


LED: dict[str, tuple[type[BCHG] | type[NaivePGD], bool]] = {
    "the agent's own values": (BCHG, False),
    "what it sees of the agent, 5,000 transitions per iteration": (BCHG, True),
    "the direct term alone (Naive-PGD)": (NaivePGD, False),
}


def measure_lead(record: Record) -> None:
    """The exact follower, and three agents, of which the first is led for longer."""
    for name, make in (("BC-HG", BCHG), ("Naive-PGD", NaivePGD)):
        record.get(f"lead: exact follower, {name}", lambda make=make: lead(make, Riccati(), SHOWN[-1]))
    for seed in AGENTS:
        missing = [name for name in LED if f"lead: agent {seed}, {name}" not in record.found]
        state = trained(seed) if missing else {}
        for name in missing:
            make, watched = LED[name]
            agent = sac(seed=seed)
            agent.load_state_dict(copy.deepcopy(state))
            follower = ObservedFollower(agent, 5_000) if watched else agent
            iterations = SHOWN[-1] if seed == AGENTS[0] else SHOWN[0]
            record.get(f"lead: agent {seed}, {name}", lambda m=make, f=follower, i=iterations: lead(m, f, i))


def lead_table(found: dict[str, Any]) -> str:
    """Where each of them ends."""
    numbers = ", ".join(map(str, AGENTS))
    lines = [
        f"| the leader takes | after {SHOWN[0]} iterations: agents {numbers} | exact follower "
        f"| after {SHOWN[1]}: agent 0 | exact follower |",
        "|---" * 5 + "|",
    ]
    for name, (make, watched) in LED.items():
        runs = [found[f"lead: agent {seed}, {name}"] for seed in AGENTS]
        known = found[f"lead: exact follower, {'BC-HG' if make is BCHG else 'Naive-PGD'}"]
        exactly = ["", ""] if watched else [_signed(known[shown], 1) for shown in SHOWN]
        agents = ", ".join(_signed(run[SHOWN[0]], 1) for run in runs)
        lines.append(f"| {name} | {agents} | {exactly[0]} | {_signed(runs[0][SHOWN[1]], 1)} | {exactly[1]} |")
    start = next(values for key, values in found.items() if key.startswith("lead: "))[0]
    return "\n".join(lines) + f"\n\nAll begin at {_signed(start, 1)}.\n"


def lead_figure(found: dict[str, Any]) -> Figure:
    """J_L over outer iterations: of the first agent, and of the exact follower."""
    figure = Figure(figsize=(7.0, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for colour, name in zip(plots.COLOURS, LED, strict=False):
        axes.plot(found[f"lead: agent {AGENTS[0]}, {name}"], color=colour, label=f"SAC: {name}")
    for colour, make in zip((plots.COLOURS[0], plots.COLOURS[2]), ("BC-HG", "Naive-PGD"), strict=True):
        axes.plot(found[f"lead: exact follower, {make}"], "--", color=colour, label=f"exact follower: {make}")
    best = gym.make(BUILDING).unwrapped.best_known
    axes.axhline(best, color=plots.BEST, linewidth=1, linestyle=":", label=f"best known: {best:.1f}")
    axes.set(xlabel="outer iterations", ylabel=r"leader's value $J_L(\theta)$ under an optimal follower")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    return figure


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


def measure_soft_dqn() -> dict[str, list[float]]:
    """By β: KL to the exact soft-optimal policy, and the error of V_F, averaged over the states that are visited."""
    found = {}
    for beta in (5e-2, 5e-3):
        env = BilevelWrapper(gym.make(ROOMS), soft_dqn(beta))
        theta = env.unwrapped.theta
        best = env.best_response(theta)
        truth = SoftValueIteration(beta=beta).best_response(env.model(theta).detach(), env.preferences)
        batch = env.rollout(theta, best, Noise([0]), rows=100, horizon=200)
        log_p, log_q = truth.policy.log_probs[0], best.policy.log_probs[0]
        divergence = (log_q.exp() * (log_q - log_p)).sum(-1)[batch.state[batch.valid]]
        off = (best.v.values - truth.v.values)[0].abs()[batch.state[batch.valid]].mean()
        found[f"{beta:g}"] = [float(divergence.mean()), float(off)]
    return found


def soft_dqn_table(found: dict[str, list[float]]) -> str:
    """By β."""
    lines = ["| β | KL to the exact policy | mean error of V_F |", "|---|---|---|"]
    return "\n".join(lines + [f"| {beta} | {kl:.4f} | {off:.4f} |" for beta, (kl, off) in found.items()]) + "\n"


def measure_observed() -> dict[str, Any]:
    """Cosine to the exact hypergradient against the number of observations; ten runs beside the white box."""
    raw = np.zeros(105)
    raw[STATE[3, 5]] = 5.5  # the budget before the top corridor: the follower is torn
    worlds = {
        "four rooms, a corridor blocked": (ROOMS, lambda: Budget(raw[None], -0.2)),
        "random MDP, θ in everything": ("BiLevel/RandomMDP-v0", lambda: None),
    }
    rows: dict[str, dict[str, list[float | None]]] = {}
    ratios: dict[str, float] = {}
    for name, (world, policy) in worlds.items():
        for method in ("counts", "network"):
            for count in WATCHED:
                env = BilevelWrapper(gym.make(world), ObservedFollower(None, count, method=method, steps=2_000))
                how: dict[str, Any] = {"critic": "exact", "learning_rate": 1e-12, "policy": policy()}
                leader = BCHG(env, **how).learn(1)
                truth, (direct, guiding) = (
                    f(env, leader.theta) for f in (exact.hypergradient, exact.hypergradient_parts)
                )
                found = leader.gradient_samples(10, episodes=500).mean(0)
                white = BCHG(BilevelWrapper(gym.make(world)), critic="exact", policy=leader.policy)
                usual = white.gradient_samples(10, episodes=500).mean(0)
                bias = float(np.linalg.norm(found - usual) / np.linalg.norm(truth))
                rows.setdefault(f"{count:,}{', by networks' * (method == 'network')}", {})[name] = [
                    bias,
                    cosine(found, truth),
                ]
        rows.setdefault("white box", {})[name] = [None, cosine(usual, truth)]
        rows.setdefault("direct term alone", {})[name] = [None, cosine(direct, truth)]
        ratios[name] = float(np.linalg.norm(guiding) / np.linalg.norm(direct))
    led = {}
    for name, follower in (
        ("white box", SoftValueIteration()),
        ("observed", ObservedFollower(None, 1_000, forget=0.1)),
    ):
        env = BilevelWrapper(gym.make(ROOMS), follower)
        noisy = {"critic": "expected_sarsa", "cross_fit": False, "tail": "keep", "control_variate": "none"}
        how = {"learning_rate": 0.02, "exploration": "none", **noisy}
        value = BCHG(env, runs=10, seed=0, **how).learn(3_000).history["leader_value"]
        led[name] = float(value[-300:].mean())
    return {"rows": rows, "guiding over direct": ratios, "led": led}


def observed_table(found: dict[str, Any]) -> str:
    """Bias and cosine by number of transitions, and where the four rooms are led."""
    worlds = list(found["rows"]["white box"])
    lines = [
        "| transitions | " + " | ".join(f"{world}: bias | cosine" for world in worlds) + " |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        cells = [f"{'' if row[w][0] is None else format(row[w][0], '.2f')} | {_signed(row[w][1], 3)}" for w in worlds]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    led, ratios = found["led"], found["guiding over direct"]
    lines += [
        "",
        f"The guiding term is {ratios[worlds[0]]:.1f} times as long as the direct one in the four rooms,",
        f"{ratios[worlds[1]]:.1f} times in the random MDP.",
        "",
        "Leading the four rooms, ten runs, batches of 100, 3,000 iterations, the noisy settings:",
        f"J_L over the last 300 is {led['observed']:.3f} when 1,000 transitions are observed per iteration",
        f"and nine tenths of the counts are kept, {led['white box']:.3f} with the white box.",
    ]
    return "\n".join(lines) + "\n"


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


def measure_tax() -> list[list[float]]:
    """BC-HG with a household that learns: after each iteration F under an exact one, under its own policy, its gap."""
    env = BilevelWrapper(gym.make(TAX), household())
    leader, found = BCHG(env, seed=0, critic="exact", learning_rate=0.06), []

    def keep(*_: Any) -> bool:
        columns = ("leader_value", "leader_value_actual", "optimality_gap")
        found.append([round(float(leader.history[column][-1, 0]), 3) for column in columns])
        return True

    leader.learn(40, callback=keep)
    return found


def tax_table(found: list[list[float]]) -> str:
    """Every fifth iteration."""
    best = float(gym.make(TAX).unwrapped.best_known)  # type: ignore[attr-defined]
    lines = ["| iteration | F, exact household | F, the agent's own policy | its soft return is short by |"]
    lines.append("|---|---|---|---|")
    for index in (0, *range(4, len(found), 5)):
        value, own, gap = found[index]
        lines.append(f"| {index + 1} | {value:.2f} | {own:.2f} | {gap:.1f} |")
    top = max(value for value, _, _ in found)
    return "\n".join(lines) + f"\n\nThe best iterate is worth {top:.2f}, {top / best:.1%} of the best known.\n"


def _signed(number: float, digits: int) -> str:
    """With a typographic minus and thousands separators."""
    return f"{number:,.{digits}f}".replace("-", "−")


PARTS: dict[str, tuple[Callable[[], Any], Callable[[Any], str]]] = {
    "sac": (measure_sac, sac_table),
    "soft-dqn": (measure_soft_dqn, soft_dqn_table),
    "observed": (measure_observed, observed_table),
    "tax": (measure_tax, tax_table),
}


@dataclass
class Args:
    """What is measured."""

    parts: tuple[str, ...] = (*PARTS, "lead")
    out: Path = ROOT / "docs" / "data" / "followers.json"


def main(args: Args) -> None:
    torch.set_num_threads(1)
    record = Record(args.out)
    for part in args.parts:
        check_choice(part, (*PARTS, "lead"), "parts")
    for part in args.parts:
        began = time.process_time()
        if part == "lead":
            measure_lead(record)
            text = lead_table(record.found)
            plots.save(lead_figure(record.found), ROOT / "docs" / "images" / "sac.png")
        else:
            measure, table = PARTS[part]
            text = table(record.get(part, measure))
        replace_file(args.out.with_name(f"followers_{part}.md"), text.encode())
        print(f"{part}: {time.process_time() - began:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
