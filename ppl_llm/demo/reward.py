"""The demo's process reward models: data, training until a wished quality, calibration."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM

from ..reward.qwen_prm import Qwen2PRM
from .corpus import Encoded, Labelled, corrupt, dense_prm_example, train_problems
from .fit import fit
from .measure import fit_temperature, flat, level_aurocs, sample_attempts, step_log_odds
from .problems import STEP_END
from .tokenizer import STEP_TOKEN

__all__ = ["calibrate", "reward_pools", "train_prm"]

log = logging.getLogger(__name__)


def reward_pools(
    lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_samples: int, rate: float, seed: int
) -> Iterator[list[Encoded]]:
    """Pools with the language model's own samples (drawn once) and as many spoilt solutions (fresh ones each time)."""
    rng = random.Random(seed)
    own = [dense_prm_example(tokenizer, attempt) for attempt in sample_attempts(lm, tokenizer, train_problems(num_samples, rng), 1, seed)]
    while True:
        spoilt = [dense_prm_example(tokenizer, corrupt(problem, rate, rng)) for problem in train_problems(num_samples, rng)]
        yield [*own, *spoilt]


def _judge(backbone: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, new_layers: int) -> Qwen2PRM:
    """A reward model that starts as the backbone, with a new head.

    The backbone knows the digit that should come next in its last layer only, so that it takes a layer more to compare it with the digit
    that did come, and another one to gather the comparisons of a step. New layers start as the identity, and the step token, which the
    backbone never saw, as the line break that it stands for.
    """
    config = deepcopy(backbone.config)
    config.num_labels, config.tie_word_embeddings = 2, False
    config.num_hidden_layers += new_layers
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    prm = Qwen2PRM(config)
    prm.model.load_state_dict(backbone.model.state_dict(), strict=False)
    for layer in prm.model.layers[backbone.config.num_hidden_layers :]:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    step_token, line_break = tokenizer.convert_tokens_to_ids(STEP_TOKEN), tokenizer.encode(STEP_END)[0]
    with torch.no_grad():
        prm.model.embed_tokens.weight[step_token] = prm.model.embed_tokens.weight[line_break]
    return prm


def train_prm(
    backbone: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    pools: Iterator[list[Encoded]],
    validation: Sequence[Labelled],
    steps: int,
    seed: int,
    rate: float,
    enough: float,
    new_layers: int = 0,
    check_every: int = 25,
) -> tuple[Qwen2PRM, int]:
    """Fine-tune a reward model from ``backbone`` and stop as soon as it is good enough.

    :param pools: pools of encoded labelled solutions.
    :param validation: attempts that decide when to stop.
    :param int steps: upper bound of the optimiser steps.
    :param float enough: lowest step AUROC over the levels at which training stops: the demo wants a fallible judge.
    :param int new_layers: layers to put on top of the backbone's.
    :return: the model and the number of steps taken.
    """
    torch.manual_seed(seed)
    prm = _judge(backbone, tokenizer, new_layers)
    taken = 0

    def good_enough(done: int) -> bool:
        nonlocal taken
        taken = done
        if done % check_every:
            return False
        prm.eval()
        levels = level_aurocs(prm, tokenizer, validation)
        prm.train()
        log.info("reward model, %d steps: AUROC %s", done, {level: round(value, 3) for level, value in levels.items()})
        return min(levels.values()) >= enough

    fit(prm, lambda ids: prm(input_ids=ids), pools, steps, seed, rate, warmup=20, on_step=good_enough)
    return prm, taken


@torch.no_grad()
def _divide_log_odds(prm: Qwen2PRM, temperature: float) -> None:
    prm.score[2].weight.div_(temperature)
    prm.score[2].bias.div_(temperature)


def calibrate(prm: Qwen2PRM, tokenizer: PreTrainedTokenizerBase, attempts: Sequence[Labelled]) -> float:
    """Fold the temperature that fits ``attempts`` best into the last layer.

    :return: the temperature.
    """
    scores, labels = flat(attempts, step_log_odds(prm, tokenizer, attempts))
    temperature = fit_temperature(scores, labels)
    _divide_log_odds(prm, temperature)
    return temperature
