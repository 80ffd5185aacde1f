"""Trajectories of populations in another order, also more or fewer of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppl_llm.inference import Trajectory
from tests.helpers.population_mutants import WRONG_ORDERS

N, PLATES, EVENT = 4, (3, 2), (5,)


def numbered(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape)


def expected(tensor: Tensor, index: Tensor) -> Tensor:
    """Entry by entry, in plain Python."""
    plates = torch.broadcast_shapes(tensor.shape[1:3], index.shape[1:])
    out = torch.empty(len(index), *plates, *tensor.shape[3:], dtype=tensor.dtype)
    wide, where = tensor.expand(N, *plates, *tensor.shape[3:]), index.expand(-1, *plates)
    for k in range(len(index)):
        for i in range(plates[0]):
            for j in range(plates[1]):
                out[k, i, j] = wide[int(where[k, i, j]), i, j]
    return out


@pytest.mark.parametrize("plates", [(1, 1), (3, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_reorder_takes_any_number(count: int, plates: tuple[int, int]) -> None:
    """``[K, *plates]`` with K below, equal to and above N; a plate of size 1 stands for all of its indices."""
    index = torch.randint(N, (count, *plates), generator=torch.Generator().manual_seed(count))
    full, shared = numbered(N, *PLATES, *EVENT), numbered(N, 1, 1, *EVENT)
    trajectory = Trajectory(
        {"full": full, "shared": shared},
        length=numbered(N, *PLATES),
        log_likelihood=numbered(N, *PLATES).double(),
        value={"tensor": full, "all": torch.tensor(7.0)},
    )
    moved = trajectory.reorder(index)
    assert torch.equal(moved["full"], expected(full, index)) and torch.equal(moved["shared"], expected(shared, index))
    assert moved.length is not None and torch.equal(moved.length, expected(numbered(N, *PLATES), index))
    assert moved.log_likelihood is not None and torch.equal(moved.log_likelihood, expected(numbered(N, *PLATES), index).double())
    assert torch.equal(moved.value["tensor"], expected(full, index)) and moved.value["all"] == 7.0


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_an_index_without_plates_is_the_same_for_all(count: int) -> None:
    index = torch.randint(N, (count,), generator=torch.Generator().manual_seed(count))
    full = numbered(N, *PLATES, *EVENT)
    moved = Trajectory({"full": full}, length=numbered(N, *PLATES), value=full).reorder(index)
    assert torch.equal(moved["full"], full[index]) and torch.equal(moved.value, full[index])
    assert moved.length is not None and torch.equal(moved.length, numbered(N, *PLATES)[index])


def test_an_index_of_other_plates_is_refused() -> None:
    trajectory = Trajectory({"full": numbered(N, *PLATES)}, length=numbered(N, *PLATES))
    with pytest.raises(ValueError, match=r"index has shape \(2, 4, 2\), the trajectories' populations have \(4, 3, 2\)"):
        trajectory.reorder(torch.zeros(2, 4, 2, dtype=torch.long))


@pytest.mark.parametrize("name", WRONG_ORDERS)
def test_rejects_an_order_of_as_many(name: str) -> None:
    full, index = numbered(N, *PLATES), torch.tensor([3, 1]).view(2, 1, 1).expand(2, *PLATES)
    try:
        moved = WRONG_ORDERS[name]({"full": full}, length=full).reorder(index)["full"]
    except RuntimeError:
        moved = full
    assert not torch.equal(moved, expected(full, index))
