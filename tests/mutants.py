"""Deliberately wrong engines. Each is a bug that a published library had, or an easy slip; the suite must reject every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_llm.inference import SMC, ParticleMessenger, Weights, systematic
from ppl_llm.inference.resampling.protocol import ancestors_from_counts, invert_cdf, scaled_weights
from tests.exact import Chain


# Row 1: resamplers that are not unbiased
class _Wrong:
    def __init__(self, name: str, uniforms: Callable[[int], int], fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.__name__, self.num_uniforms, self.fn = name, uniforms, fn

    def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
        return self.fn(log_weights, u)


def _residual_of_weights(log_weights: Tensor, u: Tensor) -> Tensor:
    """The remainder taken from W instead of N W (Labbe, Kalman-and-Bayesian-Filters #481)."""
    expected = scaled_weights(log_weights)
    certain = expected.floor()
    rest = (expected / expected.shape[-1] - certain).clamp(min=0)
    drawn = invert_cdf(rest + 1e-300, u.movedim(0, -1))
    slots = torch.arange(expected.shape[-1]).expand_as(expected).contiguous()
    return torch.where(slots < certain.sum(-1, keepdim=True), ancestors_from_counts(certain).movedim(0, -1), drawn).movedim(-1, 0)


def _exclusive_cdf(log_weights: Tensor, u: Tensor) -> Tensor:
    """Off by one in the cumulative sum."""
    n = log_weights.shape[0]
    cdf = scaled_weights(log_weights).cumsum(-1)
    comb = (torch.arange(n) + u.movedim(0, -1)).contiguous()
    return (torch.searchsorted(cdf, comb, right=True) - 1).clamp(0, n - 1).movedim(-1, 0)


def _argmax(log_weights: Tensor, u: Tensor) -> Tensor:
    return log_weights.argmax(0, keepdim=True).expand_as(log_weights)


WRONG_RESAMPLERS: dict[str, tuple[str, _Wrong]] = {
    "residual remainder without N": ("residual", _Wrong("residual_of_weights", lambda n: n, _residual_of_weights)),
    "systematic at the midpoint": ("systematic", _Wrong("midpoint", lambda n: 1, lambda lw, u: systematic(lw, torch.full_like(u, 0.5)))),
    "cdf off by one": ("systematic", _Wrong("exclusive_cdf", lambda n: 1, _exclusive_cdf)),
    "copies of the best": ("systematic", _Wrong("argmax", lambda n: 1, _argmax)),
}


# Row 2: indices
def pyro_style_systematic(log_weights: Tensor, u: Tensor) -> Tensor:
    """float32 cumulative sum, no clamp: index N where the sum rounds below 1 (pyro.infer.SMCFilter)."""
    n = log_weights.shape[0]
    probs = log_weights.float().softmax(0).movedim(0, -1)
    return torch.searchsorted(probs.cumsum(-1), ((torch.arange(n) + u.movedim(0, -1)) / n).float()).movedim(-1, 0)


def left_search_multinomial(log_weights: Tensor, u: Tensor) -> Tensor:
    """A search from the left picks a particle of zero weight at u = 0."""
    return torch.searchsorted(scaled_weights(log_weights).cumsum(-1), u.movedim(0, -1).contiguous() * log_weights.shape[0]).movedim(-1, 0)


# Row 3: bookkeeping of weights
class SubtractMax(ParticleMessenger):
    """Weights rescaled by their maximum for numerical comfort: the evidence is lost (pyro.infer.SMCFilter)."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        state = super().resample(state, ess)
        self.weights = Weights(self.weights.log_weights - self.weights.log_weights.amax(0))
        return state


class NoReset(ParticleMessenger):
    """Weights kept after resampling."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        before = self.weights
        state = super().resample(state, ess)
        took = self.steps[-1]
        self.weights = Weights(before.log_weights.gather(0, took.ancestors))
        return state


class OverwriteWeights(ParticleMessenger):
    """Weights thrown away at every barrier where nothing was resampled."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        state = super().resample(state, ess)
        self.weights = self.weights.set_to_mean(torch.ones_like(ess, dtype=torch.bool))
        return state


class ResetToOne(ParticleMessenger):
    """Weights set to one instead of their mean."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        state = super().resample(state, ess)
        self.weights = Weights(torch.where(self.steps[-1].resampled, 0.0, self.weights.log_weights))
        return state


def score_finished_again(model: Chain) -> Chain:
    """Finished particles get their last factor again at every step (its_hub, the paper's released code)."""

    class Repeating(Chain):
        def log_factor(self, t: int, code: Tensor, done: Tensor) -> Tensor:
            last = torch.where(code % (self.num_symbols + 1) == 0, code // (self.num_symbols + 1), code)
            return torch.where(
                done, self.potentials[t][last.clamp(max=len(self.potentials[t]) - 1)].log(), super().log_factor(t, code, done)
            )

    return Repeating(**vars(model))


# Row 4: populations
class SharedAncestors(ParticleMessenger):
    """One set of ancestors for all problems."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        scheme = self.resampler

        class First:
            __name__ = "first"
            num_uniforms = staticmethod(scheme.num_uniforms)

            def __call__(self, log_weights: Tensor, u: Tensor) -> Tensor:
                return scheme(log_weights, u)[:, :1].expand_as(log_weights)

        self.resampler = First()
        try:
            return super().resample(state, ess)
        finally:
            self.resampler = scheme


class SummedPlates(ParticleMessenger):
    """Weights summed over the problems, as SMCFilter does with inner plates."""

    def _per_population(self, log_prob: Tensor, msg: Any) -> Tensor:
        return super()._per_population(log_prob, msg).mean(-1, keepdim=True).expand(-1, log_prob.shape[-1])


# Row 5: proposals
class SwappedRatio(ParticleMessenger):
    """q / p instead of p / q."""

    def reweight(self, msg: Any, log_prob: Tensor | None) -> None:
        if "proposal" in msg["infer"]:
            log_prob = 2 * msg["infer"]["proposal"].log_prob(msg["value"]) - log_prob
        super().reweight(msg, log_prob)


class ForgottenProposal(ParticleMessenger):
    """Proposed values weighed as if drawn from the prior."""

    def reweight(self, msg: Any, log_prob: Tensor | None) -> None:
        if "proposal" not in msg["infer"]:
            super().reweight(msg, log_prob)


class CountedTwice(ParticleMessenger):
    """The prior of proposed values counted twice."""

    def reweight(self, msg: Any, log_prob: Tensor | None) -> None:
        super().reweight(msg, 2 * log_prob if "proposal" in msg["infer"] else log_prob)


WRONG_WEIGHTS = {"subtract max": SubtractMax, "no reset": NoReset, "overwrite": OverwriteWeights, "reset to one": ResetToOne}
WRONG_POPULATIONS = {"shared ancestors": SharedAncestors, "summed plates": SummedPlates}
WRONG_PROPOSALS = {"swapped ratio": SwappedRatio, "forgotten proposal": ForgottenProposal, "counted twice": CountedTwice}


def with_messenger(messenger: type[ParticleMessenger]) -> Callable[[SMC], None]:
    """Makes an SMC object run a wrong engine."""

    def mutate(smc: SMC) -> None:
        m = smc._messenger
        smc._messenger = messenger(m.num_particles, m.max_plate_nesting, m.resampler, m.ess_threshold)

    return mutate


def forget_lane_state(model: Chain) -> Chain:
    """A model that does not thread its state through the barrier (pyro #2138): only the symbol is permuted."""
    from ppl_llm.inference import barrier

    def partial(state: Any) -> Any:
        x, code, done = state
        return barrier(x), code, done

    return replace(model, barriers=partial)
