"""The training loop of the demo models: language model and reward models differ only in their data."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers import Qwen2Config

from .corpus import IGNORED, Encoded, batches

__all__ = ["demo_config", "fit"]

log = logging.getLogger(__name__)


def demo_config(vocab_size: int, end: int, pad: int) -> Qwen2Config:
    """The architecture of all demo models: Qwen2 with 0.8 million parameters."""
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        eos_token_id=end,
        pad_token_id=pad,
        bos_token_id=None,
    )


def _optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network (arithmetic appears in half the time that AdamW takes), AdamW for the rest."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    inside = [parameter for name, parameter in named if parameter.ndim == 2 and "embed" not in name and "score" not in name]
    rest = [parameter for name, parameter in named if all(parameter is not other for other in inside)]
    return [
        torch.optim.Muon(inside, lr=rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate / 4, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _schedule(step: int, horizon: int, warmup: int, decay: float) -> float:
    """Factor of the learning rate: up linearly, flat, and down linearly to zero at ``horizon`` over the last share ``decay`` of the way."""
    return max(0.0, min(1.0, (step + 1) / warmup, (horizon - step) / (decay * horizon)))


def fit(
    model: nn.Module,
    logits_of: Callable[[Tensor], Tensor],
    pools: Iterable[list[Encoded]],
    steps: int,
    seed: int,
    rate: float,
    batch_size: int = 32,
    warmup: int = 50,
    decay: float = 0.4,
    horizon: int | None = None,
    on_step: Callable[[int], bool] | None = None,
) -> None:
    """Minimise the cross entropy at the positions that have a target.

    :param logits_of: from token ids to logits over the targets.
    :param pools: pools of encoded examples, each gone through once in batches of similar length.
    :param int steps: optimiser steps.
    :param float rate: highest learning rate of the matrices.
    :param float decay: share of the way over which the learning rate goes down.
    :param int horizon: step at which the learning rate reaches zero, ``steps`` by default.
    :param on_step: called with the number of steps done, after each; training stops when it returns true.
    """
    rng, optimizers = random.Random(seed), _optimizers(model, rate)
    highest = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    done, began, mean_loss = 0, time.monotonic(), 0.0
    model.train()
    for pool in pools:
        for ids, targets in batches(pool, batch_size, rng):
            factor = _schedule(done, horizon or steps, warmup, decay)
            for optimizer, rates in zip(optimizers, highest, strict=True):
                for group, highest_rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = highest_rate * factor
            loss = nn.functional.cross_entropy(logits_of(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            done += 1
            mean_loss = loss.item() if done == 1 else 0.98 * mean_loss + 0.02 * loss.item()
            if done % 100 == 0:
                log.info("step %d of %d, loss %.4f, %.0f s", done, steps, mean_loss, time.monotonic() - began)
            if (on_step is not None and on_step(done)) or done == steps:
                model.eval()
                return
