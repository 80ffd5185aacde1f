"""A program under a constraint with all of its randomness enumerated, and the same sums in plain Python."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm import SMC, Context, LLMStep, TabularLM, barrier
from ppl_llm.constraints import Automaton, Constraint
from ppl_llm.inference import RESAMPLERS
from ppl_llm.inference.handlers.particle_messenger import ParticleMessenger
from ppl_llm.inference.posterior.particle_posterior import ParticlePosterior
from ppl_llm.lm import autoregressive
from ppl_llm.lm.decoding import constrained_sampler
from ppl_llm.lm.decoding.constrained_sampler import ConstrainedSampler
from tests.helpers.exact import EnumeratedResampler, num_uniforms

SYMBOLS = ["a", "b", "$"]
V, EOS = 3, 2
STEPS, TOKENS = 2, 2
"""Steps, and tokens of each; no delimiter, so that a step ends by its length or with the text."""


@dataclass
class Program:
    """Two steps of two tokens after the prompt "a", a factor of the whole text after each.

    :ivar Tensor logits: ``[V, V]`` float64.
    :ivar Constraint constraint: the language.
    :ivar Tensor factors: ``[V + 1]`` of the last token, that of an empty step last.
    """

    logits: Tensor
    constraint: Constraint
    factors: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lm = TabularLM(self.logits, SYMBOLS, eos="$")

    def __call__(self, columns: int) -> Context:
        ctx = self.lm.start("a").expand((1, columns))
        with pyro.plate("columns", columns, dim=-1):
            for t in range(STEPS):
                step = pyro.sample(f"step_{t}", LLMStep(ctx, stop=(), max_tokens=TOKENS, **self.options))
                ctx = ctx.extend(step, stop=())
                last = ctx.tokens.gather(-1, (ctx.lengths - 1)[..., None])[..., 0]
                factor = torch.where(ctx.advanced, self.factors[last], self.factors[V])
                pyro.factor(f"accept_{t}", factor.log())
                ctx = barrier(ctx)
        return ctx

    def texts(self) -> dict[tuple[int, ...], float]:
        """p(x) 1[x in L or begins a text of L] times the factors, of every text, in plain Python."""
        probs = self.probs().tolist()
        found: dict[tuple[int, ...], float] = defaultdict(float)

        def grow(text: tuple[int, ...], mass: float) -> None:
            in_step = len(text) % TOKENS
            over = bool(text) and (text[-1] == EOS)
            if text and (in_step == 0 or over):
                mass *= float(self.factors[text[-1]])
            if over:
                empty = STEPS - math.ceil(len(text) / TOKENS)
                found[text] += mass * float(self.factors[V]) ** empty
            elif len(text) == STEPS * TOKENS:
                found[text] += mass
            else:
                for v in range(V):
                    if self.follows(text, v):
                        grow((*text, v), mass * probs[text[-1] if text else 0][v])

        grow((), 1.0)
        return found

    def follows(self, text: tuple[int, ...], v: int) -> bool:
        """Whether a token may follow, walking through the table of an automaton."""
        automaton = self.constraint
        assert isinstance(automaton, Automaton)
        state = 0
        for token in text:
            state = int(automaton.table[state, token])
        return bool(automaton.accepting[state]) if v == EOS else int(automaton.table[state, v]) >= 0

    def probs(self) -> Tensor:
        """``[V, V]``: the next token's probabilities after temperature, top-k and top-p, sorted and cut by hand."""
        probs = (self.logits / self.options.get("temperature", 1.0)).softmax(-1)
        for row in probs:
            order = sorted(range(V), key=lambda v, row=row: -float(row[v]))  # type: ignore[misc]
            before, kept = 0.0, []
            for v in order[: self.options.get("top_k") or V]:
                if before < self.options.get("top_p", 1.0):
                    kept.append(v)
                before += float(row[v])
            row[[v for v in range(V) if v not in kept]] = 0.0
            row /= row.sum()
        return probs


class LivingResampler(EnumeratedResampler):
    """Columns in which all particles are dead are none of the resampler's business."""

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        return super().__call__(torch.where((log_weights == -torch.inf).all(0), 0.0, log_weights), u)


class EnumeratedDraws:
    """Draws the token of a cell of the uniform, a cell per column, with the real inverse CDF at the cell's midpoint.

    :param Tensor cells: ``[N, columns, STEPS, TOKENS]``.
    """

    def __init__(self, cells: Tensor, real: Callable[..., Any]) -> None:
        self.cells, self.real = cells, real
        self.log_prob = torch.zeros(cells.shape[:2], dtype=torch.float64)

    def __call__(self, logits: Tensor, allowed: Tensor, u: Tensor) -> Any:
        cell, sequence = (u % 1 * V * 2).long() // 2, (u // 1).long()
        probs = logits.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(1 / V)
        cdf = torch.cat([torch.zeros_like(probs[:, :1]), probs.cumsum(-1)], -1)
        low, high = cdf.gather(1, cell[:, None])[:, 0], cdf.gather(1, cell[:, None] + 1)[:, 0]
        self.log_prob.view(-1)[sequence] += (high - low).clamp(min=0).log()
        self.used.view(-1)[sequence] += 1
        return self.real(logits, allowed, (low + high) / 2)

    def uniforms(self, total: int, width: int, t: int) -> Tensor:
        """Uniforms that say which sequence they belong to, and which cell is meant."""
        self.used = torch.zeros(self.cells.shape[:2], dtype=torch.long)
        return torch.arange(total)[:, None] + (self.cells[:, :, t].reshape(total, width) + 0.5).double() / V

    def finish_step(self) -> None:
        """A choice that a sequence did not come to is made uniformly: columns that differ in it only share the outcome."""
        self.log_prob -= (TOKENS - self.used).double() * math.log(V)


