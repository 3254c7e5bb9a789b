"""Pictures of small worlds as RGB arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, WALL = (38, 42, 51), (250, 249, 246), (92, 98, 112)
AGENT, GOAL, TARGET, START = (240, 150, 40), (46, 125, 80), (40, 100, 190), (130, 130, 130)
PENALTY = np.array([205, 60, 50])
LINES = ((31, 119, 180), (230, 120, 20), (44, 140, 60), (150, 80, 170), (120, 90, 60), (90, 90, 90))
SCALE = 2  # drawn large and scaled down, for smooth edges


def shade(weight: np.ndarray, colour: np.ndarray = PENALTY) -> np.ndarray:
    """Paper tinted by `weight` in [0, 1], uint8 [..., 3]."""
    weight = np.clip(weight, 0, 1)[..., None]
    return np.round((1 - weight) * np.array(PAPER) + weight * colour).astype(np.uint8)


def grid_image(
    walls: np.ndarray,
    fill: np.ndarray,
    marks: Mapping[tuple[int, int], tuple[str, tuple[int, int, int]]],
    agent: tuple[int, int] | None = None,
    cell: int = 32,
) -> np.ndarray:
    """A grid world from above.

    Args:
      walls: True where no one can be, [rows, columns].
      fill: colour of each free cell, uint8 [rows, columns, 3].
      marks: letter and colour by (row, column).
      agent: where the follower stands, (row, column).
      cell: pixels per cell.

    Returns:
      uint8 [rows · cell, columns · cell, 3].
    """
    side = cell * SCALE
    rows, columns = walls.shape
    image = Image.new("RGB", (columns * side, rows * side), WALL)
    draw = ImageDraw.Draw(image)
    for row, column in np.argwhere(~walls):
        corner = (column * side, row * side)
        box = (*corner, corner[0] + side - SCALE, corner[1] + side - SCALE)
        draw.rectangle(box, fill=tuple(int(c) for c in fill[row, column]), outline=(225, 223, 217))
    if agent is not None:
        _disc(draw, ((agent[1] + 0.5) * side, (agent[0] + 0.5) * side), 0.34 * side, AGENT)
    for (row, column), (letter, colour) in marks.items():
        _text(draw, ((column + 0.5) * side, (row + 0.5) * side), letter, colour, 0.55 * side)
    return _finish(image, columns * cell, rows * cell)


def graph_image(
    positions: np.ndarray,
    labels: Sequence[str],
    edges: Mapping[tuple[int, int], float],
    current: int | None = None,
    size: tuple[int, int] = (480, 320),
) -> np.ndarray:
    """States as discs, possible moves as arrows.

    Args:
      positions: centre of each state as fractions of the picture, [S, 2] (x to the right, y down).
      labels: one word per state.
      edges: strength in [0, 1] by (from, to); stronger is darker.
      current: the state to highlight.
      size: width and height in pixels.

    Returns:
      uint8 [height, width, 3].
    """
    width, height = size[0] * SCALE, size[1] * SCALE
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    centre = positions * np.array([width, height])
    radius = 0.085 * min(width, height)
    for (here, there), strength in sorted(edges.items(), key=lambda item: item[1]):
        if here == there or strength <= 0:
            continue
        along = centre[there] - centre[here]
        along = along / np.linalg.norm(along)
        across = np.array([-along[1], along[0]])
        begin, end = (
            centre[here] + radius * along + 6 * across,
            centre[there] - 1.1 * radius * along + 6 * across,
        )
        grey = int(225 - 165 * min(strength, 1.0))
        draw.line([tuple(begin), tuple(end)], fill=(grey, grey, grey), width=3)
        tip = [tuple(end), tuple(end - 16 * along + 7 * across), tuple(end - 16 * along - 7 * across)]
        draw.polygon(tip, fill=(grey, grey, grey))
    for index, label in enumerate(labels):
        _disc(draw, tuple(centre[index]), radius, AGENT if index == current else (214, 222, 232))
        _text(draw, tuple(centre[index]), label, INK, radius * (1.0 if len(label) < 4 else 0.55))
    return _finish(image, *size)


def building_image(
    states: np.ndarray, insulation: np.ndarray, airflow: np.ndarray, size: tuple[int, int] = (480, 400)
) -> np.ndarray:
    """A ring of zones as a floor plan in two rows, and their deviations over time below.

    Args:
      states: deviations from the set points so far, the last row being now, [k, n].
      insulation: in [0, 1], drawn as the thickness of a zone's outer wall, [n].
      airflow: in [0, 1], drawn as the opening between each zone and the next, [n].
      size: width and height in pixels.

    Returns:
      uint8 [height, width, 3].
    """
    width, height = size[0] * SCALE, size[1] * SCALE
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    zones, columns, margin, plan = states.shape[1], states.shape[1] // 2, 24 * SCALE, height * 0.56
    side, tall = (width - 2 * margin) / columns, (plan - 2 * margin) / 2
    place = [(k, 0) if k < columns else (zones - 1 - k, 1) for k in range(zones)]
    boxes = [(margin + x * side, margin + y * tall, margin + (x + 1) * side, margin + (y + 1) * tall) for x, y in place]
    for zone, (left, top, right, bottom) in enumerate(boxes):
        draw.rectangle((left, top, right, bottom), fill=_warmth(states[-1, zone]))
        wall = SCALE * (2 + 10 * insulation[zone])
        outer = top if place[zone][1] == 0 else bottom
        draw.line([(left, outer), (right, outer)], fill=WALL, width=round(wall))
        for x, at_end in ((left, place[zone][0] == 0), (right, place[zone][0] == columns - 1)):
            if at_end:
                draw.line([(x, top), (x, bottom)], fill=WALL, width=round(wall))
        label = f"{states[-1, zone]:+.1f}"
        _text(draw, ((left + right) / 2, (top + bottom) / 2), label, INK, min(0.2 * side, 0.3 * tall))
    for zone in range(zones):
        _vent(draw, boxes[zone], boxes[(zone + 1) % zones], float(airflow[zone]))
    if zones > 4:  # no vents between the two rows inside, only where the ring closes
        draw.line([(margin + side, margin + tall), (width - margin - side, margin + tall)], fill=WALL, width=4 * SCALE)
    _curves(draw, states, (margin, plan, width - margin, height - margin))
    return _finish(image, *size)


def plane_image(
    path: np.ndarray, target: np.ndarray, widths: np.ndarray, size: tuple[int, int] = (480, 320)
) -> np.ndarray:
    """A path in the plane, and the contours at one, two and three widths around a target.

    Args:
      path: points so far, the last row being now, [k, 2].
      target: [2].
      widths: standard deviations of the reward around it, [2].
      size: width and height in pixels.

    Returns:
      uint8 [height, width, 3].
    """
    width, height = size[0] * SCALE, size[1] * SCALE
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    reach = np.array([1.5, 0.15])  # what is shown to each side of the origin

    def place(point: np.ndarray) -> tuple[float, float]:
        x, y = np.clip(point / reach, -1.05, 1.05)
        return (0.5 + 0.46 * x) * width, (0.5 - 0.42 * y) * height

    origin = place(np.zeros(2))
    draw.line([(0, origin[1]), (width, origin[1])], fill=(215, 215, 210), width=SCALE)
    draw.line([(origin[0], 0), (origin[0], height)], fill=(215, 215, 210), width=SCALE)
    for ring in (3, 2, 1):
        (left, bottom), (right, top) = place(target - ring * widths), place(target + ring * widths)
        tint = tuple(int(c) for c in shade(np.array(0.12 * (4 - ring)), np.array(TARGET)))
        draw.ellipse((left, top, right, bottom), fill=tint, outline=TARGET, width=SCALE)
    points = [place(point) for point in path]
    if len(points) > 1:
        draw.line(points, fill=(150, 150, 150), width=SCALE)
    for point in points[:-1]:
        _disc(draw, point, 3 * SCALE, (200, 205, 215))
    _disc(draw, points[-1], 6 * SCALE, AGENT)
    if (np.abs(path[-1]) > reach).any():  # pinned to the frame: say where it is
        _text(
            draw,
            (width / 2, height - 14 * SCALE),
            f"outside, at ({path[-1][0]:.3g}, {path[-1][1]:.3g})",
            INK,
            12 * SCALE,
        )
    for x in (-1.0, 1.0):
        _text(draw, place(np.array([x, -0.045])), f"{x:g}", WALL, 10 * SCALE)
    for y in (-0.1, 0.1):
        _text(draw, place(np.array([0.06, y])), f"{y:g}", WALL, 10 * SCALE)
    for text, at in (
        ("s1", (width - 14 * SCALE, origin[1] - 10 * SCALE)),
        ("s2", (origin[0] + 12 * SCALE, 10 * SCALE)),
    ):
        _text(draw, at, text, WALL, 11 * SCALE)
    return _finish(image, *size)


def household_image(
    assets: np.ndarray,
    action: np.ndarray,
    largest: tuple[float, float],
    rates: np.ndarray,
    highest: float,
    size: tuple[int, int] = (480, 360),
) -> np.ndarray:
    """A household's assets over time, and below them its last choice and the taxes as bars.

    Args:
      assets: so far, the last one being now, [k].
      action: hours, then spending on each good, [1 + goods].
      largest: most hours, and most that can be spent on a good.
      rates: the income tax, then the value-added tax of each good, [1 + goods].
      highest: the largest rate there is.
      size: width and height in pixels.

    Returns:
      uint8 [height, width, 3].
    """
    width, height = size[0] * SCALE, size[1] * SCALE
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    left, right, top, bottom = 0.1 * width, 0.93 * width, 0.12 * height, 0.52 * height
    reach = max(25.0, float(np.abs(assets).max()))
    draw.rectangle((left, (top + bottom) / 2, right, bottom), fill=(246, 232, 228))
    for level in (reach, 0.0, -reach):
        y = (top + bottom) / 2 - (bottom - top) / 2 * level / reach
        draw.line([(left, y), (right, y)], fill=(200, 200, 196), width=SCALE)
        _text(draw, (left - 18 * SCALE, y), f"{level:.0f}", WALL, 11 * SCALE)
    across = (right - left) / max(200, len(assets) - 1)
    path = [
        (left + k * across, (top + bottom) / 2 - (bottom - top) / 2 * float(s) / reach) for k, s in enumerate(assets)
    ]
    if len(path) > 1:
        draw.line(path, fill=TARGET, width=2 * SCALE, joint="curve")
    _disc(draw, path[-1], 4 * SCALE, AGENT)
    _text(draw, (width / 2, 0.06 * height), f"assets {assets[-1]:+.1f}, step {len(assets) - 1}", INK, 13 * SCALE)
    goods = [f"good {k}" for k in range(1, len(rates))]
    choices = zip(["hours", *goods], action, [largest[0], *[largest[1]] * len(goods)], strict=True)
    taxes = zip(["income", *goods], rates, [highest] * len(rates), strict=True)
    for title, bars, start, colour in (
        ("works and spends", choices, 0.04, TARGET),
        ("taxes", taxes, 0.54, tuple(int(c) for c in PENALTY)),
    ):
        _text(draw, ((start + 0.21) * width, 0.6 * height), title, INK, 13 * SCALE)
        for row, (name, value, most) in enumerate(bars):
            y = (0.68 + 0.28 * row / len(rates)) * height
            begin, end = (start + 0.13) * width, (start + 0.33) * width
            _text(draw, ((start + 0.06) * width, y), name, WALL, 11 * SCALE)
            box = (y - 0.018 * height, y + 0.018 * height)
            draw.rectangle((begin, box[0], end, box[1]), fill=(232, 231, 226))
            draw.rectangle((begin, box[0], begin + (end - begin) * min(value / most, 1), box[1]), fill=colour)
            _text(draw, ((start + 0.37) * width, y), f"{value:.2f}", INK, 11 * SCALE)
    return _finish(image, *size)


def cart_image(
    x: float,
    angle: float,
    interval: tuple[float, float],
    track: float,
    push: float | None = None,
    wind: float | None = None,
    size: tuple[int, int] = (480, 320),
) -> np.ndarray:
    """A pole on a cart, with the interval in which the leader wants the cart.

    Args:
      x: position of the cart.
      angle: of the pole from upright, to the right.
      interval: what is shaded.
      track: the track reaches from −track to track.
      push: in [−1, 1], an arrow at the cart; None for none.
      wind: in [−1, 1], an arrow at the tip of the pole; None for none.
      size: width and height in pixels.

    Returns:
      uint8 [height, width, 3].
    """
    width, height = size[0] * SCALE, size[1] * SCALE
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    unit, floor = 0.46 * width / track, 0.8 * height

    def across(at: float) -> float:
        return 0.5 * width + unit * at

    tint = tuple(int(c) for c in shade(np.array(0.25), np.array(GOAL)))
    low, high = (float(np.clip(end, -track, track)) for end in interval)
    draw.rectangle((across(low), 0.1 * height, across(high), floor), fill=tint)
    draw.line([(across(-track), floor), (across(track), floor)], fill=WALL, width=2 * SCALE)
    for mark in (-2, -1, 0, 1, 2):
        if abs(mark) <= track:
            draw.line([(across(mark), floor), (across(mark), floor + 6 * SCALE)], fill=WALL, width=SCALE)
            _text(draw, (across(mark), floor + 16 * SCALE), f"{mark:g}", WALL, 11 * SCALE)
    middle, wide, tall = across(x), 0.09 * width, 0.08 * height
    draw.rounded_rectangle(
        (middle - wide / 2, floor - 1.3 * tall, middle + wide / 2, floor - 0.3 * tall), 3 * SCALE, (92, 98, 112), INK
    )
    for side in (-0.3, 0.3):
        _disc(draw, (middle + side * wide, floor - 0.25 * tall), 0.25 * tall, PAPER)
    joint, long = np.array([middle, floor - 1.3 * tall]), 0.45 * height
    tip = joint + long * np.array([np.sin(angle), -np.cos(angle)])
    draw.line([tuple(joint), tuple(tip)], fill=AGENT, width=7 * SCALE)
    _disc(draw, tuple(joint), 4 * SCALE, PAPER)
    reach = np.array([0.15 * width, 0.0])
    if wind is not None:
        _arrow(draw, tip, wind * reach, TARGET)
    if push is not None:
        _arrow(draw, np.array([middle + np.sign(push) * wide / 2, floor - 0.8 * tall]), push * reach, INK)
    _legend(draw, push is not None, wind is not None)
    return _finish(image, *size)


def pendulum_image(
    cosine: float,
    sine: float,
    push: float | None = None,
    wind: float | None = None,
    size: tuple[int, int] = (360, 360),
) -> np.ndarray:
    """A pendulum, with the half that the leader wants it to avoid.

    Args:
      cosine: of the angle from upright, counter-clockwise.
      sine: of the same.
      push: torque in [−1, 1], an arrow at half the rod in the direction in which it turns; None for none.
      wind: in [−1, 1], such an arrow at the tip; None for none.
      size: width and height in pixels.

    Returns:
      uint8 [height, width, 3].
    """
    width, height = size[0] * SCALE, size[1] * SCALE
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    pivot, long = np.array([0.5 * width, 0.5 * height]), 0.36 * min(width, height)
    circle = (*(pivot - long), *(pivot + long))
    draw.pieslice(circle, 90, 270, fill=tuple(int(c) for c in shade(np.array(0.2))))
    draw.ellipse(circle, outline=(215, 215, 210), width=SCALE)
    draw.line([(pivot[0], pivot[1] - long), (pivot[0], pivot[1] + long)], fill=(215, 215, 210), width=SCALE)
    rod, turn = np.array([-sine, -cosine]), np.array([-cosine, sine])
    draw.line([tuple(pivot), tuple(pivot + long * rod)], fill=AGENT, width=10 * SCALE)
    _disc(draw, tuple(pivot + long * rod), 9 * SCALE, AGENT)
    _disc(draw, tuple(pivot), 5 * SCALE, PAPER)
    if wind is not None:
        _arrow(draw, pivot + long * rod + np.sign(wind) * 9 * SCALE * turn, 0.4 * long * wind * turn, TARGET)
    if push is not None:
        _arrow(draw, pivot + 0.5 * long * rod + np.sign(push) * 5 * SCALE * turn, 0.4 * long * push * turn, INK)
    _legend(draw, push is not None, wind is not None)
    return _finish(image, *size)


def _legend(draw: ImageDraw.ImageDraw, push: bool, wind: bool) -> None:
    """Words in the colours of the arrows that are drawn."""
    left = 30 * SCALE
    for shown, word, colour in ((wind, "wind", TARGET), (push, "push", INK)):
        if shown:
            _text(draw, (left, 14 * SCALE), word, colour, 13 * SCALE)
            left += 44 * SCALE


def _arrow(draw: ImageDraw.ImageDraw, start: np.ndarray, vector: np.ndarray, colour: tuple[int, int, int]) -> None:
    """From `start` along `vector`; nothing where that is shorter than a few pixels."""
    length = float(np.linalg.norm(vector))
    if length < 3 * SCALE:
        return
    along = vector / length
    across, end = np.array([-along[1], along[0]]), start + vector
    head = min(12 * SCALE, length)
    draw.line([tuple(start), tuple(end - 0.8 * head * along)], fill=colour, width=3 * SCALE)
    tip = [tuple(end), tuple(end - head * along + head / 2 * across), tuple(end - head * along - head / 2 * across)]
    draw.polygon(tip, fill=colour)


def _vent(draw: ImageDraw.ImageDraw, one: Sequence[float], other: Sequence[float], opening: float) -> None:
    """The wall between two zones, open in its middle."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[2], other[2]), min(one[3], other[3])
    for sign in (-1, 1):  # both halves of the wall
        keep = (1 - opening) / 2
        a = (left, top) if sign < 0 else (right, bottom)
        b = (a[0] - sign * keep * (right - left), a[1] - sign * keep * (bottom - top))
        draw.line([a, b], fill=WALL, width=4 * SCALE)


