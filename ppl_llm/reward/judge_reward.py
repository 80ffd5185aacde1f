"""A language model as a judge of answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..context import Context
from ..context_cache import label_of
from ..inference.util.checked import checked
from ..inference.util.fingerprint import name_of
from ..inference.util.validation import check_count, check_positive
from ..lm.base import LanguageModel, StepOptions
from ..lm.prompts import PlainText
from .answer_reward import AnswerReward
from .judge_options import check_thinking
from .judge_prompts import THINK, WORD, judge_text, meta_text
from .judge_words import says_neither, token_behind_colon, token_id
from .keyed_uniforms import random_numbers_of
from .step_texts import text_before
from .verdicts import Verdicts

_LEAST_MASS = 0.5
_NEVER = "\x00"
_log = logging.getLogger(__name__)
_ONE_TOKEN = StepOptions(max_tokens=1)

_STEP = "\x1e"
"""Stands before the step that is judged, in what a critic of single steps is asked about."""

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

    With ``k_meta`` each chain is judged in its turn, and only the k_meta best count: a critique that is not sound should not (DeepSeek-GRM,
    Liu et al., arXiv 2504.02495, where another network gives the meta scores). The score is still an unbiased estimate, of the mean of
    the k_meta best of K chains: unlike the plain mean its target depends on both numbers.

    :param LanguageModel lm: the judge, here or on a server that scores given texts; it need not be the model that reasons.
    :param prompt: makes what the judge is asked, a string or chat messages, from the problem and the answer; with ``each_step`` from the
        problem, the solution before the step, and the step.
    :param yes: the judge's word for a right answer, a single token of its vocabulary or its id.
    :param no: its word for a wrong one.
    :param str system_prompt: system turn before the judge's own question, which never has that of ``lm``; not for ``prompt``.
    :param partial: ask about unfinished answers too, a critic of each step; ``word``, ``line`` or a regular expression for the part of them
        up to the last one.
    :param bool each_step: ask about every step by itself, given those before it: a critic of single steps, whose scores multiply under
        ``likelihood``. A step without text is not judged.
    :param float pending: log-odds of an unfinished answer otherwise.
    :param int thoughts: K; 0 asks for the word at once.
    :param float agree: ask for the word at once, and think only where neither word has this probability; for ``thoughts``.
    :param int thought_tokens: longest chain of thought.
    :param float temperature: at which chains are drawn.
    :param str verdict: what comes before the word; a chain that does not come to it is cut there.
    :param score: ``score(text)``: the probability that a chain states, in place of its word, such as :class:`~ppl_llm.StatedScore`;
        ``None`` where it states none. Where no chain of an answer does, the word asked at once stands in, with a warning.
    :param int k_meta: chains that count, those of the highest meta judgement; all by default.
    :param meta_prompt: makes what the judge is asked about a chain from the problem, the answer and the chain; its word decides.
    :raises ValueError: if a word is not a single token, both are the same, or a number is out of range; later, for a score that is no
        probability, or a ``score`` that fails, with the chain that it was given.
    """

    @checked
    def __init__(
        self,
        lm: LanguageModel,
        *,
        prompt: Callable[..., Any] | None = None,
        yes: str | int = "Yes",
        no: str | int = "No",
        system_prompt: str | None = None,
        partial: bool | str = False,
        each_step: bool = False,
        pending: float = math.inf,
        thoughts: int = 0,
        agree: float | None = None,
        thought_tokens: int = 512,
        temperature: float = 1.0,
        verdict: str = "Verdict:",
        score: Score | None = None,
        k_meta: int | None = None,
        meta_prompt: Callable[[str, str, str], Any] | None = None,
    ) -> None:
        if each_step and partial:
            raise ValueError(f"each_step asks about every step, partial={partial!r} about beginnings of the answer; give one of them")
        super().__init__(partial=partial or each_step, pending=pending)
        self.lm, self.system_prompt, self._warned, self.each_step = lm, system_prompt, set[str](), each_step
        self._prompt = prompt or self._default_prompt
        self.yes_id, self.no_id = token_id(lm, yes), token_id(lm, no)
        if self.yes_id == self.no_id:
            raise ValueError(f"yes and no must be different tokens, {yes!r} and {no!r} are both {self.yes_id}")
        check_thinking(thoughts, agree, score, k_meta, meta_prompt)
        check_count("thought_tokens", thought_tokens)
        check_positive("temperature", temperature)
        self.thoughts, self.agree, self.verdict, self.score = thoughts, agree, verdict, score
        self.k_meta, self._meta_prompt = k_meta, meta_prompt or self._default_meta_prompt
        # A score may come behind what would announce a word.
        self._thinking = StepOptions(verdict if verdict and score is None else _NEVER, thought_tokens, temperature)
        self._after = tuple(token_behind_colon(lm, word, known) for word, known in ((yes, self.yes_id), (no, self.no_id)))
        self._verdicts, self._critiques = Verdicts(), dict[tuple[str, str], str]()
        self._drawn = self._verdicts if thoughts else None

    @property
    def label(self) -> str:
        names = ("each_step", "thoughts", "agree", "k_meta", "yes_id", "no_id", "system_prompt", "verdict")
        own = {name: getattr(self, name) for name in names}, self._thinking.max_tokens, self._thinking.temperature
        return f"{super().label} of {label_of(self.lm)}, {own}, {list(map(name_of, (self._prompt, self._meta_prompt, self.score)))}"

    @property
    def estimated(self) -> bool:
        """Whether scores are estimates, drawn at random."""
        return self.thoughts > 0

    def release_caches(self) -> None:
        """Forget the verdicts and critiques: answers are judged again."""
        self._verdicts.clear()
        self._critiques.clear()

    def answer_log_odds(self, answers: Sequence[tuple[str, str]]) -> Tensor:
        if not self.thoughts:
            return self._at_once(answers)
        if new := [answer for answer in answers if answer not in self._verdicts]:
            self._verdicts.update(zip(new, self._judged(new).tolist(), strict=True))
        return torch.tensor([self._verdicts[answer] for answer in answers])

    def critiques(self, answers: Sequence[tuple[str, str]]) -> list[str]:
        """What the judge writes about answers before its verdict, one chain of thought each: with ``k_meta`` the best of K. Drawn once.

        The draws are none of the program's: they follow from torch's seed and the answers, and leave torch's generator as it was.

        :param answers: pairs of problem and answer.
        :raises ValueError: for a judge that does not think.
        """
        if not self.thoughts:
            raise ValueError("a judge that is asked for a word writes no critique: give JudgeReward thoughts=1 or more")
        if new := list(dict.fromkeys(answer for answer in answers if answer not in self._critiques)):
            with random_numbers_of(f"{torch.initial_seed()} {new}", self.lm.device):
                texts = self._chains([self._question(answer) for answer in new], self.thoughts if self.k_meta is not None else 1)
            best = [0] * len(new) if self.k_meta is None else _best_first(self._meta(new, texts))[0].tolist()
            # The word is not asked for, and so not announced.
            self._critiques |= {answer: texts[best[n]][n].strip().removesuffix(self.verdict).rstrip() for n, answer in enumerate(new)}
        return [self._critiques[answer] for answer in answers]

    def _asked(self, context: Context, sequence: int, step: int, text: str, ended: bool) -> str | None:
        """A critic of single steps is asked about the beginning and the step, apart."""
        if not self.each_step:
            return super()._asked(context, sequence, step, text, ended)
        before = text_before(context, sequence, step)
        own = text.removeprefix(before)  # a character that the beginning cuts in two is part of it
        return before + _STEP + own if own.strip() or (ended and not before.strip()) else None

    def _says_nothing(self, context: Context, sequence: int, step: int, asked: str | None) -> bool:
        """Where the judge would be asked the same again: the same draw, squared, would be no estimate of the squared mean."""
        if asked is None or not self.partial or step == 0:
            return asked is None and self.each_step
        return asked == self._asked(context, sequence, step - 1, text_before(context, sequence, step), False)

    def scored_steps(self, context: Context) -> Tensor:
        """The steps that have a judgement of their own, ``[*batch, T]``: not those that say nothing new."""
        self.step_log_odds(context)
        return self._cache.scored(context)

    def _question(self, answer: tuple[str, str]) -> Any:
        problem, text = answer
        return self._prompt(problem, *text.split(_STEP, 1)) if self.each_step else self._prompt(problem, text)

    def _at_once(self, answers: Sequence[tuple[str, str]]) -> Tensor:
        """Log-odds ``[A]`` of the first word."""
        return self._words([self._question(answer) for answer in answers], (self.yes_id, self.no_id))

    def _words(self, prompts: list[Any], ids: tuple[int, ...]) -> Tensor:
        words = torch.tensor(ids, device=self.lm.device)
        yes, no = self.lm.step_log_prob(self.lm.start(prompts), words[:, None, None].expand(2, len(prompts), 1), _ONE_TOKEN)
        mass = float(torch.logaddexp(yes, no).exp().mean())
        if mass < _LEAST_MASS:
            self._warn(says_neither(mass))
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
        """Mean ``[A]`` in float64 of the verdicts on each answer, of all K chains or of the k_meta best."""
        questions = [self._question(answer) for answer in answers]
        texts = self._chains(questions, self.thoughts)
        if self.score is not None:
            values = self._stated(self.score, texts)
        else:
            prompts = [self._concluding(question, text) for row in texts for question, text in zip(questions, row, strict=True)]
            values = self._words(prompts, self._after).double().sigmoid().view(self.thoughts, -1).cpu()
        if self.k_meta is not None:
            meta = torch.where(values.isnan(), -torch.inf, self._meta(answers, texts))
            values = values.scatter(0, _best_first(meta)[self.k_meta :], torch.nan)
        means = values.nanmean(0)
        missing = means.isnan().nonzero()[:, 0].tolist()
        if missing:
            self._warn("no chain of thought about an answer states a score that can be read; the word asked at once stands in")
            means[missing] = self._at_once([answers[n] for n in missing]).double().sigmoid().cpu()
        return means

    def _chains(self, questions: list[Any], number: int) -> list[list[str]]:
        """Chains of thought ``[number, A]``."""
        asked = self.lm.start(questions)
        steps = self.lm.sample_step(asked, torch.Size((number, len(questions))), self._thinking).tokens
        written: list[list[str]] = asked.extend(steps, stop=self._thinking.stop).text
        return written

    def _stated(self, score: Score, texts: list[list[str]]) -> Tensor:
        """The probabilities ``[K, A]`` that chains state, nan where they state none."""

        def one(text: str) -> float:
            try:
                value = score(text)
            except Exception as error:
                raise ValueError(f"score() failed with {type(error).__name__}: {error}, given the judge's text {text[-80:]!r}") from error
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"score() must give a probability in [0, 1] or None, got {value!r} of the judge's text {text[-80:]!r}")
            return math.nan if value is None else float(value)

        return torch.tensor([[one(text) for text in row] for row in texts], dtype=torch.float64)

    def _meta(self, answers: list[tuple[str, str]], texts: list[list[str]]) -> Tensor:
        """Log-odds ``[K, A]`` that chains are sound."""
        prompts = [
            self._meta_prompt(problem, answer.replace(_STEP, ""), text)
            for row in texts
            for (problem, answer), text in zip(answers, row, strict=True)
        ]
        return self._words(prompts, (self.yes_id, self.no_id)).double().view(len(texts), -1).cpu()

    def _concluding(self, question: Any, text: str) -> Any:
        """A question with a chain of thought and the beginning of its verdict, which the judge continues by a word."""
        cut = text.rfind(self.verdict) if self.verdict else -1
        thought = (text if cut < 0 else text[:cut]).rstrip()
        begun = f"{thought}\n\n{self.verdict}" if self.verdict else text
        if self._chats:
            chat = question if not isinstance(question, str) else [{"role": "user", "content": question}]
            return [*chat, {"role": "assistant", "content": begun}]
        return type(question)(question + ("\n\n" + begun if self.verdict else begun))

    @property
    def _chats(self) -> bool:
        return getattr(getattr(self.lm, "tokenizer", None), "chat_template", None) is not None

    def _warn(self, message: str) -> None:
        """Once for each kind of message."""
        kind = message[:20]
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning(message)

    def _default_prompt(self, problem: str, answer: str, step: str | None = None) -> Any:
        """:param str step: that is judged, after the beginning ``answer``."""
        request = getattr(self.score, "request", THINK.format(verdict=self.verdict)) if self.thoughts else WORD
        return self._turn(judge_text(problem, answer, step, request, self.partial))

    def _default_meta_prompt(self, problem: str, answer: str, critique: str) -> Any:
        return self._turn(meta_text(problem, answer, critique))

    def _turn(self, text: str) -> Any:
        """What the judge is told: a message where it has a chat template."""
        if not self._chats:
            return PlainText(text if self.system_prompt is None else f"{self.system_prompt}\n\n{text}")
        # Messages and plain text go without the system prompt that the language model has for problems.
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": text}]


def _best_first(meta: Tensor) -> Tensor:
    """Numbers ``[K, A]`` of chains; of equal ones the first drawn comes first."""
    return meta.argsort(dim=0, descending=True, stable=True)
