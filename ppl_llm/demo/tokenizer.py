"""Tokenizer of the demo models: a small byte-level BPE with Qwen2.5's splitting rules, special tokens and chat format."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .problems import LEVELS, draw

__all__ = ["END", "PAD", "STEP_TOKEN", "SYSTEM_PROMPT", "train_tokenizer"]

PAD, START, END, STEP_TOKEN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"
SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."

# Words with at most one sign before them, digits one by one, punctuation, line breaks, other white space: a digit never shares a
# token with its neighbours, hence the end of a step ("\n\n" after a digit) is a token of its own.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\n' + default_system + '<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
).replace("default_system", repr(SYSTEM_PROMPT))


def _corpus(num_problems: int, rng: random.Random) -> Iterator[str]:
    for index in range(num_problems):
        problem = draw("train", 1 + index % len(LEVELS), rng)
        yield f"system\n{SYSTEM_PROMPT}"
        yield f"user\n{problem.text}"
        yield f"assistant\n{problem.solution}"


def train_tokenizer(vocab_size: int = 448, num_problems: int = 2000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer on demo problems.

    :param int vocab_size: upper bound of the vocabulary, special tokens included.
    :param int num_problems: problems of the training split to learn the merges from.
    :param int seed: seed of the problems.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END, STEP_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(num_problems, random.Random(seed)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, STEP_TOKEN],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
