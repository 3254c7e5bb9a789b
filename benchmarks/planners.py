"""Planning in finite MDPs without entropy: this package's solver against QuantEcon.py and MDPSolver.

All three solve the same successor lists in the same process on one thread, to |V − V*| ≤ eps by their own rules.
`quantecon` is given `epsilon = 2 eps`, because its V is right to half of that. Both rivals run at every number of steps
below, and from V = 0 as well as from their own start; the best one that is right to eps counts. What they need to set
a model up is not counted, and neither is `pattern_of`. Times are the least CPU milliseconds of several rounds, in each
of which every solver takes its turn.

Run: pip install quantecon mdpsolver && python benchmarks/planners.py > benchmarks/planners.md
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from collections.abc import Callable
from itertools import pairwise

import mdpsolver
import numpy as np
from large_models import Lists, four_rooms, random_model
from quantecon.markov import DiscreteDP
from scipy.sparse import csr_matrix

from bilevel_envs.worlds.tabular.large_planning import Stop, large_hard_policy_iteration
from bilevel_envs.worlds.tabular.pattern import pattern_of

PROBLEMS: dict[str, tuple[Callable[[], Lists], float, float]] = {
    "random 1,000 x 20 x 3": (lambda: random_model(1_000, 20, 3), 0.95, 1e-6),
    "random 1,000 x 50 x 3": (lambda: random_model(1_000, 50, 3), 0.95, 1e-6),
    "random 10,000 x 20 x 3": (lambda: random_model(10_000, 20, 3), 0.95, 1e-6),
    "random 2,500 x 6 x 26": (lambda: random_model(2_500, 6, 26), 0.99, 1e-3),
    "random 2,500 x 6 x 250": (lambda: random_model(2_500, 6, 250), 0.99, 1e-3),
    "random 2,500 x 6 x 500": (lambda: random_model(2_500, 6, 500), 0.99, 1e-3),
    "random 5,000 x 6 x 51": (lambda: random_model(5_000, 6, 51), 0.99, 1e-3),
    "random 10,000 x 6 x 101": (lambda: random_model(10_000, 6, 101), 0.99, 1e-3),
    "rooms 34 x 34": (lambda: four_rooms(34), 0.99, 1e-6),
    "rooms 101 x 101": (lambda: four_rooms(101), 0.99, 1e-6),
    "rooms 317 x 317": (lambda: four_rooms(317), 0.99, 1e-6),
}
STEPS = (1, 5, 20, 60, 100)  # of policy evaluation: quantecon's `k` (default 20)
LIMITS = (5, 20, 100)  # likewise MDPSolver's `parIterLim` (default 100)
SLOW = 1.0  # seconds after which a solver gets no second turn


def main() -> None:
    chosen = sys.argv[1:]
    print(
        "| problem | here | quantecon, k = 20 | best (k) | MDPSolver, its default | best (setting) "
        "| better one / here |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (make, gamma, eps) in PROBLEMS.items():
        if not chosen or any(word in name for word in chosen):
            print(row(name, make(), gamma, eps), flush=True)


def row(name: str, lists: Lists, gamma: float, eps: float) -> str:
    """Times of all solvers on one problem, a line of the table."""
    reference = ours(lists, gamma, 1e-10)()
    works = {"here": ours(lists, gamma, eps)} | quantecon(lists, gamma, eps) | rival(lists, gamma, eps)
    times, wrong = {}, set()
    for key, work in works.items():  # compiles; and the answer must be right
        started = time.process_time()
        v = np.asarray(work())[: len(reference)]
        times[key] = time.process_time() - started
        error = np.abs(v - reference).max()
        if error > eps:
            wrong.add(key)
            print(f"{name}: {key} is off by {error:.1e}, more than {eps:g}", file=sys.stderr)
    first = dict(times)
    for _ in range(7):
        for key, work in works.items():
            if first[key] < SLOW or key == "here" or key.endswith("20"):
                started = time.process_time()
                work()
                times[key] = min(times[key], time.process_time() - started)
    ms = {key: 1e3 * seconds for key, seconds in times.items()}
    best_q, best_m = (
        min((k for k in ms if k.startswith(who)), key=lambda k: (k in wrong, ms[k])) for who in ("q", "m")
    )
    cells = (
        f"{name}, γ {gamma}, eps {eps:g}",
        f"{ms['here']:.2f}",
        f"{ms['q 20']:.2f}",
        f"{ms[best_q]:.2f} ({best_q[2:]})",
        f"{ms['m mpi standard 100']:.1f}",
        f"{ms[best_m]:.1f} ({best_m[2:]})",
        f"{min(ms[best_q], ms[best_m]) / ms['here']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def ours(lists: Lists, gamma: float, eps: float) -> Callable[[], np.ndarray]:
    """V, [S]."""
    successor, probability, continues, reward = lists
    pattern, start = pattern_of(successor, probability, continues), np.zeros((1, len(continues)))

    def solved() -> np.ndarray:
        how = ((successor, probability, continues), gamma, pattern, Stop(eps), start)
        _, v, _, _, converged = large_hard_policy_iteration(reward, *how)
        assert converged.all()
        return v[0]

    return solved


def entries(lists: Lists) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """State and action as one index, successor, and probability; what ends an episode leads to state S."""
    successor, probability, continues, _ = lists
    states, actions, branches = probability.shape[1:]
    p = probability[0].reshape(-1, branches)
    to = np.broadcast_to(successor, (states, actions, branches)).reshape(-1, branches)
    to = np.where(continues.reshape(-1, 1), to, states)
    pair = np.repeat(np.arange(states * actions), branches).reshape(p.shape)
    return pair[p > 0], to[p > 0], p[p > 0]


def quantecon(lists: Lists, gamma: float, eps: float) -> dict[str, Callable[[], np.ndarray]]:
    """V by modified policy iteration with each number of steps, from each start, [S or S + 1]."""
    states, actions = lists.continues.shape
    pair, to, p = entries(lists)
    end = int(not lists.continues.all())
    if end:
        pair, to, p = np.append(pair, states * actions), np.append(to, states), np.append(p, 1.0)
    matrix = csr_matrix((p, (pair, to)), shape=(states * actions + end, states + end))
    state, action = np.divmod(np.arange(states * actions + end), actions)
    model = DiscreteDP(np.append(lists.reward[0].ravel(), np.zeros(end)), matrix, gamma, state, action)
    how = {"method": "mpi", "epsilon": 2 * eps, "max_iter": 100_000}
    works = {f"q {k}": lambda k=k: model.solve(**how, k=k).v for k in STEPS}
    start = np.zeros(states + end)
    return works | {f"q {k}, from 0": lambda k=k: model.solve(**how, k=k, v_init=start).v for k in STEPS}


def rival(lists: Lists, gamma: float, eps: float) -> dict[str, Callable[[], np.ndarray]]:
    """V by MDPSolver with each of its settings, [S or S + 1]."""
    states, actions = lists.continues.shape
    pair, to, p = entries(lists)
    begins = np.searchsorted(pair, np.arange(states * actions + 1))

    def by_pair(x: np.ndarray) -> list[list[list]]:
        rows = [x[a:b].tolist() for a, b in pairwise(begins)]
        return [rows[s * actions : (s + 1) * actions] for s in range(states)]

    end = int(not lists.continues.all())
    model = mdpsolver.model()
    model.mdp(
        discount=gamma,
        rewards=lists.reward[0].tolist() + [[0.0]] * end,
        tranMatProbs=by_pair(p) + [[[1.0]]] * end,
        tranMatColumns=by_pair(to) + [[[states]]] * end,
    )
    start = [0.0] * (states + end)

    def solved(algorithm: str, update: str, limit: int) -> np.ndarray:
        model.solve(
            algorithm=algorithm,
            tolerance=eps,
            update=update,
            parIterLim=limit,
            initValueVector=start,
            parallel=False,
        )
        return model.getValueVector()

    settings = [("mpi", update, limit) for update in ("standard", "gs") for limit in LIMITS]
    settings += [("vi", "standard", 100), ("vi", "gs", 100)]
    return {f"m {a} {u} {n}": lambda a=a, u=u, n=n: solved(a, u, n) for a, u, n in settings}


if __name__ == "__main__":
    main()
