import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper
from bilevel_envs.envs.four_rooms import FourRooms
from bilevel_envs.followers import SoftValueIteration, Truncated
from bilevel_envs.followers.bounded.truncated import STREAM
from leaders import BCHG, exact

ROOMS = FourRooms(beta=3e-3)
MODEL = ROOMS.model(torch.from_numpy(ROOMS.default_theta)[None])


def kl_to_optimum(best):
    optimum = SoftValueIteration().best_response(MODEL, ROOMS.preferences)
    difference = best.policy.log_probs - optimum.policy.log_probs
    return float((best.policy.probs * difference).sum(-1).mean())


def test_one_round_of_the_planner_is_that_made_by_hand():
    # one round of two sweeps from a given table, written out with plain arrays
    follower = Truncated(rounds=1, sweeps=2, seed=4)
    best = follower.best_response(MODEL, ROOMS.preferences)
    table = np.random.default_rng([4, STREAM, 0]).standard_normal((104, 4))
    scaled = np.exp((table - table.max(1, keepdims=True)) / 3e-3)
    g = scaled / scaled.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(np.where(g > 0, g * np.log(g), 0.0), 1)
    moves = (MODEL.moves.dense() * MODEL.continues[..., None])[0].numpy()
    for _ in range(2):
        table = MODEL.r_follower[0].numpy() + 3e-3 * entropy[:, None] + 0.99 * moves @ (g * table).sum(1)
    expected = torch.softmax(torch.from_numpy(table) / 3e-3, -1)
    torch.testing.assert_close(best.policy.probs[0], expected, rtol=0, atol=1e-9)
    assert not best.optimal


def test_the_policy_approaches_the_optimum_with_more_rounds():
    distance = [kl_to_optimum(Truncated(rounds=m).best_response(MODEL, ROOMS.preferences)) for m in (1, 10, 50, 400)]
    assert distance == sorted(distance, reverse=True)
    assert distance[0] > 1
    assert distance[-1] < 1e-6


def test_a_follower_that_carries_continues_and_one_that_resets_begins_anew():
    carry, reset = Truncated(rounds=10), Truncated(rounds=10, start="reset")
    at_once = Truncated(rounds=20).best_response(MODEL, ROOMS.preferences)
    first = carry.best_response(MODEL, ROOMS.preferences)
    second = carry.best_response(MODEL, ROOMS.preferences, first)
    torch.testing.assert_close(second.policy.probs, at_once.policy.probs, rtol=0, atol=0)
    again = reset.best_response(MODEL, ROOMS.preferences, reset.best_response(MODEL, ROOMS.preferences))
    assert not torch.equal(again.policy.probs, first.policy.probs)
    assert kl_to_optimum(again) > 10 * kl_to_optimum(second)


@pytest.mark.parametrize("start", ["carry", "reset"])
def test_both_values_are_recorded_and_a_run_goes_on_bit_for_bit(make, tmp_path, start):
    def leader():
        env = BilevelWrapper(make("FourRooms", beta=3e-3).env, Truncated(rounds=5, start=start))
        return BCHG(env, preset="paper", runs=2)

    straight = leader().learn(6)
    first = leader()
    theta = first.theta
    first.learn(4).save(tmp_path / "leader.zip")
    second = BCHG.load(tmp_path / "leader.zip", leader().env).learn(2)
    np.testing.assert_array_equal(straight.history.state(), second.history.state())
    assert straight.history["leader_value"][0] == pytest.approx(exact.objective(first.env, theta), abs=1e-9)
    followed = first.env.best_response(theta)
    expected = exact.objective(first.env, theta, policy=followed.policy)
    assert straight.history["leader_value_actual"][0] == pytest.approx(expected, abs=1e-9)
    assert (np.abs(straight.history["leader_value_actual"][0] - straight.history["leader_value"][0]) > 1e-3).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "`rounds` must be at least 1"),
        ({"start": "warm"}, "`start` must be one of 'carry', 'reset'"),
        ({"follower": "soft_value_iteration"}, "`follower` must be one of the planners SoftValueIteration"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Truncated(**arguments)


def test_runs_may_have_seeds_of_their_own():
    model = ROOMS.model(torch.from_numpy(ROOMS.default_theta).repeat(3, 1))
    together = Truncated(rounds=1, seed=[4, 9, 4]).best_response(model, ROOMS.preferences)
    alone = Truncated(rounds=1, seed=9).best_response(MODEL, ROOMS.preferences)
    torch.testing.assert_close(together.policy.probs[1], alone.policy.probs[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(together.policy.probs[0], together.policy.probs[2], rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"`seed` must be a number or one per run \(1\), got 3"):
        Truncated(seed=[1, 2, 3]).best_response(MODEL, ROOMS.preferences)


def test_the_followers_noise_is_not_the_leaders():
    first = Truncated(seed=0).first_tables(1, (MODEL.states, MODEL.actions), 0).flatten()[:105]
    leader = np.random.default_rng(0).standard_normal(105)
    assert abs(np.corrcoef(first.numpy(), leader)[0, 1]) < 0.5
