"""The leader's return along the income tax of the tax world, without sampling, and the term that HPGD leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from matplotlib.axes import Axes

from leaders import exact

INCOME_TAXES = np.linspace(0.0, 0.9, 19)
VAT = 0.3  # the first rate of every good
LIMITS = (-130.0, 100.0)  # of slopes shown; beyond x = 0.8 they fall further


@dataclass(frozen=True)
class Landscape:
    """F and its slope along the income tax x.

    Attributes:
      income_tax: x, [K].
      value: F, [K].
      direct: ∂F/∂x with the household's policy held fixed, [K]: what Naive-PGD ascends, and the released HPGD, which
        leaves the household's reaction to the income tax out.
      guiding: the rest of ∂F/∂x, the household's reaction, [K].
    """

    income_tax: np.ndarray
    value: np.ndarray
    direct: np.ndarray
    guiding: np.ndarray


def landscape(env: gym.Env, income_tax: np.ndarray = INCOME_TAXES, vat: float = VAT) -> Landscape:
    """F and both parts of ∂F/∂x without sampling, value-added taxes being fixed.

    Args:
      env: a tax world, wrapped or not.
      income_tax: x, [K].
      vat: the rate on every good.
    """
    vats = [vat] * (env.get_wrapper_attr("theta_space").shape[0] - 1)
    rates = [np.array([x, *vats]) for x in income_tax]  # one by one: a table takes 40 MB
    parts = [exact.hypergradient_parts(env, theta) for theta in rates]
    direct, guiding = (np.array([part[k][0] for part in parts]) for k in (0, 1))
    return Landscape(
        np.asarray(income_tax), np.array([exact.objective(env, theta) for theta in rates]), direct, guiding
    )


def draw_value(axes: Axes, along: Landscape) -> None:
    """F over x."""
    axes.plot(along.income_tax, along.value, color="0.15")
    axes.set(xlabel="income tax x", ylabel="leader's return F")
    axes.grid(alpha=0.3)


def draw_left_out(axes: Axes, along: Landscape) -> None:
    """∂F/∂x, and its parts: where the direct one is positive and the sum negative, a naive leader walks on."""
    axes.axhline(0.0, color="0.6", linewidth=0.8)
    axes.plot(along.income_tax, along.direct, color="tab:blue", label="policy held fixed (all that released HPGD uses)")
    axes.plot(along.income_tax, along.guiding, color="tab:red", label="household's reaction (left out)")
    axes.plot(along.income_tax, along.direct + along.guiding, color="0.15", label="hypergradient")
    axes.set(xlabel="income tax x", ylabel="∂F/∂x", ylim=LIMITS)
    axes.legend(fontsize=8, loc="lower left")
    axes.grid(alpha=0.3)
