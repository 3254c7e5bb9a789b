"""A film of the follower before and after the leader has learnt, side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bilevel_envs.core.checks import check_count, check_writable
from bilevel_envs.core.follower import capabilities_of
from bilevel_envs.rendering.drawing import INK, PAPER
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.world import world_of
from bilevel_envs.wrapper import BilevelWrapper

HEADER = 56  # pixels above each picture; even, as video codecs want
WIDE_ENOUGH = 380  # pixels; in narrower frames letters are smaller
GAP = 16


def follower_film(
    env: BilevelWrapper,
    before: np.ndarray,
    after: np.ndarray,
    path: Path,
    *,
    steps: int = 200,
    fps: int = 10,
    seed: int = 0,
    run: int = 0,
) -> int:
    """Films one episode at each of two configurations, with the same seed, in the context in force.

    A follower that learns does not learn for the film: both pictures show it as it is now. An environment that was made
    by ``gym.make`` is made once more; any other one is itself reset and stepped, and then has its θ again.

    Args:
      env: an environment that can be drawn: one that ``gym.make`` knows, or one whose `render_mode` is "rgb_array".
      before: θ of the left picture, or one per run, ``[R, *θ.shape]``: as many as a follower that learns has met.
      after: θ of the right picture, likewise.
      path: where the film goes; its ending says the format (".mp4").
      steps: longest episode shown.
      fps: steps per second.
      seed: of the world and of the follower's draws.
      run: which of the runs is shown.

    Returns:
      The number of frames.

    Raises:
      ImportError: without moviepy.
      ValueError: if the environment cannot be drawn, or the follower answers on a grid of states that it does not keep
        to.
    """
    return write_film(follower_frames(env, before, after, steps=steps, seed=seed, run=run), path, fps=fps)


def check_films() -> None:
    """Raises an ImportError with what to install where no film can be written; ask before a long run."""
    try:
        import moviepy  # noqa: F401
    except ImportError as error:
        raise ImportError('a film needs moviepy: pip install "bilevel-envs[video]"') from error


def write_film(frames: list[np.ndarray], path: Path, *, fps: int = 10) -> int:
    """Writes frames [height, width, 3], and the last one for another second.

    Returns:
      The number of frames.

    Raises:
      ImportError: without moviepy.
      ValueError: if there are no frames, or the path cannot be written to.
    """
    path, fps = check_writable(path), check_count(fps, "fps")
    if not len(frames):
        raise ValueError("`frames` must hold at least one frame, got none")
    check_films()
    from moviepy import ImageSequenceClip

    frames = [*frames, *frames[-1:] * fps]
    partial = path.with_name(f".part-{path.name}")
    ImageSequenceClip(frames, fps=fps).write_videofile(str(partial), logger=None, audio=False)
    partial.replace(path)
    return len(frames)


def follower_frames(
    env: BilevelWrapper, before: np.ndarray, after: np.ndarray, *, steps: int = 200, seed: int = 0, run: int = 0
) -> list[np.ndarray]:
    """The frames of `follower_film`, [height, width, 3] each; arguments as there."""
    if env.problem.on_grid:
        raise ValueError(
            f"{env.problem.title} cannot be filmed: its follower answers on a grid, its world is continuous; "
            "`bilevel curves` shows its run"
        )
    learnt = ", the agent as it is now" if capabilities_of(env.follower).learns else ""
    captions = (before, f"before{learnt}"), (after, "after")
    return side_by_side(*(episode_frames(env, *one, steps=steps, seed=seed, run=run) for one in captions))


def side_by_side(left: list[np.ndarray], right: list[np.ndarray]) -> list[np.ndarray]:
    """Frames of two episodes beside each other; the one that ends first waits at its last."""
    if not left or not right:
        raise ValueError(f"`left` and `right` must hold at least one frame, got {len(left)} and {len(right)}")
    length = max(len(left), len(right))
    return [_beside(left[min(k, len(left) - 1)], right[min(k, len(right) - 1)]) for k in range(length)]


def episode_frames(
    env: BilevelWrapper, theta: np.ndarray, caption: str, *, steps: int = 200, seed: int = 0, run: int = 0
) -> list[np.ndarray]:
    """One episode at θ with the follower as it is now, [height, width, 3] each, under a caption.

    An agent that learns is another one later: take the frames of "before" before it is led, and put them beside those
    of "after" with `side_by_side`. Arguments as in `follower_film`.
    """
    world, kept = _drawn(env, steps), env.theta
    try:
        return _filmed(world, env, theta, caption, seed, run)
    finally:
        if env.spec is not None:
            world.close()
        else:
            env.configure(kept)


def _filmed(
    world: gym.Env, env: BilevelWrapper, theta: np.ndarray, caption: str, seed: int, run: int
) -> list[np.ndarray]:
    """One episode of a world at θ."""
    as_state = _states_of(env, theta)
    best, rng = env.best_response(theta, learn=False), np.random.default_rng(seed)
    theta = np.reshape(theta, (-1, *env.theta_space.shape))
    runs = len(theta)
    if not 0 <= run < runs:
        raise ValueError(f"`run` must be one of the runs of θ, 0 to {runs - 1}, got {run!r}")
    context = {} if env.context is None else {"context": int(env.context.flat[run % env.context.size])}
    state, _ = world.reset(seed=seed, options={"theta": theta[run], **context})
    arrived = "  over" if env.problem.draw is None else "  arrived"  # somebody else's episode may end in any way
    frames, collected, over, k = [_titled(world.render(), caption, 0, 0.0, "")], 0.0, False, 0
    while not over:
        uniform = np.tile(
            rng.random((1, *best.behavior_policy.action_shape)), (runs, *[1] * len(best.behavior_policy.action_shape))
        )
        action = best.behavior_policy.sample(np.stack([as_state(state)] * runs), uniform)[run].numpy()
        state, _, terminated, truncated, info = world.step(action)
        collected += info["leader_reward"]
        k, over = k + 1, terminated or truncated
        ending = arrived if terminated else "  time is up" if truncated else ""
        frames.append(_titled(world.render(), caption, k, collected, ending))
    return frames


def _states_of(env: BilevelWrapper, theta: np.ndarray) -> Callable[[Any], Any]:
    """What policies take, from observations: of a table, the number of the state that shows itself so."""
    model = env.model(np.reshape(theta, (-1, *env.theta_space.shape)))
    if not world_of(model).countable:
        return np.asarray
    seen = env.observations(cast(TabularModel, model).states)
    seen = seen.reshape(len(seen), -1)
    return lambda observation: np.flatnonzero((seen == np.ravel(observation)).all(1))[0]


def _drawn(env: BilevelWrapper, steps: int) -> gym.Env:
    """A copy of an environment that draws itself, or the environment itself where no spec says how it was made."""
    limit = steps if env.time_limit is None else min(steps, env.time_limit)
    if env.spec is not None:
        return gym.make(env.spec, render_mode="rgb_array", max_episode_steps=limit)
    if env.render_mode != "rgb_array":
        raise ValueError(
            f'`env` must draw itself to be filmed: make {env.problem.title} with render_mode="rgb_array" '
            f"before it is wrapped, got render_mode={env.render_mode!r}"
        )
    return gym.wrappers.TimeLimit(env.env, limit)


def _titled(picture: Any, caption: str, step: int, collected: float, ending: str) -> np.ndarray:
    height, width = picture.shape[:2]
    image = Image.new("RGB", (width, height + HEADER), PAPER)
    image.paste(Image.fromarray(picture), (0, HEADER))
    draw, scale = ImageDraw.Draw(image), min(1.0, width / WIDE_ENOUGH)
    draw.text((8, 6), caption, fill=INK, font=ImageFont.load_default(19 * scale))
    told = f"step {step}   leader has collected {collected:.2f}{ending}"
    draw.text((8, 32), told, fill=INK, font=ImageFont.load_default(15 * scale))
    return np.asarray(image)


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    gap = np.full((left.shape[0], GAP, 3), PAPER, np.uint8)
    frame = np.concatenate([left, gap, right], 1)
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
