"""The demo's process reward models: data, architecture, calibration."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import partial
from itertools import cycle, islice

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from ..reward.prm.networks import Qwen2PRM
from .corpus import IGNORED, Encoded, Labelled, corrupt, dense_prm_example, prompt_of, train_problems
from .fit import fit
from .measure import fit_temperature, flat, level_aurocs, step_log_odds
from .problems import STEP_END
from .tokenizer import STEP_TOKEN

__all__ = ["calibrate", "fit_prm", "judge_from", "reward_pools"]

log = logging.getLogger(__name__)


def reward_pools(
    own: Sequence[Labelled], tokenizer: PreTrainedTokenizerBase, seed: int, after_mistake: int = IGNORED, every: int = 1, rate: float = 0.25
) -> Iterator[list[Encoded]]:
    """Endless pools: 768 of the language model's own samples in turn and 384 fresh solutions spoilt at ``rate``."""
    rng = random.Random(seed)
    encode = partial(dense_prm_example, tokenizer, after_mistake=after_mistake, every=every)
    encoded = cycle([encode(attempt) for attempt in own])
    while True:
        spoilt = [encode(corrupt(problem, rate, rng)) for problem in train_problems(384, rng)]
        yield [*islice(encoded, 768), *spoilt]


@torch.no_grad()
def judge_from(backbone: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, new_layers: int, seed: int) -> Qwen2PRM:
    """A reward model that starts as the backbone, with a new head and ``new_layers`` layers on top of the old ones, which are then frozen.

    The backbone knows the token that should come next in its last layer only, so that it takes a layer more to compare it with the token
    that did come, and another one to gather the comparisons of a step.
    """
    torch.manual_seed(seed)
    config, old_layers = deepcopy(backbone.config), backbone.config.num_hidden_layers
    config.num_labels, config.tie_word_embeddings = 2, False
    config.num_hidden_layers += new_layers
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    config.rms_norm_eps = 1e-12 if new_layers else config.rms_norm_eps
    prm = Qwen2PRM(config)
    prm.model.load_state_dict(backbone.model.state_dict(), strict=False)
    # The backbone never saw the step token: it starts as the line break that it stands for.
    embedding = prm.model.embed_tokens.weight
    embedding[tokenizer.convert_tokens_to_ids(STEP_TOKEN)] = embedding[tokenizer.encode(STEP_END)[0]]
    if new_layers:
        _rescale(prm, old_layers, tokenizer)
        for layer in prm.model.layers[old_layers:]:
            nn.init.normal_(layer.self_attn.o_proj.weight, std=0.05)
            nn.init.normal_(layer.mlp.down_proj.weight, std=0.05)
        prm.model.embed_tokens.requires_grad_(False)
        for layer in prm.model.layers[:old_layers]:
            layer.requires_grad_(False)
    return prm


def _rescale(prm: Qwen2PRM, old_layers: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Bring what the old layers hand over to size one: it is about two hundred, and a new layer could not make itself heard.

    Every layer normalises its input, hence dividing all that is added up by one number changes nothing else.
    """
    texts = [prompt_of(tokenizer, problem) + problem.solution for problem in train_problems(6, random.Random(0))]
    outputs = []
    for text in texts:
        hidden = prm.model(input_ids=torch.tensor([tokenizer.encode(text)]), output_hidden_states=True).hidden_states[old_layers]
        outputs.append(hidden[0].square().mean(-1).sqrt())
    size = torch.cat(outputs).median()
    prm.model.embed_tokens.weight.div_(size)
    for layer in prm.model.layers[:old_layers]:
        layer.self_attn.o_proj.weight.div_(size)
        layer.mlp.down_proj.weight.div_(size)


def fit_prm(
    prm: Qwen2PRM,
    tokenizer: PreTrainedTokenizerBase,
    pools: Iterator[list[Encoded]],
    validation: Sequence[Labelled],
    steps: int,
    seed: int,
    rate: float,
    check_every: int = 50,
) -> None:
    """Fine-tune a reward model, reporting its step AUROC on ``validation`` now and then."""

    def report(done: int) -> bool:
        if done % check_every == 0:
            prm.eval()
            levels = level_aurocs(prm, tokenizer, validation)
            prm.train()
            log.info("reward model, %d steps: AUROC %s", done, {level: round(value, 3) for level, value in levels.items()})
        return False

    fit(prm, lambda ids: prm(input_ids=ids), pools, steps, seed, rate, warmup=20, on_step=report)


@torch.no_grad()
def _divide_log_odds(prm: Qwen2PRM, temperature: float) -> None:
    for parameter in prm.score[2].parameters():
        parameter.div_(temperature)


def calibrate(prm: Qwen2PRM, tokenizer: PreTrainedTokenizerBase, attempts: Sequence[Labelled]) -> float:
    """Fold the temperature that fits ``attempts`` best into the last layer.

    :return: the temperature.
    """
    scores, labels = flat(attempts, step_log_odds(prm, tokenizer, attempts))
    temperature = fit_temperature(scores, labels)
    _divide_log_odds(prm, temperature)
    return temperature
