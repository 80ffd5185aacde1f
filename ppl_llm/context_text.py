"""The texts of the sequences of a context."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from .answers.extraction import extract_answer
from .context_lm import ContextLM
from .finishing import before_any, decoded
from .thinking import Thinking, answered


class ContextText:
    """What a :class:`~ppl_llm.Context` says, as texts in nested lists over its batch shape."""

    lm: ContextLM
    problems: tuple[str, ...]
    problem_index: Tensor
    answer_forms: tuple[str, ...]
    prefills: tuple[str, ...]
    thinking: Thinking | None

    def _nested(self, fn: Callable[[Any], Any]) -> Any:
        context: Any = self
        if context.cache_entries:  # which every sequence would take along
            return replace(context, cache_entries={})._nested(fn)
        return [context[i]._nested(fn) for i in range(len(context))] if context.batch_shape else fn(context)

    @property
    def problem(self) -> Any:
        """The problem's text; nested lists over the batch shape."""
        return self._nested(lambda sequence: self.problems[int(sequence.problem_index)])

    @property
    def text(self) -> Any:
        """What was generated after the prompt, up to a final stop; nested lists over the batch shape."""
        return self._nested(lambda s: before_any(decoded(s.lm, s.tokens, s.prompt_lengths, s.lengths), s.final_stop))

    @property
    def solution(self) -> Any:
        """What each sequence answers: its text, an answer that the prompt has begun included, without its thinking; empty for one that has
        not closed that. Nested lists over the batch shape.
        """
        return self._nested(lambda sequence: sequence._solution() or "")

    @property
    def steps(self) -> Any:
        """The steps really taken, each a string; nested lists over the batch shape."""

        def split(sequence: Any) -> list[str]:
            bounds = [int(sequence.prompt_lengths), *sequence.ends.tolist()]
            tokens = sequence.tokens.tolist()
            return [self.lm.decode(tokens[a:b]) for a, b in itertools.pairwise(bounds) if b > a]

        return self._nested(split)

    def describe(self, value: Tensor) -> str | None:
        """The text of one value ``[max_tokens]`` of an :class:`LLMStep`; ``None`` for what cannot be one."""
        if value.dim() != 1 or value.is_floating_point() or bool((value >= self.lm.vocab_size).any()):
            return None
        return self.lm.decode(value[value >= 0].tolist())

    def answers(self) -> Any:
        """The answer extracted from each sequence's text, an answer that the prompt has begun included, and from what comes after its
        thinking only; ``None`` where there is none. Nested lists over the batch shape.
        """
        return self._nested(lambda sequence: sequence._answer())

    def _answer(self) -> str | None:
        text = self._solution()
        return None if text is None else extract_answer(text, self.answer_forms)

    def _solution(self) -> str | None:
        text = self.text if self.thinking is None else answered(self)
        return None if text is None else self._prefill + text

    def prefill_of(self, problem: int) -> str:
        """The answer that the prompt of problem number ``problem`` has begun."""
        return self.prefills[problem] if self.prefills else ""

    @property
    def _prefill(self) -> str:
        return self.prefill_of(int(self.problem_index))
