"""Sampled hypergradients average to the exact one, and with little variance."""

import numpy as np
import pytest

from bilevel_envs import Preferences
from bilevel_envs.parameterizations import Budget, Free
from leaders import BCHG, HPGD, NaivePGD, SoBiRL, exact
from tests.helpers import rollout, values_like, z_scores

SAMPLES = 400
PREFS = Preferences(0.9, 0.8, 0.5)


def check_unbiased(leader):
    """|z| < 4 against the truth where the guiding term matters; far off without it and with its sign flipped."""
    direct, guiding = exact.hypergradient_parts(leader.env, leader.theta)
    assert np.linalg.norm(guiding) >= np.linalg.norm(direct)
    samples = leader.gradient_samples(SAMPLES)
    assert samples.shape == (SAMPLES, *leader.theta.shape)
    assert np.abs(z_scores(samples, direct + guiding)).max() < 4
    assert np.abs(z_scores(samples, direct)).max() > 8
    assert np.abs(z_scores(samples, direct - guiding)).max() > 8
    return direct, guiding


@pytest.mark.parametrize("seed", [0, 3])
def test_estimates_in_random_mdps_are_unbiased(make, seed):
    check_unbiased(BCHG(make("RandomMDP", seed=seed), critic="exact"))


def test_estimates_without_the_td_error_are_unbiased(make):
    check_unbiased(BCHG(make("RandomMDP", seed=0), critic="exact", score_weight="value"))


@pytest.mark.parametrize("control_variate", ["constant", "none", "one-hot"])
def test_estimates_with_each_control_variate_are_unbiased(make, control_variate):
    import torch

    def one_hot(state):
        return torch.nn.functional.one_hot(state, 10)

    check_unbiased(
        BCHG(
            make("RandomMDP"),
            critic="exact",
            control_variate=one_hot if control_variate == "one-hot" else control_variate,
        )
    )


def test_estimates_with_two_different_discounts_are_unbiased(make):
    policy = Free(np.array([[0.5, -0.3, 0.8, 0.1, -0.6]]))
    env = make("RandomMDP", seed=1, gamma_leader=0.7, gamma_follower=0.8)
    check_unbiased(BCHG(env, critic="exact", policy=policy))


def test_estimates_in_the_four_rooms_are_unbiased(make, blocked_corridor):
    env = make("FourRooms")
    check_unbiased(BCHG(env, critic="exact", policy=Budget(blocked_corridor[None], -0.2)))


def test_estimates_in_raw_coordinates_are_unbiased(make, blocked_corridor):
    leader = BCHG(make("FourRooms"), critic="exact", policy=Budget(blocked_corridor[None], -0.2))
    samples = leader.gradient_samples(SAMPLES, raw=True)
    assert samples.shape == (SAMPLES, 105)
    truth = exact.hypergradient(leader.env, parameters=leader.policy)
    assert np.abs(z_scores(samples, truth)).max() < 4


def test_estimates_at_the_toll_bridge_are_unbiased_and_naive_ones_zero(make):
    env = make("TollBridge")
    check_unbiased(BCHG(env, critic="exact"))
    assert (NaivePGD(env, critic="exact").gradient_samples(20) == 0).all()


def test_naive_pgd_averages_to_the_direct_term(make):
    leader = NaivePGD(make("RandomMDP"), critic="exact")
    direct, guiding = exact.hypergradient_parts(leader.env, leader.theta)
    samples = leader.gradient_samples(SAMPLES)
    assert np.abs(z_scores(samples, direct)).max() < 4
    assert np.abs(z_scores(samples, direct + guiding)).max() > 8


