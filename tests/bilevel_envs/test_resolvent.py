import numpy as np
import pytest
import torch

from bilevel_envs.resolvent import band_of, resolvent


def chain(states: int, rng: np.random.Generator) -> torch.Tensor:
    """A random walk on a shuffled line; some steps end the episode."""
    order = rng.permutation(states)
    kernel = np.zeros((1, states, 2, states))
    for i in range(states):
        for action, j in enumerate((max(i - 1, 0), min(i + 1, states - 1))):
            kernel[0, order[i], action, order[j]] = rng.uniform(0.5, 1.0)
    return torch.from_numpy(kernel)


@pytest.mark.parametrize("transpose", [False, True])
def test_banded_and_dense_solves_satisfy_their_equation(transpose):
    rng = np.random.default_rng(0)
    kernel = chain(50, rng)
    band = band_of(kernel)
    assert band is not None
    assert band.width <= 2  # a shuffled line is a line again after reordering
    policy = torch.from_numpy(rng.dirichlet(np.ones(2), (3, 50)))
    y = torch.from_numpy(rng.normal(size=(3, 50)))
    moves = torch.einsum("rsb,sbt->rst", policy, kernel[0])
    if transpose:
        moves = moves.mT
    for solved in (
        resolvent(kernel, band, policy, 0.97, y, transpose=transpose),
        resolvent(kernel, None, policy, 0.97, y, transpose=transpose),
    ):
        residual = solved - 0.97 * torch.einsum("rst,rt->rs", moves, solved) - y
        assert residual.abs().max() < 1e-12


def test_dense_worlds_get_no_band():
    assert band_of(torch.rand(1, 40, 2, 40).double()) is None
    assert band_of(chain(50, np.random.default_rng(0)).expand(2, -1, -1, -1)) is None
