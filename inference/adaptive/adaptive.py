"""Budgets that adapt: batches of an algorithm until a vote is settled."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from ..concurrent.program import current_program
from ..concurrent.run_concurrently import run_concurrently
from ..posterior.adaptive_posterior import AdaptivePosterior
from ..posterior.equivalence_classes import Equivalent
from ..search.votes import BestOfN
from ..util.checked import checked, describe
from ..util.validation import check_count, check_function, check_optional_count
from .adaptive_run import AdaptiveOptions, AdaptiveRun, Algorithm
from .stopping_rule import StoppingRule, Until

describe("Until", "a rule such as BetaMajority(0.95), or a function of the posterior so far")


class Adaptive:
    """Batches of an algorithm on each problem until its vote is settled: easy problems cost little, hard ones the whole budget.

    Example::

        rule = BetaMajority(0.95)
        posterior = Adaptive(SelfConsistency(model, 4), until=rule, max_particles=64).run(problem)
        posterior.answers(), posterior.num_drawn, posterior.stopped

        each = Adaptive(SelfConsistency(model, 4, max_plate_nesting=1), until=rule).run(problems)    # a list of posteriors

    A batch of :class:`SelfConsistency`, :class:`BestOfN` or :class:`Importance` is ``num_particles`` more candidates, a batch of
    :class:`SMC` one more filter (or ``islands`` more), weighted by its evidence. After each batch ``until`` is asked, given all that was
    drawn and nothing else. The number of particles so depends on them: weights and votes are those of the algorithm with as many particles,
    but their mean weight is biased, and the evidence is refused.

    With ``max_plate_nesting=1`` the first argument is a list of problems, and the model a plate of them. Each problem is then a program of
    its own (:func:`run_concurrently`) on a list with only itself: it stops alone, and its places in the language model's batch are taken by
    other problems between any two tokens. The result is a list of posteriors, not one with a plate, since they have different numbers of
    particles: padding would be candidates that nobody drew, in every mean, figure and file, and memory for the hardest problem times all.

    :param algorithm: :class:`SelfConsistency`, :class:`TwoStageVote`, :class:`BestOfN`, :class:`Importance` or :class:`SMC`; its particles
        are one batch.
    :param until: a :class:`StoppingRule`, or a function of the :class:`AdaptivePosterior` of a problem that is true where it may stop.
    :param int max_particles: budget of a problem; the last batch is as small as it leaves.
    :param bool doubling: each batch after the first draws as many particles as there are.
    :param answer: of what the model returned for a particle, for the votes; by default what its method ``answers()`` gives.
    :param equivalent: pools votes for answers that count as the same.
    :param int max_tokens_total: tokens of a problem (the counter ``tokens_sampled``). The batch under way ends at the first barrier after
        them, and its unfinished candidates are left out unless there are no others; ``complete`` is then ``False``.
    :param int max_sequences: places in the batch that a list of problems shares.
    :param callback: called with the :class:`AdaptivePosterior` of a problem after each of its batches.
    :raises ValueError: for another algorithm, a rule that needs what it does not give, or arguments out of range.

    References

    [1] *Let's Sample Step by Step: Adaptive-Consistency for Efficient Reasoning and Coding with LLMs*, Pranjal Aggarwal et al. (2023).
    [2] *Optimal Stopping vs Best-of-N for Inference Time Optimization*, Yusuf Kalayci, Vinod Raman, Shaddin Dughmi (2025).
    """

    @checked
    def __init__(
        self,
        algorithm: Algorithm,
        until: Until,
        max_particles: int = 64,
        *,
        doubling: bool = False,
        answer: Callable[[Any], Hashable] | None = None,
        equivalent: Equivalent | None = None,
        max_tokens_total: int | None = None,
        max_sequences: int = 256,
        callback: Callable[[AdaptivePosterior], None] | None = None,
    ) -> None:
        if not isinstance(algorithm, Algorithm):
            raise ValueError(f"algorithm must be a SelfConsistency, BestOfN, Importance or SMC, got {algorithm!r}")
        check_count("max_particles", max_particles)
        check_optional_count("max_tokens_total", max_tokens_total)
        check_count("max_sequences", max_sequences)
        for name, function in (("answer", answer), ("equivalent", equivalent), ("callback", callback)):
            check_function(name, function)
        self.options = AdaptiveOptions(algorithm, until, max_particles, doubling, answer, equivalent, max_tokens_total, callback)
        self.max_sequences = max_sequences
        if self.options.batch > max_particles:
            raise ValueError(f"max_particles must be at least the particles of a batch ({self.options.batch}), got {max_particles}")
        _check_rule(self.options)

    def start(self, args: tuple[Any, ...], kwargs: dict[str, Any], listed: bool) -> AdaptiveRun:
        """A run on one problem.

        :param bool listed: whether the model has a plate for a list, which holds this problem alone.
        """
        return AdaptiveRun(self.options, args, kwargs, listed)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Batches on ``model(*args, **kwargs)``; with ``max_plate_nesting=1`` and a list or tuple first, on each of its problems alone.

        An exception in the middle, Ctrl-C included, carries the posterior of the batches that are complete, or of the first one's last
        barrier, as ``partial_posterior``; of a list ``partial_posteriors``, for each problem its result, such a posterior, or ``None``.

        :returns: an :class:`AdaptivePosterior`; for a list of problems a list of them, with the cost of each.
        :raises SMCFailed: if every particle of every batch has weight zero; of a list such a problem has ``posterior.dead``.
        :raises ValueError: for a model with a plate of problems that is not given as a list.
        """
        if self.options.algorithm.options.max_plate_nesting != 1 or not args or not isinstance(args[0], list | tuple):
            return self.start(args, kwargs, listed=False).run()
        programs = [self.start(([problem], *args[1:]), kwargs, listed=True).run for problem in args[0]]
        if current_program() is None:
            return run_concurrently(programs, max_sequences=self.max_sequences)
        return _in_turn(programs)  # of a program that shares its batches with others already


def _check_rule(options: AdaptiveOptions) -> None:
    """
    :raises ValueError: for a rule that needs what the algorithm does not give.
    """
    needs = options.until.needs if isinstance(options.until, StoppingRule) else None
    if needs == "groups" and getattr(options.algorithm, "site", None) is None:
        raise ValueError(f"until: {options.until!r} compares groups of candidates; take TwoStageVote(model, ..., site=...) inside")
    if needs == "votes" and isinstance(options.algorithm, BestOfN):
        raise ValueError(
            f"until: {options.until!r} counts votes, and best-of-N has none, since the best score decides; take Pandora(cost), or "
            "SelfConsistency or Importance inside"
        )
    if needs == "rewards" and not options.scored:
        why = "the particles of a filter are not independent" if options.filters else "self-consistency asks no reward"
        raise ValueError(
            f"until: {options.until!r} needs independent candidates with rewards, and {why}; take BestOfN or Importance inside"
        )


def _in_turn(programs: Sequence[Callable[[], AdaptivePosterior]]) -> list[AdaptivePosterior]:
    """One after the other; an exception carries what there is, as that of :func:`run_concurrently`."""
    found: list[AdaptivePosterior] = []
    for program in programs:
        try:
            found.append(program())
        except BaseException as error:
            rest = [None] * (len(programs) - len(found) - 1)
            error.partial_posteriors = [*found, getattr(error, "partial_posterior", None), *rest]  # type: ignore[attr-defined]
            raise
    return found
