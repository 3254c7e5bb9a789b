"""Exploration by restarts: successive halving on sampled returns, every step counted."""

import numpy as np
import pytest
import torch

from bilevel_envs.parameterizations import Budget
from leaders import BCHG, HPGD, MBHG, NaivePGD, exact
from leaders.estimators.restarts import RUNGS, candidates, halved
from leaders.estimators.returns import mean_return, return_errors
from tests.helpers import building, random_mdp, rollout, toll_bridge, wrapped_env

SOLVED = ["TollBridge", "FourRooms", "RandomMDP", "TaxDesign-small", "ToyMarkovGame", "BilevelLQR"]
BEST = {1e-3: 0.768374, 3e-3: 0.616065, 5e-3: 1.622716}  # four rooms, multi-start of the exact gradient


def trial_of(worth):
    """Batches of one step whose reward is the worth of the candidate in each run, [R]."""

    def trial(flat, episodes):
        reward = torch.stack([worth(run, row) for run, row in enumerate(flat)])[:, None, None].expand(-1, episodes, 1)
        batch = rollout(np.zeros(reward.shape, int), np.zeros(reward.shape, int), np.ones(reward.shape))
        return batch.__class__(**(vars(batch) | {"r_leader": reward.clone()})), 7

    return trial


def test_halving_finds_the_best_candidate_of_each_run_and_counts_everything():
    raw = torch.arange(40.0, dtype=torch.float64)[:, None, None].repeat(1, 2, 1)  # 40 candidates, two runs
    best = (11.0, 29.0)
    found = halved(raw, trial_of(lambda run, row: -((row[0] - best[run]) ** 2)), lambda batch: mean_return(batch, 0.9))
    np.testing.assert_array_equal(found.raw[:, 0], best)
    np.testing.assert_array_equal(found.mean, [0.0, 0.0])
    trials = [40, RUNGS[0][1], RUNGS[1][1]]
    assert found.solves == sum(trials)
    assert found.follower_steps == 7 * sum(trials)
    episodes = sum(count * many for count, (many, _) in zip(trials, RUNGS, strict=True))
    assert found.episodes == episodes
    np.testing.assert_array_equal(found.steps, [episodes] * 2)


def test_later_rungs_measure_anew():
    """The first trial of a bad candidate is lucky: it is kept, measured again, and dropped."""
    seen = {}

    def worth(run, row):
        tried = seen.setdefault(int(row[0]), [])
        tried.append(1)
        return torch.tensor(100.0 if int(row[0]) == 3 and len(tried) == 1 else float(row[0])).double()

    raw = torch.arange(40.0, dtype=torch.float64)[:, None, None]
    found = halved(raw, trial_of(worth), lambda batch: mean_return(batch, 0.9))
    assert len(seen[3]) == 2
    assert float(found.raw[0, 0]) == 39.0


def test_candidates_are_vertices_and_draws_of_each_seed():
    policy = Budget(np.zeros((2, 105)), -0.2)
    rows = candidates(policy, policy.raw.detach(), [4, 5], draws=3)
    assert [tuple(found.shape) for found in rows] == [(108, 105)] * 2
    np.testing.assert_array_equal(rows[0][:105], rows[1][:105])
    assert not torch.equal(rows[0][105:], rows[1][105:])
    np.testing.assert_array_equal(candidates(policy, policy.raw.detach()[:1], [5], draws=3)[0], rows[1])
    alone = candidates(torch.nn.Linear(1, 1), torch.ones(1, 2), [0], draws=2)  # names nothing of its own
    assert tuple(alone[0].shape) == (2, 2)


def test_standard_errors_are_those_of_episodes():
    rewards = np.arange(5.0)
    batch = rollout(np.zeros((1, 1, 5), int), terminated=np.ones((1, 1, 5)), r_leader=rewards[None, None])
    error, count = return_errors(batch, 0.5)
    assert float(error[0]) == pytest.approx(rewards.std(ddof=1) / 5**0.5)
    assert int(count[0]) == 5


