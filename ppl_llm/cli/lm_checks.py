"""What ``ppl-llm check`` tries on a language model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .findings import Findings

if TYPE_CHECKING:
    from torch import Tensor

    from ..context import Context
    from ..lm.base import StepOptions, StepSample

_SAMPLES = 16
_TOKENS = 24
_PROBLEM = "A train leaves at noon and goes 60 miles an hour. A second one leaves at one o'clock and goes 80. When does it catch up?"
TOLERANCES = {"float32": 0.05, "float64": 0.05, "float16": 0.5, "bfloat16": 3.0}
"""Of log-probabilities of steps of 24 tokens that two ways through a model of this number format give: transformers' own passes over
single tokens and over whole texts differ by 0.6 in bfloat16. A wrong tokenizer or a wrong key makes tens."""


def tolerance(dtype: Any) -> float:
    """Largest gap between two ways through a model.

    :param dtype: of its weights; a served model may be in bfloat16.
    """
    return TOLERANCES.get(str(dtype).removeprefix("torch."), TOLERANCES["bfloat16"])


class LMChecks:
    """Tries a language model on a problem, one property after the other.

    :param lm: of any kind.
    :param Findings findings: where results go.
    """

    def __init__(self, lm: Any, findings: Findings) -> None:
        self.lm, self.findings = lm, findings
        self.remote = hasattr(lm, "client")
        self.tolerance = tolerance(None if self.remote else lm.model.dtype)

    def run(self) -> None:
        """All checks; those that need an earlier one are left out where it fails."""
        self._loaded()
        with self.findings.trying("steps"):
            context = self.lm.start(_PROBLEM)
            sample = self._speed(context)
            self._seeds(context, sample)
            self._stop(context, sample)
            self._log_probs(context)
            self._warped(context)
            self._prefix_cache()

    def _options(self, **options: Any) -> StepOptions:
        from ..lm.base import StepOptions

        return StepOptions(**{"stop": (), "max_tokens": _TOKENS, **options})

    def _sample(self, context: Context, options: StepOptions, seed: int = 0) -> tuple[StepSample, dict[str, float]]:
        import pyro
        import torch

        from ..inference import CostMeter

        with CostMeter() as meter:
            pyro.set_rng_seed(seed)
            return self.lm.sample_step(context, torch.Size([_SAMPLES]), options), dict(meter.totals)

    def _loaded(self) -> None:
        lm = self.lm
        ends = ", ".join(f"{i} ({lm.tokenizer.convert_ids_to_tokens(i)})" for i in lm.eos_ids.tolist())
        self.findings.add("model", True, f"{lm!r}" if self.remote else f"{type(lm.model).__name__} on {lm.device}")
        self.findings.add("context", True, f"{lm.max_length} tokens, vocabulary of {lm.vocab_size}, text ends at {ends}")
        template = lm.tokenizer.chat_template is not None
        self.findings.add(
            "chat template",
            None if not template else True,
            "found" if template else "none: the model continues the problem's plain text",
            "" if template else "for a model that follows instructions pass --chat-template, or chat_template=... in Python",
        )
        prompts = getattr(lm, "prompts", None)
        if prompts is not None and not template and prompts.appends_end:
            self.findings.add(
                "prompts", None, "the tokenizer appends an end of text to what it reads", "prompts go without it; no other text does"
            )

    def _speed(self, context: Context) -> StepSample:
        self._sample(context, self._options(max_tokens=2))  # the first call warms up
        began = time.perf_counter()
        sample, cost = self._sample(context, self._options())
        seconds = time.perf_counter() - began
        if self.remote:
            self.findings.add("token ids", True, "prompts and steps travel as token ids")
        self.findings.add("speed", None, f"{cost['tokens_sampled'] / seconds:,.0f} tokens/s with {_SAMPLES} sequences of {_TOKENS} tokens")
        return sample

    def _seeds(self, context: Context, sample: StepSample) -> None:
        import torch

        again, _ = self._sample(context, self._options())
        other, _ = self._sample(context, self._options(), seed=1)
        distinct = len(sample.tokens.unique(dim=0))
        same = torch.equal(again.tokens, sample.tokens)
        varies = distinct > 1 or not torch.equal(other.tokens, sample.tokens)
        if varies:
            self.findings.add("samples", True, f"{distinct} of {_SAMPLES} samples differ")
        else:
            hint = "the server may ignore seed or temperature" if self.remote else "the model may be certain of its answer"
            self.findings.add(
                "samples", False, f"all {_SAMPLES} samples are equal, under two seeds", f"{hint}: try another problem or server"
            )
        remedy = "results will differ from run to run; vLLM and SGLang honour seed (SGLang with --enable-deterministic-inference)"
        self.findings.add(
            "seeds", same, "the same seed gives the same tokens" if same else "the same seed gives other tokens", "" if same else remedy
        )

    def _ends(self, tokens: Tensor, last: Tensor) -> Tensor:
        """Steps ``[N]`` whose last token ends the text."""
        import torch

        ends: Any = getattr(self.lm, "eos_ids", ())
        return (torch.isin(tokens, torch.tensor([int(i) for i in ends], device=tokens.device)) & last).any(-1)

    def _stop(self, context: Context, sample: StepSample) -> None:
        """A delimiter that occurs in a step: with it, steps must end where their text first holds it.

        They need not be those sampled without it: sequences that end leave the batch, and in bfloat16 the others round otherwise then.
        """
        import torch

        from ..context import PAD

        text = self.lm.decode([i for i in sample.tokens[0].tolist() if i != PAD])
        delimiter = next((text[k : k + 2] for k in range(len(text) // 2, len(text) - 1) if text[k : k + 2].strip()), "")
        if not delimiter or "\ufffd" in delimiter:
            self.findings.add("stop strings", None, "not tried: the model wrote too little")
            return
        cut, cost = self._sample(context, self._options(stop=delimiter))
        shorter = cut.tokens != PAD
        lengths = shorter.sum(-1)
        rule = self.lm.stop_automaton(delimiter)
        last = torch.arange(shorter.shape[-1], device=shorter.device) == lengths[:, None] - 1
        delimited, early = rule.accepts(cut.tokens), rule.accepts(torch.where(last, PAD, cut.tokens))
        right = bool(delimited.any() and not early.any() and (delimited | (lengths == lengths.max()) | self._ends(cut.tokens, last)).all())
        past = int(cost.get("lm_tokens_past_the_end", 0))
        detail = f"steps end at {delimiter!r}, after {int(lengths.min())} to {int(lengths.max())} tokens"
        if not right:
            self.findings.add("stop strings", False, f"steps do not end at {delimiter!r} as they should", "is the tokenizer the model's?")
        elif past:
            self.findings.add(
                "stop strings", True, f"{detail}; {past} more were written and cut off here", "a server that obeys stop is faster"
            )
        else:
            self.findings.add("stop strings", True, detail)

    def _log_probs(self, context: Context) -> None:
        options = self._options()
        sample, _ = self._sample(context, options)
        if sample.log_probs is None:
            remedy = "only algorithms that need no log-probabilities of steps work: SMC, Importance and searches do"
            self.findings.add("log-probabilities of sampled steps", False, "the server gives none", remedy)
        with self.findings.trying("log-probabilities of given steps", "audit and proposals other than the model need them, SMC does not"):
            scored = self.lm.step_log_prob(context, sample.tokens, options)
            self.findings.add("log-probabilities of given steps", True, f"{float(scored[0]):.3f} for the first step")
            if sample.log_probs is not None:
                gap = float((scored - sample.log_probs).abs().max())
                ok = gap < self.tolerance
                detail = f"agree with those of given steps to {gap:.1e} (allowed: {self.tolerance:g})"
                remedy = "sampling and scoring see different models: quantised caches, speculative decoding or a wrong tokenizer"
                self.findings.add("log-probabilities of sampled steps", ok, detail, "" if ok else remedy)

    def _warped(self, context: Context) -> None:
        """Whether a server's log-probabilities are those before or after the temperature."""
        if not self.remote or self.lm.log_probs == "none":
            return
        raw: bool | None = None
        believed, self.lm.log_probs = self.lm.log_probs, "processed"
        try:
            with self.findings.trying("meaning of log-probabilities"):
                sample, _ = self._sample(context, self._options(temperature=0.5))
                plain = self.lm.step_log_prob(context, sample.tokens, self._options())
                if sample.log_probs is not None:
                    raw = bool((sample.log_probs - plain).abs().max() < self.tolerance)
        finally:
            self.lm.log_probs = believed
        if raw is None:
            return
        if raw:
            detail = "raw, of the model itself: not used at other temperatures than 1"
            self.findings.add("meaning of log-probabilities", True, detail, "for the others: vLLM --logprobs-mode processed_logprobs")
        else:
            detail = "processed, of the distribution sampled from"
            self.findings.add("meaning of log-probabilities", True, detail, "pass log_probs='processed' to OpenAILM to use them")

    def _prefix_cache(self) -> None:
        long = " ".join([_PROBLEM] * 4)
        with self.findings.trying("prefix cache"):
            context = self.lm.start(long)
            self._sample(context, self._options(max_tokens=2))
            _, cost = self._sample(context, self._options(max_tokens=2))
            prompt = int(context.lengths) * _SAMPLES
            ran = cost.get("tokens_prefilled", 0)
            if self.remote and "lm_tokens_cached" not in cost:
                self.findings.add("prefix cache", None, "the server does not tell", "vLLM does with --enable-prompt-tokens-details")
            elif ran < prompt / 2:
                self.findings.add("prefix cache", True, f"{1 - ran / prompt:.0%} of a prompt of {int(context.lengths)} tokens was kept")
            else:
                self.findings.add(
                    "prefix cache", False, "prompts are read again at every step", "vLLM: --enable-prefix-caching, and a small --block-size"
                )
