"""What a judge that thinks has drawn."""

from __future__ import annotations

from typing import Any


class Verdicts(dict[tuple[str, str], float]):
    """Log-odds by problem and answer. They are estimates: an answer that is judged again would have others, so that a run that is resumed
    in another process takes them along (:class:`~ppl_llm.reward.score_cache.Drawn`)."""

    def state(self) -> list[list[Any]]:
        """Problems, answers and log-odds."""
        return [[problem, answer, log_odds] for (problem, answer), log_odds in self.items()]

    def adopt(self, state: list[list[Any]]) -> Verdicts:
        """Itself, with these in place of its own."""
        self.update({(problem, answer): log_odds for problem, answer, log_odds in state})
        return self
