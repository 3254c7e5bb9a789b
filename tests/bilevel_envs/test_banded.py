import numpy as np
import pytest
import torch

from bilevel_envs import Preferences
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.worlds.tabular.kernels import systems
from bilevel_envs.worlds.tabular.model import TabularModel


def chain(states: int, rng: np.random.Generator) -> np.ndarray:
    """A random walk on a shuffled line, [1, S, 2, S]."""
    order = rng.permutation(states)
    moves = np.zeros((1, states, 2, states))
    for i in range(states):
        for action, j in enumerate((max(i - 1, 0), min(i + 1, states - 1))):
            moves[0, order[i], action, order[j]] += 0.7
            moves[0, order[i], action, order[i]] += 0.3
    return moves


def world(moves: np.ndarray, rng: np.random.Generator) -> TabularModel:
    """With rewards of 0; every tenth step ends the episode."""
    states, actions = moves.shape[1:3]
    zeros = torch.zeros(1, states, actions, dtype=torch.float64)
    initial = torch.full((1, states), 1 / states, dtype=torch.float64)
    continues = torch.from_numpy((rng.random((1, states, actions)) > 0.1).astype(float))
    return TabularModel(torch.from_numpy(moves), initial, zeros, zeros, continues)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("kind", ["chain", "dense", "small", "a world per run"])
def test_resolvent_solves_its_equation(kind, transpose):
    rng = np.random.default_rng(0)
    states, actions = {"chain": (80, 2), "dense": (80, 3), "small": (6, 3), "a world per run": (40, 2)}[kind]
    moves = chain(states, rng) if kind == "chain" else rng.dirichlet(np.ones(states), (1, states, actions))
    if kind == "a world per run":
        moves = np.concatenate([chain(states, rng) for _ in range(3)])
    model = world(moves, rng)
    policy = torch.from_numpy(rng.dirichlet(np.ones(actions), (3, states)))
    y = torch.from_numpy(rng.normal(size=(3, states)))
    going_on = (model.moves.dense() * model.continues[..., None]).expand(3, -1, -1, -1)
    matrix = torch.eye(states) - 0.97 * torch.einsum("rsb,rsbt->rst", policy, going_on)
    solved = model.resolvent(policy, 0.97, y, transpose=transpose)
    applied = torch.einsum("rst,rt->rs", matrix.mT if transpose else matrix, solved)
    assert (applied - y).abs().max() < 1e-12


def test_a_shuffled_line_is_a_line_again_after_reordering():
    rng = np.random.default_rng(0)
    assert world(chain(50, rng), rng).structure.stepping.band.width <= 2


def with_hubs(moves: np.ndarray, hubs: list[int], rng: np.random.Generator) -> np.ndarray:
    """Every step leads to each hub with probability 0.05; the first hub's own steps lead anywhere."""
    moves = (1 - 0.05 * len(hubs)) * moves
    moves[..., hubs] += 0.05
    moves[:, hubs[0]] = rng.dirichlet(np.ones(moves.shape[-1]), moves.shape[2])
    return moves


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("hubs", [[17], [17, 60], [3, 17, 60, 90, 91]])
def test_hubs_leave_the_band_and_the_solution_alone(hubs, transpose, runs):
    rng = np.random.default_rng(0)
    line = chain(150, rng)
    moves = np.concatenate([with_hubs(line, hubs, rng) for _ in range(runs)])
    model = world(moves, rng)
    band = model.structure.stepping.band
    assert set(np.argsort(band.position)[-band.border :]) >= set(hubs)
    assert band.width <= 2
    policy = rng.dirichlet(np.ones(2), (3, 150))
    y = rng.normal(size=(3, 150))
    solved = model.resolvent(torch.from_numpy(policy), 0.999, torch.from_numpy(y), transpose=transpose)
    going_on = moves * model.continues[..., None].numpy()
    for run in range(3):
        matrix = np.eye(150) - 0.999 * np.einsum("sb,sbt->st", policy[run], going_on[run % runs])
        expected = np.linalg.solve(matrix.T if transpose else matrix, y[run])
        np.testing.assert_allclose(solved[run], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("transpose", [False, True])
def test_the_compiled_solution_with_a_border_is_that_of_the_same_loop_in_python(transpose):
    rng = np.random.default_rng(0)
    moves = world(with_hubs(chain(70, rng), [5, 50], rng), rng).structure.stepping
    policy, y, band = rng.dirichlet(np.ones(2), 70), rng.normal(size=70), moves.band
    arguments = (policy, moves.successor[0], moves.going_on[0], 0.9, band.position, band.width, y, transpose)
    one, other = (solve(*arguments, band.border) for solve in (systems.solution, systems.solution.py_func))
    assert band.border >= 2
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_the_soft_optimum_of_a_world_with_hubs_satisfies_its_equation():
    rng = np.random.default_rng(0)
    moves = with_hubs(chain(150, rng), [17, 60], rng)
    model = world(moves, rng).with_rewards(*(torch.from_numpy(rng.normal(size=(1, 150, 2))) for _ in range(2)))
    best = SoftValueIteration().best_response(model, Preferences(0.9, 0.99, 0.1))
    q, v = best.q.values[0].numpy(), best.v.values[0].numpy()
    plain = model.r_follower[0].numpy() + 0.99 * model.continues[0].numpy() * (moves[0] @ v)
    np.testing.assert_allclose(q, plain, rtol=0, atol=1e-10)
    np.testing.assert_allclose(v, 0.1 * np.logaddexp(plain[:, 0] / 0.1, plain[:, 1] / 0.1), rtol=0, atol=1e-10)


def test_a_state_with_a_few_more_neighbours_than_others_is_kept_out_of_the_band():
    rng = np.random.default_rng(0)
    moves = chain(200, rng)
    moves[0, 7, 0] = 0.0
    moves[0, 7, 0, rng.choice(200, 12, replace=False)] = 1 / 12
    band = world(moves, rng).structure.stepping.band
    assert band.width <= 2
    assert band.border == 1


def test_without_hubs_nothing_is_put_in_the_border():
    rng = np.random.default_rng(0)
    assert world(chain(150, rng), rng).structure.stepping.band.border == 0
    dense = rng.dirichlet(np.ones(80), (1, 80, 2))
    assert world(dense, rng).structure.stepping.band.border == 0


def test_entries_that_round_below_zero_are_no_moves():
    # tables may sum to 1 but for 1e-6; an entry of −1e-8 far from the diagonal must not be looked for in the band
    rng = np.random.default_rng(0)
    moves = chain(80, rng)
    rows = np.arange(80)
    far = (moves[0, :, 0] + moves[0, :, 1] == 0).argmax(-1)
    moves[0, rows, 0, far] = -1e-8
    model = world(moves, rng)
    policy, y = rng.dirichlet(np.ones(2), (1, 80)), rng.normal(size=(1, 80))
    solved = model.resolvent(torch.from_numpy(policy), 0.9, torch.from_numpy(y))
    kernel = np.einsum("sb,sbt->st", policy[0], (moves * model.continues[..., None].numpy())[0])
    np.testing.assert_allclose(solved[0], np.linalg.solve(np.eye(80) - 0.9 * kernel, y[0]), rtol=0, atol=1e-5)
