"""Leaders of two-player games: unbiased, at the optimum by default, and fallen as published in their published form."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.special import ndtri

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import Committed
from bilevel_envs.parameterizations import Free, Softmax
from leaders import BCHG, HPGD, BiAC, NaivePGD, SoBiRL, exact
from leaders.critics import ExactCritic, FittedLinear, StageGame
from leaders.experiments.video import follower_film
from leaders.functional.guiding import guiding_bc_hg
from leaders.functional.values import evaluate
from leaders.functional.weights import discount_weights
from leaders.paper.games import published_leader
from leaders.paper.linear_quadratic import LinearActorCritic
from leaders.paper.tables import TableActorCritic, untrained
from tests.helpers import bilevel_lqr, toy_policy


def toy(variant="R2", follower=None, **arguments):
    return BilevelWrapper(gym.make("BiLevel/ToyMarkovGame-v0", variant=variant, **arguments), follower)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "p"), [("R2", 0.45), ("R1", 0.7)])
def test_estimates_in_the_toy_game_are_unbiased(variant, p):
    env = toy(variant)
    leader = BCHG(env, critic="exact", policy=Softmax(np.log(toy_policy(p)[None])))
    direct, guiding = (part[1, 0] for part in exact.hypergradient_parts(env, leader.theta))
    assert abs(guiding) > abs(direct)
    samples = leader.gradient_samples(400, episodes=10)[:, 1, 0]
    error = samples.std(ddof=1) / 400**0.5
    assert abs(samples.mean() - direct - guiding) < 4 * error
    # at p = 0.45 the two terms have opposite signs: the flipped one lies twice as far
    assert abs(samples.mean() - direct) > 8 * error
    assert abs(samples.mean() - direct + guiding) > 8 * error


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["analytic", "pathwise"])
def test_estimates_in_the_lqr_are_unbiased(gradient):
    env, gain = bilevel_lqr(), np.array([[[-9.5, -9.0]]])
    leader = BCHG(env, critic="exact", policy=Free(gain), gradient=gradient)
    direct, guiding = exact.hypergradient_parts(env, gain[0])
    samples = leader.gradient_samples(400, episodes=2)[:, 0]
    error = samples.std(0, ddof=1) / 400**0.5
    assert (np.abs(samples.mean(0) - (direct + guiding)[0]) < 4 * error).all()
    assert (np.abs(samples.mean(0) - (direct - guiding)[0]) > 8 * error).any()


@pytest.mark.slow
def test_the_sum_from_zero_has_the_same_mean_and_more_variance():
    """Eq. (9) as printed starts one step early: V_F(s, a) ∇log f(a | s) of the step itself, times the benefit."""
    env, p = toy("R2", beta=1.0), 0.45  # a follower that is not sure, so that benefits vary
    theta = torch.tensor(np.tile(toy_policy(p), (200, 1, 1)))
    best = env.best_response(theta)
    leader = BCHG(env, critic="exact", policy=Softmax(np.log(np.tile(toy_policy(p), (200, 1, 1)))), runs=200)
    batch = env.rollout(theta, best, Noise(range(200)), rows=10, horizon=600)
    leader.critic.fit(batch, best, env.model(theta), Noise([0]))
    guiding = guiding_bc_hg(
        batch,
        evaluate(leader.critic, best, batch),
        discount_weights(batch, env.preferences.gamma_leader, "keep"),
        env.preferences,
    )
    at_a = batch.state // 2 == 1
    score = torch.where(at_a, torch.where(batch.state % 2 == 0, 1 / p, -1 / (1 - p)), 0.0)
    early = (guiding * best.v(batch.state) * score).sum((1, 2)).numpy()  # one number per run
    later = leader.gradient_samples(1, episodes=10)[0][:, 1, 0]
    assert abs(early.mean()) < 4 * early.std(ddof=1) / 200**0.5
    assert early.std() > later.std()


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "discount", "least"), [("R1", 0.99, 27.0), ("R2", 1.0, 59.3)])
def test_the_toys_optimum_is_reached_by_every_seed(variant, discount, least):
    env = toy(variant)
    leader = BCHG(env, runs=10, seed=0).learn(500)
    assert leader.num_timesteps <= 225_000
    assert exact.objective(env, leader.theta, horizon=150, discount=discount).min() >= least


@pytest.mark.slow
@pytest.mark.parametrize(("make", "arguments"), [(NaivePGD, {}), (BiAC, {})])
def test_first_order_leaders_fall_into_the_trap_as_published(make, arguments):
    """At first the follower passes A, U150 near 58; then it stops coming (published: 33 and 31)."""
    env = toy("R2", Committed(sweeps=300))
    leader = make(env, preset="paper", runs=2, seed=0, **arguments).learn(200)
    policy = leader.progress.best.policy
    assert exact.objective(env, leader.theta, horizon=150, discount=1.0, policy=policy).mean() < 45


@pytest.mark.slow
def test_leaders_climb_the_lqrs_ridge():
    env = bilevel_lqr()
    leader = BCHG(env, runs=2, seed=0).learn(800)
    assert leader.num_timesteps <= 200_000
    assert (exact.objective(env, leader.theta, horizon=100, discount=1.0) > 17).all()


def test_the_stage_games_backup_is_that_made_by_hand():
    env = toy("R2")
    theta = torch.tensor(toy_policy(0.5))[None]
    best = untrained(1, 6, 3, 0.05)
    batch = env.rollout(theta, best, Noise([0]), rows=1, horizon=40)
    critic = StageGame(0.9, 0.5, leader_actions=2)
    critic.fit(batch, best, None, Noise([0]))
    table = np.zeros((6, 3))
    answer = best.policy.log_probs[0].argmax(-1).numpy()
    state, action, following, reward = (
        x[0, 0].numpy() for x in (batch.state, batch.action, batch.next_state, batch.r_leader)
    )
    for k in reversed(range(40)):
        s = following[k] // 2
        promised = max(table[2 * s + a, answer[2 * s + a]] for a in (0, 1))
        table[state[k], action[k]] += 0.5 * (reward[k] + 0.9 * promised - table[state[k], action[k]])
    np.testing.assert_allclose(critic.table[0], table, atol=1e-12)


@pytest.mark.parametrize("kind", ["bchg", "naive-pgd"])
def test_the_published_actor_is_what_its_specification_says(kind):
    env = toy("R2")
    policy = env.problem.parameterization(1, Noise([3]), "mlp")
    f = policy()[0].detach().numpy()
    best = env.best_response(policy().detach())
    batch = env.rollout(policy().detach(), best, Noise([0]), rows=3, horizon=150)
    actor = TableActorCritic(kind, 3, 2, 3, (1, 1), replay=False)
    drawn = torch.tensor([[0, 1, 5, 150, 149, 299, 7, 7] * 8])
    actor._drawn = lambda noise, gamma: drawn
    *_, loss = [step() for step in actor.improve(policy, batch, best, env.preferences, Noise([1]))]
    gradient = torch.autograd.grad(loss.sum(), policy.biases[-1])[0][0, 0].numpy()

    q = actor._table(actor.layers).detach()[0].numpy()  # [S, B, A]
    g = best.policy.probs[0].numpy().reshape(3, 2, 3)
    v = best.v.values[0].numpy().reshape(3, 2)
    s, a = np.divmod(batch.state[0].numpy(), 2)
    b = batch.action[0].numpy()
    # the same uniform numbers: the critic's first weights and its step come first
    noise = Noise([1])
    for shape in ((6, 64), (64, 64), (64, 2)):
        noise.uniform(*shape)
    uniform = noise.uniform(64, 256)[0]
    weight = np.zeros((3, 2))
    for j, place in enumerate(drawn[0].tolist()):
        row, t = divmod(place, 150)
        here = (s[row, t], a[row, t], b[row, t])
        value = q[here[0], here[2]]
        weight[here[:2]] += (value[here[1]] - f[here[0]] @ value) / 64
        if kind == "bchg":
            others = (uniform[j][:, None] >= np.cumsum(g[here[:2]])[:-1]).sum(1)
            benefit = value[here[1]] - q[here[0], others, here[1]].mean()
            last = t + 1 if place == 0 else 150  # the walk through the buffer stops where it begins
            for k in range(t, last):
                then = (s[row, k], a[row, k])
                centred = v[then] - f[then[0]] @ v[then[0]]
                weight[then] += benefit / 0.05 / 64 * 0.99 ** (k - t) * centred
    # ∂ log f(a|s) / ∂ bias = 1[a] − f(·|s), the same last bias in every state
    expected = sum(weight[i, c] * (np.eye(2)[c] - f[i]) for i in range(3) for c in range(2))
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-9 * np.abs(weight).max())


@pytest.mark.parametrize("kind", ["bchg", "naive-pgd"])
def test_the_published_actor_of_the_lqr_is_what_its_specification_says(kind):
    env, gain = bilevel_lqr(), np.array([[[0.7, -0.4]]])
    policy = Free(gain)
    best = env.best_response(gain)
    actor = LinearActorCritic(kind, 1e-3, replay=False)
    actor.actor_steps = actor.critic_steps = 1
    theta, model, best = actor.behaviour(env, policy().detach(), env.model(gain), best, 3)
    batch = env.rollout(theta, best, Noise([0]), rows=4, horizon=100, model=model)
    drawn = torch.tensor([[0, 1, 5, 100, 99, 399, 7, 7] * 8])
    actor._drawn = lambda noise, gamma: drawn
    *_, loss = [step() for step in actor.improve(policy, batch, best, env.preferences, Noise([1]))]
    gradient = torch.autograd.grad(loss.sum(), policy.raw)[0][0, 0].numpy()

    def q(state, action, move):
        x = np.array([*state, action, move])
        w1, b1, w2, b2, w3, b3 = (layer.detach().numpy()[0] for layer in actor.layers)
        return (np.maximum(np.maximum(x @ w1 + b1[0], 0) @ w2 + b2[0], 0) @ w3 + b3[0])[0]

    # the same random numbers: the critic's first weights come first
    noise = Noise([1])
    for shape in ((4, 64), (64, 64), (64, 1)):
        noise.uniform(*shape)
    normal, uniform = noise.normal(64, 32, 1)[0], noise.uniform(64, 256, 1)[0] if kind == "bchg" else None
    s, a, b = (x.reshape(400, -1).numpy() for x in (batch.state[..., :2], batch.state[..., 2:], batch.action))
    assert 0.5 < a.std() < 2  # the third iteration's moves are random
    score = (a - s @ gain[0].T) / 1e-6 * s  # ∇ log f
    k = gain[0, 0]
    expected = np.zeros(2)
    p, constant = -best.v.matrix[0].numpy(), -float(best.v.constant[0])
    w = np.concatenate([s, a], 1)
    v = -np.einsum("ki,ij,kj->k", w, p, w) - constant
    for j, place in enumerate(drawn[0].tolist()):
        taken = q(s[place], b[place, 0], a[place, 0])
        own = [q(s[place], b[place, 0], s[place] @ k + 1e-3 * x) for x in normal[j, :, 0]]
        expected += (taken - np.mean(own)) * score[place] / 64
        if kind == "bchg":
            mean = -best.policy.gain[0, 0].numpy() @ w[place]
            others = mean + float(best.policy.covariance[0, 0, 0]) ** 0.5 * ndtri(uniform[j, :, 0])
            benefit = taken - np.mean([q(s[place], x, a[place, 0]) for x in others])
            last = 1 if place == 0 else 100 * (place // 100 + 1)  # the walk through the buffer stops where it begins
            for then in range(place, last):
                expected += benefit / 0.1 / 64 * 0.95 ** (then - place) * v[then] * score[then]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_the_published_critic_of_the_lqr_bootstraps_at_mean_moves():
    env, gain = bilevel_lqr(), np.array([[[0.7, -0.4]]])
    policy, best = Free(gain), env.best_response(gain)
    actor = LinearActorCritic("naive-pgd", 1e-3, replay=False)
    actor.begin(policy, Noise([5]))
    theta, model, best = actor.behaviour(env, policy().detach(), env.model(gain), best, 20)
    batch = env.rollout(theta, best, Noise([0]), rows=4, horizon=100, model=model)
    actor.stored = actor._transitions(batch)
    index = torch.arange(64)[None]
    loss = float(actor._loss(index, best, 0.99).detach())
    following = batch.next_state[0, 0, :64, :2].numpy()
    move = following @ gain[0].T
    answer = -np.concatenate([following, move], 1) @ best.policy.gain[0].numpy().T
    w1, b1, w2, b2, w3, b3 = (layer.detach().numpy()[0] for layer in actor.layers)

    def q(x):
        return (np.maximum(np.maximum(x @ w1 + b1, 0) @ w2 + b2, 0) @ w3 + b3)[:, 0]

    wanted = batch.r_leader[0, 0, :64].numpy() + 0.99 * q(np.concatenate([following, answer, move], 1))
    everything = batch.state[0, 0].numpy()
    s, b = everything[:64], batch.action[0, 0, :64].numpy()
    here = np.concatenate([s[:, :2], b, s[:, 2:]], 1)
    np.testing.assert_allclose(loss, np.mean((q(here) - wanted) ** 2), rtol=1e-10)
    np.testing.assert_allclose(everything[:, 2], everything[:, :2] @ gain[0, 0], atol=6e-3)  # its own moves by then


@pytest.mark.parametrize(
    ("make", "arguments", "game"),
    [
        (BCHG, {}, lambda: toy("R1")),
        (NaivePGD, {"replay": True}, lambda: toy("R1")),
        (BiAC, {}, lambda: toy("R1")),
        pytest.param(BCHG, {}, bilevel_lqr, marks=pytest.mark.slow),
        (NaivePGD, {"replay": True}, bilevel_lqr),
    ],
)
def test_published_games_go_on_bit_for_bit(make, arguments, game, tmp_path):
    one = make(game(), preset="paper", runs=2, **arguments).learn(3)
    one.save(tmp_path / "leader.zip")
    other = make.load(tmp_path / "leader.zip", game()).learn(2)
    one.learn(2)
    np.testing.assert_array_equal(one.theta, other.theta)


def test_given_settings_override_those_that_a_game_advises():
    assert BCHG(bilevel_lqr()).estimator_config.batch_size == 100
    assert BCHG(toy()).estimator_config.batch_size == 450
    assert BCHG(toy()).config.learning_rate == 0.02
    leader = BCHG(toy(), batch_size=300, learning_rate=0.1)
    assert (leader.estimator_config.batch_size, leader.config.learning_rate) == (300, 0.1)
    paper = BCHG(toy(), preset="paper")
    assert (paper.config.learning_rate, paper.config.optimizer, paper.rows) == (1e-4, "adam", 3)


def test_settings_that_games_do_not_allow_are_refused_by_name():
    with pytest.raises(ValueError, match='`replay` must be None without `preset="paper"`'):
        BiAC(toy(), replay=True)
    with pytest.raises(ValueError, match="`preset` must be None for hpgd in ToyMarkovGame"):
        HPGD(toy(), preset="paper")
    with pytest.raises(ValueError, match="`preset` must be None where the follower does not see"):
        BCHG(toy(sees_leader=False), preset="paper")
    with pytest.raises(ValueError, match='`critic` "stage_game", that of BiAC, needs a finite game'):
        BiAC(BilevelWrapper(gym.make("BiLevel/FourRooms-v0")))
    with pytest.raises(ValueError, match="`gradient_samples` needs another `preset`"):
        BCHG(toy(), preset="paper").gradient_samples(2)
    with pytest.raises(TypeError, match="`model` must be a TabularModel for Committed"):
        Committed().best_response(bilevel_lqr().model(np.zeros((1, 2))), bilevel_lqr().preferences)
    for arguments, message in (({"sweeps": 0}, "`sweeps`"), ({"tol": 0.0}, "`tol`"), ({"beta": -1.0}, "`beta`")):
        with pytest.raises(ValueError, match=message):
            Committed(**arguments)


@pytest.mark.parametrize("gain", [(-9.8, -9.5), (-3.0, -2.0)])
def test_a_fitted_loop_has_the_exact_values(gain):
    env, theta = bilevel_lqr(), np.array([gain])
    best, model = env.best_response(theta), env.model(theta)
    batch = env.rollout(theta, best, Noise([0]), rows=20, horizon=100)
    fitted, truth = FittedLinear(0.99), ExactCritic(0.99)
    for critic in (fitted, truth):
        critic.fit(batch, best, model, Noise([0]))
    for found, true in zip(fitted.values(batch, best.policy), truth.values(batch, best.policy), strict=True):
        assert float((found - true).norm() / true.norm()) < 0.05
    along, true = (critic.leader_gradient(best.policy)(batch.state, batch.step) for critic in (fitted, truth))
    assert float((along - true).norm() / true.norm()) < 0.05


@pytest.mark.slow
def test_leaders_climb_the_lqrs_ridge_without_its_matrices():
    leader = BCHG(bilevel_lqr(), critic="fitted_linear", gradient="pathwise", runs=2, seed=0).learn(100)
    value = leader.history["leader_value"]
    assert (value[-1] > 10 * value[0]).all()


def test_a_fitted_loop_needs_a_bump():
    with pytest.raises(TypeError, match='critic="fitted_linear" is for leaders whose reward is a bump'):
        BCHG(BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0")), critic="fitted_linear").learn(1)


def test_the_lqr_refuses_what_it_has_no_use_for():
    with pytest.raises(ValueError, match="`preset` must be None for bi-ac in BilevelLQR"):
        published_leader("bi-ac", bilevel_lqr().problem, replay=False)
    with pytest.raises(ValueError, match="`critic` must be None with the published form of games"):
        BCHG(bilevel_lqr(), preset="paper", critic="exact")
    with pytest.raises(ValueError, match="`replay` must be None for bchg"):
        published_leader("bchg", bilevel_lqr().problem, replay=True)
    with pytest.raises(
        ValueError,
        match='`critic` is quadratic and cannot represent the Gaussian-shaped leader reward of BilevelLQR: use "td"',
    ):
        BCHG(bilevel_lqr(), critic="lstd")
    with pytest.raises(ValueError, match="`preset` must be None for sobirl in ToyMarkovGame"):
        SoBiRL(toy(), preset="paper")


@pytest.mark.slow
def test_a_game_is_filmed_within_its_time_limit(tmp_path):
    path = tmp_path / "film.mp4"
    assert follower_film(toy(), toy_policy(0.5), toy_policy(0.3), path, steps=5, fps=5) == 5 + 1 + 5
    assert (
        follower_film(bilevel_lqr(), np.zeros((1, 2)), np.array([[-9.0, -9.0]]), path, steps=300, fps=5) == 100 + 1 + 5
    )
