"""θ, the leader's answer, as one line of text and as a file."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from leaders.training.history import replace_file

WHOLE = 8  # entries up to which θ is shown whole
ENDS = 3  # entries shown at either end of a longer one


def one_line(theta: np.ndarray) -> str:
    """θ to five digits: whole and in its shape where it is short, else its first and last entries in C order."""
    if theta.size > WHOLE:
        first, last = (", ".join(f"{x:.5g}" for x in part) for part in (theta.ravel()[:ENDS], theta.ravel()[-ENDS:]))
        return f"[{first}, ..., {last}] of shape {list(theta.shape)}"
    text = np.array2string(theta, separator=", ", formatter={"float_kind": "{:.5g}".format})
    return " ".join(text.split())


def write_csv(theta: np.ndarray, runs: int, path: str | Path) -> None:
    """Writes every entry of θ in full precision, one a row, replacing the file at once.

    The columns are `run`, `index` (in C order, as in `theta[run].ravel()`) and `value`.

    Args:
      theta: ``[R, *θ.shape]``, or ``[*θ.shape]`` if R is 1.
      runs: R.
      path: where.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "index", "value"])
    for run, entries in enumerate(theta.reshape(runs, -1).tolist()):
        writer.writerows([run, index, repr(entry)] for index, entry in enumerate(entries))
    replace_file(path, text.getvalue().encode())
