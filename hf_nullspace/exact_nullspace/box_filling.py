"""Large vectors of a subspace inside a box: the corners of the polytope where the two meet."""

from __future__ import annotations

import torch


# Distance of the search's target beyond the box, in half diagonals of the box.
REACH = 2.0
# Rounds of operator splitting towards one target.
QUICK_ROUNDS = 40
# Rounds when walking all the way to a corner.
FILL_ROUNDS = 400
# After so many of them the target moves on.
ROUNDS_BETWEEN_TARGETS = 10
# Boxes per batch.
BOXES_AT_A_TIME = 64


def fill_box(
    start: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, basis: torch.Tensor, slides: int
) -> torch.Tensor:
    """
    Vectors of a subspace that are large inside their boxes: local maxima of the norm, at corners.

    The largest norm over a polytope is reached at a corner, and finding the best corner is NP-hard. So the norm is
    maximised locally: the point beyond the box in the direction of the present one is projected onto the polytope, by
    operator splitting, again and again. A walk from 0 to the point found, which then slides along each bound it meets,
    ends in a corner: there as many elements as the subspace has dimensions stand at a bound, and nearby nothing is
    larger in the walk's direction.

    Args:
        start (`torch.Tensor` of shape `(boxes, features)`): Directions in the subspace to start with.
        lower, upper (`torch.Tensor` of the same shape): The boxes, `lower <= 0 <= upper`.
        basis (`torch.Tensor` of shape `(features, dimension)`): Orthonormal basis of the subspace, float64.
        slides (`int`): Most elements of a vector that are fixed at a bound.

    Returns:
        `torch.Tensor` of shape `(boxes, features)` in float32: in the subspace up to rounding, in the boxes exactly.
    """
    return _in_chunks(_fill, start, lower, upper, basis, slides)


def approach(
    target: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, basis: torch.Tensor, slides: int
) -> torch.Tensor:
    """
    Vectors of a subspace inside their boxes, close to targets: as [`fill_box`], but the walk ends at the target.

    Args:
        target (`torch.Tensor` of shape `(boxes, features)`): Wanted vectors, of any size and inside the subspace or not.
        lower, upper, basis, slides: As in [`fill_box`].
    """
    return _in_chunks(_approach, target, lower, upper, basis, slides)


def norm_bound(lower: torch.Tensor, upper: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """
    A norm that no vector of the subspace inside the box exceeds, of shape `(boxes,)`.

    The ball around the box, cut by the subspace, is a ball with centre `c` (the box's own, projected) and radius `r`;
    nothing in it is longer than `||c|| + r`.
    """
    lower = lower.double()
    upper = upper.double()
    basis = basis.to(lower.device)
    centre = (lower + upper) / 2
    if basis.shape[1] == 0:
        return torch.zeros_like(centre[:, 0])
    inside = centre @ basis
    squared_radius = ((upper - lower) / 2).square().sum(-1) - (centre.square().sum(-1) - inside.square().sum(-1))
    return inside.norm(dim=-1) + squared_radius.clamp_min(0).sqrt()


def _in_chunks(solve, target, lower, upper, basis, slides) -> torch.Tensor:
    basis = basis.to(target.device)
    chunks = zip(*(part.split(BOXES_AT_A_TIME) for part in (target, lower, upper)), strict=True)
    return torch.cat([solve(*chunk, basis, min(slides, basis.shape[1])) for chunk in chunks])


def _fill(start, lower, upper, basis, slides):
    half_diagonal = (upper - lower).norm(dim=-1, keepdim=True) / 2

    def beyond(point):
        return point / point.norm(dim=-1, keepdim=True).clamp_min(1e-30) * REACH * half_diagonal

    rounds = FILL_ROUNDS if slides == basis.shape[1] else QUICK_ROUNDS
    target = _pull(beyond(start), lower, upper, basis, rounds, beyond)
    return _walk(target, lower, upper, basis, slides, extend=True)


def _approach(target, lower, upper, basis, slides):
    target = _pull(target, lower, upper, basis, QUICK_ROUNDS)
    return _walk(target, lower, upper, basis, slides, extend=False)


def _pull(target, lower, upper, basis, rounds, beyond=None) -> torch.Tensor:
    """
    Pulls targets towards their nearest point in both the subspace and the box, by splitting (ADMM).

    With `beyond`, the target becomes `beyond(point)` now and then. The result lies in the subspace, and nearly in the box.
    """
    basis = basis.to(target)
    inside = torch.zeros_like(target)
    multiplier = torch.zeros_like(target)
    for index in range(1, rounds + 1):
        point = ((target + inside - multiplier) / 2) @ basis @ basis.T
        inside = (point + multiplier).clamp(lower, upper)
        multiplier += point - inside
        if beyond is not None and index % ROUNDS_BETWEEN_TARGETS == 0:
            target = beyond(point)
    return point


def _walk(
    target: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    basis: torch.Tensor,
    slides: int,
    extend: bool,
) -> torch.Tensor:
    """
    Walks from 0 towards each target of the subspace, sliding along the bounds that it meets.

    In float64: the last directions that are left are differences of nearly equal numbers.

    Args:
        extend (`bool`): Whether to go on beyond the target, until the last bound.
    """
    size = len(target)
    dimension = basis.shape[1]
    rows = torch.arange(size, device=target.device)
    below, above = -lower.double(), upper.double()  # the room that is left on both sides
    position = torch.zeros_like(above)
    speed = (target.double() @ basis) @ basis.T
    still = 1e-9 * target.double().abs().amax(1)
    free = torch.ones_like(above)
    # Orthonormal directions that the fixed elements forbid, by Gram-Schmidt on the basis' rows: as coefficients, and as
    # vectors of the subspace, whose elements are their products with every row of the basis.
    forbidden = above.new_zeros(size, slides, dimension)
    products = above.new_zeros(slides, *above.shape)
    for step in range(slides):
        speed.mul_(free)
        # Share of the room that a step of length 1 takes; the largest says which bound comes first.
        share, element = torch.maximum(speed / above.clamp_min(1e-12), -speed / below.clamp_min(1e-12)).max(1)
        moves = speed[rows, element].abs() > still
        length = torch.where(moves, 1 / share.clamp_min(1e-30), 0.0)
        if not extend:
            # `speed` is the remaining distance, so a step of length 1 arrives.
            arrives = moves & (length >= 1)
            length = length.clamp_max(1.0)
            moves = moves & ~arrives
        move = speed * length[:, None]
        position.add_(move)
        above.sub_(move).clamp_min_(0)
        below.add_(move).clamp_min_(0)
        free[rows, element] = torch.where(moves, 0.0, free[rows, element])
        if not extend:
            speed.mul_((1 - length)[:, None])
            if not moves.any():
                break
        row = basis[element]
        if step:
            known = products[:step, rows, element].T[:, None]
            row = torch.baddbmm(row[:, None], known, forbidden[:, :step], alpha=-1)[:, 0]
        norm = row.norm(dim=1, keepdim=True)
        row = torch.where((norm > 1e-6) & moves[:, None], row / norm.clamp_min(1e-30), 0.0)
        forbidden[:, step] = row
        torch.matmul(row, basis.T, out=products[step])
        # The product of the direction and the forbidden one is that of their vectors, since the basis is orthonormal.
        speed.addcmul_(products[step], (speed * products[step]).sum(1, keepdim=True), value=-1)
    return position.float().clamp(lower, upper)