def _curves(draw: ImageDraw.ImageDraw, states: np.ndarray, box: tuple[float, float, float, float]) -> None:
    """Deviations over 100 steps, within ±15; the set point as a line."""
    left, top, right, bottom = box
    middle, scale = (top + bottom) / 2, (bottom - top) / 30
    draw.line([(left, middle), (right, middle)], fill=(190, 190, 190), width=SCALE)
    _text(draw, (left - 12 * SCALE, middle), "0", WALL, 10 * SCALE)
    across = (right - left) / max(100, len(states) - 1)
    for zone in range(states.shape[1]):
        path = [(left + k * across, middle - scale * float(np.clip(s, -15, 15))) for k, s in enumerate(states[:, zone])]
        colour = LINES[zone % len(LINES)]
        if len(path) > 1:
            draw.line(path, fill=colour, width=2 * SCALE, joint="curve")
        _disc(draw, path[-1], 3 * SCALE, colour)


def _warmth(deviation: float) -> tuple[int, int, int]:
    """Blue for cold, red for warm, paper at the set point; full at ±10."""
    weight = np.clip(abs(deviation) / 10, 0, 1) * 0.8
    colour = np.array((205, 60, 50) if deviation > 0 else (50, 100, 200))
    red, green, blue = (int(x) for x in (1 - weight) * np.array(PAPER) + weight * colour)
    return red, green, blue


def _disc(draw: ImageDraw.ImageDraw, centre: Sequence[float], radius: float, colour: tuple[int, int, int]) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=INK, width=SCALE)


def _text(
    draw: ImageDraw.ImageDraw, centre: Sequence[float], text: str, colour: tuple[int, int, int], size: float
) -> None:
    x, y = centre
    draw.text((x, y), text, fill=colour, font=ImageFont.load_default(size), anchor="mm")


def _finish(image: Image.Image, width: int, height: int) -> np.ndarray:
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
