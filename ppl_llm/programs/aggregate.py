"""Recursive self-aggregation: solutions are written again from several of the old ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pyro
import torch

from ..context import Context
from ..inference import Importance, ParticlePosterior, SearchPosterior, SelfConsistency
from ..inference.cost import CostMeter
from ..inference.errors import attach_partial
from ..inference.util.checked import checked
from ..inference.util.validation import check_count
from .models import ReasoningModel
from .plain import check_plain
from .turns import flat, restarted

CandidatesPrompt = Callable[[str, list[str]], Any]
"""``prompt(problem, candidates)``: what ``lm.start`` takes for the next round, a text or chat messages."""


def combine(problem: str, candidates: list[str]) -> str:
    """The problem, the candidates by number, and a request for one solution made of what is right in them."""
    listed = "\n\n".join(f"Candidate {number}:\n{text.strip()}" for number, text in enumerate(candidates, 1))
    request = "Some of these solutions may be wrong. Take what is right in them and write one correct solution with its final answer."
    return f"{problem}\n\n{listed}\n\n{request}"


class _Continued:
    """The reasoning model from given contexts on."""

    def __init__(self, model: ReasoningModel, start: Context) -> None:
        self.model, self.start = model, start

    def __call__(self, problem: Any) -> Context:
        if len(self.start.batch_shape) < 2:
            return self.model._solve(self.start)
        with pyro.plate("problems", self.start.batch_shape[-1], dim=-1):
            return self.model._solve(self.start)


class Aggregate:
    """N solutions; in each round each place is written again, from a prompt with K of the present solutions drawn without replacement (RSA:
    *Recursive Self-Aggregation*, Venkatraman et al., 2025).

    Particles are written from one another, so this is a search: its votes are those of the last round, weighted by the model's factors
    where it has any, and there is no evidence. With ``subset=1`` a place is a chain of revisions, as of :func:`~ppl_llm.revise`, whose
    drafts are drawn from the whole population.

    :param ReasoningModel model: of one round, from :func:`~ppl_llm.reasoning`; its reward weighs the last round only.
    :param int num_particles: N.
    :param int subset: K.
    :param int rounds: rounds of writing, the first included; they cost ``rounds`` times N completions.
    :param prompt: ``prompt(problem, candidates)``, by default :func:`combine`.
    :param int max_plate_nesting: 1 for a list of problems, each of which has a population of its own.
    :param callback: called with the posterior of the present round after each step.
    :raises ValueError: for numbers out of range, a model with a power, or one that is not of :func:`~ppl_llm.reasoning` itself.
    """

    @checked
    def __init__(
        self,
        model: ReasoningModel,
        num_particles: int,
        *,
        subset: int = 4,
        rounds: int = 4,
        prompt: CandidatesPrompt = combine,
        max_plate_nesting: int = 0,
        callback: Callable[[ParticlePosterior], None] | None = None,
    ) -> None:
        check_count("num_particles", num_particles)
        check_count("subset", subset)
        check_count("rounds", rounds)
        check_count("max_plate_nesting", max_plate_nesting, 0)
        if subset > num_particles:
            raise ValueError(f"subset must be at most num_particles = {num_particles}, got {subset}")
        check_plain(model, "Aggregate")
        if model.power != 1:
            raise ValueError(f"Aggregate writes solutions as the language model does, and the model has the power {model.power:g}")
        self.model, self.num_particles, self.subset, self.rounds, self.prompt = model, num_particles, subset, rounds, prompt
        self.options: dict[str, Any] = {"max_plate_nesting": max_plate_nesting, "callback": callback}

    @torch.no_grad()
    def run(self, problem: Any) -> SearchPosterior:
        """Write and aggregate. An exception in the middle, Ctrl-C included, carries the last complete round as ``partial_posterior``."""
        began, found = time.perf_counter(), None
        with CostMeter() as meter:
            try:
                program: Callable[[Any], Context] = self.model
                for r in range(self.rounds):
                    if found is not None:
                        program = _Continued(self.model, self.next_round(found.value))
                    last = r + 1 == self.rounds and self.model.prm is not None
                    algorithm = Importance if last else SelfConsistency
                    found = algorithm(program, self.num_particles, **self.options).run(problem)
                assert found is not None
                result = self._concluded(found)
            except BaseException as error:
                attach_partial(error, lambda: None if found is None else self._concluded(found))
                if error.partial_posterior is not None:  # type: ignore[attr-defined]
                    error.partial_posterior.cost = {**meter.totals, "seconds": time.perf_counter() - began}  # type: ignore[attr-defined]
                raise
        result.cost = {**meter.totals, "seconds": time.perf_counter() - began}
        return result

    def next_round(self, written: Context) -> Context:
        """Contexts whose prompts have K of the solutions, ``[N, *plates]``, each."""
        texts, problems = written.solution, flat(written.problem)
        shape = written.batch_shape
        chosen = torch.rand(shape[0], *shape).argsort(1)[:, : self.subset]  # [N, K, *plates]
        columns = range(shape[1]) if len(shape) > 1 else [None]
        prompts: list[Any] = []
        for n in range(shape[0]):
            for p in columns:
                picked = chosen[n].tolist() if p is None else chosen[n, :, p].tolist()
                candidates = [texts[m] if p is None else texts[m][p] for m in picked]
                prompts.append(self.prompt(problems[len(prompts)], candidates))
        return restarted(written, prompts)

    @staticmethod
    def _concluded(found: ParticlePosterior) -> SearchPosterior:
        reason = "its solutions are written from one another, so that their weights are not those of independent draws"
        return SearchPosterior.of(found, method="aggregation", reason=reason)
