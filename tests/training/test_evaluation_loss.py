"""Which rows of the last evaluation batch are real, on any number of processes (the run itself: test_distributed.py)."""

from types import SimpleNamespace

import pytest
import torch

from hf_nullspace.training.evaluation_loss import count_real_rows, mean_over_processes


def accelerator(process, processes, remainder, is_last=True):
    state = SimpleNamespace(remainder=remainder, end_of_dataloader=is_last)
    return SimpleNamespace(gradient_state=state, num_processes=processes, process_index=process)


@pytest.mark.parametrize("processes, batch_size", [(2, 4), (3, 4), (4, 1), (8, 2)])
def test_real_rows_add_up_to_the_remainder(processes, batch_size):
    for remainder in range(1, processes * batch_size):
        counts = [count_real_rows(accelerator(rank, processes, remainder), batch_size) for rank in range(processes)]
        assert sum(counts) == remainder
        assert counts == sorted(counts, reverse=True)
        assert set(counts) <= set(range(batch_size + 1))


@pytest.mark.parametrize(
    "processes, remainder, is_last", [(1, 3, True), (2, 0, True), (2, -1, True), (2, 8, True), (2, 3, False)]
)
def test_batches_without_repeats(processes, remainder, is_last):
    assert count_real_rows(accelerator(0, processes, remainder, is_last), batch_size=4) is None


@pytest.mark.parametrize("is_divided_by_all", [False, True])
def test_mean_is_over_the_real_rows(is_divided_by_all):
    """Three processes with 4, 2 and 0 real rows; the last one runs one row that does not count."""
    rows = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 6.0]), torch.tensor([100.0])]
    real, counts = [4, 2, 0], [len(each) for each in rows]
    shares = []
    for process, each in enumerate(rows):
        sums = iter([torch.tensor([float(sum(counts)), float(sum(real))]), None])

        def reduce(value, how, sums=sums):
            total = next(sums)
            return value if total is None else total

        peers = SimpleNamespace(reduce=reduce, num_processes=3)
        loss = each.sum() * 3 / sum(counts) if is_divided_by_all else each.mean()
        shares.append(mean_over_processes(peers, loss, real[process], len(each), is_divided_by_all).item())
    assert sum(shares) == pytest.approx(21 / 6)
