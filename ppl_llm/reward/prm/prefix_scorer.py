"""Log-odds at chosen tokens of a batch of sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from ...context import PAD
from ...context_cache import CacheEntry
from ...kv_cache.attention import PACKED
from ...kv_cache.joint_append import JointEngine
from ...kv_cache.lookup import look_up
from ...kv_cache.masks import LayerMasks
from ...kv_cache.packed_linear import pack, unpack
from ...kv_cache.pool import Lease
from ...kv_cache.support import cache_keyword, can_share_blocks, context_limit


class Scored(NamedTuple):
    """
    :ivar Tensor log_odds: ``[A, K]`` float32.
    :ivar Tensor rows: ``[A]`` where the sequences lie now, to be found again.
    :ivar Lease lease: keeps the cache they lie in.
    """

    log_odds: Tensor
    rows: Tensor
    lease: Lease


class PrefixScorer:
    """Scores sequences that share prefixes with those of earlier calls, which are not run again; equal ones are run once.

    :param model: the transformers model inside; its attention function is replaced by one of this package, its linear layers
        multiply by packed weights (:mod:`~ppl_llm.kv_cache.packed_linear`).
    :param log_odds: called as a model by :class:`~ppl_llm.kv_cache.joint_append.JointEngine`; gives log-odds ``[A, k, 1]``.
    :param int cache_bytes: bound on the memory of keys and values.
    :ivar int max_length: longest sequence.
    :raises ValueError: if the model needs another cache than keys and values of every token.
    """

    def __init__(self, model: Any, log_odds: Callable[..., Tensor], cache_bytes: int) -> None:
        config = model.config.get_text_config()
        self.max_length, _ = context_limit(config)
        masks = LayerMasks(config, self.max_length)
        obstacle = masks.obstacle
        if obstacle is None and not getattr(model, "_supports_attention_backend", False):
            obstacle = "it does not take an attention function"
        if obstacle is not None:
            raise ValueError(f"{type(model).__name__} cannot be used as a reward model here: {obstacle}")
        if model.config._attn_implementation != PACKED:
            model.set_attn_implementation(PACKED)
        pack(model)
        self._network = model

        keyword = cache_keyword(model)

        def forward(cache: Cache, **inputs: Any) -> Tensor:
            return log_odds(**masks.narrowed(inputs), **{keyword: cache})

        self.device: torch.device = model.get_input_embeddings().weight.device
        self.engine = JointEngine(
            forward,
            name="prm",
            tokens_counter="prm_tokens",
            num_layers=config.num_hidden_layers,
            max_length=self.max_length,
            cache_bytes=cache_bytes,
            device=self.device,
            blocks=can_share_blocks(model),
        )

    def release(self) -> None:
        """Free the memory of all keys and values, and take the weights of the network as they are now."""
        self.engine.pool.clear()
        unpack(self._network)

    def score(
        self,
        entry: CacheEntry | None,
        indices: Tensor,
        ids: Tensor,
        lengths: Tensor,
        prompt_lengths: Tensor,
        first: Tensor,
        at: Tensor,
    ) -> Scored:
        """Log-odds at tokens ``at``.

        :param entry: leads to the KV cache and row where a sequence was before, ``None`` if unknown.
        :param Tensor indices: ``[A]`` flat index of each sequence in the entry.
        :param Tensor ids: ``[A, L]`` padded with ``PAD``.
        :param Tensor lengths: ``[A]``.
        :param Tensor prompt_lengths: ``[A]`` length of the part that many sequences share.
        :param Tensor first: ``[A]`` first position whose output is wanted.
        :param Tensor at: ``[A, K]`` positions wanted; those before ``first`` give a score of no meaning.
        """
        lookup = look_up(self.engine, entry, indices, ids[:, : int(lengths.max())], lengths, first, prompt_lengths)
        wanted = torch.zeros(lookup.num_rows, at.shape[1], dtype=torch.long, device=self.device)
        wanted[lookup.row_of] = at
        odds = lookup.complete(wanted)
        return Scored(odds[lookup.row_of, :, 0], lookup.row_of, self.engine.pool.lease(lookup.cache))

    def require_room(self, lengths: Tensor, what: str = "the trace") -> None:
        """:raises ValueError: if a sequence ``[A]`` is longer than the model's context."""
        if int(lengths.max()) > self.max_length:
            raise ValueError(
                f"{what} of sequence {int(lengths.argmax())} has {int(lengths.max())} tokens in the reward model's format, "
                f"which exceeds its context of {self.max_length} tokens"
            )


def padded(rows: list[list[int]]) -> Tensor:
    """``[A, W]``, padded on the right with ``PAD``."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows], dtype=torch.long).view(len(rows), width)
