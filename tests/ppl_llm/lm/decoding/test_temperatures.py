"""A temperature for each sequence, on every path of decoding: the tokens of a batch at that number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_llm.context import PAD
from ppl_llm.lm.base import StepOptions, StepSample
from ppl_llm.lm.decoding.uncached_sampler import UncachedSampler
from ppl_llm.lm.transformers_lm import TransformersLM
from tests.helpers.served_table import OPTIONS as SERVED
from tests.helpers.served_table import local, remote, serve
from tests.helpers.tape import tape
from tests.helpers.tiny_models import language_model
from tests.ppl_llm.lm.decoding.test_device_loop import looping
from tests.ppl_llm.lm.decoding.test_joint_decoding import EVERY_LOOP, Make, Step, alone, assert_same, steps, together

OPTIONS = StepOptions(stop=("a", "e", "o", "1"), max_tokens=14)
TEMPERATURES = torch.tensor([0.3, 0.7, 1.0, 1.6]).repeat(3)


def uncached(cached: bool) -> TransformersLM:
    lm = language_model()
    lm._source = lm._sampler = UncachedSampler(lm.model, lm.device, cached)
    return lm


MAKERS: dict[str, Callable[[], TransformersLM]] = {
    "cached": language_model,
    "device loop": looping,
    "replayed": partial(looping, tape),
    "without a cache": partial(uncached, False),
    "with the model's own cache": partial(uncached, True),
}


def sampled(lm: TransformersLM, temperature: Any, **changes: Any) -> list[tuple[StepSample, Tensor]]:
    """Two steps of ragged lengths with other uniforms each, and the log-probabilities of the same steps scored again."""
    context, found = lm.start("What is 12 + 30?"), []
    for t in range(2):
        options = replace(OPTIONS, temperature=temperature, **changes)
        uniforms = torch.rand(12, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
        step = lm.sample_step(context, torch.Size([12]), options, uniforms=uniforms)
        found.append((step, lm.step_log_prob(context, step.tokens.clone(), options)))
        context = context.extend(FIRST, OPTIONS.stop)
    return found


FIRST = torch.full((12, 14), PAD).index_fill(1, torch.tensor([0]), 5)
"""The same beginning of all sequences, whatever their temperature."""


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("changes", [{}, {"top_p": 0.8, "top_k": 30}], ids=["plain", "truncated"])
def test_each_sequence_is_that_of_a_batch_at_its_temperature(name: str, changes: dict[str, Any]) -> None:
    mixed = sampled(MAKERS[name](), TEMPERATURES, **changes)
    lengths = torch.stack([(step.tokens != PAD).sum(-1) for step, _ in mixed])
    assert lengths.unique().numel() > 4, "ragged, so that sequences leave and change places"
    for temperature in TEMPERATURES.unique().tolist():
        own = temperature == TEMPERATURES
        for (step, scored), (single, again) in zip(mixed, sampled(MAKERS[name](), temperature, **changes), strict=True):
            assert torch.equal(step.tokens[own], single.tokens[own])
            assert step.log_probs is not None and single.log_probs is not None
            torch.testing.assert_close(step.log_probs[own], single.log_probs[own], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(scored[own], again[own], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(scored[own], step.log_probs[own], atol=1e-4, rtol=1e-4)
    assert not torch.equal(mixed[0][0].tokens, sampled(MAKERS[name](), 1.0, **changes)[0][0].tokens)


@EVERY_LOOP
def test_programs_with_and_without_temperatures_share_a_batch(make: Make) -> None:
    def programs(lm: TransformersLM) -> list[Callable[[], list[Step]]]:
        cases: list[tuple[Any, int]] = [(TEMPERATURES, 12), (1.0, 5), (TEMPERATURES[:4], 4), (0.7, 3), (TEMPERATURES, 12)]
        return [steps(lm, "7 * 6", rows, replace(OPTIONS, temperature=temperature)) for temperature, rows in cases]

    assert_same(together(programs(make())), alone(programs(language_model())))


def test_a_server_is_asked_at_the_temperature_of_each_sequence() -> None:
    """Requests are grouped by temperature, and the shares of the steps are those of the local table."""
    server = serve()
    lm = remote(server, seeded=False)
    temperature = torch.tensor([0.5, 2.0], dtype=torch.float64).repeat(200)
    torch.manual_seed(4)
    step = lm.sample_step(lm.start("a"), torch.Size([400]), replace(SERVED, temperature=temperature))
    assert sorted({call["temperature"] for call in server.calls if "temperature" in call}) == [0.5, 2.0]
    assert step.log_probs is None or step.log_probs.shape == (400,)
    for value in (0.5, 2.0):
        options = replace(SERVED, temperature=value)
        support = local().enumerate_steps(local().start("a"), options)
        exact = local().step_log_prob(local().start("a"), support, options).exp()
        found = Counter(map(tuple, step.tokens[temperature == value].tolist()))
        shares = torch.tensor([found[tuple(row)] / 200 for row in support.tolist()])
        assert float((shares - exact).abs().max()) < 0.18  # five standard errors of a share of one half: 5 / sqrt(4 * 200)
    with pytest.raises(ValueError, match="at temperature 1, without top_p and top_k"):
        lm.step_log_prob(lm.start("a"), step.tokens, replace(SERVED, temperature=temperature))
