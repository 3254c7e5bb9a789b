r"""What a leader may use beside trajectories where the model is linear-quadratic, by how much it knows of it.

"score": nothing but the score ∇log p of the moves that were drawn. "pathwise": how θ moves the mean of the next state,
and both players' values as functions of the state, so that

    ∇E[V(s')|s, b] = ∇μ_θ(s, b)ᵀ ∇V(μ),

which needs no noise at all; the weight of ∇log p becomes one of ∇μ. "analytic": all matrices, so that ∇Q_F − ∇V_F is a
closed form, in which the state control variate is ∇V_F itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from bilevel_envs.core.batch import Rollout
from bilevel_envs.core.follower import DifferentiableValueFunction
from bilevel_envs.core.mdp import Preferences, kind_of
from bilevel_envs.followers import Riccati
from bilevel_envs.worlds.linear_quadratic.model import LinearQuadraticModel
from leaders.functional.weights import Weights

GRADIENTS = ("score", "pathwise", "analytic")


def pathwise(
    weights: Weights,
    discounts: Tensor,
    batch: Rollout,
    model: LinearQuadraticModel,
    v_leader: Callable[[Tensor, Tensor], Tensor],
    v_follower: DifferentiableValueFunction | None,
    preferences: Preferences,
) -> Weights:
    """Moves the weights of ∇log p and ∇log ρ0 to the means of next and first states.

    Args:
      weights: with the follower's trace as weight of r_F.
      discounts: `discount_weights` of the leader, [R, N, T].
      batch: the transitions.
      model: the world, without gradients.
      v_leader: ∇V_L at states and the steps at which they are reached.
      v_follower: V_F, with a `gradient`; None for an estimator that does not read it.
      preferences: γ_L and γ_F.
    """
    # A quadratic's mean gradient is that at the mean; of other values the gradient is taken where the noise led.
    mean = model.mean_next(batch.state, batch.action)
    reached = mean if model.bump is None else batch.next_state
    leader = (preferences.gamma_leader * discounts)[..., None] * v_leader(reached, batch.step + 1)
    follower: Tensor | float = 0.0
    if v_follower is not None:
        slope = v_follower.gradient(mean if kind_of(v_follower) == "linear_quadratic" else batch.next_state)
        follower = (preferences.gamma_follower * weights.r_follower)[..., None] * slope
    first = (discounts * batch.starts)[..., None] * v_leader(batch.state, batch.step)
    return replace(weights, log_arrival=None, log_start=None, mean_next=leader + follower, mean_start=first)


def analytic_guiding(guiding: Tensor, batch: Rollout, model: LinearQuadraticModel, preferences: Preferences) -> Tensor:
    """Σ_k c_k [Q_F(s_k, b_k; θ) − V_F(s_k; θ)] of each run, [R]; its gradient is the guiding term."""
    best = Riccati().reaction(model, preferences)
    return (guiding * (best.q(batch.state, batch.action) - best.v(batch.state))).sum((1, 2))
