import numpy as np
import pytest
import torch

from bilevel_envs.tabular import TabularModel


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
    going_on = (model.transition * model.continues[..., None]).expand(3, -1, -1, -1)
    matrix = torch.eye(states) - 0.97 * torch.einsum("rsb,rsbt->rst", policy, going_on)
    solved = model.resolvent(policy, 0.97, y, transpose=transpose)
    applied = torch.einsum("rst,rt->rs", matrix.mT if transpose else matrix, solved)
    assert (applied - y).abs().max() < 1e-12


def test_a_shuffled_line_is_a_line_again_after_reordering():
    rng = np.random.default_rng(0)
    assert world(chain(50, rng), rng).structure.stepping.band.width <= 2
