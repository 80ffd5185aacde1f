"""A particle filter's loop written with what transformers offers: three ways to sample ragged steps and resample.

Every loop takes steps of at most ``width`` tokens that end with one of the tokens ``0 .. stops - 1``, draws ancestors uniformly, and gives
the number of useful tokens, those up to and including the end of each sequence's step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, Qwen2ForCausalLM

from ppl_llm.kv_cache.support import cache_keyword

_PAGE = 16
"""Tokens that continuous batching shares at a time; with its default of 256 each step would compute most of its prefix again."""


def _useful(new: Tensor, stops: int) -> Tensor:
    """``[sequences, width]``: whether a token belongs to its sequence's step."""
    stopped = new < stops
    return stopped.cumsum(1) - stopped.long() == 0


def _sampling(width: int, stops: int) -> dict[str, Any]:
    return {"max_new_tokens": width, "do_sample": True, "top_k": 0, "eos_token_id": list(range(stops)), "pad_token_id": 0}


@torch.inference_mode()
def generate_and_realign(model: Qwen2ForCausalLM, prompt: list[int], sequences: int, steps: int, width: int, stops: int) -> int:
    """``generate`` with a ``DynamicCache`` that is kept.

    After ragged steps every sequence's real columns are moved to the right end, as ``generate`` samples from the last column. With
    log-probabilities of the tokens, which particle weights may need.
    """
    cache, keyword, total = DynamicCache(config=model.config), cache_keyword(model), 0
    ids = torch.tensor([prompt]).repeat(sequences, 1)
    mask = torch.ones_like(ids)
    for _ in range(steps):
        output = model.generate(
            ids, attention_mask=mask, **{keyword: cache}, return_dict_in_generate=True, output_scores=True, **_sampling(width, stops)
        )
        new = output.sequences[:, ids.shape[1] :]
        useful = _useful(new, stops)
        total += int(useful.sum())
        torch.stack([scores.log_softmax(-1).gather(1, new[:, k, None])[:, 0] for k, scores in enumerate(output.scores)], 1)
        ancestors = torch.randint(0, sequences, (sequences,))
        ids, mask = output.sequences[ancestors], torch.cat([mask, useful.long()], 1)[ancestors]
        order = mask.argsort(dim=1, stable=True)[:, -int(mask.sum(1).max()) :]
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        kept = order[:, :-1]  # the last token has not been run
        for layer in cache.layers:
            for name in ("keys", "values"):
                states = getattr(layer, name)
                # The column of a sequence's last token, which has no keys yet, is the last one only.
                column = kept.clamp(max=states.shape[2] - 1)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
                setattr(layer, name, states[ancestors].gather(2, column))
    return total


@torch.inference_mode()
def generate_from_scratch(model: Qwen2ForCausalLM, prompt: list[int], sequences: int, steps: int, width: int, stops: int) -> int:
    """``generate`` on the left-padded whole texts at every step."""
    texts, total = [prompt] * sequences, 0
    for _ in range(steps):
        longest = max(map(len, texts))
        ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
        mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
        new = model.generate(ids, attention_mask=mask, **_sampling(width, stops))[:, longest:]
        taken = [row[good].tolist() for row, good in zip(new, _useful(new, stops), strict=True)]
        total += sum(map(len, taken))
        grown = [text + step for text, step in zip(texts, taken, strict=True)]
        texts = [grown[i] for i in torch.randint(0, sequences, (sequences,)).tolist()]
    return total


def continuous_batching(model: Qwen2ForCausalLM, prompt: list[int], sequences: int, steps: int, width: int, stops: int) -> int:
    """transformers' continuous batching: one manager for all steps, which finds the pages of prefixes again."""
    blocks = 2 * sequences * -(-(len(prompt) + steps * width) // _PAGE)
    settings = ContinuousBatchingConfig(page_size=_PAGE, num_blocks=blocks, max_batch_tokens=512, use_async_batching=False)
    manager = model.init_continuous_batching(GenerationConfig(**_sampling(width, stops)), settings)
    manager.start()
    try:
        texts, total = [prompt] * sequences, 0
        for _ in range(steps):
            places = {name: sequence for sequence, name in enumerate(manager.add_requests(texts))}
            grown: dict[int, list[int]] = {}
            while len(grown) < sequences:
                result = manager.get_result(timeout=60)
                if result is None or result.error is not None:
                    raise RuntimeError(f"continuous batching failed: {None if result is None else result.error}")
                if result.is_finished():
                    sequence = places[result.request_id]
                    total += len(result.generated_tokens)
                    grown[sequence] = texts[sequence] + result.generated_tokens
            texts = [grown[i] for i in torch.randint(0, sequences, (sequences,)).tolist()]
        return total
    finally:
        manager.stop(block=True)
