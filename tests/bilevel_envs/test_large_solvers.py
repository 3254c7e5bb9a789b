"""Solvers of large tables against SciPy's direct solves, value iteration in dense matrices, and central differences."""

import dataclasses

import numpy as np
import pytest
from scipy.sparse import csr_array, eye_array
from scipy.sparse.linalg import spsolve

from bilevel_envs.worlds.tabular import krylov, large_planning, policy_system
from bilevel_envs.worlds.tabular.large_planning import Stop
from bilevel_envs.worlds.tabular.pattern import pattern_of
from bilevel_envs.worlds.tabular.policy_system import PolicySystems

SOLVERS = ("auto", "bicgstab", "gmres", "splu")
SHAPES = ("grid", "ending grid", "shared grid", "random", "wide", "long")


def large_soft_policy_iteration(
    r, successor, probability, continues, gamma, beta, pattern, v, tol, most, solver="auto"
):
    lists = successor, probability, continues
    return large_planning.large_soft_policy_iteration(r, lists, gamma, beta, pattern, v, Stop(tol, most), solver)


def large_hard_policy_iteration(r, successor, probability, continues, gamma, pattern, v, eps, most):
    lists = successor, probability, continues
    return large_planning.large_hard_policy_iteration(r, lists, gamma, pattern, Stop(eps, most), v)


def large_solutions(g, successor, probability, continues, gamma, pattern, y, transpose, start=None, solver="auto"):
    lists = successor, probability, continues
    return policy_system.PolicySystems(g, lists, gamma, pattern, solver).solutions(y, transpose, start)


def grid(rows: int, columns: int, rng: np.random.Generator, *, ends: bool, runs: int = 1, shared: bool = False):
    """Steps up, down, left or right, slipping in any direction; padding lies anywhere in the lists of six."""
    cells = np.arange(rows * columns).reshape(rows, columns)
    padded = np.pad(cells, 1, "edge")
    around = [padded[2:, 1:-1], padded[1:-1, 2:], padded[:-2, 1:-1], padded[1:-1, :-2]]
    states = rows * columns
    lists = np.stack([*(a.ravel() for a in around), cells.ravel(), np.zeros(states, int)], -1)
    probability = np.zeros((runs, states, 4, 6))
    for b in range(4):
        slip = rng.random((runs, states, 5))
        slip *= 0.4 / slip.sum(-1, keepdims=True)
        probability[:, :, b, :5] = slip
        probability[:, :, b, b] += 0.6
    successor = np.repeat(lists[:, None], 1 if shared else 4, axis=1)
    if not shared:  # each action lists its successors in an order of its own
        shuffle = rng.permuted(np.broadcast_to(np.arange(6), (states, 4, 6)), axis=-1)
        successor = np.take_along_axis(successor, shuffle, -1)
        probability = np.take_along_axis(probability, np.broadcast_to(shuffle, probability.shape), -1)
    continues = np.ones((states, 4), bool)
    if ends:
        continues[rng.integers(states, size=3)] = False
        continues[rng.integers(states, size=3), 1] = False
    return successor.astype(np.int32), probability, continues


def model(shape: str, seed: int = 0, runs: int = 1):
    """Lists, probabilities and continuations of a model of some 600 states, its reward [R, S, B] and a policy."""
    rng = np.random.default_rng(seed)
    if "grid" in shape:
        lists = grid(20, 30, rng, ends=shape == "ending grid", runs=runs, shared=shape == "shared grid")
    else:
        states, actions, branches = {"random": (600, 2, 2), "wide": (600, 7, 5), "long": (520, 3, 40)}[shape]
        probability = rng.dirichlet(np.ones(branches), (runs, states, actions))
        probability[..., 1] = 0.0  # padding in the middle
        probability /= probability.sum(-1, keepdims=True)
        ends = rng.random((states, actions)) < (0.02 if shape == "wide" else 0.0)
        lists = rng.integers(states, size=(states, actions, branches)).astype(np.int32), probability, ~ends
    states, actions = lists[2].shape
    return *lists, rng.normal(size=(runs, states, actions)), rng.dirichlet(np.ones(actions), (runs, states))


