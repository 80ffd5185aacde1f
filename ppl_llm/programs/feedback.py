"""What a verifier or a judge says about a draft, as the next turn's prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..answers.extraction import answer_forms, extract_answer
from ..inference.util.checked import checked
from .turns import next_turn

Tell = Callable[[str, str, str], Any]
"""``tell(problem, draft, message)``: what ``lm.start`` takes for the next turn, a text or chat messages."""

_REQUEST = "Take this into account and correct what is wrong. Then give the whole solution again with its final answer."
_NO_ANSWER = "The solution gives no complete answer."


def tell_message(problem: str, draft: str, message: str) -> list[dict[str, str]]:
    """The problem, the draft as the assistant's answer, and the message with a request for a better one."""
    return next_turn(problem, draft, f"{message}\n\n{_REQUEST}")


class Feedback:
    """The prompt of a turn that says what a critic found, for ``revise(model, rounds, prompt=Feedback(critic))``.

    What a verifier says is a function of the draft, and the model is that of :func:`~ppl_llm.revise`. What a judge writes is drawn once for
    each draft and kept: given its critiques that is a function too, so that chains and audits see one model, and the evidence is, without
    bias, that of the program in which each critique is a latent site. Drafts of the same text share their critique.

    :param critic: a function ``critic(problem, draft)``, which gives the message, or a bool or a probability for a plain one; something
        with ``verdict(answer)`` and so with messages, such as :class:`~ppl_llm.tasks.CodeVerifier`; or a
        :class:`~ppl_llm.JudgeReward` with ``thoughts``, whose critique is the message.
    :param tell: ``tell(problem, draft, message)`` makes the prompt, by default :func:`tell_message`.
    :param forms: of the answer in a draft, for ``verdict(answer)``; see :func:`~ppl_llm.extract_answer`.
    :raises ValueError: for a critic that is none of these; later, for one that gives something else, or fails.
    """

    @checked
    def __init__(self, critic: Any, *, tell: Tell = tell_message, forms: Sequence[str] = answer_forms("code")) -> None:
        if not callable(critic) and not any(callable(getattr(critic, name, None)) for name in ("critiques", "verdict")):
            raise ValueError(
                f"critic must be a function of the problem and the draft, have verdict(answer), or be a JudgeReward, got {critic!r}"
            )
        self.critic, self.tell, self.forms = critic, tell, tuple(forms)
        self._messages: dict[tuple[str, str], str] = {}

    @property
    def __name__(self) -> str:
        """By which a run that is resumed is told from another; a function cannot be."""
        return f"Feedback({getattr(self.critic, '__name__', type(self.critic).__name__)})"

    def __call__(self, problem: str, draft: str) -> Any:
        return self.tell(problem, draft, self.message(problem, draft))

    def message(self, problem: str, draft: str) -> str:
        """What the critic says about a draft."""
        self.prepare([(problem, draft)])
        return self._messages[problem, draft]

    def prepare(self, drafts: Sequence[tuple[str, str]]) -> None:
        """Ask about drafts, pairs with their problems, all at once where the critic is a judge."""
        new = [each for each in dict.fromkeys(drafts) if each not in self._messages]
        if new and hasattr(self.critic, "critiques"):
            self._messages.update(zip(new, self.critic.critiques(new), strict=True))
            return
        for problem, draft in new:
            self._messages[problem, draft] = self._said(problem, draft)

    def release_caches(self) -> None:
        """Forget the messages: drafts are judged again."""
        self._messages.clear()
        if callable(release := getattr(self.critic, "release_caches", None)):
            release()

    def _said(self, problem: str, draft: str) -> str:
        if hasattr(self.critic, "verdict"):
            return _verdict(self.critic, draft, self.forms)
        found = self.critic(problem, draft)
        if isinstance(found, str):
            return found
        if isinstance(found, bool):
            return "This solution is right." if found else "This solution is wrong."
        if isinstance(found, int | float) and 0 <= found <= 1:
            return f"This solution is right with probability {found:.2f}."
        raise ValueError(
            f"a critic must give a message, a bool or a probability in [0, 1], got {found!r:.100} for the draft {draft[-80:]!r}"
        )


class ProblemCritics:
    """The critics of problems that have their own, such as tests: what one says about a draft of its problem.

    :param forms: of the answer in a draft.
    """

    def __init__(self, forms: Sequence[str]) -> None:
        self.forms, self._critics = tuple(forms), dict[str, Any]()

    def know(self, critics: Mapping[str, Any]) -> None:
        """:param dict critics: by the text of the problem."""
        self._critics.update(critics)

    def __call__(self, problem: str, draft: str) -> str:
        """
        :raises ValueError: for a problem without a critic.
        """
        critic = self._critics.get(problem)
        if critic is None:
            raise ValueError(f"feedback from tests needs problems that have them, and {problem[:60]!r} has none; give verifier or judge")
        return _verdict(critic, draft, self.forms)


def _verdict(critic: Any, draft: str, forms: Sequence[str]) -> str:
    """What a critic of answers says about the one in a draft."""
    answer = extract_answer(draft, forms)
    return _NO_ANSWER if answer is None else str(critic.verdict(answer).message)
