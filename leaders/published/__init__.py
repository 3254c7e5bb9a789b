"""Curves read from the published figures."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

import numpy as np

METHODS = {"bchg": "bchg", "naive-pgd": "baseline", "sobirl": "sobirl", "hpgd-mc": "hpgd_mc", "hpgd-sa": "hpgd_sa"} | {
    "hpgd-oracle": "oracle"
}  # our leader → its key in the file
BUILDING_METHODS = {"bchg": "BC-HG", "naive-pgd": "Naive-PGD", "hpgd-mc": "HPGD (MC)", "hpgd-td": "HPGD (TD)"}
WINDOW = 100  # trailing mean that the published four-rooms curves went through


class Curve(NamedTuple):
    """One published learning curve.

    Attributes:
      iteration: outer iterations done, 1-based, [K].
      mean: leader's value, mean over 10 seeds, [K].
      sem: its standard error (population form), [K].
    """

    iteration: np.ndarray
    mean: np.ndarray
    sem: np.ndarray

    def at(self, iteration: int) -> tuple[float, float]:
        """Mean and standard error at the stored iteration nearest to `iteration`."""
        index = int(np.abs(self.iteration - iteration).argmin())
        return float(self.mean[index]), float(self.sem[index])


def four_rooms(leader: str, beta: float, batch_size: int) -> Curve | None:
    """The published curve of a leader in the four rooms; None where the paper shows none."""
    with files(__name__).joinpath("four_rooms_every10.npz").open("rb") as file, np.load(file) as data:
        key = f"beta{beta:.3f}_batch{batch_size}_{METHODS.get(leader, '')}".replace(".", "_")
        if f"{key}_mean" not in data or abs(round(beta, 3) - beta) > 1e-12:
            return None
        return Curve(data["iteration"], data[f"{key}_mean"], data[f"{key}_sem"])


def building(method: str, quantity: str = "objective") -> Curve:
    """A published curve of building thermal control.

    Args:
      method: one of `BUILDING_METHODS`.
      quantity: "objective", "stability", "energy", "insulation" or "airflow".
    """
    data = _building()
    return Curve(data["iteration"], data[f"{method}_{quantity}_mean"], data[f"{method}_{quantity}_sem"])


def building_histogram() -> tuple[np.ndarray, np.ndarray]:
    """The published random-search study: edges [31] and counts [30] of the leader's returns."""
    data = _building()
    return data["histogram_edges"], data["histogram_counts"]


def _building() -> dict[str, np.ndarray]:
    with files(__name__).joinpath("building_thermal_control.npz").open("rb") as file, np.load(file) as data:
        return dict(data)


def game_curve(key: str) -> Curve:
    """A published curve of a two-player game; its `sem` is one sample deviation over seeds.

    Args:
      key: "toy_R1", "toy_R2" or "lqr", an underscore, and "bchg", "naive-pgd" or (toy) "bi-ac".
    """
    with files(__name__).joinpath("games.npz").open("rb") as file, np.load(file) as data:
        return Curve(*(data[f"{key}_{column}"] for column in ("iteration", "mean", "std")))


def trailing_mean(curve: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Mean of the last `window` entries up to each point, of fewer at the beginning, over axis 0."""
    total = np.cumsum(curve, axis=0)
    total[window:] = total[window:] - total[:-window]
    return total / np.minimum(np.arange(1, len(curve) + 1), window).reshape(-1, *[1] * (curve.ndim - 1))
