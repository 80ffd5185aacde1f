"""All randomness of waste-free SMC, enumerated as in tests/helpers/exact_moves.py."""

from __future__ import annotations

import math
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ppl_llm.inference import TemperedPosterior, WasteFreeSMC
from tests.helpers.exact import Chain, num_uniforms
from tests.helpers.exact_moves import Script, ScriptedResampler, ScriptedSuffixMH, move_choices


class EveryMove(ScriptedSuffixMH):
    """Choices of its own for each move, not for each stage."""

    def sweep(self, reference: Any, *args: Any, **kwargs: Any) -> Any:
        self.turn, self.script.moves = self.script.moves, self.script.moves + 1
        return super().sweep(reference, *args, **kwargs)


def enumerate_waste_free(
    model: Chain,
    num_chains: int,
    chain_length: int,
    betas: list[float],
    *,
    scheme: str = "systematic",
    moving: int | None = None,
    algorithm: type[WasteFreeSMC] = WasteFreeSMC,
) -> tuple[Tensor, TemperedPosterior]:
    """Every outcome of ``WasteFreeSMC(model, M k, chain_length=k, betas=betas)``.

    :param int moving: how many stages move the particles; the later ones leave them as they are. All by default.
    :returns: probabilities ``[columns]`` and the posterior with plate ``columns``.
    """
    n, stages = num_chains * chain_length, range(len(betas))
    moves = (chain_length - 1) * (len(betas) if moving is None else moving)
    choices: dict[str, tuple[int, ...]] = {"first": (model.num_symbols, model.length, n)}
    for stage in stages:
        choices |= {f"resample {stage}": (n, num_uniforms(scheme, n)), f"offset {stage}": (chain_length,)}
    for move in range(moves):
        choices |= move_choices(model, num_chains, move)
    script = Script(model, choices)
    script.kernels = script.moves = 0
    script.drawn = script.take("first")
    resampler = ScriptedResampler(script, scheme)

    class Scripted(algorithm):  # type: ignore[valid-type,misc]
        def draw_offset(self, plates: Any, device: Any) -> Tensor:
            script.add(torch.full((1, script.columns), -math.log(chain_length), dtype=torch.float64))
            return script.take(f"offset {script.kernels - 1}")

    smc = Scripted(
        script,
        n,
        chain_length=chain_length,
        betas=betas,
        kernel=partial(EveryMove, script=script),
        resampler=resampler,
        max_plate_nesting=1,
    )
    with patch("torch.rand", script.rand):
        posterior = smc.run(script.columns)
    for log_prob in resampler.log_prob.values():
        script.add(log_prob)
    return script.probs(), posterior
