"""`examples/certificate_coverage.py`: its functions on populations worked out by hand, and a tiny run."""

import importlib.util
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "certificate_coverage.py"
    spec = importlib.util.spec_from_file_location("certificate_coverage", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_refined_scales_are_interpolated_in_logarithms(example):
    scales, errors = example.refine(torch.tensor([1.0, 4.0, 16.0]), torch.tensor([[1.0], [16.0], [16.0]]), parts=2)
    torch.testing.assert_close(scales, torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64))
    torch.testing.assert_close(errors[:, 0], torch.tensor([1.0, 4.0, 16.0, 16.0], dtype=torch.float64))


@pytest.mark.parametrize("epsilon, expected", [(0.5, -1), (1.0, 0), (2.5, 1), (9.0, 3)])
def test_largest_scale(example, epsilon, expected):
    errors = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None].expand(4, 7)
    assert example.largest_scale(errors, epsilon, lambda rows, epsilon: rows.mean(-1) <= epsilon) == expected


def test_rare_large_errors_are_missed_by_the_normal_bound_alone(example):
    """Of 2,000 images a growing share has the largest error: 199 images often show none of it."""
    shares = torch.linspace(0.001, 0.03, 30, dtype=torch.float64)
    errors = 2.0 * (torch.arange(2000) < 2000 * shares[:, None]).double()
    options = {"epsilon": 0.03, "num_images": 256, "simulations": 150}
    missed = {}
    for name, bound in (("betting", example.betting_bound(0.95)), ("normal", example.normal_bound(0.95))):
        generator = torch.Generator().manual_seed(0)
        missed[name], scale = example.simulate(shares, errors, is_within=bound, generator=generator, **options)
        assert 0 < scale < 0.03
    assert missed["betting"] <= 0.05 * 150 + 3 * (0.05 * 0.95 * 150) ** 0.5
    assert missed["normal"] > missed["betting"]


@pytest.mark.slow
def test_tiny_run_prints_the_table(example, capsys):
    arguments = "--epsilons 0.3 --ratios 2 --simulations 5 --num_scales 8 --digits_max_steps 5"
    example.main(arguments.split())
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert [cell.strip() for cell in table[-1].split("|")][1:4] == ["0.3", "38", "5"]
