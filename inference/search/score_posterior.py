"""What is known of a mean score, given scores: conjugate posteriors with parameters in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..util.checked import check_fields
from ..util.validation import check_positive, unknown_name


class Scores(NamedTuple):
    """Scores of any number of groups; tensors of one shape.

    :ivar Tensor number: how many there are in each group.
    :ivar Tensor total: their sum.
    :ivar Tensor squares: the sum of their squares.
    """

    number: Tensor
    total: Tensor
    squares: Tensor

    def minus(self, other: Scores) -> Scores:
        """The scores that are not among others."""
        return Scores(*(mine - its for mine, its in zip(self, other, strict=True)))


class ScorePosterior(Protocol):
    """A prior of mean scores, and its posteriors."""

    def parameters(self, scores: Scores) -> tuple[Tensor, ...]:
        """Of the posterior of each group."""
        ...

    def draw(self, scores: Scores) -> Tensor:
        """A draw of each group's mean score from its posterior."""
        ...

    def check(self, scores: Tensor) -> None:
        """
        :raises ValueError: for scores that the distribution does not have.
        """
        ...


@dataclass(frozen=True)
class NormalScores:
    """Normal scores of unknown mean and variance: the prior is normal inverse chi-squared, and so is the posterior.

    With n scores of mean r and sum of squared deviations S::

        kappa' = kappa + n,  nu' = nu + n,  mean' = (kappa mean + n r) / kappa',
        nu' variance' = nu variance + S + (r - mean)^2 kappa n / kappa'

    A draw has sigma^2 = nu' variance' / chi^2(nu'), and is normal with mean mean' and variance sigma^2 / kappa'.

    :param float mean: prior mean.
    :param float kappa: scores that the prior mean counts as.
    :param float nu: scores that the prior variance counts as.
    :param float variance: prior variance.
    :raises ValueError: for numbers out of range.

    References

    [1] *Probabilistic Machine Learning: Advanced Topics*, Kevin Murphy (2023), section 3.4.3.3.
    """

    mean: float = 0.0
    kappa: float = 1.0
    nu: float = 1.0
    variance: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("kappa", "nu", "variance"):
            check_positive(name, getattr(self, name))

    def parameters(self, scores: Scores) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``mean'``, ``kappa'``, ``nu'`` and ``variance'``."""
        n, total, squares = scores
        r = total / n.clamp(min=1.0)
        deviations = (squares - n * r**2).clamp(min=0.0)  # rounding
        kappa, nu = self.kappa + n, self.nu + n
        mean = (self.kappa * self.mean + total) / kappa
        variance = (self.nu * self.variance + deviations + (r - self.mean) ** 2 * self.kappa * n / kappa) / nu
        return mean, kappa, nu, variance

    def draw(self, scores: Scores) -> Tensor:
        mean, kappa, nu, variance = self.parameters(scores)
        chi2 = 2.0 * torch._standard_gamma(nu / 2.0)
        return mean + (nu * variance / chi2 / kappa).sqrt() * torch.randn_like(mean)

    def check(self, scores: Tensor) -> None:
        if not bool(scores.isfinite().all()):
            raise ValueError(f"a score is {float(scores[~scores.isfinite()][0])}: no normal distribution has it")


@dataclass(frozen=True)
class BetaScores:
    """Scores between 0 and 1 as fractions of a success: with the prior Beta(a, b) their mean has Beta(a + sum r, b + sum (1 - r)).

    :param float a: successes that the prior counts as.
    :param float b: failures that the prior counts as.
    :raises ValueError: for numbers out of range.
    """

    a: float = 0.5
    b: float = 0.5

    def __post_init__(self) -> None:
        check_positive("a", self.a)
        check_positive("b", self.b)

    def parameters(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """``a'`` and ``b'``."""
        return self.a + scores.total, self.b + scores.number - scores.total

    def draw(self, scores: Scores) -> Tensor:
        a, b = (torch._standard_gamma(parameter) for parameter in self.parameters(scores))
        return a / (a + b)

    def check(self, scores: Tensor) -> None:
        wrong = scores[~((scores >= 0) & (scores <= 1 + 1e-9))]
        if len(wrong):
            raise ValueError(
                f"a score is {float(wrong[0]):.6g}, and Beta posteriors are for scores in [0, 1], such as those of the preset twisted; "
                "take posterior='normal'"
            )


POSTERIORS = {"normal": NormalScores, "beta": BetaScores}


def score_posterior(posterior: str | ScorePosterior) -> ScorePosterior:
    """A posterior by name, or the posterior itself.

    :raises ValueError: for an unknown name, or what is no posterior.
    """
    if isinstance(posterior, str):
        if posterior not in POSTERIORS:
            raise unknown_name("posterior", posterior, POSTERIORS)
        made: ScorePosterior = POSTERIORS[posterior]()
        return made
    if not all(callable(getattr(posterior, name, None)) for name in ("parameters", "draw", "check")):
        raise ValueError(f"posterior must be one of {', '.join(POSTERIORS)}, or have parameters, draw and check, got {posterior!r}")
    return posterior
