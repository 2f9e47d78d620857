"""Subspaces in boxes: corners by enumeration, closed forms, and a bound that nothing exceeds."""

from itertools import combinations, product

import pytest
import torch

from hf_nullspace.exact_nullspace.box_filling import approach, fill_box, norm_bound


def plane(seed=0, features=5):
    """A plane in R^5, and a box around 0."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(features, 2, generator=generator, dtype=torch.float64)).Q
    lower, upper = -torch.rand(features, generator=generator), torch.rand(features, generator=generator)
    return basis, lower, upper, generator


def corners(basis, lower, upper):
    """Every corner of the polygon: two bounds hold exactly, and no other is exceeded."""
    found = []
    for pair in combinations(range(len(basis)), 2):
        for bounds in product(*([lower[index], upper[index]] for index in pair)):
            vector = basis @ torch.linalg.solve(basis[list(pair)], torch.stack(bounds).double())
            if (vector >= lower - 1e-6).all() and (vector <= upper + 1e-6).all():
                found.append(vector)
    return torch.stack(found)


@pytest.mark.parametrize("seed", range(5))
def test_fills_a_polygon_up_to_its_longest_corner(seed):
    basis, lower, upper, generator = plane(seed)
    found = corners(basis, lower, upper)
    starts = torch.randn(32, 2, generator=generator) @ basis.T.float()
    filled = fill_box(starts, lower.expand(32, -1), upper.expand(32, -1), basis, slides=2)
    distances = torch.cdist(filled.double(), found)
    assert distances.min(1).values.max() < 1e-5
    assert filled.norm(dim=1).max().item() == pytest.approx(found.norm(dim=1).max().item(), rel=1e-5)
    bound = norm_bound(lower[None], upper[None], basis).item()
    assert found.norm(dim=1).max() < bound


def test_a_line_ends_at_the_bound_that_comes_first():
    basis = torch.full((2, 1), 2**-0.5, dtype=torch.float64)
    lower, upper = torch.tensor([[-1.0, -3.0]] * 2), torch.tensor([[2.0, 0.5]] * 2)
    filled = fill_box(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), lower, upper, basis, slides=1)
    assert filled.flatten().tolist() == pytest.approx([0.5, 0.5, -1.0, -1.0])


def test_the_whole_space_fills_a_symmetric_box_up_to_the_bound():
    basis, upper = torch.eye(4, dtype=torch.float64), torch.tensor([[1.0, 2.0, 3.0, 0.5]])
    filled = fill_box(torch.tensor([[0.3, -0.1, 0.2, 1.0]]), -upper, upper, basis, slides=4)
    assert filled.tolist() == [[1.0, -2.0, 3.0, 0.5]]
    assert norm_bound(-upper, upper, basis).item() == pytest.approx(filled.norm().item())


def test_a_box_of_no_size_holds_nothing():
    basis, lower, upper, _ = plane()
    zero = torch.zeros(1, 5)
    assert fill_box((basis @ torch.ones(2, 1).double()).T.float(), zero, zero, basis, slides=2).abs().max() == 0
    upper_only = fill_box(torch.ones(1, 5), zero, upper[None], basis, slides=2)
    assert (upper_only >= 0).all() and (upper_only <= upper).all()


def test_fewer_slides_fix_fewer_elements():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 20, generator=generator, dtype=torch.float64)).Q
    box = torch.ones(3, 40)
    starts = torch.randn(3, 20, generator=generator) @ basis.T.float()
    norms = []
    for slides in (5, 20):
        filled = fill_box(starts, -box, box, basis, slides)
        assert (filled.abs() == 1).sum(1).tolist() == [slides] * 3
        norms.append(filled.norm(dim=1))
    assert (norms[0] < norms[1]).all()


def test_approach_stops_at_what_is_reachable_and_gets_near_what_is_not():
    basis, lower, upper, _ = plane()
    inside = 0.5 * corners(basis, lower, upper).float()
    boxes = lower.expand_as(inside), upper.expand_as(inside)
    assert torch.allclose(approach(inside, *boxes, basis, slides=2), inside, atol=1e-4)
    beyond = approach(10 * inside, *boxes, basis, slides=2)
    assert (beyond >= boxes[0]).all() and (beyond <= boxes[1]).all()
    assert torch.allclose(beyond, (beyond.double() @ basis @ basis.T).float(), atol=1e-6)
    assert (torch.nn.functional.cosine_similarity(beyond, inside) > 0.8).all()
