"""Pictures of warehouse floors as RGB arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bilevel_envs.rendering.drawing import AGENT, GOAL, INK, PAPER, SCALE, TARGET, WALL

SLOW, FAST = np.array([205, 70, 55]), np.array([70, 130, 205])
RACK, ITEM, EMPTY = (128, 134, 148), (176, 112, 52), (70, 78, 96)
ZONE_INK = (196, 120, 30)
LARGEST_CELL, WIDTH = 64, 640  # pixels
LEGEND = 34  # pixels below the floor
ARROWS = 20  # smallest cell, in pixels, with arrows, letters and hatching; below it visits are dots
DOTS = 4  # smallest cell with a dot for its visits; below it cells are shaded
DIRECTIONS = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)])  # up, right, down, left as (x, y)
SPEEDS = (0.2, 0.6, 1.0)  # red, paper, blue


def floor_image(
    letters: np.ndarray,
    speed: np.ndarray,
    *,
    robots: Sequence[tuple[int, int, bool]] = (),
    flow: np.ndarray | None = None,
) -> np.ndarray:
    """A warehouse from above, with a legend below.

    Args:
      letters: '#' shelf, '.' aisle, 'Z' people's zone, 'P' pick, 'D' drop, [rows, columns].
      speed: probability of leaving a cell, NaN at shelves, [rows, columns].
      robots: (row, column, whether it carries an item) of each.
      flow: discounted moves of robots without and with an item, up, right, down, left, [2, rows, columns, 4].

    Returns:
      uint8 [height, width, 3]; both even.
    """
    rows, columns = letters.shape
    cell = max(1, min(LARGEST_CELL, WIDTH // columns))
    detailed = cell >= ARROWS
    fill = _tint(speed)
    fill[letters == "#"] = WALL
    if not detailed:
        people = letters == "Z"
        fill[people] = np.round(0.55 * fill[people] + 0.45 * np.array(ZONE_INK))
        if flow is not None and cell < DOTS:
            fill = _shaded(fill, flow.sum((0, 3)))
        for letter, colour in (("P", GOAL), ("D", TARGET)):
            fill[letters == letter] = colour
    picture = Image.fromarray(fill).resize((columns * cell * SCALE, rows * cell * SCALE), Image.Resampling.NEAREST)
    draw, side = ImageDraw.Draw(picture), cell * SCALE
    if detailed:
        _furnish(draw, letters, side)
        if flow is not None:
            _flow(draw, flow, side)
        _stations(draw, letters, side)
    elif flow is not None and cell >= DOTS:
        _dots(draw, flow.sum((0, 3)), side)
    for robot in robots:
        _robot(draw, robot, side)
    picture = picture.resize((columns * cell, rows * cell), Image.Resampling.LANCZOS)
    return _with_legend(picture, flow is not None, detailed)


def _tint(speed: np.ndarray) -> np.ndarray:
    """Red for slow, paper for the middle, blue for fast, uint8 [..., 3]."""
    _, middle, fast = SPEEDS
    weight = np.nan_to_num((speed - middle) / (fast - middle))[..., None]
    colour = np.where(weight < 0, SLOW, FAST)
    weight = 0.8 * np.clip(np.abs(weight), 0, 1)
    return np.round((1 - weight) * np.array(PAPER) + weight * colour).astype(np.uint8)


def _shaded(fill: np.ndarray, visits: np.ndarray) -> np.ndarray:
    """The square root keeps small flows visible."""
    weight = 0.85 * np.sqrt(visits / max(visits.max(), 1e-12))[..., None]
    return np.round((1 - weight) * fill + weight * np.array(INK)).astype(np.uint8)


def _dots(draw: ImageDraw.ImageDraw, visits: np.ndarray, side: int) -> None:
    """Discs whose area is in proportion to the flow."""
    largest = max(float(visits.max()), 1e-12)
    for row, column in np.argwhere(visits > 0.01 * largest):
        x, y = (column + 0.5) * side, (row + 0.5) * side
        radius = 0.42 * side * float(np.sqrt(visits[row, column] / largest))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=INK)


def _furnish(draw: ImageDraw.ImageDraw, letters: np.ndarray, side: int) -> None:
    """Racks with boards, lines between cells, and a hatched zone with a broken line around it."""
    for row, column in np.ndindex(letters.shape):
        left, top = column * side, row * side
        if letters[row, column] == "#":
            for board in range(4):
                y = top + (board + 0.5) * side / 4
                draw.line([(left + 0.08 * side, y), (left + 0.92 * side, y)], fill=RACK, width=max(SCALE, side // 24))
            continue
        draw.rectangle((left, top, left + side, top + side), outline=(214, 212, 206), width=SCALE // 2)
        if letters[row, column] == "Z":
            for k in range(1, 8):
                offset = k * side / 4
                ends = (
                    (left + max(0, offset - side), top + min(offset, side)),
                    (left + min(offset, side), top + max(0, offset - side)),
                )
                draw.line(ends, fill=ZONE_INK, width=max(1, side // 64))
    for row, column in np.argwhere(letters == "Z"):
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            there = (row + down, column + right)
            inside = 0 <= there[0] < letters.shape[0] and 0 <= there[1] < letters.shape[1]
            if not inside or letters[there] != "Z":
                _broken(draw, row, column, (down, right), side)


def _broken(draw: ImageDraw.ImageDraw, row: int, column: int, towards: tuple[int, int], side: int) -> None:
    """A broken line along one side of a cell."""
    down, right = towards
    y, x = (row + (down > 0)) * side - 2 * down * SCALE, (column + (right > 0)) * side - 2 * right * SCALE
    for k in range(4):
        begin, end = (k + 0.15) * side / 4, (k + 0.85) * side / 4
        line = (
            (x, row * side + begin, x, row * side + end)
            if right
            else (column * side + begin, y, column * side + end, y)
        )
        draw.line(line, fill=ZONE_INK, width=max(SCALE, side // 20))


def _flow(draw: ImageDraw.ImageDraw, flow: np.ndarray, side: int) -> None:
    """Arrows from cell to cell, to the right of the way; those of robots with an item in orange."""
    largest = max(float(flow.max()), 1e-12)
    for carrying, colour in ((0, EMPTY), (1, AGENT)):
        for row, column, move in np.argwhere(flow[carrying] > 0.01 * largest):
            share = float(np.sqrt(flow[carrying, row, column, move] / largest))
            along = DIRECTIONS[move]
            across = np.array([-along[1], along[0]])
            start = (np.array([column, row]) + 0.5) * side + 0.17 * side * across + 0.06 * side * along
            end = start + 0.88 * side * along
            thick = max(1.5 * SCALE, 0.17 * side * share)
            head = max(1.8 * thick, 0.1 * side)
            half, neck = across * thick / 2, end - head * along
            outline = [
                start + half,
                neck + half,
                neck + 0.95 * thick * across,
                end,
                neck - 0.95 * thick * across,
                neck - half,
                start - half,
            ]
            draw.polygon([tuple(point) for point in outline], fill=colour)


def _stations(draw: ImageDraw.ImageDraw, letters: np.ndarray, side: int) -> None:
    for letter, colour in (("P", GOAL), ("D", TARGET)):
        for row, column in np.argwhere(letters == letter):
            x, y, half = (column + 0.5) * side, (row + 0.5) * side, 0.27 * side
            draw.rounded_rectangle((x - half, y - half, x + half, y + half), 0.08 * side, colour, PAPER, SCALE)
            draw.text((x, y), letter, fill=PAPER, font=ImageFont.load_default(0.36 * side), anchor="mm")


def _robot(draw: ImageDraw.ImageDraw, robot: tuple[int, int, bool], side: int) -> None:
    row, column, carrying = robot
    x, y, radius = (column + 0.5) * side, (row + 0.5) * side, max(0.3 * side, 4 * SCALE)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=AGENT, outline=INK, width=SCALE)
    if carrying:
        half = 0.5 * radius
        draw.rectangle((x - half, y - half, x + half, y + half), fill=ITEM, outline=INK, width=SCALE)
        draw.line([(x, y - half), (x, y + half)], fill=INK, width=SCALE // 2)


def _with_legend(floor: Image.Image, flow: bool, detailed: bool) -> np.ndarray:
    """The floor, and below it what the colours mean; nothing where there is no room."""
    width, height = floor.size
    if width < 300:
        return np.asarray(floor)[: height // 2 * 2, : width // 2 * 2]
    strip = Image.new("RGB", (width * SCALE, LEGEND * SCALE), PAPER)
    draw, font, middle = ImageDraw.Draw(strip), ImageFont.load_default(12 * SCALE), LEGEND * SCALE / 2
    x = 10.0 * SCALE

    def say(word: str) -> None:
        nonlocal x
        draw.text((x, middle), word, fill=INK, font=font, anchor="lm")
        x += draw.textlength(word, font=font) + 14 * SCALE

    bar = np.linspace(SPEEDS[0], SPEEDS[-1], 60 * SCALE)
    draw.text((x, middle), "slow", fill=INK, font=font, anchor="lm")
    x += draw.textlength("slow", font=font) + 5 * SCALE
    for k, colour in enumerate(_tint(bar)):
        draw.line([(x + k, middle - 6 * SCALE), (x + k, middle + 6 * SCALE)], fill=tuple(int(c) for c in colour))
    x += len(bar) + 5 * SCALE
    say("fast")
    keys = [("with an item", AGENT), ("without", EMPTY)] if flow and detailed else [("robots", INK)] if flow else []
    keys += [("people", ZONE_INK)]
    keys += [] if detailed else [("pick", GOAL), ("drop", TARGET)]
    for word, colour in keys:
        draw.rectangle((x, middle - 5 * SCALE, x + 10 * SCALE, middle + 5 * SCALE), fill=colour)
        x += 15 * SCALE
        say(word)
    whole = Image.new("RGB", (width, height + LEGEND), PAPER)
    whole.paste(floor, (0, 0))
    whole.paste(strip.resize((width, LEGEND), Image.Resampling.LANCZOS), (0, height))
    return np.asarray(whole)[: (height + LEGEND) // 2 * 2, : width // 2 * 2]
