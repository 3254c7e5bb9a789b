"""Floor plans of warehouses: from text, arrays and pictures, or generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image
from scipy import ndimage

from bilevel_envs.core.checks import check_count

SHELF, AISLE, ZONE, PICK, DROP = LETTERS = "#.ZPD"
COLOURS = {
    SHELF: (0, 0, 0),
    AISLE: (255, 255, 255),
    ZONE: (255, 0, 0),
    PICK: (0, 255, 0),
    DROP: (0, 0, 255),
}
SUFFIXES = (".png", ".bmp", ".gif")  # of pictures without loss
TOLERANCE = 64  # of each channel of a picture's colours
SIZES = {"small": (77, 97), "large": (249, 301), "huge": (777, 967)}  # 10^4, 10^5 and 10^6 states
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left
Cells: TypeAlias = Sequence[tuple[int, int]]
Lines: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Floor:
    """Where robots can be, and what is there.

    Attributes:
      letters: what each place is, one of `LETTERS`, [rows, columns].
      cells: (row, column) of the places that are no shelves, row by row, [N, 2].
      neighbour: the cell that a move leads to, its own where a shelf or a wall is in the way, [N, 4].
      open: whether the move leads elsewhere, bool [N, 4].
      zone, pick, drop: what the cells are, bool [N].
    """

    letters: np.ndarray
    cells: np.ndarray
    neighbour: np.ndarray
    open: np.ndarray
    zone: np.ndarray
    pick: np.ndarray
    drop: np.ndarray

    @classmethod
    def of(cls, letters: np.ndarray) -> Floor:
        """The floor of a plan, refused unless it has a pick, a drop and a way from each cell to every other.

        Args:
          letters: [rows, columns].
        """
        walkable = letters != SHELF
        for letter, word in ((PICK, "pick"), (DROP, "drop")):
            if not (letters == letter).any():
                raise ValueError(
                    f"`floor` must have at least one {word} station; mark one by '{letter}', or pass `{word}s=[(row, "
                    "column)]`"
                )
        pieces, count = ndimage.label(walkable)
        if count > 1:
            start = tuple(np.argwhere(letters == PICK)[0].tolist())
            apart = np.argwhere(walkable & (pieces != pieces[start]))
            raise ValueError(
                f"`floor` must be in one piece: {len(apart)} of {walkable.sum()} cells, the first at "
                f"{tuple(apart[0].tolist())}, cannot be reached from the pick station at {start}; open an aisle to "
                f"them, or make them shelves ('{SHELF}')"
            )
        cells = np.argwhere(walkable)
        number = np.full((letters.shape[0] + 2, letters.shape[1] + 2), -1)  # with a wall around
        number[1:-1, 1:-1][walkable] = np.arange(len(cells))
        there = np.stack([number[tuple((cells + 1 + np.array(move)).T)] for move in MOVES], -1)
        own = np.arange(len(cells))[:, None]
        kinds = letters[tuple(cells.T)]
        return cls(
            letters, cells, np.where(there < 0, own, there), there >= 0, kinds == ZONE, kinds == PICK, kinds == DROP
        )


def generated(rows: int, columns: int) -> np.ndarray:
    """Blocks of two shelves between aisles; stations in every second cross aisle, people's zones between them.

    ::

        . . . . . . . . . . . . .
        . # # Z # # . # # Z # # .
        P . Z Z Z . D . Z Z Z . P      13 columns; of 7 columns and 5 rows the left half
        . # # Z # # . # # Z # # .
        . . . . . . . . . . . . .

    Picks and drops take turns along the row, six columns apart; the pattern repeats every four rows.

    Args:
      rows: at least 3.
      columns: at least 7.
    """
    rows, columns = check_count(rows, "rows", at_least=3), check_count(columns, "columns", at_least=7)
    row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
    letters = np.full((rows, columns), AISLE)
    letters[(row % 2 == 1) & (column % 3 != 0)] = SHELF
    beside, along = np.abs(row % 4 - 2), np.abs(column % 6 - 3)
    letters[(beside + along <= 1) & (letters == AISLE)] = ZONE
    letters[(beside == 0) & (column % 12 == 0)] = PICK
    letters[(beside == 0) & (column % 12 == 6)] = DROP
    return letters


def lines_of(floor: object) -> Lines:
    """A plan as lines of text: from text, an array of letters or of shelves, or a picture.

    Args:
      floor: one string with line breaks, or a sequence of lines; an array of letters, or of booleans, True at shelves,
        [rows, columns]; a picture, uint8 [rows, columns, 3], or the path of one, with a pixel for each place.

    Raises:
      TypeError: if it is nothing of the kind.
      ValueError: if lines differ in length, or a letter or a colour is unknown.
    """
    array = np.asarray(str(floor) if isinstance(floor, Path) else floor)
    read = READERS.get((array.dtype.kind, array.ndim))
    if read is None or array.size == 0:
        raise TypeError(
            f"`floor` must be {', '.join(map(repr, SIZES))}, lines of text, an array of letters or booleans [rows, "
            f"columns], a picture uint8 [rows, columns, 3] or the path of one, got {_kind(floor)}"
        )
    return _checked(read(array))


def letters_of(lines: Lines) -> np.ndarray:
    """Lines as an array, [rows, columns]."""
    return np.array([list(line) for line in lines])


def marked(letters: np.ndarray, stations: Mapping[str, Cells]) -> np.ndarray:
    """A plan with other letters in some places, named by (row, column)."""
    letters = letters.copy()
    for letter, cells in stations.items():
        for row, column in cells:
            if not (0 <= row < letters.shape[0] and 0 <= column < letters.shape[1]) or letters[row, column] == SHELF:
                raise ValueError(
                    f"'{letter}' cannot be at {(row, column)}, which is a shelf or outside of the {letters.shape[0]} x "
                    f"{letters.shape[1]} floor"
                )
            letters[row, column] = letter
    return letters


def _checked(lines: Lines) -> Lines:
    """Lines of one length and known letters."""
    lengths = {len(line) for line in lines}
    if len(lengths) > 1 or lengths == {0}:
        raise ValueError(f"`floor` must have lines of one length, got lengths {[len(line) for line in lines][:20]}")
    for row, line in enumerate(lines):
        unknown = next((column for column, letter in enumerate(line) if letter not in LETTERS), None)
        if unknown is not None:
            raise ValueError(
                f"`floor` must be made of '{SHELF}' (shelf), '{AISLE}' (aisle), '{ZONE}' (people's zone), '{PICK}' "
                f"(pick) and '{DROP}' (drop); at {(row, unknown)} it is {line[unknown]!r}"
            )
    return lines


def _text(text: np.ndarray) -> Lines:
    """Lines of one string, or of the picture whose path it is."""
    plan = str(text)
    if Path(plan).suffix.lower() not in SUFFIXES:
        return tuple(line.strip() for line in plan.strip().splitlines())
    if not Path(plan).is_file():
        raise ValueError(f"`floor` must be the path of a picture, and {plan} is no file")
    with Image.open(plan) as image:
        return _picture(np.asarray(image.convert("RGB")))


def _lines(lines: np.ndarray) -> Lines:
    """Lines as they are."""
    return tuple(lines.tolist())


def _letters(letters: np.ndarray) -> Lines:
    """Lines of an array of letters."""
    return tuple("".join(line) for line in letters.tolist())


def _shelves(shelves: np.ndarray) -> Lines:
    """Shelves and aisles."""
    return _letters(np.where(shelves, SHELF, AISLE))


def _picture(picture: np.ndarray) -> Lines:
    """The letters of the nearest colours."""
    if picture.dtype != np.uint8 or picture.shape[2] != 3:
        raise TypeError(f"`floor` must be uint8 [rows, columns, 3] as a picture, got {_kind(picture)}")
    known = np.array(list(COLOURS.values()))
    distance = np.abs(picture[:, :, None].astype(int) - known).max(-1)  # [rows, columns, letter]
    far = np.argwhere(distance.min(-1) > TOLERANCE)
    if len(far):
        at = tuple(far[0].tolist())
        told = ", ".join(f"{colour} for '{letter}'" for letter, colour in COLOURS.items())
        raise ValueError(
            f"`floor` must be a picture of the colours {told}, each channel within {TOLERANCE}; at {at} it is "
            f"{tuple(picture[at].tolist())}. Save it with one pixel for each place and without smoothing"
        )
    return _letters(np.array(list(COLOURS))[distance.argmin(-1)])


READERS: dict[tuple[str, int], Callable[[np.ndarray], Lines]] = {  # by kind of entries and number of axes
    ("U", 0): _text,
    ("U", 1): _lines,
    ("U", 2): _letters,
    ("b", 2): _shelves,
    ("u", 3): _picture,
}


def _kind(floor: object) -> str:
    return f"{floor.dtype} of shape {list(floor.shape)}" if isinstance(floor, np.ndarray) else type(floor).__name__
