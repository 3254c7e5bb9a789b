"""What lies behind the cuts of a batch, in stacked runs at different θ: dense tables and autodiff are the truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bilevel_envs import Preferences, Rollout, TabularModel
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import SoftValueIteration
from leaders.critics import Empirical
from leaders.critics.cross_fit import Judges
from leaders.estimators.continuation import continuation
from leaders.functional.guiding import ESTIMATORS
from leaders.functional.weights import Weights
from tests.helpers import unrolled_values

RUNS, STATES, ACTIONS, BRANCHES, DIM = 3, 6, 2, 3, 4
PREFERENCES = Preferences(0.9, 0.8, 0.5)


def tables(seed, moves, ends):
    """θ [R, dim] → a model whose rewards, and moves where asked, depend on θ; some pairs end the episode."""
    rng = np.random.default_rng(seed)
    successor = torch.from_numpy(
        rng.permuted(np.tile(np.arange(STATES), (STATES, ACTIONS, 1)), axis=-1)[..., :BRANCHES]
    )
    bases = [torch.from_numpy(rng.normal(size=(STATES, ACTIONS, size))) for size in (BRANCHES, 1, 1)]
    slopes = [torch.from_numpy(rng.normal(size=(STATES, ACTIONS, size, DIM))) for size in (BRANCHES, 1, 1)]
    slopes[0] *= moves
    continues = torch.from_numpy((rng.random((1, STATES, ACTIONS)) > ends).astype(float))

    def model(theta):
        logits, r_leader, r_follower = (
            base + torch.einsum("sbkd,rd->rsbk", slope, theta) for base, slope in zip(bases, slopes, strict=True)
        )
        logits = logits if moves else logits[:1].detach()
        empty = torch.zeros(len(logits), STATES, ACTIONS, STATES, dtype=torch.float64)
        transition = empty.scatter(-1, successor.expand(len(logits), -1, -1, -1), logits.softmax(-1))
        initial = torch.full((1, STATES), 1 / STATES, dtype=torch.float64)
        return TabularModel(transition, initial, r_leader[..., 0], r_follower[..., 0], continues)

    return model


def steps(visits, endings):
    """Episodes of one step that make every move so often, and end with it so often, both [R, S, B, S]."""
    runs = []
    for often, over in zip(visits, endings, strict=True):
        moves = [
            (*move, int(index < over[move])) for move in np.ndindex(*often.shape) for index in range(int(often[move]))
        ]
        runs.append(moves)
    longest = max(len(moves) for moves in runs)
    valid = torch.tensor([[index < len(moves) for index in range(longest)] for moves in runs])[..., None]
    padded = torch.tensor([moves + [(0, 0, 0, 0)] * (longest - len(moves)) for moves in runs])[:, :, None]
    state, action, following, over = padded.unbind(-1)
    zero = torch.zeros(state.shape, dtype=torch.float64)
    no, first = torch.zeros_like(valid), torch.zeros_like(state)
    return Rollout(state, action, following, zero, zero, over.bool(), no, first, valid)


def seen(visits, endings, model, best, theta_moves):
    """The world that these moves show."""
    critic = Empirical(PREFERENCES.gamma_leader, theta_moves)
    critic.fit(steps(visits, endings), best, model.detach(), Noise([0]))
    return critic


def cuts(rng):
    """Rows of two steps that arrive anywhere, and with what weight: the batch, counts and the follower's trace."""
    shape = (RUNS, 5, 2)
    state, following = (torch.from_numpy(rng.integers(STATES, size=shape)) for _ in range(2))
    step = torch.arange(2).expand(shape)
    no, zero = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.float64)
    over = no.clone()
    over[:, 0, -1] = True  # one row has ended
    batch = Rollout(state, torch.zeros_like(state), following, zero, zero, over, no, step, ~no)
    counts, trace = (torch.from_numpy(rng.normal(size=shape)) for _ in range(2))
    return batch, counts, trace


def arriving(batch, weight, part, run):
    """How much weight arrives in each state at the cuts of a part of the batch, [S], step by step."""
    total = torch.zeros(STATES, dtype=torch.float64)
    for row in range(batch.state.shape[1]):
        if part[run, row, -1] and not batch.terminated[run, row, -1]:
            total[batch.next_state[run, row, -1]] += weight[run, row, -1]
    return total


