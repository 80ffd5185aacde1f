"""BlockMH: its first state and its transitions are those of a plain re-implementation, to 1e-10; errors."""

from __future__ import annotations

import pytest
import torch

from ppl_llm.inference import BlockMH, SuffixMH, barrier
from tests.helpers.exact import Chain, spiky
from tests.helpers.exact_power import (
    PowerChain,
    block_metropolis,
    distribution_of,
    enumerate_blocks,
    enumerate_moves,
    telling,
    transition_matrix,
)
from tests.helpers.power_mutants import BlocksWithoutLengthRatio

EXACT = 1e-10
PROPOSAL = [torch.tensor(p, dtype=torch.float64) for p in ([0.3, 0.7], [0.6, 0.4], [0.5, 0.5])]


def chain(ends: bool, proposes: bool, seed: int = 1, length: int = 3, last_barrier: bool = True) -> PowerChain:
    base = spiky(ends, seed)
    kind = telling if ends else barrier
    short = Chain(base.init, base.transition, base.potentials[:length], ends, kind, last_barrier)
    return PowerChain.of(short, 3.0, None, PROPOSAL if proposes else None)


def first_state_error(model: PowerChain, algorithm: type[BlockMH] = BlockMH) -> float:
    found, exact = distribution_of(model, *enumerate_blocks(model, algorithm=algorithm)), block_metropolis(model, 1)
    assert abs(sum(exact.values()) - 1) < EXACT
    return max(abs(found[path] - p) for path, p in exact.items())


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("proposes", [True, False])
def test_the_first_state_is_that_of_the_paper(ends: bool, proposes: bool) -> None:
    """Algorithm 1: draws, cuts, proposals and acceptances of three blocks are enumerated, and compared with products of matrices."""
    assert first_state_error(chain(ends, proposes)) < EXACT
    assert first_state_error(chain(ends, proposes, seed=2, last_barrier=False)) < EXACT


def test_rejects_blocks_without_the_ratio_of_lengths() -> None:
    """Off by .038 in probability, where acceptances are not all near 0 or 1."""
    model = chain(ends=True, proposes=False, seed=2)
    assert first_state_error(model, algorithm=BlocksWithoutLengthRatio) > 1e-2


@pytest.mark.parametrize("bridge", [None, (1.5, 2.0)])
def test_a_filter_of_one_particle_is_the_block_metropolis(bridge: tuple[float, ...] | None) -> None:
    """Without weights the particle of ``SMC(model, 1, rejuvenate=SuffixMH)`` is distributed as the state of the paper's chain."""
    model = chain(ends=False, proposes=True)
    model.bridge = bridge
    probs, posterior = enumerate_moves(model, 1, "systematic", 0.5, moving=(1, 2, 3))
    found = distribution_of(model, probs, posterior.sites)
    for path, p in block_metropolis(model, 1).items():
        assert abs(found[path] - p) < EXACT


def test_reversible_for_the_target_up_to_every_block() -> None:
    """The plain matrix has detailed balance with the ratio of lengths, and without it has not."""
    model = chain(ends=True, proposes=True)
    for k in (1, 2, 3):
        pi = torch.tensor([model.density(x, model.alpha) for x in model.beginnings(k)], dtype=torch.float64)
        flow = pi[:, None] * transition_matrix(model, k, model.alpha) / pi.sum()
        assert float((flow - flow.T).abs().max()) < 1e-12
        wrong = pi[:, None] * transition_matrix(model, k, model.alpha, length_ratio=False) / pi.sum()
        assert k == 1 or float((wrong - wrong.T).abs().max()) > 1e-3


def test_iterations_are_those_of_suffix_mh() -> None:
    """Whose transition matrices are tests/inference/mcmc/test_suffix_mh.py's."""
    assert all(getattr(BlockMH, name) is getattr(SuffixMH, name) for name in ("sweep", "transition", "accept", "draw_cut", "messenger"))


def test_an_impossible_first_state_is_left() -> None:
    """A block whose every continuation has weight zero neither ends the run nor is moved."""
    base = spiky(ends=False, seed=1)
    potentials = [torch.zeros_like(base.potentials[0]), *base.potentials[1:]]
    potentials[0][2] = 1.0  # only x_0 = 1
    posterior = BlockMH(Chain(base.init, base.transition, potentials, False), moves=1, max_plate_nesting=1).run(60, 5)
    assert (posterior.sites["x_0"][-2:] == 1).all() and not posterior.dead.any()


def test_errors() -> None:
    with pytest.raises(ValueError, match="moves must be an integer of at least 0, got -1"):
        BlockMH(lambda: None, moves=-1)
