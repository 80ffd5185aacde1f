"""Resampling moves few keys: survivors keep their rows, dead sequences are overwritten, and only what differs is copied.

Each distinct sequence runs its last token once, all of them in the first rows: a survivor that lies behind these moves there.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppl_llm.context import Context
from ppl_llm.kv_cache import lookup
from ppl_llm.kv_cache.cache import KVCache
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.transformers_lm import TransformersLM
from tests.helpers.tiny_models import language_model

SEQUENCES, STEP = 8, 5
OPTIONS = StepOptions(stop="\x00\x00\x00", max_tokens=STEP)


class Copies:
    """Records every movement of keys.

    :ivar list moved: source rows, target rows, first column and one past the last.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moved: list[tuple[list[int], list[int], int, int]] = []
        plain = KVCache._copy_columns

        def copy(cache: KVCache, giver: KVCache, source: Tensor, target: Tensor, start: int, stop: int) -> None:
            if len(target) and start < stop:
                self.moved.append((source.tolist(), target.tolist(), start, stop))
            plain(cache, giver, source, target, start, stop)

        monkeypatch.setattr(KVCache, "_copy_columns", copy)

    @property
    def rows(self) -> int:
        return sum(len(targets) for _, targets, _, _ in self.moved)

    @property
    def columns(self) -> int:
        return sum(len(targets) * (stop - start) for _, targets, start, stop in self.moved)


def steps(lm: TransformersLM, context: Context, number: int) -> Context:
    for _ in range(number):
        context = context.extend(lm.sample_step(context, torch.Size((SEQUENCES,)), OPTIONS).tokens, OPTIONS.stop)
    return context


def sequences_after(number: int) -> tuple[TransformersLM, Context]:
    torch.manual_seed(0)
    lm = language_model()
    lm.eos_ids = torch.tensor([], dtype=torch.long)
    return lm, steps(lm, lm.start("What is 12 + 30?"), number)


ANCESTORS = {
    "nobody dies": [0, 1, 2, 3, 4, 5, 6, 7],
    "some die": [0, 0, 2, 2, 2, 5, 6, 7],
    "in another order": [7, 0, 2, 2, 5, 2, 6, 0],
    "one survives": [3] * 8,
}


def most_rows(survivors: set[int], row_of: list[int]) -> int:
    """A row for each sequence that died, and for each survivor that is not among the first rows."""
    return SEQUENCES - len(survivors) + sum(row_of[sequence] >= len(survivors) for sequence in survivors)


@pytest.mark.parametrize("name", ANCESTORS)
def test_only_dead_sequences_are_overwritten_and_from_where_they_differ(name: str, monkeypatch: pytest.MonkeyPatch):
    lm, context = sequences_after(2)
    prompt = int(context.prompt_lengths[0])
    survivors = set(ANCESTORS[name])
    row_of = next(iter(context.cache_entries.values())).tensors["rows"].tolist()
    copies = Copies(monkeypatch)
    after = steps(lm, context.reorder(torch.tensor(ANCESTORS[name])), 1)
    assert copies.rows <= most_rows(survivors, row_of)
    for _, _, start, stop in copies.moved:
        assert start >= prompt and stop <= prompt + 2 * STEP
    if name == "nobody dies":
        assert not copies.moved
    else:
        rows = next(iter(after.cache_entries.values())).tensors["rows"].tolist()
        kept = [sequence for sequence in survivors if row_of[sequence] < len(survivors)]
        assert all(row_of[sequence] in [rows[i] for i, a in enumerate(ANCESTORS[name]) if a == sequence] for sequence in kept)


def test_what_two_sequences_have_in_common_is_not_copied_again(monkeypatch: pytest.MonkeyPatch):
    """Sequences 0 and 1 part after the first step only: of the second one there is something to copy, of the first there is not."""
    lm, context = sequences_after(1)
    context = steps(lm, context.reorder(torch.tensor([0, 0, 2, 3, 4, 5, 6, 7])), 1)
    first = int(context.ends[0, 0])
    copies = Copies(monkeypatch)
    steps(lm, context.reorder(torch.tensor([0, 0, 2, 3, 4, 5, 6, 7])), 1)
    assert copies.rows >= 1 and all(start >= first for _, _, start, _ in copies.moved)
    assert copies.columns <= copies.rows * STEP


def test_settling_all_sequences_again_is_rejected(monkeypatch: pytest.MonkeyPatch):
    """The broken version copies every sequence to the next free row, as an index of the whole cache does."""
    lm, context = sequences_after(2)
    row_of = next(iter(context.cache_entries.values())).tensors["rows"].tolist()

    def again(cache: KVCache, hint: Tensor, held: Tensor) -> Tensor:
        total = len(hint)
        cache.reserve(cache.num_rows + total, cache.capacity)
        spare = torch.arange(cache.num_rows - total, cache.num_rows)
        row = torch.arange(total)
        cache.copy(hint, spare, held)
        cache.copy(spare, row, held)
        return row

    monkeypatch.setattr(lookup, "_settle", again)
    copies = Copies(monkeypatch)
    steps(lm, context.reorder(torch.tensor(ANCESTORS["some die"])), 1)
    survivors = set(ANCESTORS["some die"])
    with pytest.raises(AssertionError):
        assert copies.rows <= most_rows(survivors, row_of)