def test_continuations_of_stacked_runs_are_the_hypergradients_of_their_own_worlds():
    """Everything was seen: autodiff through the follower's solver, from where the cuts arrive."""
    rng = np.random.default_rng(1)
    world, theta = tables(1, moves=True, ends=0.2), torch.from_numpy(rng.normal(size=(RUNS, DIM))).requires_grad_()
    model = world(theta)
    assert 0 < (model.continues == 0).sum() < STATES * ACTIONS
    best = SoftValueIteration(tol=1e-13).best_response(model.detach(), PREFERENCES)
    visits = 2 * (model.moves.dense() > 0).double().numpy()
    critic = seen(visits, visits * (model.continues[..., None] == 0).numpy(), model, best, theta_moves=True)
    batch, counts, trace = cuts(rng)
    part = torch.zeros_like(batch.state)
    judges = Judges([critic], part, critic, PREFERENCES.gamma_leader, [critic])
    total = continuation(
        judges, model, batch, best, counts, Weights(counts, trace, None, None), PREFERENCES, rule=ESTIMATORS["bc_hg"]
    )
    (ours,) = torch.autograd.grad(total.sum(), theta, retain_graph=True)
    truth = 0.0
    for run in range(RUNS):
        v_leader, v_follower = unrolled_values(model, PREFERENCES, run=run)
        leader, follower = (arriving(batch, weight, part == 0, run) for weight in (counts, trace))
        truth = (
            truth + PREFERENCES.gamma_leader * leader @ v_leader + PREFERENCES.gamma_follower * follower @ v_follower
        )
    (expected,) = torch.autograd.grad(truth, theta)
    assert expected.abs().min() > 1e-3
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


# A part of the world ------------------------------------------------------------------------------------------


def partly(rng, model):
    """Counts of moves of which some were never seen; a move that was seen was so twice or more, and may end."""
    possible = (model.moves.dense() > 0).expand(RUNS, -1, -1, -1).numpy()
    visits = possible * rng.choice([0, 2, 3, 5], p=[0.3, 0.2, 0.2, 0.3], size=possible.shape)
    visits[np.arange(RUNS), np.arange(RUNS) + 1] = 0  # a state of each run was never left
    endings = np.where(rng.random(visits.shape) < 0.3, rng.integers(1, 5, size=visits.shape), 0)
    return visits.astype(float), np.minimum(endings, visits).astype(float)


def known(visits, endings):
    """Which pairs ended an episode or lead to a state with such pairs, bool [S, B], by elimination."""
    alive = np.ones(STATES, bool)
    while True:
        pairs = ((endings > 0) | ((visits > 0) & alive)).any(-1) & alive[:, None]
        if (pairs.any(-1) == alive).all():
            return pairs
        alive = pairs.any(-1)


def dense_surrogate(model, best, visits, endings, leader, follower, rule, theta_moves, run):
    """⟨leader, V_L(θ)⟩ + ⟨follower, V_F(θ)⟩ of a run's seen world, whose follower replies by ∇ log g = ∇(Q − V) / β.

    Q_F is the follower's own, of the world as it is; only how it moves with θ is taken from the seen world.
    """
    gamma_leader, gamma_follower, beta = PREFERENCES.gamma_leader, PREFERENCES.gamma_follower, PREFERENCES.beta
    pairs = known(visits, endings)
    going = np.divide(visits - endings, visits, out=np.zeros_like(visits), where=visits > 0) * pairs.any(-1)
    over = np.divide(endings, visits, out=np.zeros_like(visits), where=visits > 0)
    kept, onward = (torch.from_numpy(x * pairs[..., None]) for x in (going + over, going))
    transition = model.moves.dense()[run % len(model.moves.dense())]
    mass = (transition if theta_moves else torch.from_numpy(visits)) * kept
    p = mass / mass.sum(-1, keepdim=True).clamp(min=1e-300)
    goes = onward / kept.clamp(min=1e-300)  # the probability that a move does not end the episode
    g = best.policy.probs[run] * torch.from_numpy(pairs)
    g = g / g.sum(-1, keepdim=True).clamp(min=1e-300)
    eye = torch.eye(STATES, dtype=torch.float64)
    q = model.r_follower[run]
    if not rule.centred:
        # ∇Q_F(s, b) = ∇r_F + E[(γ V_F(s') − (Q_F − r_F)) ∇log p(s') + γ ∇V_F(s')]
        error = gamma_follower * goes * best.v.values[run] - (best.q.values[run] - q.detach())[..., None]
        log = torch.where(mass > 0, transition, 1.0).log()
        q = q + (p.detach() * error * (log if theta_moves else 0.0)).sum(-1)
        moves = (g[..., None] * p.detach() * goes).sum(1)
        v = torch.linalg.solve(eye - gamma_follower * moves, (g * q).sum(-1))
        q = q + gamma_follower * (p.detach() * goes) @ v
    v = (g * q).sum(-1)
    advantage = (q - v[:, None]) / beta
    replies = g * (advantage - advantage.detach()).exp() if rule.goes_on else g
    moves = (replies[..., None] * p * goes).sum(1)
    r_leader = model.r_leader[run] * torch.from_numpy(pairs)
    v_leader = torch.linalg.solve(eye - gamma_leader * moves, (replies * r_leader).sum(-1))
    decay = gamma_follower if rule.decay is None else rule.decay
    return gamma_leader * leader @ v_leader + rule.goes_on * decay * follower @ v