class ListedSMC:
    """``SMC(program, N, proposals=constraint)`` with every outcome of its draws and of its resampler in a column."""

    def __init__(self, program: Program, num_particles: int, scheme: str, ess_threshold: float, resampler: Any = None) -> None:
        self.program, self.n, self.scheme, self.ess_threshold = program, num_particles, scheme, ess_threshold
        self.resampler = resampler or RESAMPLERS[scheme]

    def run(
        self, sampler: type[ConstrainedSampler] = ConstrainedSampler, constraint: Constraint | None = None
    ) -> tuple[Tensor, ParticlePosterior]:
        """
        :param sampler: in place of the library's.
        :param Constraint constraint: in place of the program's.
        :returns: probabilities ``[columns]``, and the posterior with plate ``columns``.
        """
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(autoregressive, "ConstrainedSampler", sampler)
            return self._run(patch, self.program.constraint if constraint is None else constraint)

    def _run(self, patch: pytest.MonkeyPatch, constraint: Constraint) -> tuple[Tensor, ParticlePosterior]:
        n, uniforms = self.n, num_uniforms(self.scheme, self.n)
        sizes = [V] * (n * STEPS * TOKENS) + [n] * (STEPS * uniforms)
        grid = torch.tensor(list(itertools.product(*map(range, sizes)))).T.contiguous()
        columns = grid.shape[1]
        cells = grid[: n * STEPS * TOKENS].view(n, STEPS, TOKENS, columns).permute(0, 3, 1, 2)
        draws = EnumeratedDraws(cells, constrained_sampler.restricted_draw)
        forced = LivingResampler(self.resampler, grid[n * STEPS * TOKENS :].view(STEPS, uniforms, columns), self.scheme)
        steps = iter(range(STEPS))

        def sample(lm: TabularLM, *args: Any) -> Any:
            t = next(steps)
            with pytest.MonkeyPatch.context() as step:
                real = torch.rand
                step.setattr(torch, "rand", lambda *size, **kwargs: draws.uniforms(*size, t) if len(size) == 2 else real(*size, **kwargs))
                sample = TabularLM.sample_constrained(lm, *args)
            draws.finish_step()
            return sample

        # A column whose particles are all dead has the evidence estimate zero; a run of its own would end with SMCFailed.
        patch.setattr(ParticleMessenger, "check_alive", lambda messenger: None)
        patch.setattr(constrained_sampler, "restricted_draw", draws)
        patch.setattr(self.program.lm, "sample_constrained", lambda *args: sample(self.program.lm, *args), raising=False)
        smc = SMC(
            self.program,
            n,
            resampler=forced,
            ess_threshold=self.ess_threshold,
            max_plate_nesting=1,
            proposals=constraint,
        )
        posterior = smc.run(columns)
        log_prob, unused, calls = draws.log_prob.sum(0), -uniforms * math.log(n), iter(forced.log_prob)
        for chosen in posterior.resampled:
            log_prob = log_prob + (torch.where(chosen, next(calls), unused) if bool(chosen.any()) else unused)
        return log_prob.exp(), posterior


def errors(program: Program, probs: Tensor, posterior: ParticlePosterior) -> tuple[float, float]:
    """Largest errors of E[Z-hat] and of E[Z-hat W(x)] over texts x, relative to Z; the former includes that of the probabilities' sum."""
    exact = program.texts()
    total = sum(exact.values())
    mass = (probs * posterior.log_evidence.exp()) * posterior.weights
    found: dict[tuple[int, ...], float] = defaultdict(float)
    context: Context = posterior.value
    rows, which = torch.unique(context.tokens.flatten(0, 1), dim=0, return_inverse=True)
    sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, which, mass.flatten().nan_to_num(0.0))
    for row, value in zip(rows.tolist(), sums.tolist(), strict=True):
        text = tuple(token for token in row[1:] if token >= 0)
        found[text] += value
    assert bool((context.lengths >= 1).all())
    whole = max(abs(sum(found.values()) / total - 1), abs(float(probs.sum()) - 1))
    return whole, max(abs(found[text] - exact.get(text, 0.0)) for text in {*found, *exact}) / total


@st.composite
def automata(draw: Any) -> Automaton:
    """Two or three states; the first allows something, so that texts exist; dead ends happen."""
    number = draw(st.integers(2, 3))
    states = st.sampled_from([-1, -1, *range(number)])
    rows = [[draw(states), draw(states), -1] for _ in range(number)]
    if rows[0] == [-1, -1, -1]:
        rows[0][0] = 1
    accepting = [draw(st.booleans()) for _ in range(number)]
    accepting[1] = True
    return Automaton(torch.tensor(rows), torch.tensor(accepting))


@st.composite
def programs(draw: Any) -> Program:
    """Programs with odds that differ, so that top-k has no ties, and factors of the last token."""
    odds = torch.tensor([draw(st.permutations([1.0, 2.5, 4.0])) for _ in range(V)], dtype=torch.float64)
    factors = torch.tensor([draw(st.sampled_from([0.2, 0.5, 1.0, 2.0])) for _ in range(V + 1)], dtype=torch.float64)
    options = draw(st.sampled_from([{}, {"temperature": 2.0}, {"top_k": 2}, {"top_p": 0.7}]))
    return Program(odds.log(), draw(automata()), factors, options)
