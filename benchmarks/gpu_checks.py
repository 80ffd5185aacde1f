"""Whether what ``gpu.py`` times computes the right thing: the engine against plain forward passes in float32, at a small depth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from common import root, words
from gpu_models import build, tokenizer
from torch import Tensor
from transformers import Qwen2ForCausalLM

from ppl_llm import PAD, Context, TransformersLM, TransformersPRM
from ppl_llm.inference import run_concurrently
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding.device_loop import DeviceLoop
from ppl_llm.reward.prm.networks import Qwen2PRM

DEPTH, SEQUENCES, STEPS = 2, 12, 3
OPTIONS = StepOptions(max_tokens=40)
EXACT = 1e-4
"""Error allowed in float32 of a token's log-probability and of a log-odds; a wrong key or position gives hundred times as much."""
BF16 = 0.05
"""Error allowed in bf16 of a token's log-probability, in the mean."""


def check(name: str, prm: str, device: torch.device) -> Iterator[str]:
    """Run the checks: a line for each.

    :raises SystemExit: if one fails.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    reference = build(Qwen2ForCausalLM, name, device, torch.float32, DEPTH)
    lm = TransformersLM(build(Qwen2ForCausalLM, name, device, torch.float32, DEPTH), tokenizer(name, 10), device_loop=True)
    loops = {"operation by operation": DeviceLoop(lm._engine, lm.eos_ids), "the ordinary loop": None}
    if device.type == "cuda":
        loops = {"CUDA graphs": lm.device_loop} | loops
    firsts, in_float32 = [], f"{name}: log-probability of a token in float32"

    def captured(loop: DeviceLoop | None) -> None:
        if loop is not None and loop.graphs is not None and (loop.graphs.failure or loop.graphs.captured == 0):
            raise SystemExit(f"{name}: no CUDA graph was captured: {loop.graphs.failure or 'nothing was run twice'}")

    def error(context: Context, totals: Tensor) -> Tensor:
        expected = _whole_texts(reference, context).sum(-1)
        return ((totals - expected).abs() / (context.lengths - context.prompt_lengths)).max()

    for way, loop in loops.items():
        lm.use_device_loop(loop)
        lm.release_caches()
        context, totals = _filtered(lm)
        yield _line(f"{in_float32}, {way}", error(context, totals), EXACT)
        captured(loop)
        firsts.append(context.tokens[:, int(context.prompt_lengths[0])])
    lm.release_caches()
    lm.use_device_loop(next(iter(loops.values())))
    found = run_concurrently([lambda: _filtered(lm)] * 3)
    yield _line(f"{in_float32}, three programs in one batch", torch.stack([error(*each) for each in found]).max(), EXACT)
    for batch in lm._sampler.batches:
        captured(batch.loop)
    # The vocabulary is large and nearly uniform: a token is another one now and then, as its neighbour's rounding decides.
    same = (torch.stack(firsts) == firsts[0]).float().mean()
    yield _line(f"{name}: first tokens in which the loops differ", 1 - same, 0.25)
    scored = TransformersPRM(build(Qwen2PRM, prm, device, torch.float32, DEPTH), tokenizer(prm, 10))
    yield _line(f"{prm}: log-odds in float32, appended and from nothing", _appended(scored, context), EXACT)
    low = TransformersLM(build(Qwen2ForCausalLM, name, device, torch.bfloat16, DEPTH), tokenizer(name, 10))
    low.model.load_state_dict(reference.state_dict())
    low_context = Context.root(low, context.problems, [context.tokens[0, : int(context.prompt_lengths[0])].tolist()], False).expand(
        (SEQUENCES,)
    )
    errors, expected = [], _whole_texts(reference, context)
    for step, place in _steps(context):
        found = low.step_log_prob(low_context, step, OPTIONS)
        errors.append((found - (expected * place).sum(-1)).abs().sum() / place.sum())
        low_context = low_context.extend(step)
    yield _line(f"{name}: log-probability of a token in bf16, in the mean", torch.stack(errors).mean(), BF16)


def _filtered(lm: TransformersLM) -> tuple[Context, Tensor]:
    """Ragged steps with resampling between: where the sequences end, and the log-probability of all their tokens."""
    torch.manual_seed(0)
    vocab = len(lm.tokenizer)
    context = root(lm, words(100, 0, round(vocab / 10), vocab)).expand((SEQUENCES,))
    totals = torch.zeros(SEQUENCES, device=lm.device)
    for _ in range(STEPS):
        step = lm.sample_step(context, torch.Size((SEQUENCES,)), OPTIONS)
        ancestors = torch.randint(SEQUENCES, (SEQUENCES,)).to(lm.device)
        context, totals = context.extend(step.tokens).reorder(ancestors), (totals + step.log_probs)[ancestors]
    return context, totals


@torch.inference_mode()
def _whole_texts(model: Qwen2ForCausalLM, context: Context) -> Tensor:
    """Log-probability of each sampled token by transformers alone, one text at a time: ``[sequences, L]``, 0 for the prompt and padding."""
    found = torch.zeros(context.tokens.shape, device=context.tokens.device)
    for sequence, (text, length, start) in enumerate(
        zip(context.tokens, context.lengths.tolist(), context.prompt_lengths.tolist(), strict=True)
    ):
        log_probs = model(text[None, :length], use_cache=False).logits[0].float().log_softmax(-1)
        found[sequence, start:length] = log_probs[start - 1 : length - 1].gather(1, text[start:length, None])[:, 0]
    return found


def _steps(context: Context) -> Iterator[tuple[Tensor, Tensor]]:
    """Each step ``[sequences, max_tokens]`` padded with ``PAD``, and where its tokens lie: ``[sequences, L]``."""
    column = torch.arange(context.tokens.shape[1], device=context.tokens.device)
    for start, end in zip(context.step_starts.unbind(-1), context.ends.unbind(-1), strict=True):
        place = (column >= start[:, None]) & (column < end[:, None])
        at = start[:, None] + torch.arange(OPTIONS.max_tokens, device=start.device)
        step = context.tokens.gather(1, at.clamp(max=len(column) - 1))
        yield torch.where(at < end[:, None], step, PAD), place


def _appended(prm: TransformersPRM, context: Context) -> Tensor:
    """Largest difference of scores that are made step by step from scores that are made at once."""
    whole = prm.step_log_odds(context)
    prm.release_caches()
    text = [context.tokens[0, : int(context.prompt_lengths[0])].tolist()]
    grown = Context.root(context.lm, context.problems, text, False).expand((SEQUENCES,))
    for step, _ in _steps(context):
        grown = grown.extend(step)
        found = prm.step_log_odds(grown)
    return (found - whole).abs().max()


def _line(what: str, error: Tensor, allowed: float) -> str:
    if not float(error) <= allowed:
        raise SystemExit(f"{what}: error {float(error):.3g}, allowed are {allowed:.3g}")
    return f"{what}: error {float(error):.2g} (allowed {allowed:.2g})"