@pytest.mark.parametrize("rule", ["bc_hg", "naive_pgd", "sobirl_modified", "sobirl"])
@pytest.mark.parametrize("theta_moves", [True, False])
def test_continuations_are_the_hypergradient_of_what_the_other_part_has_seen(theta_moves, rule):
    """Each part of the batch goes on in its own world, each run in its own, with probabilistic endings and gaps."""
    rng = np.random.default_rng(2)
    world, rule = tables(2, moves=theta_moves, ends=0.0), ESTIMATORS[rule]
    theta = torch.from_numpy(rng.normal(size=(RUNS, DIM))).requires_grad_()
    model = world(theta)
    best = SoftValueIteration(tol=1e-13).best_response(model.detach(), PREFERENCES)
    counted = [partly(rng, model) for _ in range(2)]
    for visits, endings in counted:
        pairs = np.array([known(*one) for one in zip(visits, endings, strict=True)])
        assert (pairs.sum((1, 2)) > 0).all()
        assert (pairs.sum((1, 2)) < STATES * ACTIONS).all()
        assert ((endings > 0) & (endings < visits)).any()
    worlds = [seen(*one, model, best, theta_moves) for one in counted]
    batch, counts, trace = cuts(rng)
    part = torch.from_numpy(rng.integers(2, size=(RUNS, 5, 1))).expand(batch.state.shape)
    judges = Judges(worlds, part, worlds[0], PREFERENCES.gamma_leader, worlds, learnt=True)
    weights = Weights(counts, trace, None, None)
    total = continuation(judges, model, batch, best, counts, weights, PREFERENCES, rule=rule)
    (ours,) = torch.autograd.grad(total.sum(), theta, retain_graph=True)
    truth = 0.0
    for run in range(RUNS):
        for index, (visits, endings) in enumerate(counted):
            leader, follower = (arriving(batch, weight, part == index, run) for weight in (counts, trace))
            how = (model, best, visits[run], endings[run], leader, follower, rule, theta_moves, run)
            truth = truth + dense_surrogate(*how)
    (expected,) = torch.autograd.grad(truth, theta)
    assert expected.abs().min() > 1e-3
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


def test_continuations_are_zero_where_every_episode_of_a_part_has_ended():
    rng = np.random.default_rng(3)
    world, theta = tables(3, moves=True, ends=0.0), torch.zeros(RUNS, DIM, dtype=torch.float64, requires_grad=True)
    model = world(theta)
    best = SoftValueIteration().best_response(model.detach(), PREFERENCES)
    critic = seen(*partly(rng, model), model, best, theta_moves=True)
    batch, counts, trace = cuts(rng)
    batch = replace(batch, terminated=batch.step == 1)
    judges = Judges([critic], torch.zeros_like(batch.state), critic, PREFERENCES.gamma_leader, [critic])
    weights = Weights(counts, trace, None, None)
    total = continuation(judges, model, batch, best, counts, weights, PREFERENCES, rule=ESTIMATORS["bc_hg"])
    assert total.tolist() == [0.0] * RUNS
