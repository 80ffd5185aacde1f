"""Calibration of a reward model's log-odds: the map, how it is fitted, and the file that holds it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..context import Context
from ..inference.util.checked import check_fields, checked
from ..lm.loading import locate
from ..remote.address import is_address
from .base import RewardModel, prepare, scored_steps, step_scores
from .combined_reward import refuse_estimates

CALIBRATION_FILE = "ppl_llm_calibration.json"
"""In a reward model's directory."""

_BLOCKS, _BLOCK = 16, 2**16
"""How many places of a file of weights are looked at, and how many bytes at each."""


@dataclass(frozen=True)
class Calibration:
    """``z -> z / temperature + bias`` on log-odds (Platt scaling).

    :ivar float temperature: above 1 makes an overconfident model modest.
    :ivar float bias: added to the log-odds.
    :raises ValueError: for a temperature that is not positive.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature!r}")

    def __call__(self, log_odds: Tensor) -> Tensor:
        return log_odds / self.temperature + self.bias

    @classmethod
    def fit(cls, log_odds: Tensor, labels: Tensor, real: Tensor | None = None) -> Calibration:
        """Maximum likelihood by L-BFGS: of labels of steps, each right with the probability that its calibrated log-odds state, or of
        labels of solutions, each right with the product of the probabilities of its steps.

        Labels may be probabilities; without gold labels, agreement with the majority answer serves. A faint prior (a tenth of an
        observation) keeps separable data finite.

        :param Tensor log_odds: ``[M]`` of steps, or ``[M, T]`` of the steps of solutions.
        :param Tensor labels: ``[M]`` in [0, 1].
        :param Tensor real: ``[M, T]``, steps that exist; by default all.
        :raises ValueError: for data of different sizes, without both classes, or whose scores do not go up with the labels.
        """
        y = labels.flatten().to(torch.float64)
        z = log_odds.to(torch.float64).reshape(len(log_odds), -1)
        real = torch.ones_like(z, dtype=torch.bool) if real is None else real
        if len(z) != len(y) or len(z) < 2:
            raise ValueError(f"calibration needs as many labels as log-odds and at least 2, got {len(z)} and {len(y)}")
        if not y.min() < y.max():
            raise ValueError("calibration needs right and wrong examples; all labels are alike")
        if not torch.isfinite(z[real]).all():
            raise ValueError("the log-odds hold nan or infinite values")
        scale = z[real].std().clamp(min=1e-6)
        slope, bias = _maximum_likelihood(torch.where(real, z, 0.0) / scale, real, y, torch.stack([scale, torch.zeros_like(scale)]))
        if not slope > 0:
            raise ValueError("the log-odds do not rise with the labels: this reward model cannot be calibrated, only replaced")
        return cls(float(scale / slope), float(bias))

    def after(self, first: Calibration) -> Calibration:
        """The map that does ``first`` and then this."""
        return Calibration(self.temperature * first.temperature, first.bias / self.temperature + self.bias)


def log_product(log_odds: Tensor, real: Tensor) -> Tensor:
    """``[M]``: log-probability that all steps ``[M, T]`` are right, of those that exist."""
    return torch.where(real, logsigmoid(log_odds), 0.0).sum(-1)


def _maximum_likelihood(z: Tensor, real: Tensor, labels: Tensor, centre: Tensor) -> Tensor:
    """Slope and bias; a tenth of an observation pulls towards ``centre``."""
    weights = centre.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_p = log_product(z * weights[0] + weights[1], real).clamp(max=-1e-300)
        misfit = -(labels * log_p + (1 - labels) * torch.log(-torch.expm1(log_p))).sum()
        value = misfit + 0.05 * (weights - centre).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weights.detach()


class CalibratedReward:
    """A reward model behind a :class:`Calibration`.

    :param RewardModel prm: gives the raw log-odds.
    :param Calibration calibration: applied to every step.
    :raises ValueError: for a reward whose scores are estimates, drawn at random.
    """

    @checked
    def __init__(self, prm: RewardModel, calibration: Calibration) -> None:
        refuse_estimates([prm], "a calibrated score", "the reward as it is")
        self.prm, self.calibration = prm, calibration

    @property
    def max_length(self) -> int | None:
        """Longest text in tokens that the reward model reads, where it names one."""
        return getattr(self.prm, "max_length", None)

    def prepare(self, context: Context) -> None:
        """See :func:`~ppl_llm.reward.base.prepare`."""
        prepare(self.prm, context)

    def step_log_odds(self, context: Context) -> Tensor:
        """Calibrated log-odds ``[*batch, T]``; see :class:`~ppl_llm.RewardModel`."""
        return self.calibration(self.prm.step_log_odds(context))

    def scored_steps(self, context: Context) -> Tensor:
        """The steps that the reward model scores, ``[*batch, T]``."""
        return scored_steps(self.prm, context)

    def concluded_log_odds(self, context: Context) -> Tensor:
        """The same where no step will follow, see :func:`~ppl_llm.reward.base.step_scores`."""
        return self.calibration(step_scores(self.prm, context, last_step=True))

    def whole_log_odds(self, context: Context) -> Tensor:
        """Calibrated log-odds ``[*batch]`` of whole answers.

        :raises AttributeError: if the reward model scores steps only.
        """
        return self.calibration(self.prm.whole_log_odds(context))  # type: ignore[attr-defined]

    def release_caches(self) -> None:
        """Free what the reward model caches, if it does."""
        if callable(release := getattr(self.prm, "release_caches", None)):
            release()


@dataclass(frozen=True)
class SavedCalibration:
    """A calibration, whose it is, and what it was fitted on.

    :ivar Calibration calibration: the map.
    :ivar str prm: name of the reward model, as it was given.
    :ivar str identity: see :func:`identity_of`.
    :ivar dict fitted_on: plain values.
    :ivar dict held_out: reliability before and after on problems that it was not fitted on; plain values.
    """

    calibration: Calibration
    prm: str
    identity: str
    fitted_on: dict[str, Any] = field(default_factory=dict)
    held_out: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """As JSON."""
        plain = asdict(self)
        Path(path).write_text(json.dumps({**plain.pop("calibration"), **plain}, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> SavedCalibration:
        """
        :raises OSError: if there is no such file.
        :raises ValueError: for a file that holds none.
        """
        try:
            values = json.loads(Path(path).read_text())
            return cls(Calibration(values.pop("temperature"), values.pop("bias")), **values)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no calibration file {str(path)!r}; make one with: ppl-llm calibrate RUN") from error
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{str(path)!r} does not hold a calibration ({error}); make one with: ppl-llm calibrate RUN") from error


def identity_of(prm: str | Path, kind: str = "prm") -> str:
    """Tells a model from others, wherever its files are: a hash of its configuration and of samples of its weights. A model on a
    server, or on the Hub and not yet here, is known by its name only.

    :param str kind: ``prm``, or ``lm`` for a language model.
    :raises OSError: if there is no such directory, or it holds no model.
    """
    if is_address(str(prm)):
        return f"address {prm}"
    directory = Path(locate(prm, kind))
    if not directory.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(str(prm), "config.json")
        if not isinstance(cached, str):
            return f"name {prm}"
        directory = Path(cached).parent
    digest = hashlib.blake2b((directory / "config.json").read_bytes(), digest_size=8)
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for i in range(_BLOCKS):
                file.seek(max(0, size - _BLOCK) * i // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return f"files {digest.hexdigest()}"


def load_calibration(path: str | Path, prm: str | Path) -> Calibration:
    """The calibration in a file.

    :param prm: the reward model that it is for: a directory, a name, or an address.
    :raises OSError: if there is no such file or model.
    :raises ValueError: if the file holds none, or one that was fitted for another reward model.
    """
    saved, found = SavedCalibration.load(path), identity_of(prm)
    by_name = "name" in (saved.identity.split()[0], found.split()[0])
    if saved.identity != found and not (by_name and saved.prm == str(prm)):
        raise ValueError(
            f"the calibration in {str(path)!r} was fitted for the reward model {saved.prm!r} ({saved.identity}), and this is {str(prm)!r} "
            f"({found}); fit one for it with: ppl-llm calibrate RUN"
        )
    return saved.calibration


def find_calibration(prm: str | Path, calibration: Calibration | str | Path | bool | None) -> Calibration | None:
    """The calibration of a reward model: as given, from a file, or for ``True`` from the one in the model's directory.

    :raises OSError: if there is no such file.
    :raises ValueError: as :func:`load_calibration`.
    """
    if calibration is None or calibration is False or isinstance(calibration, Calibration):
        return calibration or None
    if calibration is not True:
        return load_calibration(calibration, prm)
    path = Path(locate(prm, "prm")) / CALIBRATION_FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no calibration {str(path)!r}; make one with: ppl-llm calibrate RUN, or name the file of one")
    return load_calibration(path, prm)
