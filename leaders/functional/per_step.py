"""Gradients of single steps, for estimators that cannot do with their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def per_step_gradient(term: Tensor, theta: Tensor) -> Tensor:
    """∂ term_k / ∂θ of every step, at the price of one backward pass for each entry of θ.

    Args:
      term: a scalar per step that may depend on θ of its own run, [R, N, T].
      theta: ``[R, *θ.shape]``.

    Returns:
      [R, N, T, dim θ], without gradients; 0 where `term` does not depend on θ, or by steps alone.
    """
    nothing = torch.zeros(*term.shape, theta[0].numel(), dtype=theta.dtype)
    if not term.requires_grad:
        return nothing
    # The gradient of Σ_k u_k term_k is linear in u; its derivative with respect to u_k is step k's gradient.
    probe = torch.ones_like(term, requires_grad=True)
    (total,) = torch.autograd.grad(term, theta, probe, create_graph=True, materialize_grads=True)
    if not total.requires_grad:
        return nothing
    columns = [
        torch.autograd.grad(entry.sum(), probe, retain_graph=True, materialize_grads=True)[0]
        for entry in total.flatten(1).unbind(1)
    ]
    return torch.stack(columns, -1)


def clipped(gradients: Tensor, slope: Tensor, blocks: Mapping[str, slice], most: float) -> Tensor:
    """Each step's gradient, scaled down block by block to an ℓ2 norm in the raw parameters.

    Args:
      gradients: with respect to θ, [R, N, T, p].
      slope: dθ_j / draw_j of a parameterisation that acts entry by entry, [R, p].
      blocks: parts of θ that are clipped apart.
      most: the norm.
    """
    out = gradients.clone()
    slope = slope[:, None, None]
    for block in blocks.values():
        norm = (gradients * slope)[..., block].norm(dim=-1, keepdim=True)
        out[..., block] *= most / norm.clamp(min=most)
    return out
