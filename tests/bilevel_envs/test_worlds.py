"""A kind of world is an object that answers for its models."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, TabularModel
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import FOLLOWERS
from bilevel_envs.gym_env import make_env
from bilevel_envs.registration import PROBLEMS
from bilevel_envs.worlds.world import WORLDS, world_called, world_of

KINDS = {
    "BuildingThermalControl": "linear_quadratic",
    "BilevelLQR": "linear_quadratic",
    "GuidedCartPole": "declared",
    "GuidedPendulum": "declared",
}
NAMES = [name.removeprefix("BiLevel/").removesuffix("-v0") for name in PROBLEMS if "TaxDesign-v0" not in name]


def model_of(name):
    env = gym.make(f"BiLevel/{name}-v0")
    return env, env.unwrapped.model(env.unwrapped.theta).detach()


@pytest.mark.parametrize("name", NAMES)
def test_every_world_of_ours_is_of_the_kind_that_its_model_declares(name):
    env, model = model_of(name)
    world = world_of(model)
    assert world.name == model.kind == KINDS.get(name, "tabular")
    assert world is world_called(world.name)
    if not name.startswith("TaxDesign"):
        assert f"{type(env.unwrapped).__module__}:{type(env.unwrapped).__name__}" == world.environment
    assert env.unwrapped.default_follower == world.default_follower


@pytest.mark.parametrize("thing", [None, 3, "tabular", TabularModel, torch.zeros(2)])
def test_an_object_that_is_no_model_is_of_no_kind(thing):
    with pytest.raises(TypeError, match="`model` must be a TabularModel, a LinearQuadraticModel or a SimulatedModel"):
        world_of(thing)


def test_exact_followers_are_known_by_name_and_optimal_in_their_kind():
    for name in WORLDS:
        world = world_called(name)
        assert world.solved == (world.default_follower is not None)
        if world.default_follower is not None:
            declared = FOLLOWERS[world.default_follower]().capabilities
            assert (declared.kinds, declared.optimal) == ((name,), True)


def test_only_steps_give_trajectories_of_a_game_without_a_model():
    env, model = model_of("GuidedCartPole")
    how = {"rows": 2, "horizon": 3, "time_limit": None, "whole_episodes": False}
    assert world_of(model).rollout(model, None, Noise([0]), **how) is None
    env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"))
    toll, best = env.model([0.5]).detach(), env.best_response([0.5])
    batch = world_of(toll).rollout(toll, best.policy, Noise([0]), **how)
    assert torch.equal(batch.state, env.rollout([0.5], best, Noise([0]), rows=2, horizon=3).state)


def test_a_policy_of_another_kind_is_refused_by_either_world():
    toll, building = (BilevelWrapper(model_of(name)[0]) for name in ("TollBridge", "BuildingThermalControl"))
    for one, other, kind in ((toll, building, "TabularModel"), (building, toll, "LinearQuadraticModel")):
        model, policy = one.model(one.theta).detach(), other.best_response(other.theta).policy
        with pytest.raises(TypeError, match=f"`policy` must be one for a {kind}, got a {type(policy).__name__}"):
            world_of(model).check_policy(policy, 1, model)


def test_networks_read_one_hot_numbers_what_the_follower_sees_or_vectors():
    _, toll = model_of("TollBridge")
    state = torch.tensor([[2, 0]])
    read = world_of(toll).inputs(np.arange, toll)
    assert read(state).tolist() == [[[0, 0, 1, 0], [1, 0, 0, 0]]]
    seen = np.array([[0.5, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
    assert world_of(toll).inputs(lambda states: seen, toll)(state).tolist() == [[[4.0, 5.0], [0.5, 1.0]]]
    _, building = model_of("BuildingThermalControl")
    assert world_of(building).inputs(np.arange, building)(state).dtype == torch.float64


def test_rewards_of_stored_steps_are_those_of_the_model():
    _, toll = model_of("TollBridge")
    world = world_of(toll)
    assert world.knows_rewards(np.arange, toll)
    assert not world.knows_rewards(lambda states: np.zeros((states, 2)), toll)
    stored = world.stored_reward(toll, 0, np.array([[[0.0]], [[2.0]]]), np.array([[[1]], [[0]]]))
    assert stored.tolist() == [[float(toll.r_follower[0, 0, 1])], [float(toll.r_follower[0, 2, 0])]]
    _, building = model_of("BuildingThermalControl")
    s, b = np.array([[[1.0, 2.0, -1.0, 0.5]]]), np.array([[[2.0, -3.0]]])
    cost = s[0, 0] @ building.state_cost[0].numpy() @ s[0, 0] + b[0, 0] @ building.action_cost[0].numpy() @ b[0, 0]
    np.testing.assert_allclose(world_of(building).stored_reward(building, 0, s, b), [[-cost]])


def test_a_leaders_reward_with_a_bump_is_no_quadratic():
    assert not model_of("BilevelLQR")[1].is_quadratic
    assert model_of("BuildingThermalControl")[1].is_quadratic


def test_arguments_of_a_problem_decide_its_kind_where_its_model_depends_on_them():
    played = make_env(PROBLEMS["BiLevel/BilevelLQR-v0"][0], policy="mlp")
    assert (played.model(played.theta).kind, played.default_follower) == ("declared", None)