def matrices(successor, probability, continues, run=0):
    """Probability of going on from s with b to s', dense, [S, B, S]."""
    states, actions = continues.shape
    dense, (s, b) = np.zeros((states, actions, states)), np.indices((states, actions))
    for k in range(probability.shape[3]):
        to = np.broadcast_to(successor[..., k], (states, actions))
        np.add.at(dense, (s, b, to), probability[run, :, :, k] * continues)
    return dense


def soft_values(dense, reward, gamma, beta, sweeps):
    """V of one run by soft value iteration."""
    v, onward = np.zeros(len(reward)), csr_array(dense.reshape(-1, len(reward)))
    for _ in range(sweeps):
        q = reward + gamma * (onward @ v).reshape(reward.shape)
        v = q.max(-1) + beta * np.log(np.exp((q - q.max(-1, keepdims=True)) / beta).sum(-1))
    return v


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_solutions_of_both_systems_are_those_of_dense_matrices(shape, solver):
    successor, probability, continues, _, policy = model(shape, runs=2)
    y = np.random.default_rng(1).normal(size=(2, len(continues)))
    y[1] = 0.0
    y[1, 7] = 1.0  # a start in one state
    pattern = pattern_of(successor, probability, continues)
    assert pattern.wide == (shape in ("wide", "long"))
    systems = PolicySystems(policy, (successor, probability, continues), 0.97, pattern, solver)
    for transpose in (False, True):
        x = systems.solutions(y, transpose)
        for run in range(2):
            onward = np.einsum("sb,sbt->st", policy[run], matrices(successor, probability, continues, run))
            system = np.eye(len(continues)) - 0.97 * (onward.T if transpose else onward)
            np.testing.assert_allclose(x[run], np.linalg.solve(system, y[run]), rtol=1e-10, atol=1e-11)
        again = systems.solutions(y, transpose, start=x + 1e-3)
        np.testing.assert_allclose(again, x, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_soft_values_are_those_of_dense_value_iteration(shape, solver):
    successor, probability, continues, reward, _ = model(shape, seed=2, runs=2)
    pattern = pattern_of(successor, probability, continues)
    gamma, beta, start = 0.9, 0.05, np.zeros(reward.shape[:2])
    how = (reward, successor, probability, continues, gamma, beta, pattern)
    q, v, log_probs, residual, converged = large_soft_policy_iteration(*how, start, 1e-10, 100, solver)
    assert converged.all()
    assert (residual <= 1e-10 * beta).all()
    assert not start.any()
    for run in range(2):
        dense = matrices(successor, probability, continues, run)
        expected = soft_values(dense, reward[run], gamma, beta, 400)  # 0.9^400 = 5e-19
        np.testing.assert_allclose(v[run], expected, rtol=0, atol=1e-10)
        expected_q = reward[run] + gamma * dense @ expected
        np.testing.assert_allclose(q[run], expected_q, rtol=0, atol=1e-10)
        np.testing.assert_allclose(log_probs[run], (expected_q - expected[:, None]) / beta, rtol=0, atol=1e-8)
    other = large_soft_policy_iteration(*how, v + np.random.default_rng(3).normal(size=v.shape), 1e-10, 100, solver)
    np.testing.assert_allclose(other[1], v, rtol=0, atol=1e-10)  # 2 tol β / (1 − γ)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_hard_values_are_within_eps_of_value_iteration(shape):
    successor, probability, continues, reward, _ = model(shape, seed=4, runs=2)
    pattern = pattern_of(successor, probability, continues)
    tables = (reward, successor, probability, continues, 0.95, pattern, np.zeros(reward.shape[:2]))
    expected = np.zeros(reward.shape[:2])
    for run in range(2):
        onward = csr_array(matrices(successor, probability, continues, run).reshape(-1, len(continues)))
        for _ in range(800):  # 0.95^800 = 2e-18
            expected[run] = (reward[run] + 0.95 * (onward @ expected[run]).reshape(continues.shape)).max(-1)
    for eps in (1e-1, 1e-4, 1e-9):
        q, v, best, bound, converged = large_hard_policy_iteration(*tables, eps, 200)
        assert converged.all()
        assert (bound <= eps).all()
        assert (np.abs(v - expected).max(-1) <= bound + 1e-12).all()
        np.testing.assert_array_equal(best, q.argmax(-1))
        np.testing.assert_allclose(q.max(-1), v, rtol=0, atol=1e-12)


def test_a_large_constant_leaves_the_digits_that_tell_actions_apart():
    # r + 10⁶ in a model without end: V rises by 10⁶ / (1 − γ) = 10¹⁰, g stays
    successor, probability, continues, reward, _ = model("grid", seed=5)
    pattern, nothing = pattern_of(successor, probability, continues), np.zeros(reward.shape[:2])
    beta, gamma = 1e-3, 0.9999
    bare, shifted = (
        large_soft_policy_iteration(r, successor, probability, continues, gamma, beta, pattern, nothing, 1e-10, 200)
        for r in (reward, np.round(reward * 2**20) / 2**20 + 2.0**20)
    )
    exact = large_soft_policy_iteration(
        np.round(reward * 2**20) / 2**20, successor, probability, continues, gamma, beta, pattern, nothing, 1e-10, 200
    )
    assert bare[4].all()
    assert exact[4].all()
    assert shifted[4].all()
    np.testing.assert_allclose(np.exp(shifted[2]), np.exp(exact[2]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(shifted[1] - exact[1], 2.0**20 / (1 - gamma), rtol=1e-9)


def test_states_that_are_never_left_keep_their_own_sum():
    # 600 states in a line; 0 and 599 lead to themselves for good. V there is r / (1 − γ) + β log 2 / (1 − γ)
    states, gamma, beta = 600, 0.9999, 0.02
    here = np.arange(states)
    successor = np.stack([np.maximum(here - 1, 0), np.minimum(here + 1, states - 1)], -1)[..., None].astype(np.int32)
    successor[0], successor[-1] = 0, states - 1
    probability, continues = np.ones((1, states, 2, 1)), np.ones((states, 2), bool)
    reward = np.zeros((1, states, 2))
    reward[0, 0], reward[0, -1] = 0.25, 0.5
    pattern = pattern_of(successor, probability, continues)
    _, v, log_probs, _, converged = large_soft_policy_iteration(
        reward, successor, probability, continues, gamma, beta, pattern, np.zeros((1, states)), 1e-10, 300
    )
    assert converged.all()
    ends = (reward[0, [0, -1], 0] + beta * np.log(2)) / (1 - gamma)
    np.testing.assert_allclose(v[0, [0, -1]], ends, rtol=1e-9)  # a last digit of V, 1e-12, weighs 1 / (1 − γ)
    assert np.exp(log_probs[0, 5:300, 1]).min() > 0.999  # twice the reward lies to the right


def test_the_adjoint_agrees_with_central_differences():
    successor, probability, continues, reward, _ = model("ending grid", seed=6)
    rng = np.random.default_rng(7)
    gamma, beta, states = 0.95, 0.3, len(continues)
    weight, direction = rng.normal(size=states), rng.normal(size=reward.shape)
    pattern = pattern_of(successor, probability, continues)

    def outcome(r):
        how = (r, successor, probability, continues, gamma, beta, pattern, np.zeros((1, states)), 1e-11, 100)
        solved = large_soft_policy_iteration(*how)
        return weight @ solved[1][0], solved[2]

    step = 1e-4
    difference = (outcome(reward + step * direction)[0] - outcome(reward - step * direction)[0]) / (2 * step)
    g = np.exp(outcome(reward)[1])
    # dV = (I − γΠ)⁻¹ Σ_b g dr, so d(wᵀV) = wᵀ (I − γΠ)⁻¹ Σ_b g dr: by the transpose, or by the system itself
    visits = large_solutions(g, successor, probability, continues, gamma, pattern, weight[None], True)
    moved = large_solutions(g, successor, probability, continues, gamma, pattern, (g * direction).sum(-1), False)
    assert (visits[..., None] * g * direction).sum() == pytest.approx(difference, rel=1e-6)
    assert weight @ moved[0] == pytest.approx((visits[..., None] * g * direction).sum(), rel=1e-11)


def test_a_pattern_holds_what_any_run_may_do_and_is_renewed_where_it_lacks_a_move():
    successor, probability, continues, reward, policy = model("grid", seed=8, runs=2)
    probability[0, :, :, 0] = 0.0
    probability /= probability.sum(-1, keepdims=True)
    y = np.random.default_rng(9).normal(size=(2, len(continues)))
    both, first = pattern_of(successor, probability, continues), pattern_of(successor, probability[:1], continues)
    assert len(first.indices) < len(both.indices)
    for pattern in (both, first):
        x = large_solutions(policy, successor, probability, continues, 0.9, pattern, y, False)
        for run in range(2):
            onward = np.einsum("sb,sbt->st", policy[run], matrices(successor, probability, continues, run))
            np.testing.assert_allclose(x[run] - 0.9 * onward @ x[run], y[run], rtol=0, atol=1e-11)
        tables = (reward, successor, probability, continues, 0.9, 0.1, pattern, np.zeros((2, len(continues))))
        v = large_soft_policy_iteration(*tables, 1e-10, 100)[1]
        expected = soft_values(matrices(successor, probability, continues, 1), reward[1], 0.9, 0.1, 400)
        np.testing.assert_allclose(v[1], expected, rtol=0, atol=1e-10)


def test_a_hub_leaves_the_others_close_together():
    successor, probability, continues, _, _ = model("shared grid")
    restart = np.concatenate([successor, np.zeros_like(successor[..., :1])], -1)
    often = np.concatenate([0.99 * probability, np.full_like(probability[..., :1], 0.01)], -1)
    pattern = pattern_of(restart, often, continues)
    place = np.repeat(np.arange(600), np.diff(pattern.indptr))
    kept = (pattern.indices != np.flatnonzero(pattern.order == 0)) & (place != np.flatnonzero(pattern.order == 0))
    assert np.abs(place - pattern.indices)[kept].max() <= 2 * 20  # the grid is 20 cells wide
    assert sorted(pattern.order.tolist()) == list(range(600))


def test_runs_that_fail_say_so(monkeypatch):
    successor, probability, continues, reward, policy = model("grid", seed=10, runs=2)
    pattern = pattern_of(successor, probability, continues)
    reward[1, 3, 2] = np.nan
    tables = (reward, successor, probability, continues, 0.99, 0.01, pattern, np.zeros(reward.shape[:2]))
    assert large_soft_policy_iteration(*tables, 1e-10, 100)[4].tolist() == [True, False]
    assert not large_soft_policy_iteration(*tables, 1e-10, 2)[4].any()
    monkeypatch.setattr(policy_system, "MOST_ITERATIONS", 1)
    with pytest.raises(RuntimeError, match=r"run 0 with γ = 0\.999 was solved to"):
        large_solutions(policy, successor, probability, continues, 0.999, pattern, reward[..., 0], False, None, "gmres")
    # the next solver takes over where one fails
    y = np.random.default_rng(0).normal(size=(2, len(continues)))
    x = large_solutions(policy, successor, probability, continues, 0.999, pattern, y, True)
    exact = large_solutions(policy, successor, probability, continues, 0.999, pattern, y, True, None, "splu")
    np.testing.assert_allclose(x, exact, rtol=1e-9)


def test_unknown_solvers_and_states_are_refused():
    successor, probability, continues, reward, policy = model("grid")
    pattern = pattern_of(successor, probability, continues)
    with pytest.raises(ValueError, match=r"`solver` must be one of .*'gmres'.* got 'lu'"):
        large_solutions(policy, successor, probability, continues, 0.9, pattern, reward[..., 0], False, None, "lu")
    successor[3, 1, 2] = 600
    with pytest.raises(ValueError, match="`successor` must hold states 0 to 599, padding included, got 0 to 600"):
        pattern_of(successor, probability, continues)


@pytest.mark.slow
def test_two_hundred_thousand_states_are_solved():
    rng = np.random.default_rng(11)
    successor, probability, continues = grid(400, 500, rng, ends=True, shared=True)
    states, gamma, beta = len(continues), 0.99, 0.02
    reward = 0.1 * rng.normal(size=(1, states, 4))
    pattern = pattern_of(successor[:, :, :5], probability[..., :5], continues)
    lists = (successor[:, :, :5], probability[..., :5], continues)
    _, v, log_probs, _, converged = large_soft_policy_iteration(
        reward, *lists, gamma, beta, pattern, np.zeros((1, states)), 1e-8, 100
    )
    g, start = np.exp(log_probs), np.zeros((1, states))
    start[0, 0] = 1.0
    visits = large_solutions(g, *lists, gamma, pattern, start, True)
    assert converged.all()
    s = np.repeat(np.arange(states), 20)
    to = np.broadcast_to(successor[:, :, :5], (states, 4, 5)).ravel()
    onward = csr_array(((g[0, ..., None] * probability[0, ..., :5] * continues[..., None]).ravel(), (s, to)))
    np.testing.assert_allclose(visits[0] - gamma * onward.T @ visits[0], start[0], rtol=0, atol=1e-12)
    fixed = (g[0] * (reward[0] - beta * log_probs[0])).sum(-1)  # V = Σ_b g (r − β log g) + γΠV
    np.testing.assert_allclose(v[0] - gamma * onward @ v[0], fixed, rtol=0, atol=1e-9)


def dense_system(pattern, system, states):
    """The rows that a `PolicySystem` holds, dense, by place."""
    return csr_array((system.values, pattern.indices, pattern.indptr), shape=(states, states)).toarray()


@pytest.mark.parametrize("transpose", [False, True])
def test_the_split_product_is_that_of_dense_factors(transpose):
    successor, probability, continues, _, policy = model("ending grid", seed=13)
    pattern = pattern_of(successor, probability, continues)
    assert pattern.sparse  # in a grid no two neighbours of a cell are neighbours
    system = policy_system.PolicySystem(pattern, 0.97)
    system.fill(policy[0], np.zeros(0, np.int32), probability[0], continues)
    a = dense_system(pattern, system, len(continues))
    pivots, scaled = np.empty(len(a)), np.empty(len(system.values))
    rows = (pattern.indptr, pattern.indices, pattern.diagonal)
    krylov.scaled_by_pivots(*rows, system.values, pivots, scaled)
    lower, upper = np.tril(a, -1), np.triu(a, 1)
    # pivots: the factors (E + L) E⁻¹ (E + U) have A's diagonal
    product = (np.diag(pivots) + lower) @ np.diag(1 / pivots) @ (np.diag(pivots) + upper)
    np.testing.assert_allclose(np.diag(product), np.diag(a), rtol=0, atol=1e-14)
    first, second = np.eye(len(a)) + lower / pivots[:, None], np.eye(len(a)) + upper / pivots[:, None]
    by_pivots = a / pivots[:, None]
    if transpose:
        first, second, by_pivots = second.T, first.T, by_pivots.T
    expected = np.linalg.inv(first) @ by_pivots @ np.linalg.inv(second)
    x, beside = np.random.default_rng(14).normal(size=(2, len(a)))
    out, work = np.empty_like(x), np.empty_like(x)
    with_beside, with_itself = krylov.split_product((*rows, scaled), transpose, x, beside, work, out)
    np.testing.assert_allclose(out, expected @ x, rtol=0, atol=1e-12)
    np.testing.assert_allclose([with_beside, with_itself], [out @ beside, out @ out], rtol=1e-12)
    for solve, matrix in ((True, np.linalg.inv(first)), (False, first)):
        y = x.copy()
        krylov.first_factor((*rows, scaled), transpose, solve, y)
        np.testing.assert_allclose(y, matrix @ x, rtol=0, atol=1e-12)
    krylov.second_factor((*rows, scaled), transpose, x)
    np.testing.assert_allclose(second @ x, np.random.default_rng(14).normal(size=(2, len(a)))[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("transpose", [False, True])
def test_split_iterations_are_as_few_as_those_with_an_incomplete_factor(transpose):
    # in a grid the two factorisations are the same: ILU(0) has nothing to change but the diagonal
    successor, probability, continues, _, policy = model("ending grid", seed=15)
    pattern = pattern_of(successor, probability, continues)
    found = []
    for sparse in (True, False):
        chosen = dataclasses.replace(pattern, sparse=sparse)
        systems = PolicySystems(policy, (successor, probability, continues), 0.99, chosen, "bicgstab")
        x = systems.solutions(np.random.default_rng(16).normal(size=(1, len(continues))), transpose)
        found.append((x, systems.iterations))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-10, atol=1e-10)
    assert found[0][1] <= 1.25 * found[1][1] + 2


def test_neighbours_that_are_neighbours_call_for_an_incomplete_factor():
    states = 600  # each state leads to the next three, which lead to one another
    successor = ((np.arange(states)[:, None] + np.arange(4)) % states)[:, None].astype(np.int32)
    probability, continues = np.full((1, states, 1, 4), 0.25), np.ones((states, 1), bool)
    pattern = pattern_of(successor, probability, continues)
    assert not pattern.wide
    assert not pattern.sparse
    y = np.random.default_rng(17).normal(size=(1, states))
    x = PolicySystems(np.ones((1, states, 1)), (successor, probability, continues), 0.98, pattern).solutions(y, False)
    onward = matrices(successor, probability, continues)[:, 0]
    np.testing.assert_allclose(x[0] - 0.98 * onward @ x[0], y[0], rtol=0, atol=1e-11)


def test_a_sparse_start_is_as_easy_as_a_dense_one():
    # BiCGSTAB whose shadow is the residual itself breaks down here; few iterations must do
    successor, probability, continues, _, policy = model("random", seed=12)
    pattern = pattern_of(successor, probability, continues, wide=True)
    systems = PolicySystems(policy, (successor, probability, continues), 0.99, pattern, "bicgstab")
    start = np.zeros((1, len(continues)))
    start[0, 5] = 1.0
    x = systems.solutions(start, True)[0]
    onward = csr_array(np.einsum("sb,sbt->st", policy[0], matrices(successor, probability, continues)))
    expected = spsolve((eye_array(len(x)) - 0.99 * onward.T).tocsc(), start[0])
    np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-12)
    assert systems.iterations <= 100


@pytest.mark.parametrize("endless", [False, True])
def test_sums_of_terms_end_with_the_constant_that_is_left(endless):
    # x = Σ_j (γΠ)^j y; where nothing ends γ^j falls slowly, and a few terms leave most of x to the constant
    rng = np.random.default_rng(13)
    onward = rng.dirichlet(np.ones(50), 50) * (1.0 if endless else 0.5)
    system, y, x = np.eye(50) - 0.99 * onward, rng.random(50), np.empty(50)
    indptr = np.arange(0, 50 * 51 + 1, 51)  # each row's own 1, and then all columns
    indices = np.concatenate([np.append(s, np.arange(50)) for s in range(50)]).astype(np.int32)
    values = np.concatenate([np.append(1.0, -0.99 * onward[s]) for s in range(50)])
    taken, fall = krylov.swept(indptr, indices, values, y, x, 60, 1e-13, 0.99, endless, np.empty((2, 50)))
    assert taken < 60
    assert fall <= 1e-13
    np.testing.assert_allclose(x, np.linalg.solve(system, y), rtol=1e-11)


def test_terms_of_long_lists_save_backups():
    # lists of 40: one product shrinks what is left about sixfold, and two follow a backup
    successor, probability, continues, reward, _ = model("long", seed=4)
    pattern = pattern_of(successor, probability, continues)
    tables = (reward, successor, probability, continues, 0.95, pattern, np.zeros(reward.shape[:2]))
    assert large_hard_policy_iteration(*tables, 1e-9, 12)[4].all()
