"""Keys in blocks: what sequences have in common is held once, what one of them writes is no other's, and nothing is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_llm.context import Context
from ppl_llm.kv_cache import block_cache
from ppl_llm.kv_cache.block_cache import BlockKVCache
from ppl_llm.kv_cache.block_layer import BLOCK, BlockLayer, BlockReads
from ppl_llm.kv_cache.cache import KVCache, as_rows
from ppl_llm.kv_cache.engine import CacheEngine
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.transformers_lm import TransformersLM
from ppl_llm.reward.prm.transformers_prm import TransformersPRM
from tests.helpers import filters
from tests.helpers.filters import CheckedLM
from tests.helpers.tiny_models import causal_lm, reward_net, tokenizer

SEQUENCES, STEPS = torch.Size((12,)), 3
LONG = StepOptions(stop="\x00\x00\x00", max_tokens=6 * BLOCK + 3)
RAGGED = StepOptions(stop=("a", "e", "o", "1"), max_tokens=12)
LIMIT = 1.2
"""Most bytes over those of the keys and values of unique tokens."""


def filtered(lm: TransformersLM, options: StepOptions, prm: TransformersPRM | None = None) -> Context:
    """Steps with resampling before each but the first."""
    torch.manual_seed(0)
    context = lm.start("What is 12 + 30? Add the tens first. " * 3)
    for step in range(STEPS):
        if step:
            context = context.reorder(torch.randint(0, SEQUENCES[0], SEQUENCES))
        context = context.extend(lm.sample_step(context, SEQUENCES, options).tokens, options.stop)
        if prm is not None:
            prm.step_log_odds(context)
    return context


def models() -> tuple[TransformersLM, TransformersPRM]:
    """A language model whose steps have ``max_tokens`` tokens, and a reward model."""
    lm = TransformersLM(causal_lm(max_position_embeddings=1024), tokenizer())
    lm.eos_ids = torch.tensor([], dtype=torch.long)
    return lm, TransformersPRM(reward_net(max_position_embeddings=1024), tokenizer())


def over_unique(cache: KVCache) -> float:
    """Bytes of everything that a KV cache holds over those of the keys and values of distinct prefixes."""
    nodes: dict[tuple[int, int], int] = {}
    for row, length in zip(cache.tokens.tolist(), cache.lengths.tolist(), strict=True):
        node = 0
        for token in row[:length]:
            node = nodes.setdefault((node, token), len(nodes) + 1)
    layers = cache.hf_cache.layers
    # A key of a row's layer has its heads before its place, one of a block's layer behind it.
    heads = layers[0].keys.shape[2 if isinstance(cache, BlockKVCache) else 1]
    token = sum(heads * store.shape[3] * store.element_size() for layer in layers for store in (layer.keys, layer.values))
    tensors = [value for owner in (cache, *layers) for value in vars(owner).values() if isinstance(value, Tensor)]
    held = sum({each.data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())
    assert cache.num_bytes <= held <= 1.05 * cache.num_bytes
    return held / (len(nodes) * token)


def caches() -> list[KVCache]:
    """After a filter; sampled token by token, and scored in packed passes."""
    lm, prm = models()
    filtered(lm, LONG, prm)
    return [cache for engine in (lm._engine, prm._scorer.engine) for cache in engine.pool.caches]


def test_bytes_are_those_of_unique_tokens() -> None:
    found = caches()
    assert [type(cache) for cache in found] == [BlockKVCache] * 2
    assert all(1.0 < over_unique(cache) < LIMIT for cache in found)
    for cache in found:
        assert isinstance(cache, BlockKVCache)
        used = torch.bincount(cache._table.flatten(), minlength=len(cache._references))
        assert torch.equal(used[1:], cache._references[1:])  # nobody holds a block that no row has


def a_row_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheEngine, "__init__", _in_rows(CacheEngine.__init__))


def _in_rows(plain: Any) -> Any:
    return lambda self, forward, **settings: plain(self, forward, **(settings | {"blocks": False}))


def copies_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are copied get other blocks at once."""
    plain = BlockKVCache._copy_keys

    def copied(self: BlockKVCache, giver: KVCache, source: Tensor, target: Tensor, start: int, stop: int) -> None:
        plain(self, giver, source, target, start, stop)
        numbers = torch.arange(-(-stop // BLOCK))
        self._own(target.repeat_interleave(len(numbers)), numbers.repeat(len(target)))

    monkeypatch.setattr(BlockKVCache, "_copy_keys", copied)


def blocks_of_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows keep references to blocks that they have left."""

    def assigned(self: BlockKVCache, rows: Tensor, blocks: Tensor) -> None:
        self._references.index_add_(0, blocks.flatten(), torch.ones(blocks.numel(), dtype=torch.long))
        self._table[rows] = blocks

    monkeypatch.setattr(BlockKVCache, "_assign", assigned)


@pytest.mark.parametrize("broken", [a_row_each, copies_of_their_own, blocks_of_the_dead])
def test_versions_that_hold_more_are_rejected(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    assert all(over_unique(cache) > LIMIT for cache in caches())


# ------------------------------------------------------------------------------------------------ every logit
@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "TOLERANCE", 1e-12)


def checked() -> None:
    """Every logit of the sampler against a pass over the whole text, in float64."""
    lm = CheckedLM(causal_lm().double(), tokenizer())
    lm.reference = causal_lm().double()
    filtered(lm, RAGGED)


def written_to_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row writes to blocks that others have, too."""
    plain = BlockKVCache._places

    def places(self: BlockKVCache, rows: Tensor, columns: Tensor) -> Tensor:
        references, self._references = self._references, self._references.clamp(max=1)
        self._references[0] = 2
        try:
            return plain(self, rows, columns)
        finally:
            if len(self._references) == len(references):
                self._references = references

    monkeypatch.setattr(BlockKVCache, "_places", places)


def empty_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockLayer, "copy_blocks", lambda self, giver, source, target: None)


def in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are gathered in another order."""
    plain = BlockReads.chunks
    monkeypatch.setattr(BlockReads, "chunks", lambda *given: [each._replace(blocks=each.blocks.roll(1)) for each in plain(*given)])


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("broken", [written_to_by_all, empty_copies, in_another_order])
def test_blocks_that_hold_other_keys_are_rejected(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checked()
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        checked()


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("size", [1, 2**12, 2**30])
@pytest.mark.parametrize("saved", [1, 2**30])
def test_however_many_are_gathered_at_a_time(size: int, saved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The common prefix, which need not end where a block does, read once or with each sequence."""
    monkeypatch.setattr("ppl_llm.kv_cache.block_layer._GATHERED_BYTES", size)
    monkeypatch.setattr("ppl_llm.kv_cache.common_prefix._MIN_SAVED", saved)
    checked()


# ------------------------------------------------------------------------------------------------ stored and loaded
@pytest.mark.parametrize("given", [KVCache, BlockKVCache])
@pytest.mark.parametrize("taker", [KVCache, BlockKVCache])
def test_what_is_stored_is_found_again(given: type[KVCache], taker: type[KVCache]) -> None:
    lm, _ = models()
    if given is KVCache:
        lm._engine.use_rows()
    filtered(lm, RAGGED)
    [cache] = lm._engine.pool.caches
    state = cache.state()
    other = taker(len(cache.hf_cache.layers), cache.max_length, torch.device("cpu"))
    other.load(state)
    assert torch.equal(other.lengths, cache.lengths) and other.capacity == cache.capacity
    assert torch.equal(other.state()["tokens"].long(), state["tokens"].long())
    valid = (torch.arange(state["tokens"].shape[1]) < cache.lengths[:, None])[:, None, :, None]
    for ours, theirs in zip(as_rows(other.state()), as_rows(state), strict=True):
        assert all(torch.equal(one * valid, two * valid) for one, two in zip(ours, theirs, strict=True))
    if given is taker is BlockKVCache:
        assert other.num_bytes <= cache.num_bytes


def test_blocks_grow_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as much to spare as rows have columns, there is memory that nobody uses."""
    monkeypatch.setattr(block_cache, "_SPARE", 2)
    assert any(over_unique(cache) > LIMIT for cache in caches())
