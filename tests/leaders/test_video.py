"""Films of worlds that `gym.make` does not know: tables of one's own, and environments that somebody else wrote."""

import sys

import gymnasium as gym
import numpy as np
import pytest

from bilevel_envs import BilevelWrapper, ConfigurableRewards, Preferences, TabularEnv
from bilevel_envs.followers import SB3Follower
from leaders.experiments.video import HEADER, check_films, episode_frames, follower_frames, side_by_side, write_film


def toll_bridge(**arguments):
    return BilevelWrapper(TabularEnv(gym.make("BiLevel/TollBridge-v0").unwrapped.problem, **arguments))


def cart_pole(**arguments):
    env = ConfigurableRewards(
        gym.make("CartPole-v1", **arguments),
        gym.spaces.Box(0.0, 1.0, (1,), np.float64),
        lambda theta, c: c[..., 0] - theta[..., 0] * c[..., 1],
        lambda theta, c: -c[..., 1],
        Preferences(0.97, 0.97, 0.5),
        lambda observation, action, reward, after, info: [reward, observation[0] ** 2],
    )
    return BilevelWrapper(env, SB3Follower("SoftDQN", 20, learning_starts=10, policy_kwargs={"net_arch": [8]}))


def test_a_table_that_was_constructed_is_filmed_as_the_registered_one_is():
    registered = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"))
    theta = np.array([1.0])
    ours = follower_frames(toll_bridge(render_mode="rgb_array"), theta, theta, steps=6)
    np.testing.assert_array_equal(ours, follower_frames(registered, theta, theta, steps=6))


@pytest.mark.parametrize(
    ("name", "arguments"), [("ToyMarkovGame", {}), ("ToyMarkovGame", {"sees_leader": False}), ("FourRooms", {})]
)
def test_what_a_table_shows_of_its_states_makes_no_other_film(name, arguments):
    problem = gym.make(f"BiLevel/{name}-v0", **arguments).unwrapped.problem
    films = [
        follower_frames(
            BilevelWrapper(TabularEnv(problem, observation=shown, render_mode="rgb_array")),
            problem.default_theta,
            problem.default_theta,
            steps=5,
        )
        for shown in ("index", "vector")
    ]
    np.testing.assert_array_equal(*films)
    assert not np.array_equal(films[0][0], films[0][-1])


def test_an_environment_that_somebody_else_wrote_is_filmed_before_and_after(tmp_path):
    env = cart_pole(render_mode="rgb_array")
    first = np.array([0.25])
    env.configure(first)
    env.best_response(np.array([0.5]))
    before = episode_frames(env, np.array([0.5]), "before", steps=5)
    np.testing.assert_array_equal(env.theta, first)  # which the film leaves as it was
    env.best_response(np.array([0.7]))
    frames = side_by_side(before, episode_frames(env, np.array([0.7]), "after", steps=4))
    assert len(frames) == 6  # the right one waits
    assert frames[0].shape[0] == 400 + HEADER
    assert not np.array_equal(frames[0], frames[5])
    assert write_film(frames, tmp_path / "film.mp4", fps=5) == 11
    assert (tmp_path / "film.mp4").stat().st_size > 1_000


@pytest.mark.parametrize("make", [toll_bridge, cart_pole])
def test_what_does_not_draw_itself_says_how_to_make_it(make):
    with pytest.raises(ValueError, match='with render_mode="rgb_array" before it is wrapped, got render_mode=None'):
        episode_frames(make(), np.array([0.5]), "before")


class Unseen(gym.Wrapper):
    """An environment whose picture cannot be taken."""

    def render(self):
        raise RuntimeError("no screen")


def test_a_film_that_fails_leaves_theta_as_it_was(tmp_path):
    env = cart_pole(render_mode="rgb_array")
    env.best_response(np.array([0.5]))
    env.unwrapped.env, first = Unseen(env.unwrapped.env), env.theta
    with pytest.raises(RuntimeError, match="no screen"):
        episode_frames(env, np.array([0.9]), "before", steps=5)
    np.testing.assert_array_equal(env.theta, first)


def test_a_film_without_frames_or_speed_is_refused(tmp_path):
    frame = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="`frames` must hold at least one frame, got none"):
        write_film([], tmp_path / "film.mp4")
    with pytest.raises(ValueError, match="`fps` must be at least 1, got 0"):
        write_film([frame], tmp_path / "film.mp4", fps=0)
    with pytest.raises(ValueError, match="must hold at least one frame, got 0 and 1"):
        side_by_side([], [frame])
    assert write_film([frame], str(tmp_path / "film.mp4"), fps=2) == 3


class Narrow(gym.Wrapper):
    """An environment whose pictures are a strip of the real ones."""

    def render(self):
        return self.env.render()[:, :200]


def test_what_is_written_over_a_narrow_picture_fits():
    env = ConfigurableRewards(
        Narrow(gym.make("CartPole-v1", render_mode="rgb_array")),
        gym.spaces.Box(0.0, 1.0, (1,), np.float64),
        lambda theta, c: theta[..., 0] * c[..., 0],
        lambda theta, c: -1_234.5 * c[..., 0],
        Preferences(0.97, 0.97, 0.5),
        lambda observation, action, reward, after, info: [reward],
    )
    wrapped = BilevelWrapper(env, SB3Follower("SoftDQN", 20, learning_starts=10, policy_kwargs={"net_arch": [8]}))
    wrapped.best_response(np.array([0.5]))
    last = episode_frames(wrapped, np.array([0.5]), "after, led by another leader", steps=15)[-1]
    assert last.shape[1] == 200
    assert (last[:HEADER, -3:] == last[0, 0]).all()
    assert (last[:HEADER, 100:] != last[0, 0]).any()


def test_a_missing_writer_of_films_is_told_before_there_is_anything_to_write(monkeypatch, tmp_path):
    check_films()
    monkeypatch.setitem(sys.modules, "moviepy", None)
    for ask in (check_films, lambda: write_film([np.zeros((8, 8, 3), np.uint8)], tmp_path / "film.mp4")):
        with pytest.raises(ImportError, match=r'a film needs moviepy: pip install "bilevel-envs\[video\]"'):
            ask()
    assert not list(tmp_path.iterdir())