def test_estimates_from_a_stepped_environment_are_unbiased(make):
    check_unbiased(BCHG(make("RandomMDP"), critic="exact", sampler="steps"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_soft_td_error_lowers_the_variance_where_theta_moves_transitions(make, seed):
    env = make("RandomMDP", seed=seed, reward_share=0.0, start_share=0.0)
    plain, reduced = (
        BCHG(env, critic="exact", score_weight=score_weight).gradient_samples(SAMPLES).var(0)
        for score_weight in ("value", "td_error")
    )
    assert np.median(plain / reduced) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_soft_td_error_lowers_the_variance_with_theta_everywhere(make, seed):
    env = make("RandomMDP", seed=seed)
    plain, reduced = (
        BCHG(env, critic="exact", score_weight=score_weight).gradient_samples(SAMPLES).var(0)
        for score_weight in ("value", "td_error")
    )
    assert np.median(plain / reduced) >= 5


def test_a_constant_feature_lowers_the_variance_too(make):
    env = make("RandomMDP", seed=1)
    without, with_constant = (
        BCHG(env, critic="exact", control_variate=control_variate).gradient_samples(SAMPLES).var(0)
        for control_variate in ("none", "constant")
    )
    assert np.median(without / with_constant) > 1.2


def test_more_episodes_halve_the_standard_error(make):
    leader = BCHG(make("RandomMDP"), critic="exact")
    few, many = (leader.gradient_samples(SAMPLES, episodes=n).std(0) for n in (5, 20))
    # fourfold episodes; a ratio of two standard deviations from 400 samples each is known to about 5 %
    np.testing.assert_allclose(few / many, 2.0, rtol=0.25)


def test_gradient_samples_leave_the_leader_alone_and_can_be_repeated(make):
    leader = BCHG(make("FourRooms"), runs=2).learn(5)
    before = leader.noise.state_dict(), leader.critic.state_dict(), leader.theta
    first = leader.gradient_samples(3)
    assert first.shape == (3, 2, 104)
    np.testing.assert_array_equal(first, leader.gradient_samples(3))
    assert not np.array_equal(first, leader.gradient_samples(3, seed=1))
    assert leader.noise.state_dict() == before[0]
    for name, table in leader.critic.state_dict().items():
        np.testing.assert_array_equal(table, before[1][name])
    np.testing.assert_array_equal(leader.theta, before[2])


def test_stacked_samples_are_those_of_each_run(make):
    env = make("RandomMDP")
    together = BCHG(env, critic="exact", runs=3, seed=5).gradient_samples(4)
    alone = BCHG(env, critic="exact", seed=6).gradient_samples(4)
    np.testing.assert_allclose(together[:, 1], alone, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("draws", [1, 3])
def test_hpgd_with_an_oracle_agrees_with_the_truth(make, draws):
    env = make("RandomMDP", seed=0, gamma_leader=0.6, gamma_follower=0.7)
    leader = HPGD(env, "oracle", critic="exact", oracle_draws=draws)
    direct, guiding = exact.hypergradient_parts(env, leader.theta)
    samples = leader.gradient_samples(SAMPLES, episodes=2)
    assert np.abs(z_scores(samples, direct + guiding)).max() < 4
    assert np.abs(z_scores(samples, direct - guiding)).max() > 8


def test_an_oracle_takes_as_much_from_the_state_as_it_gives_to_the_pair(make):
    """Two of each kind from each of six steps: those from (s, b) carry +c / 2 at first, those from s −c / 2."""
    import torch

    from bilevel_envs.core.noise import Noise
    from leaders.estimators.oracle import oracle_batch

    env = make("RandomMDP")
    best, model = env.best_response(np.zeros(5)), env.model(np.zeros(5)).detach()
    batch = env.rollout(np.zeros(5), best, Noise([0]), rows=2, horizon=3)
    guiding = torch.arange(1.0, 7.0, dtype=torch.float64).view(1, 2, 3)
    oracle, carried = oracle_batch(model, best.policy, Noise([1]), batch, guiding, draws=2, horizon=4)
    halves = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert carried[0, :, 0].tolist() == [*halves, *halves, *(-c for c in halves), *(-c for c in halves)]
    assert (carried[..., 1:] == 0).all()
    assert oracle.state[0, :, 0].tolist() == 4 * batch.state.flatten().tolist()
    assert oracle.action[0, :12, 0].tolist() == 2 * batch.action.flatten().tolist()
    assert oracle.action[0, 12:, 0].tolist() != 2 * batch.action.flatten().tolist()  # the follower's own draws


@pytest.mark.slow
def test_an_oracle_may_start_in_states_where_no_episode_starts(make):
    # In this game ρ0 is 0 in two of three states; θ moves ρ0 in the third.
    leader = HPGD(make("ToyMarkovGame"), "oracle", critic="exact", batch_size=20, rows=1)
    samples = leader.gradient_samples(30, episodes=1)
    assert np.isfinite(samples).all()
    scores = z_scores(samples[:, 1], exact.hypergradient(leader.env, leader.theta)[1])
    assert np.abs(scores).max() < 4


@pytest.mark.slow
def test_the_published_oracle_agrees_where_it_sees_everything(make):
    # Its four tables come from one batch, so their products are biased by the order of 1 / visits: with 40,000
    # transitions for 30 pairs the bias is below the noise of 100 estimates.
    env = make("RandomMDP", seed=0, transition_share=0.0, start_share=0.0, gamma_leader=0.6, gamma_follower=0.7)
    leader = HPGD(env, "oracle", preset="paper", oracle_size=40_000)
    direct, guiding = exact.hypergradient_parts(env, leader.theta)
    samples = leader.gradient_samples(100)
    assert np.abs(z_scores(samples, direct + guiding)).max() < 4
    assert np.abs(z_scores(samples, direct - guiding)).max() > 8


def test_hpgd_is_naive_when_no_state_repeats(make):
    import torch

    from leaders.functional.guiding import guiding_hpgd
    from leaders.functional.weights import discount_weights

    order = torch.randperm(36, generator=torch.Generator().manual_seed(0)).view(1, 6, 6)
    batch = rollout(order.tolist(), action=(order % 3).tolist())
    assert (guiding_hpgd(batch, values_like(batch), discount_weights(batch, 0.9, None), PREFS) == 0).all()
    same = rollout((order // 6).tolist(), action=(order // 6 % 3).tolist())  # states repeat, each with one action
    counts = discount_weights(same, 0.9, None)
    assert guiding_hpgd(same, values_like(same), counts, PREFS).abs().max() < 1e-15
    mixed = rollout((order // 6).tolist(), action=(order % 3).tolist())
    assert guiding_hpgd(mixed, values_like(mixed), discount_weights(mixed, 0.9, None), PREFS).abs().max() > 0.01


@pytest.mark.parametrize("modified", [False, True])
def test_sobirl_is_blind_to_rewards_of_states(make, modified):
    env = make("FourRooms")
    sobirl = SoBiRL(env, modified=modified, critic="exact").gradient_samples(10)
    np.testing.assert_allclose(sobirl, NaivePGD(env, critic="exact").gradient_samples(10), atol=1e-9)


def test_sobirl_is_its_own_formula(make):
    """Σ_k over fresh episodes of Q_L(s_0, b_0)/β (∇r_F(s_k, b_k) − E_b ∇r_F), summed step by step."""
    env = make("RandomMDP", seed=0, transition_share=0.0, start_share=0.0, gamma_leader=0.6, gamma_follower=0.6)
    theta, slope = np.zeros(5), env.problem._tables.r_follower.slope.numpy()
    best = env.best_response(theta)
    g = best.policy.probs[0].numpy()
    critic = BCHG(env, critic="exact", policy=Free(np.zeros((1, 5)))).critic
    critic.fit(None, best, env.model(theta).detach(), None)
    from bilevel_envs.core.noise import Noise

    batch = env.rollout(theta, best, Noise([0]), rows=4000, horizon=30, whole_episodes=True)
    s, b = batch.state[0].numpy(), batch.action[0].numpy()
    centred = slope - (g[..., None] * slope).sum(1, keepdims=True)  # ∇r_F − E_b ∇r_F, [S, B, dim]
    first = critic.table[0].numpy()[s[:, 0], b[:, 0]] / env.preferences.beta
    plain = (first[:, None] * centred[s, b].sum(1)).mean(0)
    direct = exact.hypergradient_parts(env, theta)[0]
    leader = SoBiRL(env, critic="exact", policy=Free(np.zeros((1, 5))))
    samples = leader.gradient_samples(SAMPLES)
    assert np.linalg.norm(plain) > 0.5
    # both sides are sampled; the step-by-step sum has 4,000 episodes, as many as the 400 estimates of 10
    error = np.sqrt(2) * samples.std(0, ddof=1) / SAMPLES**0.5
    assert np.abs((samples.mean(0) - direct - plain) / error).max() < 4
