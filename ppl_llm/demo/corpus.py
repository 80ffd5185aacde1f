"""Training data of the demo models: encoded solutions for the language model, labelled steps for the reward models."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .checker import check_steps, right_steps
from .problems import LEVELS, STEP_END, Operation, Problem, draw, draw_operation, write_answer, write_step
from .tokenizer import END, STEP_TOKEN

__all__ = [
    "IGNORED",
    "Labelled",
    "batches",
    "batches_in_order",
    "corrupt",
    "dense_prm_example",
    "drill_example",
    "lm_example",
    "prm_example",
    "prompt_of",
    "train_problems",
]

IGNORED = -100

Encoded = tuple[list[int], list[int]]
"""Token ids and one target per position."""


@dataclass(frozen=True)
class Labelled:
    """A solution attempt with one label per step."""

    problem: Problem
    steps: tuple[str, ...]
    labels: tuple[bool, ...]


def prompt_of(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str:
    """The chat up to the place where the solution begins, as inference renders it."""
    messages = [{"role": "user", "content": problem.text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def lm_example(tokenizer: PreTrainedTokenizerBase, problem: Problem, solution: str | None = None) -> Encoded:
    """Token ids; the target at a position is the token after it, in the solution only (the problem itself is random)."""
    prompt = tokenizer.encode(prompt_of(tokenizer, problem))
    ids = prompt + tokenizer.encode((solution or problem.solution) + END)
    return ids, [IGNORED] * (len(prompt) - 1) + ids[len(prompt) :] + [IGNORED]


def _drill_steps(num_steps: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Unconnected right steps, each cut in two before its result."""
    for _ in range(num_steps):
        size = LEVELS[rng.choice(sorted(LEVELS))]
        left = rng.randint(1, size.max_value)
        operation = draw_operation(left, size, rng)
        step = write_step(rng.randrange(size.num_steps), left, operation, operation(left))
        yield step[: step.index("=") + 1], step[step.index("=") + 1 :]


def drill_example(tokenizer: PreTrainedTokenizerBase, rng: random.Random, num_steps: int = 12) -> Encoded:
    """Right steps with targets in their results only: arithmetic at three times the density of whole problems."""
    ids: list[int] = []
    targets: list[int] = []
    for question, result in _drill_steps(num_steps, rng):
        asked, told = tokenizer.encode(question), tokenizer.encode(result + STEP_END)
        ids += asked + told
        targets += [IGNORED] * (len(asked) - 1) + told + [IGNORED]
    return ids, targets


def prm_example(tokenizer: PreTrainedTokenizerBase, attempt: Labelled) -> Encoded:
    """Token ids of ``prompt s_1<extra_0>s_2<extra_0>..``; the target at the t-th ``<extra_0>`` is the label of step t (1 = right)."""
    text = prompt_of(tokenizer, attempt.problem) + "".join(step + STEP_TOKEN for step in attempt.steps)
    ids = tokenizer.encode(text)
    marker, labels = tokenizer.convert_tokens_to_ids(STEP_TOKEN), iter(attempt.labels)
    return ids, [int(next(labels)) if token == marker else IGNORED for token in ids]


def dense_prm_example(tokenizer: PreTrainedTokenizerBase, attempt: Labelled, after_mistake: int = IGNORED, every: int = 1) -> Encoded:
    """The same for training: inside a step, each token is labelled by whether the step is right up to that token.

    A judge that must find the mistake from one bit per step learns slowly; this tells it where the mistake is.

    :param int after_mistake: target of the tokens between a mistake and the end of its step.
    :param int every: keep the targets inside steps at every so many positions only.
    """
    ids = tokenizer.encode(prompt_of(tokenizer, attempt.problem))
    targets, marker = [IGNORED] * len(ids), tokenizer.convert_tokens_to_ids(STEP_TOKEN)
    for step, right, label in zip(attempt.steps, right_steps(attempt.problem, attempt.steps), attempt.labels, strict=True):
        tokens, wanted = tokenizer.encode(step), tokenizer.encode(right or "")
        for end in range(1, len(tokens) + 1):
            target = 1 if tokens[:end] == wanted[:end] else 0 if tokens[: end - 1] == wanted[: end - 1] else after_mistake
            targets.append(target if len(targets) % every == 0 else IGNORED)
        ids += [*tokens, marker]
        targets.append(int(label))
    return ids, targets


def batches_in_order(examples: Sequence[Encoded], batch_size: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Indices, token ids and targets of examples of about the same length, padded on the right (a causal model never sees the padding)."""
    order = sorted(range(len(examples)), key=lambda index: len(examples[index][0]))
    for first in range(0, len(order), batch_size):
        group = order[first : first + batch_size]
        longest = len(examples[group[-1]][0])
        ids = torch.zeros(len(group), longest, dtype=torch.long)
        targets = torch.full((len(group), longest), IGNORED)
        for row, index in enumerate(group):
            ids[row, : len(examples[index][0])] = torch.tensor(examples[index][0])
            targets[row, : len(examples[index][1])] = torch.tensor(examples[index][1])
        yield group, ids, targets


def batches(examples: Sequence[Encoded], batch_size: int, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches, shuffled."""
    shuffled = list(examples)
    rng.shuffle(shuffled)  # the sort by length keeps this order among equals
    groups = [(ids, targets) for _, ids, targets in batches_in_order(shuffled, batch_size)]
    rng.shuffle(groups)
    yield from groups


def _wrong_digit(value: int, rng: random.Random) -> int:
    """``value`` with one digit replaced, or off by a little as after a forgotten carry."""
    if rng.random() < 0.7:
        return abs(value + rng.choice([-10, -2, -1, -1, 1, 1, 2, 10]))
    digits = list(str(value))
    digits[rng.randrange(len(digits))] = str(rng.randrange(10))
    return int("".join(digits))


def corrupt(problem: Problem, rate: float, rng: random.Random) -> Labelled:
    """A solution in which every step is spoilt with probability ``rate``; later steps continue from the number that was stated.

    The mistakes: a wrong digit in the result, another operation, another operand, a left operand copied from an earlier line, and in
    the last step a wrong number in the box. A mistake may by chance give a right step, hence the labels come from the checker.
    """
    steps: list[str] = []
    numbers = [problem.start]
    for position, operation in enumerate(problem.operations):
        left, result = numbers[-1], None
        if rng.random() < rate:
            kind = rng.choice(["digit", "digit", "operation", "operand", "left"])
            if kind == "digit":
                result = _wrong_digit(operation(left), rng)
            elif kind == "operation":
                operation = Operation(rng.choice("+-*".replace(operation.symbol, "")), operation.operand)
            elif kind == "operand":
                others = [other.operand for other in problem.operations if other.operand != operation.operand]
                operation = Operation(operation.symbol, rng.choice([*others, _wrong_digit(operation.operand, rng)]))
            else:
                left = rng.choice([*numbers[:-1], _wrong_digit(left, rng)])
        result = abs(operation(left)) if result is None else result
        steps.append(write_step(position, left, operation, result))
        numbers.append(result)
    boxed = rng.choice([*numbers[:-1], _wrong_digit(numbers[-1], rng)]) if rng.random() < rate else numbers[-1]
    steps.append(write_answer(boxed))
    return Labelled(problem, tuple(steps), tuple(check_steps(problem, steps)))


def train_problems(n: int, rng: random.Random, hardest: int = max(LEVELS)) -> list[Problem]:
    """``n`` problems of the training split, balanced over the levels 1 .. ``hardest``."""
    return [draw("train", 1 + index % hardest, rng) for index in range(n)]
