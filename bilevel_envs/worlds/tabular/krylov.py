"""Iterations for A x = y or Aᵀ x = y with A = I − γΠ, sparse by rows, and for what they need.

Rows may hold a column twice, except where they are factorised. Convergence is judged by max|y − A x|, and for Aᵀ by
Σ|y − Aᵀ x|: the norms in which ‖A⁻¹‖ ≤ 1 / (1 − γ).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from bilevel_envs.worlds.tabular.kernels.compiled import compiled

PATIENCE = 40  # iterations without halving after which BiCGSTAB begins anew
BASIS = 30  # vectors of GMRES
NEGLIGIBLE = 1e-30  # of the accuracy asked for; smaller entries are 0, lest products become subnormal, which is slow
VANISHING = 1e-200
Scalar: TypeAlias = float | np.float32
NEGLIGIBLE_SINGLE = np.float32(1e-30)  # the same in single precision, of vectors whose size is about 1
ZERO, ONE = np.float32(0.0), np.uint32(1)  # of a type that keeps single precision single, and indices unsigned
SINGLE_DIGITS = 1e-4  # of a residual, after which one that is carried along in single precision is computed anew


@compiled
def multiplied(
    indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, transpose: bool, x: np.ndarray, out: np.ndarray
) -> None:
    """Writes A x, or Aᵀ x, to `out`."""
    states = len(x)
    if transpose:
        out[:] = 0.0
        for row in range(states):
            here = x[row]
            if here != 0.0:
                for entry in range(indptr[row], indptr[row + 1]):
                    out[indices[entry]] += values[entry] * here
    else:
        for row in range(states):
            total = 0.0
            for entry in range(indptr[row], indptr[row + 1]):
                total += values[entry] * x[indices[entry]]
            out[row] = total


@compiled
def incomplete_factor(
    indptr: np.ndarray, indices: np.ndarray, diagonal: np.ndarray, values: np.ndarray, factor: np.ndarray
) -> None:
    """Writes L and U of A on A's own pattern, ILU(0), to `factor`; U's diagonal is inverted.

    A is a strictly diagonally dominant M-matrix, for which the factors exist (Meijerink and van der Vorst, Math. Comp.
    31, 1977).
    """
    at = np.full(len(diagonal), -1, np.int32)
    for row in range(len(diagonal)):
        first, end = indptr[row], indptr[row + 1]
        for entry in range(first, end):
            factor[entry] = values[entry]
            at[indices[entry]] = entry
        for entry in range(first, diagonal[row]):
            pivot = indices[entry]
            f = factor[entry] * factor[diagonal[pivot]]
            factor[entry] = f
            for right in range(diagonal[pivot] + 1, indptr[pivot + 1]):
                into = at[indices[right]]
                if into >= 0:
                    factor[into] -= f * factor[right]
        factor[diagonal[row]] = 1.0 / factor[diagonal[row]]
        for entry in range(first, end):
            at[indices[entry]] = -1


@compiled
def preconditioned(
    indptr: np.ndarray,
    indices: np.ndarray,
    diagonal: np.ndarray,
    factor: np.ndarray,
    transpose: bool,
    y: np.ndarray,
    x: np.ndarray,
) -> None:
    """Writes (LU)⁻¹ y, or (LU)⁻ᵀ y, to `x`; y itself where there is no factor."""
    states = len(y)
    if len(factor) == 0:
        x[:] = y
    elif transpose:
        x[:] = y
        for row in range(states):
            here = x[row] * factor[diagonal[row]]
            if abs(here) < VANISHING:
                here = 0.0
            x[row] = here
            if here != 0.0:
                for entry in range(diagonal[row] + 1, indptr[row + 1]):
                    x[indices[entry]] -= factor[entry] * here
        for row in range(states - 1, -1, -1):
            here = x[row]
            if abs(here) < VANISHING:
                here = 0.0
                x[row] = 0.0
            if here != 0.0:
                for entry in range(indptr[row], diagonal[row]):
                    x[indices[entry]] -= factor[entry] * here
    else:
        for row in range(states):
            total = y[row]
            for entry in range(indptr[row], diagonal[row]):
                total -= factor[entry] * x[indices[entry]]
            x[row] = 0.0 if abs(total) < VANISHING else total
        for row in range(states - 1, -1, -1):
            total = x[row]
            for entry in range(diagonal[row] + 1, indptr[row + 1]):
                total -= factor[entry] * x[indices[entry]]
            total *= factor[diagonal[row]]
            x[row] = 0.0 if abs(total) < VANISHING else total


@compiled
def size(x: np.ndarray, transpose: bool) -> float:
    """max|x|, or Σ|x| with `transpose`; NaN if an entry is."""
    largest, total = 0.0, 0.0
    for i in range(len(x)):
        total += abs(x[i])
        largest = max(largest, abs(x[i]))
    return total if transpose or np.isnan(total) else largest


@compiled
def centre(x: np.ndarray) -> None:
    """Takes its mean out of x."""
    mean = 0.0
    for i in range(len(x)):
        mean += x[i]
    mean /= len(x)
    for i in range(len(x)):
        x[i] -= mean


@compiled
def residual(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    transpose: bool,
    modulo: bool,
    y: np.ndarray,
    x: np.ndarray,
    out: np.ndarray,
) -> None:
    """Writes y − A x, without its mean with `modulo`."""
    if size(x, transpose) > 0.0:
        multiplied(indptr, indices, values, transpose, x, out)
    else:
        out[:] = 0.0
    for i in range(len(x)):
        out[i] = y[i] - out[i]
    if modulo:
        centre(out)


@compiled
def begin(r: np.ndarray, starts: int, shadow: np.ndarray, p: np.ndarray) -> float:
    """Writes the shadow of a first residual, noise included, and the first direction; returns shadow · r."""
    total, states = 0.0, len(r)
    for i in range(states):
        total += r[i] * r[i]
    rms, noise = np.sqrt(total / states), np.uint64(starts)
    rho = 0.0
    for i in range(states):
        noise = noise * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        shadow[i] = r[i] + rms * ((noise >> np.uint64(11)) * 2.0**-52 - 1.0)
        rho += shadow[i] * r[i]
        p[i] = r[i]
    return rho


@compiled
def shortened(
    t: np.ndarray, shadow: np.ndarray, omega: Scalar, tiny: Scalar, transpose: bool, r: np.ndarray
) -> tuple[float, float]:
    """r ← r − ω t; returns shadow · r and the size of r."""
    following, largest, total = 0.0, 0.0, 0.0
    for i in range(len(r)):
        left = r[i] - omega * t[i]
        left = 0.0 if abs(left) < tiny else left
        r[i] = left
        following += shadow[i] * left
        total += abs(left)
        largest = max(largest, abs(left))
    return following, total if transpose or np.isnan(total) else largest


@compiled
def turn(r: np.ndarray, v: np.ndarray, omega: Scalar, factor: Scalar, tiny: Scalar, p: np.ndarray) -> None:
    """The next direction, p ← r + factor (p − ω v)."""
    for i in range(len(p)):
        onward = r[i] + factor * (p[i] - omega * v[i])
        p[i] = 0.0 if abs(onward) < tiny else onward


@compiled
def bicgstab(
    matrix: tuple,
    transpose: bool,
    y: np.ndarray,
    x: np.ndarray,
    target: float,
    floor: float,
    most: int,
    modulo: bool,
    work: np.ndarray,
) -> tuple[float, int]:
    """Solves from `x`, in place, by BiCGSTAB, preconditioned from the right.

    The shadow residual is the first residual plus noise of its own size. Without noise the method nearly breaks down
    where y is sparse: products with a shadow that is 0 almost everywhere lose their digits.

    Args:
      matrix: A by rows and its factor: indptr, indices, diagonal, values, and ILU(0), empty for none.
      transpose: solve with Aᵀ.
      y: right-hand side, [S].
      x: where to begin, and the result, [S].
      target: size of the residual that is small enough.
      floor: the same as a multiple of the size of x, for what rounding permits; with 0 the residual that the iteration
        carries along is trusted.
      most: iterations after which it gives up.
      modulo: solve up to a constant, which A must map to a constant: means are taken out of residuals. Where no episode
        ends that takes out the eigenvalue 1 − γ.
      work: six vectors, [6, S].

    Returns:
      The size of y − A x, computed from x unless trusted, and the iterations taken. Whoever calls compares the first.

    Source: van der Vorst, SIAM J. Sci. Stat. Comput. 13 (1992).
    """
    indptr, indices, diagonal, values, factor = matrix
    states = len(y)
    r, shadow, p, v, z, t = work[0], work[1], work[2], work[3], work[4], work[5]
    tiny = NEGLIGIBLE * target
    taken, starts, best = 0, 0, np.inf
    while True:
        residual(indptr, indices, values, transpose, modulo, y, x, r)
        now = size(r, transpose)
        accepted = max(target, floor * size(x, transpose)) if floor > 0.0 else target
        if not now > accepted or taken >= most or (starts > 3 and now > 0.5 * best):
            return now, taken
        best, starts = min(best, now), starts + 1
        rho = begin(r, starts, shadow, p)
        halved, since = now, taken
        while taken < most:
            taken += 1
            preconditioned(indptr, indices, diagonal, factor, transpose, p, z)
            multiplied(indptr, indices, values, transpose, z, v)
            if modulo:
                centre(v)
            product = 0.0
            for i in range(states):
                product += shadow[i] * v[i]
            alpha = rho / product
            if not np.isfinite(alpha):
                break
            for i in range(states):
                r[i] -= alpha * v[i]
                x[i] += alpha * z[i]
            preconditioned(indptr, indices, diagonal, factor, transpose, r, z)
            multiplied(indptr, indices, values, transpose, z, t)
            if modulo:
                centre(t)
            above, below = 0.0, 0.0
            for i in range(states):
                above += t[i] * r[i]
                below += t[i] * t[i]
            if below == 0.0:
                break
            omega = above / below
            for i in range(states):
                moved = x[i] + omega * z[i]
                x[i] = 0.0 if abs(moved) < tiny else moved
            following, length = shortened(t, shadow, omega, tiny, transpose, r)
            now = length
            factor_of_p = following / rho * (alpha / omega)
            if not now > 0.9 * target or not np.isfinite(factor_of_p):
                break
            if now <= 0.5 * halved:
                halved, since = now, taken
            elif taken - since >= PATIENCE:
                break
            rho = following
            turn(r, v, omega, factor_of_p, tiny, p)
        if not np.isfinite(now):
            return np.inf, taken
        if floor == 0.0 and now <= target:
            return now, taken


@compiled
def scaled_by_pivots(
    indptr: np.ndarray,
    indices: np.ndarray,
    diagonal: np.ndarray,
    values: np.ndarray,
    pivots: np.ndarray,
    scaled: np.ndarray,
) -> None:
    """Writes the pivots e of an incomplete factorisation that changes A's diagonal alone, and A scaled by them.

    With D, L and U the diagonal and the strict triangles of A, and E = diag(e), the factors are (E + L) E⁻¹ (E + U),
    whose diagonal is A's own. Where no two neighbours of a state are neighbours, this is ILU(0). `scaled` gets E⁻¹ L,
    E⁻¹ U and, in place of the diagonal, E⁻¹ D − 2.
    """
    for row in range(len(diagonal)):
        first, middle, end = indptr[row], diagonal[row], indptr[row + 1]
        pivot = values[middle]
        for entry in range(first, middle):
            other = indices[entry]
            for mirror in range(diagonal[other] + ONE, indptr[other + ONE]):
                if indices[mirror] == row:
                    pivot -= values[entry] * scaled[mirror]  # a_ij a_ji / e_j
                    break
        pivots[row] = pivot
        inverse = 1.0 / pivot
        for entry in range(first, end):
            scaled[entry] = values[entry] * inverse
        scaled[middle] = values[middle] * inverse - 2.0


@compiled
def split_product(
    system: tuple,
    transpose: bool,
    x: np.ndarray,
    beside: np.ndarray,
    work: np.ndarray,
    out: np.ndarray,
) -> tuple[float, float]:
    """Writes M₁⁻¹ A M₂⁻¹ x for the factors M₁ M₂ of A to `out`; its products with `beside` and with itself.

    With triangles scaled by pivots, M₁ = I + L and M₂ = I + U, and A = M₁ + C + M₂ with a diagonal C. So t = M₂⁻¹ x
    gives M₁⁻¹ A t = t + M₁⁻¹ (x + C t): each entry of A is read once (Eisenstat, SIAM J. Sci. Stat. Comput. 2, 1981).
    Transposed, the factors are I + Uᵀ and I + Lᵀ.

    Args:
      system: indptr, indices and diagonal, uint32, and scaled, float32, as in `scaled_by_pivots`.
      transpose: Aᵀ instead.
      x: float32 [S], as are all others.
      beside: [S].
      work: room, [S].
      out: [S].
    """
    indptr, indices, diagonal, scaled = system
    states, with_beside, with_itself = len(x), 0.0, 0.0
    if transpose:
        out[:] = x
        second_factor(system, True, out)
        for row in range(states):
            work[row] = x[row] + scaled[diagonal[row]] * out[row]
        first_factor(system, True, True, work)
        for row in range(states):
            total = out[row] + work[row]
            out[row] = total
            double = np.float64(total)
            with_beside += double * beside[row]
            with_itself += double * double
        return with_beside, with_itself
    for row in range(states - 1, -1, -1):
        total = x[row]
        for entry in range(diagonal[row] + ONE, indptr[row + 1]):
            total -= scaled[entry] * out[indices[entry]]
        out[row] = ZERO if abs(total) < NEGLIGIBLE_SINGLE else total
    for row in range(states):
        middle = diagonal[row]
        total = x[row] + scaled[middle] * out[row]
        for entry in range(indptr[row], middle):
            total -= scaled[entry] * work[indices[entry]]
        total = ZERO if abs(total) < NEGLIGIBLE_SINGLE else total
        work[row] = total
        total += out[row]
        out[row] = total
        double = np.float64(total)
        with_beside += double * beside[row]
        with_itself += double * double
    return with_beside, with_itself


@compiled
def first_factor(system: tuple, transpose: bool, solve: bool, x: np.ndarray) -> None:
    """x ← M₁⁻¹ x, or M₁ x without `solve`, in place; arguments as for `split_product`."""
    indptr, indices, diagonal, scaled = system
    states = len(x)
    if transpose and solve:
        for row in range(states):
            here = ZERO if abs(x[row]) < NEGLIGIBLE_SINGLE else x[row]
            x[row] = here
            if here != ZERO:
                for entry in range(diagonal[row] + ONE, indptr[row + 1]):
                    x[indices[entry]] -= scaled[entry] * here
    elif transpose:
        for row in range(states - 1, -1, -1):
            here = x[row]
            if here != ZERO:
                for entry in range(diagonal[row] + ONE, indptr[row + 1]):
                    x[indices[entry]] += scaled[entry] * here
    elif solve:
        for row in range(states):
            total = x[row]
            for entry in range(indptr[row], diagonal[row]):
                total -= scaled[entry] * x[indices[entry]]
            x[row] = ZERO if abs(total) < NEGLIGIBLE_SINGLE else total
    else:
        for row in range(states - 1, -1, -1):
            total = x[row]
            for entry in range(indptr[row], diagonal[row]):
                total += scaled[entry] * x[indices[entry]]
            x[row] = total


@compiled
def second_factor(system: tuple, transpose: bool, x: np.ndarray) -> None:
    """x ← M₂⁻¹ x, in place; arguments as for `split_product`."""
    indptr, indices, diagonal, scaled = system
    for row in range(len(x) - 1, -1, -1):
        total = x[row]
        if transpose:
            total = ZERO if abs(total) < NEGLIGIBLE_SINGLE else total
            if total != ZERO:
                for entry in range(indptr[row], diagonal[row]):
                    x[indices[entry]] -= scaled[entry] * total
        else:
            for entry in range(diagonal[row] + ONE, indptr[row + 1]):
                total -= scaled[entry] * x[indices[entry]]
            total = ZERO if abs(total) < NEGLIGIBLE_SINGLE else total
        x[row] = total


@compiled
def without(constant: np.ndarray, weight: float, x: np.ndarray, beside: np.ndarray) -> tuple[float, float]:
    """Takes the part along `constant`, whose square is `weight`, out of x; its products with `beside` and itself."""
    along = 0.0
    for i in range(len(x)):
        along += constant[i] * x[i]
    along /= weight
    with_beside, with_itself = 0.0, 0.0
    for i in range(len(x)):
        x[i] -= along * constant[i]
        with_beside += x[i] * beside[i]
        with_itself += x[i] * x[i]
    return with_beside, with_itself


@compiled
def split_bicgstab(
    matrix: tuple,
    transpose: bool,
    y: np.ndarray,
    x: np.ndarray,
    target: float,
    floor: float,
    most: int,
    modulo: bool,
    rest: np.ndarray,
    work: np.ndarray,
) -> tuple[float, int]:
    """The same as `bicgstab`, preconditioned from both sides by factors that change A's diagonal alone.

    An iteration reads each entry of A twice instead of four times, and no factor. Residuals M₁⁻¹ (y − A x) are carried
    along in single precision, relative to the first, and turned into y − A x where their size says that the target
    may have been reached. Whenever they have lost as many digits as single precision holds safely, x is moved, and the
    iteration begins anew at y − A x in double precision (iterative refinement).

    Args:
      matrix: indptr, indices and diagonal, uint32, values, and of `scaled_by_pivots` the pivots and the scaled A, the
        latter in float32.
      rest: room, [S].
      work: eight vectors, float32 [8, S].

    Source: beside that of `bicgstab`, Wilkinson, Rounding Errors in Algebraic Processes (1963), for the refinement.
    """
    indptr, indices, diagonal, values, pivots, scaled = matrix
    system = indptr, indices, diagonal, scaled
    states = len(y)
    r, shadow, p, v = work[0], work[1], work[2], work[3]
    moved, t, room, constant = work[4], work[5], work[6], work[7]
    taken, starts, best, weight = 0, 0, np.inf, 0.0
    while True:
        residual(indptr, indices, values, transpose, modulo, y, x, rest)
        first = size(rest, transpose)
        enough = max(target, floor * size(x, transpose) if floor > 0.0 else 0.0)
        if not first > enough or taken >= most or (starts > 3 and first > 0.5 * best):
            return first, taken
        best, starts = min(best, first), starts + 1
        aim = max(target / first, SINGLE_DIGITS)
        for i in range(states):
            r[i] = rest[i] / first if transpose else rest[i] / (first * pivots[i])
        first_factor(system, transpose, True, r)
        if modulo:
            if starts == 1:
                for i in range(states):
                    constant[i] = 1.0 / pivots[i]
                first_factor(system, transpose, True, constant)
                for i in range(states):
                    weight += constant[i] * constant[i]
            without(constant, weight, r, r)
        carried = size(r, transpose)
        ratio, now = 1.0 / carried, 1.0  # `ratio` is that of y − A x and of what is carried along
        rho = begin(r, starts, shadow, p)
        moved[:] = ZERO
        halved, since = now, taken
        while taken < most:
            taken += 1
            product, _ = split_product(system, transpose, p, shadow, room, v)
            if modulo:
                product, _ = without(constant, weight, v, shadow)
            alpha = np.float32(rho / product)
            if not np.isfinite(alpha):
                break
            for i in range(states):
                r[i] -= alpha * v[i]
            above, below = split_product(system, transpose, r, r, room, t)
            if modulo:
                above, below = without(constant, weight, t, r)
            if below == 0.0:
                for i in range(states):
                    moved[i] += alpha * p[i]
                break
            omega = np.float32(above / below)
            for i in range(states):
                moved[i] += alpha * p[i] + omega * r[i]
            following, carried = shortened(t, shadow, omega, NEGLIGIBLE_SINGLE, transpose, r)
            now = ratio * carried
            factor_of_p = np.float32(following / rho * (alpha / omega))
            if now <= 0.9 * aim:
                for i in range(states):
                    t[i] = r[i]
                first_factor(system, transpose, False, t)
                if not transpose:
                    for i in range(states):
                        t[i] *= pivots[i]
                if modulo:
                    centre(t)
                now = size(t, transpose)
                if now <= 0.95 * aim or carried == 0.0:
                    break
                ratio = now / carried
            if not (np.isfinite(now) and np.isfinite(factor_of_p)):
                break
            if now > 0.5 * halved and taken - since >= PATIENCE:
                break
            halved, since, rho = (now, taken, following) if now <= 0.5 * halved else (halved, since, following)
            turn(r, v, omega, factor_of_p, NEGLIGIBLE_SINGLE, p)
        if not np.isfinite(now):
            return np.inf, taken
        second_factor(system, transpose, moved)
        for i in range(states):
            onward = x[i] + first * (moved[i] / pivots[i] if transpose else moved[i])
            x[i] = 0.0 if abs(onward) < NEGLIGIBLE * target else onward
        if floor == 0.0 and first * now <= target:
            return first * now, taken


@compiled
def gmres(
    matrix: tuple,
    transpose: bool,
    y: np.ndarray,
    x: np.ndarray,
    target: float,
    floor: float,
    most: int,
    basis: np.ndarray,
) -> tuple[float, int]:
    """The same by GMRES, begun anew every `BASIS` iterations; arguments as for `bicgstab`.

    Args:
      basis: orthonormal vectors and room for two more, [`BASIS` + 3, S].

    Source: Saad and Schultz, SIAM J. Sci. Stat. Comput. 7 (1986).
    """
    indptr, indices, diagonal, values, factor = matrix
    states = len(y)
    z, moved = basis[BASIS + 1], basis[BASIS + 2]
    hessenberg, right = np.zeros((BASIS + 1, BASIS)), np.zeros(BASIS + 1)
    cosine, sine = np.zeros(BASIS), np.zeros(BASIS)
    taken, before, slow = 0, np.inf, 0
    tiny = NEGLIGIBLE * target
    while True:
        r = basis[0]
        multiplied(indptr, indices, values, transpose, x, r)
        total = 0.0
        for i in range(states):
            r[i] = y[i] - r[i]
            total += r[i] * r[i]
        now, length = size(r, transpose), np.sqrt(total)
        accepted = max(target, floor * size(x, transpose)) if floor > 0.0 else target
        slow = slow + 1 if now > 0.5 * before else 0
        if not now > accepted or taken >= most or slow > 10:
            return now, taken
        before = min(before, now)
        enough = length * accepted / now  # in the 2-norm, if the residual keeps its shape
        right[:] = 0.0
        right[0] = length
        for i in range(states):
            r[i] /= length
        used = 0
        for column in range(BASIS):
            taken += 1
            w = basis[column + 1]
            preconditioned(indptr, indices, diagonal, factor, transpose, basis[column], z)
            multiplied(indptr, indices, values, transpose, z, w)
            for row in range(column + 1):
                product = 0.0
                for i in range(states):
                    product += w[i] * basis[row, i]
                hessenberg[row, column] = product
                for i in range(states):
                    w[i] -= product * basis[row, i]
            total = 0.0
            for i in range(states):
                total += w[i] * w[i]
            below = np.sqrt(total)
            for i in range(states):
                scaled = w[i] / below if below > 0.0 else 0.0
                w[i] = 0.0 if abs(scaled) < VANISHING else scaled
            for row in range(column):
                above = hessenberg[row, column]
                hessenberg[row, column] = cosine[row] * above + sine[row] * hessenberg[row + 1, column]
                hessenberg[row + 1, column] = cosine[row] * hessenberg[row + 1, column] - sine[row] * above
            both = np.sqrt(hessenberg[column, column] ** 2 + below * below)
            cosine[column], sine[column] = hessenberg[column, column] / both, below / both
            hessenberg[column, column] = both
            right[column + 1] = -sine[column] * right[column]
            right[column] *= cosine[column]
            used = column + 1
            if abs(right[used]) <= 0.5 * enough or below == 0.0 or taken >= most:
                break
        for row in range(used - 1, -1, -1):
            for column in range(row + 1, used):
                right[row] -= hessenberg[row, column] * right[column]
            right[row] /= hessenberg[row, row]
        moved[:] = 0.0
        for row in range(used):
            for i in range(states):
                moved[i] += right[row] * basis[row, i]
        preconditioned(indptr, indices, diagonal, factor, transpose, moved, z)
        for i in range(states):
            onward = x[i] + z[i]
            x[i] = 0.0 if abs(onward) < tiny else onward


@compiled
def swept(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    most: int,
    fall: float,
    gamma: float,
    endless: bool,
    work: np.ndarray,
) -> tuple[int, float]:
    """x = Σ_j (γΠ)^j y, until what is left has fallen by a factor or `most` terms were added.

    Rows begin with their own 1. Where no episode ends, what is left is judged by its span, and its constant part is
    summed to the end: (γΠ)^j c = γ^j c.

    Args:
      fall: factor by which what is left is to fall.
      gamma: γ.
      endless: whether no episode ends.
      work: two vectors, [2, S].

    Returns:
      Products taken and the factor reached.
    """
    states = len(y)
    low, high = np.inf, -np.inf
    for i in range(states):
        x[i] = y[i]
        low, high = min(low, y[i]), max(high, y[i])
    first = high - low if endless else max(high, -low)
    left = first
    for taken in range(most):
        now, following = work[taken % 2], work[(taken + 1) % 2]
        if taken == 0:
            now = y
        low, high = np.inf, -np.inf
        for row in range(states):
            total = 0.0
            for entry in range(indptr[row] + 1, indptr[row + 1]):
                total -= values[entry] * now[indices[entry]]
            following[row] = total
            x[row] += total
            low, high = min(low, total), max(high, total)
        left = high - low if endless else max(high, -low)
        if not left > fall * first:
            break
    if endless:
        x += gamma / (1.0 - gamma) * ((low + high) / 2)
    return taken + 1, left / first if first > 0.0 else 0.0
