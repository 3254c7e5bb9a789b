"""What least squares read of a batch of transitions between vectors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.worlds.linear_quadratic.polynomials import products, relative, with_one
from leaders.functional.errors import TooFewTransitions


@dataclass(frozen=True)
class Monomials:
    """Monomials of degree at most 2 of a batch's K = N T steps; 0 for steps that are not valid.

    Attributes:
      state: s, [R, K, n].
      following: the next states, [R, K, n].
      goes_on: whether something follows, [R, K, 1].
      phi: monomials of s, [R, K, F].
      later: those of the next state, 0 where nothing follows, [R, K, F].
      share: what a step discounts in a regression, [R, K, 1].
      z: monomials of (s, b) times `share`, [R, K, D].
    """

    state: Tensor
    following: Tensor
    goes_on: Tensor
    phi: Tensor
    later: Tensor
    share: Tensor
    z: Tensor

    @classmethod
    def of(cls, batch: Rollout, wanted_by: str) -> Monomials:
        """Those of a batch with vectors for states and actions.

        Args:
          batch: the transitions.
          wanted_by: what fits them, as users write it, for the message.

        Raises:
          TooFewTransitions: if there are fewer transitions than monomials of (s, b).
        """
        s, b, following = (part.flatten(1, 2).double() for part in (batch.state, batch.action, batch.next_state))
        used, goes_on = (part.flatten(1)[..., None] for part in (batch.valid, batch.valid & ~batch.terminated))
        share = relative(s, used[..., 0])[..., None]
        z = products(with_one(s, b)) * share
        needed, fewest = z.shape[-1], int(batch.valid.sum((1, 2)).min())
        if fewest < needed:
            raise TooFewTransitions(wanted_by, needed, fewest)
        phi, later = products(with_one(s)) * used, products(with_one(following)) * goes_on
        return cls(s, following, goes_on, phi, later, share, z)
