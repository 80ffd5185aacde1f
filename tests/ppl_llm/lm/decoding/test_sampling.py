"""Inverse-CDF sampling of large vocabularies: in blocks, against exact cumulative sums."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding import sampling
from ppl_llm.lm.decoding.sampling import draw, inverse_cdf, tempered, warp
from ppl_llm.lm.token_figures import TokenFigure

Sampler = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

SHAPES = ("flat", "peaked", "masked", "heavy head", "heavy end")


def distribution(shape: str, vocab: int, sequences: int, generator: torch.Generator) -> Tensor:
    logits = torch.randn(sequences, vocab, generator=generator)
    if shape == "peaked":
        logits = logits * 6
    elif shape == "masked":  # as top-k leaves it: most blocks are empty
        logits = logits.masked_fill(torch.rand(sequences, vocab, generator=generator) < 0.999, -torch.inf)
        logits[:, vocab // 3] = 1.0
    elif shape.startswith("heavy"):  # one token has nearly everything, the others 1e-9 together
        logits[:, 5 if shape == "heavy head" else -5] = 21 + torch.tensor(float(vocab)).log()
    return logits


def uniforms(sequences: int, generator: torch.Generator) -> Tensor:
    """Some anywhere, some close to 0 and to 1, down to 1e-10."""
    u = torch.rand(sequences, dtype=torch.float64, generator=generator)
    small = 10 ** (-10 * torch.rand(sequences, dtype=torch.float64, generator=generator))
    which = torch.randint(0, 3, (sequences,), generator=generator)
    return torch.where(which == 0, u, torch.where(which == 1, small * u, 1 - small * u)).clamp(max=1 - 2**-53)


def assert_exact(sampler: Sampler, logits: Tensor, u: Tensor) -> None:
    """Each token's place in the exact cumulative sums holds its uniform, up to 4e-6 of the distance to the nearer end."""
    token, log_prob = sampler(logits.clone(), u)
    exact = logits.double().softmax(-1)
    below, above = exact.cumsum(-1), exact.flip(-1).cumsum(-1).flip(-1)  # from either end: precise where it is small
    place = token[:, None]
    upper, lower = below.gather(-1, place)[:, 0], above.gather(-1, place)[:, 0]  # P(<= token), P(>= token)
    assert (exact.gather(-1, place) > 0).all()
    assert (u <= upper + 4e-6 * torch.minimum(upper, 1 - u) + 1e-12).all()
    assert (1 - u <= lower + 4e-6 * torch.minimum(lower, u) + 1e-12).all()
    torch.testing.assert_close(log_prob.double(), exact.gather(-1, place)[:, 0].log(), atol=5e-6, rtol=1e-6)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(1025, 9000), st.integers(0, 10**6), st.booleans())
def test_blocks_are_exact_to_the_ends(shape: str, vocab: int, seed: int, overwrite: bool):
    generator = torch.Generator().manual_seed(seed)
    logits = distribution(shape, vocab, 40, generator)
    assert_exact(lambda logits, u: inverse_cdf(logits, u, overwrite=overwrite), logits, uniforms(40, generator))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_vocabulary_of_qwen(shape: str):
    generator = torch.Generator().manual_seed(0)
    assert_exact(inverse_cdf, distribution(shape, 151936, 12, generator), uniforms(12, generator))


def test_as_one_level_but_for_ties(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    logits, u = distribution("flat", 20000, 300, generator), uniforms(300, generator)
    token, log_prob = inverse_cdf(logits, u)
    monkeypatch.setattr(sampling, "_ONE_LEVEL", 20000)
    plain, plain_log_prob = inverse_cdf(logits, u)
    differ = token != plain
    assert differ.sum() <= 2 and ((token - plain).abs()[differ] == 1).all()
    torch.testing.assert_close(log_prob[~differ], plain_log_prob[~differ], atol=1e-5, rtol=0)


def test_logits_are_left_alone_unless_told():
    logits = torch.randn(3, 3000, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    inverse_cdf(logits, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    assert torch.equal(logits, before)
    inverse_cdf(logits, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), overwrite=True)
    assert not torch.equal(logits, before)


OPTIONS = [StepOptions(("x",), 8, 1.0), StepOptions(("x",), 8, 0.7), StepOptions(("x",), 8, 1.3, top_k=40, top_p=0.9)]


@pytest.mark.parametrize("at_once", [3000, 9000, 10**6], ids=["one row", "some rows", "all rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "temperature", "truncated"])
@pytest.mark.parametrize("own", [False, True], ids=["", "own temperatures"])
def test_rows_are_drawn_from_as_if_alone(
    at_once: int, dtype: torch.dtype, options: StepOptions, own: bool, monkeypatch: pytest.MonkeyPatch
):
    """Some at a time, each with its uniform, its temperature and its figures, which are those of the model's own logits."""
    generator = torch.Generator().manual_seed(0)
    logits = distribution("flat", 3000, 7, generator).to(dtype)
    u, temperatures = uniforms(7, generator), torch.linspace(0.5, 2.0, 7) if own else None
    figures = TokenFigure("log_prob"), TokenFigure("entropy")
    wide = logits.double()
    expected = [
        inverse_cdf(warp(tempered(wide[i : i + 1], None if temperatures is None else temperatures[i : i + 1]), options), u[i : i + 1])
        for i in range(7)
    ]
    tokens, log_probs = (torch.cat(each) for each in zip(*expected, strict=True))
    monkeypatch.setattr(sampling, "_IN_CACHE", at_once)
    for wanted in ((), figures):
        found = draw(logits.clone(), u, options, wanted, temperatures)
        assert torch.equal(found.tokens, tokens)
        torch.testing.assert_close(found.log_probs.double(), log_probs, atol=1e-5, rtol=0)
        assert found.figures.shape == (7, len(wanted))
    torch.testing.assert_close(found.figures, torch.stack([figure(wide, tokens) for figure in figures], -1), atol=1e-5, rtol=0)


def test_no_rows():
    assert draw(torch.empty(0, 3000), torch.empty(0, dtype=torch.float64), OPTIONS[0]).tokens.shape == (0,)


def float32_sums(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    cdf = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1)
    token = torch.searchsorted(cdf.double(), (u * cdf[:, -1].double())[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return token, logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]


def blocks_without_rest(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the block, and then starts from the uniform once more within it."""
    probs = logits.double().softmax(-1)
    size = 256
    blocks = torch.nn.functional.pad(probs, (0, -probs.shape[-1] % size)).unflatten(-1, (-1, size))
    block = torch.searchsorted(blocks.sum(-1).cumsum(-1), u[:, None], right=True)[:, 0].clamp(max=blocks.shape[1] - 1)
    inner = blocks[torch.arange(len(u)), block].cumsum(-1)
    token = block * size + torch.searchsorted(inner, (u * inner[:, -1])[:, None], right=True)[:, 0].clamp(max=size - 1)
    token = token.clamp(max=probs.shape[-1] - 1)
    return token, probs.gather(-1, token[:, None])[:, 0].log().float()


@pytest.mark.parametrize(("broken", "shape"), [(float32_sums, "heavy head"), (blocks_without_rest, "flat")])
def test_broken_versions_are_rejected(broken: Sampler, shape: str):
    generator = torch.Generator().manual_seed(0)
    logits, u = distribution(shape, 20000, 40, generator), uniforms(40, generator)
    assert_exact(inverse_cdf, logits, u)
    with pytest.raises(AssertionError):
        assert_exact(broken, logits, u)
