"""What the demo models can do: samples of the language model, scores of the reward models, and the figures of the model card."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..kv_cache.support import cache_keyword
from .checker import check_steps, split_solution
from .corpus import IGNORED, Labelled, batches_in_order, prm_example, prompt_of
from .problems import LEVELS, Problem

__all__ = ["auroc", "by_level", "calibration_error", "fit_temperature", "pass_at_1", "sample_attempts", "step_log_odds"]


@torch.no_grad()
def sample_attempts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    num_samples: int = 1,
    seed: int = 0,
    max_new_tokens: int = 200,
    batch_size: int = 192,
) -> list[Labelled]:
    """Sample solutions at temperature 1 and label their steps with the checker.

    :param int num_samples: samples per problem.
    :return: the attempts, those of one problem next to each other.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts = [tokenizer.encode(prompt_of(tokenizer, problem)) for problem in problems for _ in range(num_samples)]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        rows = _sample(model, [prompts[index] for index in indices], tokenizer.eos_token_id, max_new_tokens, generator)
        for index, text in zip(indices, tokenizer.batch_decode(rows), strict=True):
            texts[index] = text
    attempts = []
    for index, text in enumerate(texts):
        problem, steps = problems[index // num_samples], split_solution(text)
        attempts.append(Labelled(problem, tuple(steps), tuple(check_steps(problem, steps))))
    return attempts


def _sample(
    model: PreTrainedModel, prompts: Sequence[list[int]], end: int, max_new_tokens: int, generator: torch.Generator
) -> list[list[int]]:
    longest = max(map(len, prompts))  # padded on the left: rotary positions are relative, so the shift does not matter
    ids = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    rows: list[list[int]] = [[] for _ in prompts]
    running, cache, keyword = torch.ones(len(ids), dtype=torch.bool), None, cache_keyword(model)
    for _ in range(max_new_tokens):
        output = model(input_ids=ids, attention_mask=mask, **{keyword: cache}, use_cache=True, logits_to_keep=1)
        cache = getattr(output, keyword)
        ids = torch.multinomial(output.logits[:, -1].float().softmax(-1), 1, generator=generator)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        running &= ids[:, 0] != end
        if not running.any():
            break
        for row in running.nonzero()[:, 0].tolist():
            rows[row].append(int(ids[row]))
    return rows


@torch.no_grad()
def step_log_odds(
    prm: nn.Module, tokenizer: PreTrainedTokenizerBase, attempts: Sequence[Labelled], batch_size: int = 128
) -> list[list[float]]:
    """Log-odds that a step is right, one list per attempt."""
    examples = [prm_example(tokenizer, attempt) for attempt in attempts]
    scores: list[list[float]] = [[] for _ in examples]
    for indices, ids, targets in batches_in_order(examples, batch_size):
        logits = prm(input_ids=ids).float()
        odds = logits[..., 1] - logits[..., 0]
        for row, index in enumerate(indices):
            scores[index] = odds[row][targets[row] != IGNORED].tolist()
    return scores


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Probability that a right step scores above a wrong one, ties counting one half."""
    right, wrong = scores[labels].double(), scores[~labels].double().sort().values
    if not len(right) or not len(wrong):
        return float("nan")
    below, up_to = torch.searchsorted(wrong, right), torch.searchsorted(wrong, right, right=True)
    return float((below + up_to).double().mean() / (2 * len(wrong)))


def calibration_error(log_odds: Tensor, labels: Tensor, num_bins: int = 15) -> float:
    """Expected calibration error of ``sigmoid(log_odds)``: mean over steps of |share of right steps - mean probability| in their bin."""
    probability = log_odds.double().sigmoid()
    bins = (probability * num_bins).long().clamp(max=num_bins - 1)
    gap = torch.zeros(num_bins, dtype=torch.double).index_add_(0, bins, labels.double() - probability)
    return float(gap.abs().sum() / len(labels))


def fit_temperature(log_odds: Tensor, labels: Tensor) -> float:
    """The temperature T that maximises the likelihood of ``labels`` under ``sigmoid(log_odds / T)``."""
    scores, targets = log_odds.double(), labels.double()
    inverse = torch.ones((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(scores * inverse, targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return 1 / inverse.item()


def flat(attempts: Sequence[Labelled], scores: Sequence[Sequence[float]] | None = None) -> tuple[Tensor, Tensor]:
    """All steps in one line: scores (zeros if there are none) and labels."""
    labels = torch.tensor([label for attempt in attempts for label in attempt.labels], dtype=torch.bool)
    if scores is None:
        return torch.zeros(len(labels)), labels
    return torch.tensor([score for row in scores for score in row]), labels


def is_solved(attempt: Labelled) -> bool:
    """Whether the attempt states the right answer in its last step, whatever the steps before it."""
    return bool(attempt.steps) and attempt.steps[-1].strip() == attempt.problem.steps[-1]


def pass_at_1(attempts: Sequence[Labelled]) -> float:
    """Share of the attempts with the right final answer."""
    return sum(map(is_solved, attempts)) / len(attempts)


def by_level(attempts: Sequence[Labelled], figure: Callable[[Sequence[int]], float]) -> dict[int, float]:
    """``figure`` of the indices of the attempts of each level."""
    return {level: figure([i for i, attempt in enumerate(attempts) if attempt.problem.level == level]) for level in LEVELS}


def step_error_rate(attempts: Sequence[Labelled]) -> float:
    """Share of the steps that are wrong."""
    _, labels = flat(attempts)
    return float((~labels).double().mean())


def level_aurocs(prm: nn.Module, tokenizer: PreTrainedTokenizerBase, attempts: Sequence[Labelled]) -> dict[int, float]:
    """Step AUROC per level."""
    scores = step_log_odds(prm, tokenizer, attempts)
    return by_level(attempts, lambda indices: auroc(*flat([attempts[i] for i in indices], [scores[i] for i in indices])))
