"""Tables of the study stay within a bound on their bytes, and what they forget changes nothing that is drawn or scored."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.study.cached_reward import CachedReward, select_sequences
from benchmarks.study.memory import Memory
from benchmarks.study.models import LIMITS
from benchmarks.study.prefix_table import Ints, PrefixTable
from benchmarks.study.table_lm import TableLM
from benchmarks.study.table_prm import TablePRM
from ppl_llm import SMC, reasoning
from ppl_llm.evaluation.votes import candidates
from ppl_llm.inference import ParticlePosterior
from ppl_llm.methods import get_method
from ppl_llm.tasks.load import load_problems

PROBLEMS = [problem.text for problem in load_problems("demo", limit=4)]
UNBOUNDED = 1 << 31


class Entries:
    """A table of entries of equal size."""

    def __init__(self, size: int, uses: list[int]) -> None:
        self.size, self.uses = size, np.array(uses, dtype=np.int64)

    @property
    def held(self) -> int:
        return self.size * len(self.uses)

    def last_uses(self) -> Ints:
        return self.uses

    def keep(self, kept: NDArray[np.bool_]) -> None:
        self.uses = self.uses[kept]


USES = st.lists(st.integers(0, 9), max_size=12)


@given(USES, USES, st.integers(0, 60), st.integers(0, 60))
def test_what_was_used_longest_ago_is_forgotten(first: list[int], second: list[int], limit: int, expected: int) -> None:
    """No more than needed, from all tables alike, and nothing that is in use."""
    memory = Memory(limit)
    memory.now = 9
    tables = Entries(1, first), Entries(3, second)
    for table in tables:
        memory.join(table)
    before = memory.held
    forgot = memory.make_room(expected)
    assert forgot == (before + expected > limit) and memory.most == before
    kept = [use for table in tables for use in table.uses]
    if not forgot:
        assert len(kept) == len(first) + len(second)
        return
    oldest = next(
        use
        for use in range(10)
        if use == 9 or sum(u >= use for u in first) + 3 * sum(u >= use for u in second) <= min(limit // 2, limit - expected)
    )
    assert kept == [use for use in [*first, *second] if use >= oldest]


def bounded(limit: int, kind: type[PrefixTable] = PrefixTable) -> tuple[TableLM, CachedReward, Memory]:
    """Models whose tables hold so many bytes."""
    memory = Memory(limit)
    lm, prm = TableLM.from_pretrained("demo"), TablePRM.from_pretrained("demo")
    score = prm.model.score
    lm.table = kind(lm.model.model, lm.model.lm_head, memory)
    lm._table_sampler.states = kind(lm.model.model, lambda states: states, memory)
    prm.table = kind(prm.model.model, lambda hidden: score(hidden).diff(dim=-1), memory)
    return lm, CachedReward(prm, memory), memory


def filtered(lm: TableLM, prm: CachedReward) -> ParticlePosterior:
    pyro.set_rng_seed(0)
    model = reasoning(lm, prm, **LIMITS)  # type: ignore[arg-type]
    return SMC(model, 6, max_plate_nesting=1, record_log_probs=True).run(PROBLEMS)


def same(found: ParticlePosterior, expected: ParticlePosterior) -> bool:
    return found.value.text == expected.value.text and torch.allclose(found.log_evidence, expected.log_evidence, atol=1e-4)


@pytest.fixture(scope="module")
def unbounded() -> tuple[ParticlePosterior, int, int]:
    """A posterior, and the bytes and forward passes that it takes."""
    lm, prm, memory = bounded(UNBOUNDED)
    posterior = filtered(lm, prm)
    passes = lm.table.passes
    filtered(lm, prm)
    assert lm.table.passes == passes  # all is known
    return posterior, memory.held, passes


def test_what_is_forgotten_is_run_again_with_the_same_results(unbounded: tuple[ParticlePosterior, int, int]) -> None:
    """With room for a half, and for nothing but what is in use."""
    expected, bytes_, passes = unbounded
    for limit in (bytes_ // 2, 0):
        lm, prm, memory = bounded(limit)
        for _ in range(2):
            assert same(filtered(lm, prm), expected)
        assert memory.held < 0.8 * bytes_ and lm.table.passes > passes
        context = expected.value
        states = lm.hidden_states(context, (context.lengths - 1)[..., None])
        free = bounded(UNBOUNDED)[0].hidden_states(context, (context.lengths - 1)[..., None])
        assert torch.allclose(states, free, atol=1e-4)


class Unnumbered(PrefixTable):
    """A mutant whose nodes keep the numbers of parents from before some were forgotten."""

    def keep(self, kept: NDArray[np.bool_]) -> None:
        parents = self._parent[: len(self)][kept]
        super().keep(kept)
        self._parent[: len(self)] = np.minimum(parents, len(self) - 1)


def test_a_longer_sequence_uses_those_that_it_begins_with() -> None:
    """So no node is forgotten before its descendants. A table that mixes up its nodes then has other outputs."""
    lm, _, _ = bounded(UNBOUNDED)
    generator = np.random.default_rng(0)
    paths = [tuple(generator.integers(3, 6, size=length).tolist()) for length in generator.integers(1, 8, size=60)]
    longer = [np.array([*path, token]) for path in paths[30:] for token in (3, 4, 5)]
    fresh = PrefixTable(lm.model.model, lm.model.lm_head, Memory())
    expected = fresh.outputs(fresh.find(longer))
    for kind in (PrefixTable, Unnumbered):
        table = kind(lm.model.model, lm.model.lm_head, Memory())
        for path in paths:
            table.outputs(table.find([np.array(path)]))  # a piece of work each
        last = {path[:end]: at for at, path in enumerate(paths, start=1) for end in range(1, len(path) + 1)}
        uses = table.last_uses()
        assert {path: uses[table.extend(-1, path)] for path in last} == last
        later = {path: at for path, at in last.items() if at > 30}
        table.keep(uses > 30)
        numbers = {path: table.extend(-1, path) for path in later}
        assert sorted(numbers.values()) == list(range(len(later))) == list(range(len(table)))
        right = torch.allclose(table.outputs(table.find(longer)), expected, atol=1e-4)
        assert right == (kind is PrefixTable)


def test_scores_that_were_not_asked_for_are_forgotten() -> None:
    lm, prm, memory = bounded(UNBOUNDED)
    context = filtered(lm, prm).value
    some, rest = (select_sequences(context, torch.tensor(which)) for which in ([1, 5, 9], [0, 2, 3]))
    expected = prm.step_log_odds(rest)
    memory.now += 1
    found = prm.step_log_odds(some)
    prm.keep(prm.last_uses() == memory.now)
    assert len(prm.last_uses()) == len({tuple(row[:length].tolist()) for row, length in zip(some.tokens, some.lengths, strict=True)})
    assert torch.equal(prm.step_log_odds(some), found) and torch.equal(prm.step_log_odds(rest), expected)


def test_one_search_stays_within_the_bound() -> None:
    """Much is forgotten within it; what it holds beyond the limit is what one step works on."""
    model = get_method("mcts:preset=twisted")
    found = []
    for limit in (UNBOUNDED, 1 << 20):
        lm, prm, memory = bounded(limit)
        program = model.adapted(reasoning(lm, prm, **LIMITS))  # type: ignore[arg-type]
        pyro.set_rng_seed(3)
        posterior = model.start(program, PROBLEMS, 24)
        found.append(
            (
                memory.most,
                lm.table.passes,
                [candidate.answer for i in range(len(PROBLEMS)) for candidate in candidates(program, posterior, i)],
            )
        )
    (free, few, answers), (most, many, again) = found
    assert free > 1.3 * most and many > few
    assert answers == again
