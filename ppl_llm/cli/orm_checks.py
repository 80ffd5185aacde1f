"""What ``ppl-llm check`` tries on a sequence classifier of whole answers."""

from __future__ import annotations

import time
from typing import Any

from .findings import Findings

PROBLEM = "What is 12 + 30?"
RIGHT = "Add the tens and then the ones: 12 + 30 = 42.\n\nThe final answer is \\boxed{42}."
WRONG = "Add the tens and then the ones: 12 + 30 = 52.\n\nThe final answer is \\boxed{52}."


class ORMChecks:
    """Tries an outcome reward model on known answers.

    :param orm: a :class:`~ppl_llm.TransformersORM`.
    :param Findings findings: where results go.
    """

    def __init__(self, orm: Any, findings: Findings) -> None:
        self.orm, self.findings = orm, findings

    def run(self) -> None:
        """All checks."""
        orm = self.orm
        room = "texts of any length" if orm.max_length is None else f"contexts of {orm.max_length} tokens"
        self.findings.add("model", True, f"{type(orm.model).__name__} with {room}")
        self._labels()
        template = orm.tokenizer.chat_template is not None
        self.findings.add(
            "chat template",
            True if template else None,
            "found" if template else "none: the model reads the problem and the answer as a pair of texts",
        )
        with self.findings.trying("scores"):
            self._known_answers()

    def _labels(self) -> None:
        config = self.orm.model.config
        if config.num_labels == 1:
            remedy = "preferences fix differences of scores only: best-of-n needs no more, weights take TransformersORM(scale=, offset=)"
            self.findings.add("labels", None, "a single score, read as log-odds: even odds at 0", remedy)
            return
        name = config.id2label[self.orm.positive_label]
        remedy = "if it is another one: TransformersORM.from_pretrained(..., positive_label=N)"
        self.findings.add("labels", None, f"label {self.orm.positive_label} of {config.num_labels}, {name!r}, means right", remedy)

    def _known_answers(self) -> None:
        began = time.perf_counter()
        right, wrong = self.orm.answer_log_odds([(PROBLEM, RIGHT), (PROBLEM, WRONG)]).tolist()
        seconds = time.perf_counter() - began
        remedy = "a reward model prefers right answers: a wrong tokenizer, another label (positive_label), or no reward model"
        detail = f"{right:.2f} for a right answer to {PROBLEM!r}, {wrong:.2f} for a wrong one ({seconds:.2f} s)"
        self.findings.add("known answers", right > wrong, detail, "" if right > wrong else remedy)
