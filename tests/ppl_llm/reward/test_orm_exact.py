"""A sequence classifier as the reward of a program: the evidence against sums over all texts, with scores of plain forward passes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_llm import SMC, Enumeration, LLMStep, TabularLM, TransformersORM, reasoning
from ppl_llm.context import PAD
from ppl_llm.inference import SMCFailed, systematic
from tests.helpers.tiny_models import plain_scores, write_orm

SYMBOLS = ["a", "b", "$"]
LM = TabularLM(1.3 * torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64), SYMBOLS, eos="$")
PROBLEM, START = "a", 0
LONGEST = 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_orm(tmp_path_factory.mktemp("models") / "orm")


def program(orm: Any, steps: int) -> Any:
    """One token a step."""
    return reasoning(LM, orm, "exact", max_steps=steps, tokens_per_step=1)


def chances(symbol: int) -> list[float]:
    return [float(p) for p in LM.logits[symbol].softmax(-1)]


def by_hand(directory: Path, steps: int) -> dict[str, float]:
    """p(x) s(x) of every text that ends within so many tokens; one that is cut off has weight zero."""
    texts = ["".join(text) for length in range(steps) for text in itertools.product("ab", repeat=length)]
    scores = plain_scores(directory, PROBLEM, texts).double().sigmoid().tolist()
    mass = {}
    for text, score in zip(texts, scores, strict=True):
        path = [START, *(SYMBOLS.index(letter) for letter in text), 2]
        mass[text] = score * math.prod(chances(before)[after] for before, after in itertools.pairwise(path))
    return mass


class OtherAnswer(TransformersORM):
    """The score of another answer: that without its last letter."""

    def answer_log_odds(self, answers: Sequence[tuple[str, str]]) -> Tensor:
        return super().answer_log_odds([(problem, text[:-1]) for problem, text in answers])


class UpsideDown(TransformersORM):
    """Log-odds that the answer is wrong."""

    def _log_odds(self, logits: Tensor) -> Tensor:
        return -super()._log_odds(logits)


def deviation(kind: type[TransformersORM], directory: Path) -> float:
    """Of the evidence and of each text's share, by the exact posterior."""
    posterior = Enumeration(program(kind.from_pretrained(directory), LONGEST)).run(PROBLEM)
    mass = by_hand(directory, LONGEST)
    total = sum(mass.values())
    found = dict.fromkeys(mass, 0.0)
    for text, done, weight in zip(posterior.value.text, posterior.value.done.tolist(), posterior.weights.tolist(), strict=True):
        if done:
            found[text] += weight
    gaps = [abs(found[text] - mass[text] / total) for text in mass]
    return max(*gaps, abs(float(posterior.log_evidence.exp()) / total - 1))


def test_the_exact_posterior_is_the_sum_over_texts(directory: Path) -> None:
    assert deviation(TransformersORM, directory) < 1e-6  # scores are float32


class Forced(Messenger):
    """Gives the steps their enumerated tokens."""

    def __init__(self, tokens: list[list[int]]) -> None:
        super().__init__()
        self.tokens, self.used = tokens, 0

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], LLMStep):
            active = ~msg["fn"].context.done
            msg["value"] = torch.where(active, torch.tensor(self.tokens[self.used]), PAD)[..., None]
            self.used += 1


class AtCell:
    """The systematic scheme at the middle of a cell of its uniform, for two particles.

    :ivar float probability: of the cell; all of it is in the first one where it is never called.
    """

    __name__ = "at_cell"

    def __init__(self, cell: int) -> None:
        self.cell, self.probability = cell, 1.0 - cell

    def num_uniforms(self, num_particles: int) -> int:
        return 1

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        share = float(log_weights.double().softmax(0)[0])
        cut = 2 * share - (share >= 0.5)  # where the point of the first or the second offspring passes from one particle to the other
        edges = [0.0, cut, 1.0]
        self.probability = edges[self.cell + 1] - edges[self.cell]
        return systematic(log_weights, torch.full_like(u, (edges[self.cell] + edges[self.cell + 1]) / 2))


class AfterFirst:
    """Enumerates the resampling after the first step; one after the last has no effect on the evidence."""

    __name__ = "after_first"

    def __init__(self, first: AtCell, forced: Forced) -> None:
        self.first, self.forced, self.parents = first, forced, [0, 1]

    def num_uniforms(self, num_particles: int) -> int:
        return 1

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        if self.forced.used > 1:
            return systematic(log_weights, torch.full_like(u, 0.5))
        ancestors = self.first(log_weights, u)
        self.parents = ancestors.flatten().tolist()
        return ancestors


def expected_evidence(kind: type[TransformersORM], directory: Path) -> float:
    """E[Z] of a filter with two particles and two steps over all tokens and all uniforms: the real engine runs on each of them."""
    model, total = program(kind.from_pretrained(directory), 2), 0.0
    for first in itertools.product(range(3), repeat=2):
        for cell in range(2):
            for second in itertools.product(range(3), repeat=2):
                forced = Forced([list(first), list(second)])
                scheme = AfterFirst(AtCell(cell), forced)
                try:
                    posterior = SMC(forced(model), num_particles=2, resampler=scheme, ess_threshold=1.0).run(PROBLEM)
                except SMCFailed:  # both are cut off: the estimate is zero
                    continue
                mass = math.prod(chances(START)[symbol] for symbol in first) * scheme.first.probability
                for k, symbol in enumerate(second):
                    before = first[scheme.parents[k]]
                    mass *= 1 / 3 if before == 2 else chances(before)[symbol]  # what a finished particle does not draw
                total += mass * float(posterior.log_evidence.exp())
    return total


def test_the_evidence_of_a_filter_is_unbiased_to_rounding(directory: Path) -> None:
    assert expected_evidence(TransformersORM, directory) == pytest.approx(sum(by_hand(directory, 2).values()), rel=1e-6)


@pytest.mark.parametrize("kind", [OtherAnswer, UpsideDown])
def test_wrong_classifiers_are_rejected(kind: type[TransformersORM], directory: Path) -> None:
    assert deviation(kind, directory) > 1e-2


def test_a_filter_with_a_wrong_classifier_is_rejected(directory: Path) -> None:
    assert abs(expected_evidence(OtherAnswer, directory) / sum(by_hand(directory, 2).values()) - 1) > 1e-3
