"""Trains a reward on a language model's hidden states from the solutions of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..context import DEFAULT_STOP, PAD, Context
from ..lm.base import LanguageModel
from ..lm.stopping import step_lengths
from ..remote.address import is_address
from ..reward.calibration import identity_of
from ..reward.hidden_state_reward import HiddenStateReward
from ..reward.state_head import StateHead
from .intervals import Interval, bootstrap, tail_probability
from .metrics import auroc, brier, calibration_error, reliability
from .results import Results
from .work import SHARED

_BATCH = 16
"""Problems whose solutions are run together."""
_DRAWS = 500


class Solution(NamedTuple):
    """A text of a run.

    :ivar str problem: its id.
    :ivar str question: the problem's text.
    :ivar bool finished: whether the text came to its end.
    """

    problem: str
    question: str
    text: str
    finished: bool
    right: bool


class Figures(NamedTuple):
    """How well scores tell right solutions from wrong ones, on problems that were not trained on. Intervals are over problems.

    :ivar Interval step_auroc: of the scores after each step, as predictions of a right answer.
    :ivar Interval answer_auroc: of the scores after the last step.
    :ivar Interval within_auroc: the same among the solutions of one problem, averaged over problems that have both kinds: what a vote or a
        resampler can use.
    :ivar Interval error: expected calibration error of the scores after the last step.
    :ivar Interval brier: their mean squared error.
    """

    step_auroc: Interval
    answer_auroc: Interval
    within_auroc: Interval
    error: Interval
    brier: Interval


class FittedReward(NamedTuple):
    """
    :ivar int trained: solutions trained on, to ``trained_problems`` problems; ``held_out`` and ``held_out_problems`` likewise.
    :ivar float share: of right ones among those that the figures are from.
    """

    reward: HiddenStateReward
    figures: Figures
    trained: int
    trained_problems: int
    held_out: int
    held_out_problems: int
    share: float

    @property
    def about(self) -> dict[str, Any]:
        """Plain values."""
        counts = {name: getattr(self, name) for name in ("trained", "trained_problems", "held_out", "held_out_problems", "share")}
        return counts | {name: list(interval) for name, interval in self.figures._asdict().items()}


def solutions(results: Results) -> list[Solution]:
    """The independent samples of a run, as often as they were drawn: a value is a probability under the language model.

    :raises ValueError: if the run has none, or the records hold no texts.
    """
    found: dict[tuple[str, int], list[Solution]] = {}
    for budget in results.budgets(SHARED):  # the largest, where there are several
        for (problem, seed), record in results.by_key[SHARED, budget].items():
            if "candidates" in record:
                question = record.get("text")
                found[problem, seed] = [
                    Solution(problem, question, c["text"], c["finished"], results.is_right(problem, c["answer"]))
                    for c in record["candidates"]
                    if question is not None and c.get("text")
                ]
    if not found:
        raise ValueError("this run has no independent samples, on which a reward is trained; add --methods importance to the run")
    known = [solution for pool in found.values() for solution in pool]
    if not known:
        raise ValueError("the records of this run hold no texts; run evaluate with --keep-texts")
    return known


def check_model(results: Results, lm: str) -> None:
    """
    :param str lm: name of the language model whose states are to be read.
    :raises ValueError: if it is on a server, or not the one that the run was made with.
    :raises OSError: if there is no such model.
    """
    if is_address(lm):
        raise ValueError(f"the language model {lm!r} is on a server, which gives no hidden states; give the directory of a local one")
    found, made = identity_of(lm, "lm"), str(results.configuration.get("lm", lm))
    if made == lm:
        return
    try:
        same = not is_address(made) and identity_of(made, "lm") == found
    except OSError:  # it is not where the run found it
        same = False
    if not same:
        raise ValueError(
            f"the run was made with the language model {made!r}, and --lm is {lm!r}, which is another one: solutions of one say little of "
            "what the states of the other mean; give the model of the run, or run evaluate with this one"
        )


def fit_reward(results: Results, lm: LanguageModel, *, pooling: str = "end", width: int = 128, seed: int = 0) -> FittedReward:
    """Train a head on two thirds of the problems of a run, and report on the others.

    :param LanguageModel lm: the one that wrote the solutions.
    :param str pooling: see :class:`~ppl_llm.HiddenStateReward`.
    :param int width: units of the head's inner layer.
    :param int seed: of the split and of the training.
    :raises ValueError: for a run without texts, with right or wrong solutions only, or of too few problems.
    """
    known = solutions(results)
    _both(known, "of this run")
    names = list(dict.fromkeys(solution.problem for solution in known))
    order = np.random.default_rng(seed).permutation(len(names))
    held_out = {names[i] for i in order[: max(1, len(names) // 3)]}
    parts = [[s for s in known if s.problem not in held_out], [s for s in known if s.problem in held_out]]
    _both(parts[0], "to the problems of the training part")
    _both(parts[1], "to the problems of the other part")
    lm.release_caches()  # type: ignore[attr-defined]  # what they hold decides the last bits
    reward = HiddenStateReward(lm, StateHead(lm.hidden_size, width), pooling=pooling)  # type: ignore[attr-defined]
    options = {name: results.configuration[name] for name in ("stop", "max_tokens", "finish") if results.configuration.get(name)}
    seen, tested = (Examples.of(reward, part, **options) for part in parts)
    rows = torch.tensor([names.index(problem) for problem in seen.problems], device=lm.device)
    reward.head = StateHead.fit(seen.states, seen.labels, rows, width=width, seed=seed)
    with torch.no_grad():
        figures = measured(reward.head(tested.states).double().cpu().numpy(), tested)
    share = sum(s.right for s in parts[1]) / len(parts[1])
    return FittedReward(reward, figures, len(parts[0]), len(names) - len(held_out), len(parts[1]), len(held_out), share)


def _both(part: Sequence[Solution], which: str) -> None:
    right = sum(solution.right for solution in part)
    if right in (0, len(part)):
        raise ValueError(
            f"all {len(part)} solutions {which} are {'right' if right else 'wrong'}, and a reward is trained on both kinds; "
            "run evaluate on more problems, or on problems of other levels"
        )


class Examples(NamedTuple):
    """States of the steps of solutions.

    :ivar Tensor states: ``[M, size]``.
    :ivar Tensor labels: ``[M]``, whether the solution is right.
    :ivar list problems: ``M`` ids.
    :ivar Tensor last: ``[M]``, which steps are the last of their solution.
    """

    states: Tensor
    labels: Tensor
    problems: list[str]
    last: Tensor

    @classmethod
    def of(cls, reward: HiddenStateReward, known: Sequence[Solution], **options: Any) -> Examples:
        """Of solutions, a batch of problems at a time.

        :param options: of the steps: ``stop``, ``max_tokens``, ``finish``.
        """
        by_problem: dict[str, list[Solution]] = {}
        for solution in known:
            by_problem.setdefault(solution.problem, []).append(solution)
        groups = list(by_problem.values())
        parts = [cls._of_group(reward, groups[i : i + _BATCH], **options) for i in range(0, len(groups), _BATCH)]
        problems = [problem for part in parts for problem in part.problems]
        states, labels = torch.cat([part.states for part in parts]), torch.cat([part.labels for part in parts])
        return cls(states, labels, problems, torch.cat([part.last for part in parts]))

    @classmethod
    def _of_group(cls, reward: HiddenStateReward, group: Sequence[Sequence[Solution]], **options: Any) -> Examples:
        context = written(reward.lm, group, **options)
        taken = (context.ends > context.step_starts).cpu()
        last = taken & (taken.flip(-1).cumsum(-1).flip(-1) == 1)
        places = taken.nonzero().tolist()
        states = reward.states(context)[taken.to(context.ends.device)]
        labels = torch.tensor([group[p][n].right for n, p, _ in places], dtype=torch.float32, device=states.device)
        return cls(states, labels, [group[p][0].problem for _, p, _ in places], last[taken])


def written(
    lm: Any,
    group: Sequence[Sequence[Solution]],
    stop: str | Sequence[str] = DEFAULT_STOP,
    max_tokens: int = 256,
    finish: str | None = None,
) -> Context:
    """Contexts ``[N, P]`` in which the solutions to P problems have been written step by step, as if they had just been sampled.

    Texts are tokenised as a whole. Those that are too long for the model's context, or fewer than N of a problem, are left without steps.
    """
    stop = stop if isinstance(stop, str) else tuple(stop) or DEFAULT_STOP
    most = max(map(len, group))
    context = lm.start([solutions[0].question for solutions in group]).expand((most, len(group)))
    ids = [[_token_ids(lm, solutions[n], finish) if n < len(solutions) else [] for solutions in group] for n in range(most)]
    width = max(len(row) for rows in ids for row in rows)
    tokens = torch.tensor([[row + [PAD] * (width - len(row)) for row in rows] for rows in ids], device=lm.device)
    fits = context.lengths + (tokens != PAD).sum(-1) <= context.limit
    tokens = torch.where(fits[..., None], tokens, PAD).flatten(0, 1)
    room = torch.full((len(tokens),), max_tokens, device=lm.device)
    automaton = lm.stop_automaton(stop)
    column = torch.arange(width, device=lm.device)
    while bool((tokens != PAD).any()):
        length, _ = step_lengths(tokens, automaton, automaton.start(context).flatten(), lm.eos_ids, room)
        step = torch.where(column < length[:, None], tokens, PAD)[:, : int(length.max())]
        context = context.extend(step.view(most, len(group), -1), stop=stop, finish=finish)
        later = length[:, None] + column
        tokens = torch.where(later < width, tokens.gather(1, later.clamp(max=width - 1)), PAD)
    return context


def _token_ids(lm: Any, solution: Solution, finish: str | None) -> list[int]:
    """With the token that ended the text, where one did."""
    ids: list[int] = lm.tokenizer(solution.text, add_special_tokens=False).input_ids
    if not solution.finished or finish:
        return ids
    ends = lm.eos_ids.tolist()
    own = lm.tokenizer.eos_token_id
    return [*ids, own if own in ends else ends[0]] if ends else ids


def measured(log_odds: np.ndarray, examples: Examples) -> Figures:
    """The figures of scores ``[M]``."""
    last, right = examples.last.cpu().numpy(), examples.labels.cpu().numpy() > 0.5
    stated = np.where(log_odds > 0, 1 / (1 + np.exp(-np.abs(log_odds))), 1 - 1 / (1 + np.exp(-np.abs(log_odds))))
    ids: dict[str, int] = {}
    of = np.array([ids.setdefault(problem, len(ids)) for problem in examples.problems])

    def over(rows: np.ndarray, figure: Callable[[np.ndarray, np.ndarray], float]) -> Interval:
        return _resampled(stated[rows], right[rows], of[rows], figure)

    every = np.ones_like(last)
    within = [auroc(stated[last & (of == i)], right[last & (of == i)]) for i in range(len(ids))]
    return Figures(
        over(every, auroc),
        over(last, auroc),
        bootstrap(np.array(within), bounds=(0.0, 1.0)),
        over(last, lambda p, hit: calibration_error(reliability(p, hit))),
        over(last, brier),
    )


def _resampled(
    stated: np.ndarray, right: np.ndarray, problems: np.ndarray, figure: Callable[[np.ndarray, np.ndarray], float], level: float = 0.95
) -> Interval:
    """A figure with a percentile interval over problems, which are drawn with replacement."""
    names = np.unique(problems)
    rows = [np.flatnonzero(problems == name) for name in names]
    rng, values = np.random.default_rng(0), []
    for _ in range(_DRAWS):
        some = np.concatenate([rows[i] for i in rng.integers(len(names), size=len(names))])
        values.append(figure(stated[some], right[some]))
    finite = np.array([value for value in values if np.isfinite(value)])
    value, tail = figure(stated, right), tail_probability(len(names), level)
    if not len(finite):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
