"""The worlds themselves, against their specifications."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs.envs.four_rooms import (
    CELLS,
    CORRIDORS,
    GOAL_STATE,
    START_STATE,
    STATE,
    TARGET_STATE,
    FourRooms,
)
from bilevel_envs.envs.random_mdp import RandomMDP
from bilevel_envs.envs.toll_bridge import BRIDGE, FERRY, HOME, WORK, TollBridge


def default(problem):
    return problem.simulator(torch.from_numpy(problem.default_theta)[None])


def test_four_rooms_has_the_states_of_its_map():
    assert len(CELLS) == 104
    assert (START_STATE, GOAL_STATE, TARGET_STATE) == (31, 7, 66)
    rooms = [
        sum(1 for r, c in CELLS if 1 <= r <= 5 and 1 <= c <= 5),
        sum(1 for r, c in CELLS if 1 <= r <= 6 and 7 <= c <= 11),
        sum(1 for r, c in CELLS if 7 <= r <= 11 and 1 <= c <= 5),
        sum(1 for r, c in CELLS if 8 <= r <= 11 and 7 <= c <= 11),
    ]
    assert rooms == [25, 30, 25, 20]
    assert [tuple(int(x) for x in CELLS[s]) for s in CORRIDORS] == [(3, 6), (6, 2), (7, 9), (10, 6)]


@pytest.mark.parametrize(("dynamics", "intended"), [("published", 0.56), ("classic", 0.67), ("mismatched", 0.67)])
def test_the_intended_move_has_its_probability(dynamics, intended):
    model = default(FourRooms(dynamics=dynamics))
    middle = STATE[9, 3]  # no wall near
    probability = model.moves.dense()[0, middle, 1].numpy()
    assert probability[STATE[9, 4]] == pytest.approx(intended, abs=1e-12)
    for other in (STATE[8, 3], STATE[10, 3], STATE[9, 2]):
        assert probability[other] == pytest.approx((1 - intended) / 3, abs=1e-12)
    # (1, 1): up and left are walls; intending up stays with the intended and the leftward slip
    corner = model.moves.dense()[0, STATE[1, 1], 0].numpy()
    assert corner[STATE[1, 1]] == pytest.approx(intended + (1 - intended) / 3, abs=1e-12)


def test_mismatched_dynamics_are_planned_in_one_world_and_simulated_in_another():
    rooms = FourRooms(dynamics="mismatched")
    theta = torch.from_numpy(rooms.default_theta)[None]
    planned = FourRooms(dynamics="published").model(theta)
    torch.testing.assert_close(rooms.model(theta).transition, planned.transition, rtol=0, atol=0)
    assert not torch.equal(rooms.simulator(theta).transition, planned.transition)


def test_rewards_are_those_of_the_state_left():
    rooms = FourRooms()
    theta = -np.random.default_rng(0).dirichlet(np.ones(104)) * 0.15
    model = rooms.model(torch.from_numpy(theta)[None])
    expected_follower, expected_leader = theta.copy(), np.zeros(104)
    expected_follower[GOAL_STATE] = 1.0  # its own penalty does not count there
    expected_leader[TARGET_STATE] = 1.0
    expected_leader[GOAL_STATE] = -5.0 * 0.15  # κ Σ|x|
    for action in range(4):
        np.testing.assert_allclose(model.r_follower[0, :, action].numpy(), expected_follower, atol=1e-15)
        np.testing.assert_allclose(model.r_leader[0, :, action].numpy(), expected_leader, atol=1e-12)


def test_the_goal_pays_once_and_ends_the_episode():
    env = gym.make("BiLevel/FourRooms-v0")
    for seed in range(20):
        state, _ = env.reset(seed=seed)
        rng, over, before, paid = np.random.default_rng(seed), False, None, 0
        while not over:
            before = state
            state, reward, terminated, truncated, info = env.step(int(rng.integers(4)))
            over = terminated or truncated
            paid += reward == 1.0
            assert terminated == (before == GOAL_STATE)
            assert (info["leader_reward"] < 0) == (before == GOAL_STATE)
        assert paid == int(terminated)


def test_the_time_limit_truncates():
    env = gym.make("BiLevel/FourRooms-v0")
    env.reset(seed=0)
    for k in range(200):  # walking into the left wall never arrives
        _, _, terminated, truncated, info = env.step(3)
        assert info["step"] == k
        assert not terminated
    assert truncated


def test_closing_a_corridor_keeps_the_follower_out():
    open_, shut = default(FourRooms()), default(FourRooms(closing=(0.25, 0.0, 0.0, 0.0)))
    before, corridor = STATE[3, 5], STATE[3, 6]
    ratio = shut.transition[0, before, 1, corridor] / open_.transition[0, before, 1, corridor]
    assert float(ratio) == pytest.approx(0.75, abs=1e-12)
    assert float(shut.transition[0, before, 1].sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("beta", "value"), [(1e-3, 0.768374), (3e-3, 0.616065), (5e-3, 1.622716)])
def test_best_known_values_say_where_they_are_from(beta, value):
    best = gym.make("BiLevel/FourRooms-v0", beta=beta).unwrapped.best_known
    assert best == value
    assert best.proof == "multi-start of the exact gradient"
    assert not best.exact
    assert gym.make("BiLevel/FourRooms-v0", beta=beta, dynamics="classic").unwrapped.best_known is None


def test_the_toll_bridge_has_the_moves_of_its_map():
    model = default(TollBridge())
    assert model.moves.dense()[0, HOME, 0, BRIDGE] == 1
    assert model.moves.dense()[0, HOME, 1, FERRY] == 1
    assert (model.moves.dense()[0, [BRIDGE, FERRY], :, WORK] == 1).all()
    assert model.continues[0, :, 0].tolist() == [1, 0, 0, 0]


def test_random_mdp_has_its_branching_and_alignment():
    mdp = RandomMDP(seed=3, states=12, branching=5, alignment=1.0)
    model = mdp.model(torch.randn(2, 5).double())
    assert ((model.moves.dense() > 0).sum(-1) == 5).all()
    torch.testing.assert_close(model.r_leader, model.r_follower, rtol=0, atol=0)
    against = RandomMDP(seed=3, states=12, branching=5, alignment=-1.0).model(torch.zeros(1, 5).double())
    torch.testing.assert_close(against.r_leader, -against.r_follower, rtol=0, atol=0)


def test_shares_of_zero_leave_theta_without_effect():
    mdp = RandomMDP(reward_share=0.0, transition_share=0.0, start_share=0.0)
    one, other = mdp.model(torch.zeros(1, 5).double()), mdp.model(torch.ones(1, 5).double())
    torch.testing.assert_close(one.moves.dense(), other.moves.dense(), rtol=0, atol=0)
    for name in ("initial", "r_leader", "r_follower"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("problem", "kwargs", "message"),
    [
        (
            FourRooms,
            {"dynamics": "odd"},
            "`dynamics` must be one of 'published', 'classic', 'mismatched', got 'odd'",
        ),
        (FourRooms, {"closing": (0.1, 0.2)}, "`closing` must give one probability per corridor"),
        (FourRooms, {"closing": 0.5}, "`closing` must give one probability per corridor"),
        (FourRooms, {"beta": float("inf")}, "`beta` must be above 0 and finite, got inf"),
        (TollBridge, {"ferry": float("nan")}, "`ferry` must be finite, got nan"),
        (FourRooms, {"closing": (2, 0, 0, 0)}, r"`closing\[0\]` must be at least 0 and at most 1"),
        (FourRooms, {"beta": 0}, "`beta` must be above 0"),
        (FourRooms, {"gamma_leader": 1.0}, "`gamma_leader` must be at least 0 and below 1, got 1.0. .* take 1 - 1 / N"),
        (RandomMDP, {"branching": 11}, r"`branching` must be at most `states` \(10\)"),
        (RandomMDP, {"alignment": 2.0}, "`alignment` must be"),
        (RandomMDP, {"states": 0}, "`states` must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(problem, kwargs, message):
    with pytest.raises(ValueError, match=message):
        problem(**kwargs)
