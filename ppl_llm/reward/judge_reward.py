"""A language model as a judge of answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..inference.util.checked import checked
from ..inference.util.validation import check_count, check_positive
from ..lm.base import LanguageModel, StepOptions
from .answer_reward import AnswerReward
from .prm.formats.base import single_id

_TEMPLATE = "Problem:\n{problem}\n\nProposed solution:\n{answer}\n\n{question} {request}"
_WORD = "Answer with one word, Yes or No."
_THINK = "Think it through step by step, then end with '{verdict} Yes' or '{verdict} No'."
_LEAST_MASS = 0.5
_NEVER = "\x00"
_log = logging.getLogger(__name__)
_ONE_TOKEN = StepOptions(max_tokens=1)

Score = Callable[[str], float | None]
"""From what a judge wrote to a probability, ``None`` where it holds none."""


class JudgeReward(AnswerReward):
    """Asks a language model whether an answer is right; see :class:`~ppl_llm.reward.answer_reward.AnswerReward` for unfinished ones.

    The score is log p(yes) - log p(no) of the judge's first word: nothing is sampled. A judge that says neither has not understood the
    question; a warning is logged where p(yes) + p(no) is less than a half.

    With ``thoughts=K`` the judge thinks first: it writes K chains of thought, and the score is the mean of their verdicts,
    ``s = mean_k p(yes | chain k)`` (Zhang et al., *Generative Verifiers*, 2024; Singhi et al., arXiv 2504.01005). It is an unbiased
    estimate, drawn once for each answer and kept: given its verdicts the reward is a function like any other, for chains and audits too.
    The evidence of a run then estimates that of p(x) E[s] without bias (a random-weight filter, Fearnhead et al. 2008), under the potential
    ``likelihood``, and under ``difference``, ``max`` and ``sum`` of log-probabilities without a temperature. Others would not be functions
    of E[s]; :class:`~ppl_llm.StepReward` refuses them.

    :param LanguageModel lm: the judge; it need not be the model that reasons.
    :param prompt: makes what the judge is asked, a string or chat messages, from the problem and the answer.
    :param yes: the judge's word for a right answer, a single token of its vocabulary or its id.
    :param no: its word for a wrong one.
    :param str system_prompt: system turn before the judge's own question, which never has that of ``lm``; not for ``prompt``.
    :param partial: ask about unfinished answers too, a critic of each step; ``word``, ``line`` or a regular expression for the part of them
        up to the last one.
    :param float pending: log-odds of an unfinished answer otherwise.
    :param int thoughts: K; 0 asks for the word at once.
    :param float agree: ask for the word at once, and think only where neither word has this probability; for ``thoughts``.
    :param int thought_tokens: longest chain of thought.
    :param float temperature: at which chains are drawn.
    :param str verdict: what comes before the word; a chain that does not come to it is cut there.
    :param score: ``score(text)``: the probability that a chain states, in place of its word; ``None`` where it states none. Where no
        chain of an answer does, the word asked at once stands in, with a warning.
    :raises ValueError: if a word is not a single token, both are the same, or a number is out of range.
    """

    @checked
    def __init__(
        self,
        lm: LanguageModel,
        *,
        prompt: Callable[[str, str], Any] | None = None,
        yes: str | int = "Yes",
        no: str | int = "No",
        system_prompt: str | None = None,
        partial: bool | str = False,
        pending: float = math.inf,
        thoughts: int = 0,
        agree: float | None = None,
        thought_tokens: int = 512,
        temperature: float = 1.0,
        verdict: str = "Verdict:",
        score: Score | None = None,
    ) -> None:
        super().__init__(partial=partial, pending=pending)
        self.lm, self.system_prompt, self._warned = lm, system_prompt, set[str]()
        self._prompt = prompt or self._default_prompt
        self.yes_id, self.no_id = _token_id(lm, yes), _token_id(lm, no)
        if self.yes_id == self.no_id:
            raise ValueError(f"yes and no must be different tokens, {yes!r} and {no!r} are both {self.yes_id}")
        check_count("thoughts", thoughts, 0)
        check_count("thought_tokens", thought_tokens)
        check_positive("temperature", temperature)
        if agree is not None and not 0.5 < agree < 1:
            raise ValueError(f"agree must lie in (0.5, 1), the probability of a word that needs no thought, got {agree!r}")
        if not thoughts and (agree is not None or score is not None):
            raise ValueError(f"{'agree' if agree is not None else 'score'} is for a judge that thinks: give thoughts=K as well")
        self.thoughts, self.agree, self.verdict, self.score = thoughts, agree, verdict, score
        self._thinking = StepOptions(verdict or _NEVER, thought_tokens, temperature)
        self._after = tuple(_spaced(lm, word, known) for word, known in ((yes, self.yes_id), (no, self.no_id)))
        self._verdicts: dict[tuple[str, str], float] = {}

    @property
    def estimated(self) -> bool:
        """Whether scores are estimates, drawn at random."""
        return self.thoughts > 0

    def release_caches(self) -> None:
        """Forget the verdicts: answers are judged again."""
        self._verdicts.clear()

    def answer_log_odds(self, answers: Sequence[tuple[str, str]]) -> Tensor:
        if not self.thoughts:
            return self._at_once(answers)
        new = [answer for answer in answers if answer not in self._verdicts]
        if new:
            self._verdicts.update(zip(new, self._judged(new).tolist(), strict=True))
        return torch.tensor([self._verdicts[answer] for answer in answers])

    def _at_once(self, answers: Sequence[tuple[str, str]]) -> Tensor:
        """Log-odds ``[A]`` of the first word."""
        return self._words([self._prompt(problem, answer) for problem, answer in answers], (self.yes_id, self.no_id))

    def _words(self, prompts: list[Any], ids: tuple[int, ...]) -> Tensor:
        words = torch.tensor(ids, device=self.lm.device)
        yes, no = self.lm.step_log_prob(self.lm.start(prompts), words[:, None, None].expand(2, len(prompts), 1), _ONE_TOKEN)
        mass = float(torch.logaddexp(yes, no).exp().mean())
        if mass < _LEAST_MASS:
            self._warn(
                f"the judge says yes or no with probability {mass:.2g} only, so that its scores mean little: take a model that follows "
                "instructions, or give JudgeReward a prompt, and the words yes and no, that fit this one"
            )
        return yes - no

    def _judged(self, answers: list[tuple[str, str]]) -> Tensor:
        """Log-odds ``[A]`` of fresh verdicts: at once where that is clear, by thinking elsewhere."""
        log_odds = torch.full((len(answers),), torch.nan, dtype=torch.float64)
        unsure = list(range(len(answers)))
        if self.agree is not None:
            log_odds = self._at_once(answers).double().cpu()
            unsure = (log_odds.abs() < math.log(self.agree / (1 - self.agree))).nonzero()[:, 0].tolist()
        if unsure:
            log_odds[unsure] = self._thought([answers[n] for n in unsure]).logit().cpu()
        return log_odds

    def _thought(self, answers: list[tuple[str, str]]) -> Tensor:
        """Mean ``[A]`` in float64 of the K verdicts on each answer."""
        questions = [self._prompt(problem, answer) for problem, answer in answers]
        asked = self.lm.start(questions)
        shape = torch.Size((self.thoughts, len(answers)))
        written = asked.extend(self.lm.sample_step(asked, shape, self._thinking).tokens, stop=self._thinking.stop)
        texts: list[list[str]] = written.text
        if self.score is not None:
            return self._stated(self.score, texts, answers)
        prompts = [self._concluding(question, text) for row in texts for question, text in zip(questions, row, strict=True)]
        return self._words(prompts, self._after).double().sigmoid().view(shape).mean(0)

    def _stated(self, score: Score, texts: list[list[str]], answers: list[tuple[str, str]]) -> Tensor:
        means = []
        for n in range(len(answers)):
            values = [value for row in texts if (value := score(row[n])) is not None]
            bad = [value for value in values if not 0 <= value <= 1]
            if bad:
                raise ValueError(f"score() must give a probability in [0, 1] or None, got {bad[0]!r}")
            means.append(sum(values) / len(values) if values else math.nan)
        found = torch.tensor(means, dtype=torch.float64)
        missing = found.isnan().nonzero()[:, 0].tolist()
        if missing:
            self._warn("score() found no probability in any chain of thought about an answer; its word asked at once stands in")
            found[missing] = self._at_once([answers[n] for n in missing]).double().sigmoid().cpu()
        return found

    def _concluding(self, question: Any, text: str) -> Any:
        """The question with a chain of thought and the beginning of its verdict, which the judge continues by a word."""
        cut = text.rfind(self.verdict) if self.verdict else -1
        thought = (text if cut < 0 else text[:cut]).rstrip()
        begun = f"{thought}\n\n{self.verdict}" if self.verdict else text
        if self._chats:
            chat = question if not isinstance(question, str) else [{"role": "user", "content": question}]
            return [*chat, {"role": "assistant", "content": begun}]
        return question + ("\n\n" + begun if self.verdict else begun)

    @property
    def _chats(self) -> bool:
        return getattr(getattr(self.lm, "tokenizer", None), "chat_template", None) is not None

    def _warn(self, message: str) -> None:
        """Once for each kind of message."""
        kind = message[:20]
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning(message)

    def _default_prompt(self, problem: str, answer: str) -> Any:
        question = "Are all steps of the solution so far correct?" if self.partial else "Is the final answer of the solution correct?"
        request = _THINK.format(verdict=self.verdict) if self.thoughts else _WORD
        text = _TEMPLATE.format(problem=problem, answer=answer.strip(), question=question, request=request)
        if not self._chats:
            return text if self.system_prompt is None else f"{self.system_prompt}\n\n{text}"
        # Messages go without the system prompt that the language model has for problems.
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": text}]


def _token_id(lm: LanguageModel, word: str | int) -> int:
    if isinstance(word, int):
        if not 0 <= word < lm.vocab_size:
            raise ValueError(f"the judge's vocabulary has {lm.vocab_size} tokens, none has the id {word}")
        return word
    tokenizer = getattr(lm, "tokenizer", None)
    if tokenizer is not None:
        try:
            return single_id(tokenizer, word, "a word of the judge")
        except ValueError as error:
            remedy = "take another language model as the judge (--reward judge:DIR), or words of this one (JudgeReward(yes=..., no=...))"
            raise ValueError(f"{error}: {remedy}") from error
    ids = [i for i in range(lm.vocab_size) if lm.decode([i]) == word]
    if len(ids) != 1:
        raise ValueError(f"{len(ids)} tokens of the judge say {word!r}, it must be one; give its id instead")
    return ids[0]


def _spaced(lm: LanguageModel, word: str | int, known: int) -> int:
    """The token of a word behind a colon: the one with a space before it, where there is one."""
    tokenizer = getattr(lm, "tokenizer", None)
    if isinstance(word, int) or tokenizer is None:
        return known
    ids = tokenizer.encode(f" {word}", add_special_tokens=False)
    return int(ids[0]) if len(ids) == 1 else known
