"""Models by name, and quiet libraries."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .startup import uncollected

if TYPE_CHECKING:
    from ..lm.base import LanguageModel
    from ..reward.base import RewardModel
    from ..reward.calibration import Calibration

DTYPE = "Number format of local models' weights: float32, bfloat16 or float16; by default the checkpoint's."
"""Help of ``--dtype``."""


def load_lm(name: str, device: str | None = None, dtype: str | None = None, **options: Any) -> LanguageModel:
    """A language model.

    :param str name: ``demo``, a directory, or a name on the Hugging Face Hub.
    :param str device: where to put it, e.g. ``cuda`` or ``auto``.
    :param str dtype: number format of its weights, e.g. ``bfloat16``; by default that of the checkpoint.
    :param options: of :class:`~ppl_llm.TransformersLM`.
    :raises OSError: if it cannot be found or read.
    :raises ValueError: if it cannot be used.
    """
    with uncollected():
        from ..lm.loading import parse_dtype
        from ..lm.transformers_lm import TransformersLM

        return TransformersLM.from_pretrained(name, device_map=device, dtype=parse_dtype(dtype), **options)


def load_prm(
    name: str, device: str | None = None, calibration: Calibration | None = None, dtype: str | None = None, family: str = "auto"
) -> RewardModel:
    """A process reward model: ``demo``, ``demo-weak``, a directory, or a name on the Hub. See :func:`load_lm`."""
    with uncollected():
        from ..lm.loading import parse_dtype
        from ..reward.prm.transformers_prm import TransformersPRM

        return TransformersPRM.from_pretrained(name, family, device_map=device, dtype=parse_dtype(dtype), calibration=calibration)


def load_orm(name: str, partial: bool | str = False, device: str | None = None, dtype: str | None = None) -> RewardModel:
    """A sequence classifier of finished answers: a directory, or a name on the Hub. See :func:`load_lm`.

    :param partial: what it judges of unfinished answers, see :class:`~ppl_llm.TransformersORM`.
    """
    with uncollected():
        from ..lm.loading import parse_dtype
        from ..reward.transformers_orm import TransformersORM

        return TransformersORM.from_pretrained(name, device_map=device, dtype=parse_dtype(dtype), partial=partial)


def load_calibration(path: Path, prm: str) -> Calibration:
    """A calibration from a file, for the reward model of this name; known to fit before any model is loaded.

    :raises OSError: if there is no such file or model.
    :raises ValueError: if the file holds none, or that of another model.
    """
    from ..reward.calibration import load_calibration

    return load_calibration(path, prm)


def check_device(device: str | None) -> None:
    """
    :raises ValueError: for a device that does not exist here.
    """
    import torch

    if device is None or device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device!r} cannot be used here ({str(error).splitlines()[0]}); known: cpu, cuda, auto") from error


@contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Keep warnings and progress bars of the libraries off the terminal, but for downloads that a person is waiting for.

    :param bool verbose: leave the warnings on.
    """
    with uncollected():
        from huggingface_hub.utils.tqdm import enable_progress_bars
        from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity(), logging.getLogger("huggingface_hub").level
    bars = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
            transformers_logging.set_verbosity_error()
            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        transformers_logging.disable_progress_bar()
        if sys.stderr.isatty():
            enable_progress_bars()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(before[0])
            logging.getLogger("huggingface_hub").setLevel(before[1])
            if bars:
                warnings.simplefilter("ignore")  # the Hub's stay off where the environment says so, with a warning
                transformers_logging.enable_progress_bar()
