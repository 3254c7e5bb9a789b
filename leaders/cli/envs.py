"""`bilevel envs`: the environments that there are."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from bilevel_envs.registration import PROBLEMS


@dataclass(frozen=True)
class Envs:
    """List the environments, with the size of θ, the best value known and its proof.

    Example: bilevel envs
    """

    def run(self) -> None:
        """Prints one line per environment."""
        width = max(map(len, PROBLEMS))
        for name in PROBLEMS:
            face: Any = gym.make(name).unwrapped
            p, best = face.preferences, face.best_known
            known = "-" if best is None else f"{best:.4f} ({best.proof})"
            size = str(list(face.theta_space.shape))
            print(f"{name:{width}s} θ {size:7s} β {p.beta:<7g} γ_L {p.gamma_leader:g}  J_L {known}")
            first, *_ = (inspect.getdoc(type(face.problem)) or "").splitlines()
            print(f"{'':{width}s} {first}")