def test_exploration_is_one_iteration_whose_steps_and_solves_are_counted():
    env = toll_bridge()  # two vertices, time limit of 10 steps
    leader = BCHG(env, seed=0, exploration="restarts").learn(3)
    history = leader.history
    trials = [1 + 2 + 24, 27, 8]  # the start, two vertices and the draws; the first rung keeps all 27
    assert history["follower_solves"][:, 0].tolist() == [1 + sum(trials), 2 + sum(trials), 3 + sum(trials)]
    assert 0 < history["env_steps"][0, 0] <= 10 * (27 + 4 * 27 + 16 * 8)
    assert np.diff(history["env_steps"][:, 0]).tolist() == [100, 100]
    assert history["leader_value"][0, 0] < 0.3  # the start, before anything was tried
    assert history["leader_value"][1, 0] > 0.85
    plain = BCHG(env, seed=0).learn(1)
    assert history["leader_value"][0, 0] == plain.history["leader_value"][0, 0]


@pytest.mark.slow
def test_a_run_explores_the_same_alone_or_beside_others_and_goes_on_bit_for_bit(tmp_path):
    both = BCHG(random_mdp(), runs=2, seed=1, exploration="restarts").learn(3)
    alone = BCHG(random_mdp(), seed=2, exploration="restarts").learn(3)
    np.testing.assert_allclose(both.theta[1], alone.theta, rtol=1e-12)
    BCHG(random_mdp(), runs=2, seed=1, exploration="restarts").learn(1).save(tmp_path / "leader.zip")
    again = BCHG.load(tmp_path / "leader.zip", env=random_mdp()).learn(2)
    np.testing.assert_array_equal(both.theta, again.theta)
    np.testing.assert_array_equal(both.history.state(), again.history.state())


@pytest.mark.slow
def test_other_leaders_and_worlds_explore_too():
    for leader in (NaivePGD(toll_bridge(), exploration="restarts"), HPGD(toll_bridge(), exploration="restarts")):
        assert leader.learn(1).learn(1).history["leader_value"][1, 0] > 0.85
    led = BCHG(building(), seed=0, exploration="restarts").learn(2)
    assert led.history["leader_value"][1, 0] > led.history["leader_value"][0, 0]


def test_unknown_exploration_is_refused_and_the_world_learner_has_its_own():
    with pytest.raises(ValueError, match="`exploration` must be"):
        BCHG(toll_bridge(), exploration="everywhere")
    with pytest.raises(TypeError, match="exploration"):
        MBHG(toll_bridge(), exploration="restarts")
    assert MBHG(wrapped_env("FourRooms")).estimator_config.exploration == "none"


@pytest.mark.slow
def test_the_plain_default_leaves_the_plateau_of_the_four_rooms():
    beta, share = 1e-3, 0.85
    env = wrapped_env("FourRooms", beta=beta)
    leader = BCHG(env, runs=10, seed=0, evaluate_every=1_000).learn(1)
    left = int((300_000 - leader.history["env_steps"].max()) // 100)
    leader.learn(left)
    assert leader.history["env_steps"].max() <= 300_000
    shares = exact.objective(env, leader.theta) / BEST[beta]
    print(beta, shares.round(3), shares.mean())
    assert shares.mean() >= share


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["TollBridge", "FourRooms", "RandomMDP", "TaxDesign-small", "ToyMarkovGame", "BilevelLQR"]
)
def test_the_plain_default_ends_above_the_constant_default_theta(name):
    env = wrapped_env(name)
    constant = exact.objective(env, env.problem.default_theta)
    leader = BCHG(env, runs=2, seed=0, evaluate_every=1_000).learn(30 if name.startswith("Tax") else 100)
    assert (exact.objective(env, leader.theta) >= constant).all()
