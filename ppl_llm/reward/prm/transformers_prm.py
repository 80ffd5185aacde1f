"""Local process reward models of the published families."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...context import Context
from ...context_cache import CacheEntry, CacheKey, find_entry
from ...inference.cost import count
from ...inference.util.checked import checked
from ...inference.util.validation import check_count, unknown_name
from ...kv_cache.pool import DEFAULT_CACHE_BYTES
from ...lm.loading import check_network, load, load_tokenizer, locate
from ...stop_reason import FINISHING
from ..calibration import Calibration, find_calibration
from ..step_texts import StepText, answer_text, begun_steps, step_texts
from .families import OVERLONG, detect_family, get_family, read_config
from .prefix_scorer import PrefixScorer
from .prm_entry import appended_ids, empty_entry, first_size, with_scores

_log = logging.getLogger(__name__)


class TransformersPRM:
    """A process reward model that reads the problem and the steps in the format it was trained on and scores each step.

    Only new steps are run: keys and values of earlier ones are kept and found again by comparing tokens, and sequences that are equal are
    scored once. Steps travel as text, so that the language model may have another tokenizer.

    With ``whole_answer`` the model is asked at every step for its score s_t of all steps so far written as one (the "model-based" form).
    The increments that go with it are those of :class:`~ppl_llm.StepReward` with ``aggregation="last"``: the potential that is the
    difference log s_t - log s_{t-1} leaves the target p(x) s_T, ``odds`` is the memoryless weight of the released code.

    :param model: the network: a :class:`~ppl_llm.reward.prm.networks.Qwen2PRM`, a :class:`~ppl_llm.reward.prm.networks.SkyworkPRM`, or
        for the families whose scores are next tokens a transformers causal language model.
    :param tokenizer: its tokenizer.
    :param str family: ``qwen``, ``skywork``, ``math-shepherd`` or ``rlhflow``.
    :param bool whole_answer: score the answer so far as a single step.
    :param int cache_bytes: memory for keys and values; the sequences of one call may exceed it.
    :param Calibration calibration: maps all log-odds to calibrated ones.
    :param str overlong: a step that does not fit into the model's context any more gets weight ``zero`` (log-odds -inf), or the ``last``
        score before it. A warning is logged.
    :param format_options: options of the family's format, e.g. ``system_prompt`` and ``step_token`` of
        :class:`~ppl_llm.reward.prm.formats.qwen.QwenFormat`.
    :raises ValueError: for an unknown family, or a tokenizer or model that does not fit it.
    """

    @checked
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        family: str = "qwen",
        whole_answer: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        calibration: Calibration | None = None,
        overlong: str = "zero",
        **format_options: Any,
    ) -> None:
        check_network(model)
        check_count("cache_bytes", cache_bytes, 0)
        if overlong not in OVERLONG:
            raise unknown_name("overlong", overlong, OVERLONG)
        self.overlong = overlong
        kind = get_family(family)
        self._format = kind.make_format(tokenizer, model.config.get_text_config().vocab_size, **format_options)
        self.model = kind.network(model.eval(), self._format)
        self.tokenizer = tokenizer
        self.family = family
        self.whole_answer, self.calibration = whole_answer, calibration
        self._key = CacheKey.of_model("prm", model)
        self._scorer = PrefixScorer(model, self.model.log_odds, cache_bytes)
        self._device, self.max_length = self._scorer.device, self._scorer.max_length

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        family: str = "auto",
        *,
        whole_answer: bool = False,
        device_map: Any = None,
        dtype: Any = None,
        quantization_config: Any = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        calibration: Calibration | str | Path | bool | None = None,
        overlong: str = "zero",
        **format_options: Any,
    ) -> TransformersPRM:
        """Load a PRM: a directory, a name on the Hugging Face Hub, or ``"demo"`` or ``"demo-weak"`` from this package.

        Only safetensors are read, and the code that such directories ship is not run.

        :param str family: as for the constructor; ``auto`` recognises it by configuration and tokenizer.
        :param calibration: a file that ``ppl-llm calibrate`` wrote for this model, or ``True`` for the one that it put into the model's
            directory.
        :raises OSError: if there is no such model, or not in safetensors format; if there is no such calibration.
        :raises ValueError: if the family cannot be recognised, or the directory is not of the family; for a calibration of another model.
        """
        source = locate(name_or_path, "prm")
        fitted = find_calibration(name_or_path, calibration)
        known = None if family == "auto" else get_family(family)
        tokenizer, config = load_tokenizer(source), read_config(source)
        kind = known or detect_family(source, config, tokenizer)
        vocabulary = config.get("vocab_size")
        if vocabulary is not None:  # before gigabytes are read
            kind.make_format(tokenizer, vocabulary, **format_options)
        model, report = load(kind.network_class, source, device_map=device_map, dtype=dtype, quantization_config=quantization_config)
        missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
        if missing or unexpected:
            found = [f"{what} {keys[:6]}" for what, keys in (("missing keys", missing), ("unexpected keys", unexpected)) if keys]
            raise ValueError(f"{source!r} is not a {kind.model_name} ({kind.layout}): {'; '.join(found)}")
        options = {"whole_answer": whole_answer, "cache_bytes": cache_bytes, "calibration": fitted, "overlong": overlong, **format_options}
        return cls(model, tokenizer, family=kind.name, **options)

    def release_caches(self) -> None:
        """Free the memory of all keys and values; contexts stay valid."""
        self._scorer.release()

    @torch.no_grad()
    def step_log_odds(self, context: Context) -> Tensor:
        """Log-odds that each step is right: ``[*batch, T]`` float32.

        :raises ValueError: if a score is nan.
        """
        entry = self._entry(context)
        while entry.tensors["scores"].shape[-1] < context.num_steps:
            entry = self._score_answers(context, entry) if self.whole_answer else self._score_new_steps(context, entry)
            context.cache_entries[self._key] = entry
        return self._calibrated(entry.tensors["scores"]).to(context.tokens.device)

    @torch.no_grad()
    def whole_log_odds(self, context: Context) -> Tensor:
        """Log-odds of everything that each sequence has written so far, put to the model as one step: ``[*batch]`` float32.

        :raises ValueError: if a score is nan.
        """
        entry = self._blank(context, whole_answer=True)
        begin, end = context.prompt_lengths.flatten().tolist(), context.lengths.flatten().tolist()
        texts = [tuple(row[b:e]) for row, b, e in zip(context.tokens.reshape(len(end), -1).tolist(), begin, end, strict=True)]
        answers = [answer_text(context, sequence, list(text)) if text else "" for sequence, text in enumerate(texts)]
        written = {answer: self._format.answer(answer) if answer else [] for answer in dict.fromkeys(answers)}
        ids, lengths = appended_ids(entry, [written[answer] for answer in answers])
        taken = torch.tensor([[bool(text)] for text in texts], device=self._device)
        fits = self._fitting(lengths[:, None])
        scores, _, _ = self._run(entry, ids, lengths, lengths - 1, lengths[:, None] - 1, taken & fits)
        scores = torch.where(fits, scores, -torch.inf)
        if scores.isnan().any():
            raise ValueError(f"the log-odds of whole answer {int(scores.isnan().nonzero()[0, 0])} is nan")
        return self._calibrated(scores[:, 0]).view(context.batch_shape).to(context.tokens.device)

    def _calibrated(self, log_odds: Tensor) -> Tensor:
        return log_odds if self.calibration is None else self.calibration(log_odds)

    def _entry(self, context: Context) -> CacheEntry:
        """What is known of a context: the PRM's token ids of each sequence, and the scores of the steps in them."""
        entry = find_entry(context.cache_entries, self._key, self._scorer.engine.pool.adopt)
        if entry is not None and entry.tensors["scores"].shape[:-1] == context.batch_shape:
            return entry
        return self._blank(context)

    def _blank(self, context: Context, whole_answer: bool | None = None) -> CacheEntry:
        """Nothing scored: prompts, with the steps of answers that they have begun, but for whole answers."""
        whole = self.whole_answer if whole_answer is None else whole_answer
        prompts = [self._prompt(context, p, whole) for p in range(len(context.problems))]
        return empty_entry(prompts, context.problem_index.to(self._device))

    def _prompt(self, context: Context, problem: int, whole_answer: bool) -> list[int]:
        """Token ids of a problem, and of the steps of an answer that its prompt has begun."""
        steps, _ = ([], "") if whole_answer else begun_steps(context.prefill_of(problem))
        return self._format.prompt(context.problems[problem]) + [i for t, step in enumerate(steps) for i in self._format.step(step, t)]

    def scored_steps(self, context: Context) -> Tensor:
        """The steps that have text, ``[*batch, T]``; the others are not read."""
        self.step_log_odds(context)
        return self._entry(context).tensors["scored"].to(context.tokens.device)

    def _score_new_steps(self, context: Context, entry: CacheEntry) -> CacheEntry:
        """All steps without a score, in one pass: every sequence is run up to its end and read at each of its new steps."""
        lengths, scores = entry.tensors["lengths"].flatten(), entry.tensors["scores"]
        added = self._new_steps(context, scores.shape[-1], entry.tensors["scored"].sum(-1))
        written = torch.tensor([[len(step) for step in sequence] for sequence in added], device=self._device)  # [sequences, new steps]
        # Once a step does not fit, none after it is read.
        fits = self._fitting(lengths[:, None] + written.cumsum(-1)) & ~entry.tensors["full"].flatten()[:, None]
        sizes = torch.where(fits, written, 0)
        kept = fits.tolist()
        ids, ends = appended_ids(
            entry,
            [[i for step, fit in zip(steps, fit_of, strict=True) if fit for i in step] for steps, fit_of in zip(added, kept, strict=True)],
        )
        at = lengths[:, None] + sizes.cumsum(-1) - 1
        first = lengths + first_size(sizes) - 1
        new, rows, owner = self._run(entry, ids, ends, first, at, sizes > 0)
        new, taken = self._without_room(scores, new, sizes > 0, (written > 0) & ~fits)
        full = entry.tensors["full"].flatten() | (~fits).any(-1)
        changed = {"rows": rows, "lengths": ends, "ids": ids, "full": full}
        return with_scores(entry, owner, new, taken, written > 0, changed)

    def _fitting(self, ends: Tensor) -> Tensor:
        """Which sequences of these lengths fit into the model's context; a warning where some do not."""
        fits = ends <= self.max_length
        if not bool(fits.all()):
            longest = int(ends.max())
            _log.warning("a solution has %d tokens in the reward model's format, which exceeds its context of %d", longest, self.max_length)
        return fits

    def _without_room(self, known: Tensor, new: Tensor, taken: Tensor, over: Tensor) -> tuple[Tensor, Tensor]:
        """New scores ``[sequences, K]`` and the steps that have one of their own, with those for which the context has no room."""
        if self.overlong == "last" and known.shape[-1]:
            return new, taken
        # Without any score before it, there is no last one.
        beyond = over if self.overlong == "zero" else over & (taken.cumsum(-1) == 0)
        return torch.where(beyond, -torch.inf, new), taken | beyond

    def _score_answers(self, context: Context, entry: CacheEntry) -> CacheEntry:
        """The next step without a score, each sequence's answer up to it written as one step after the prompt."""
        step = entry.tensors["scores"].shape[-1]
        starts, ends = (bounds[..., step].flatten().tolist() for bounds in (context.step_starts, context.ends))
        spoke = entry.tensors["scored"].any(-1).flatten().tolist()
        prompts, reasons = context.prompt_lengths.flatten().tolist(), context.reasons[..., step].flatten().tolist()
        tokens = context.tokens.reshape(len(ends), -1).tolist()
        answers: list[str | None] = []
        for sequence, (row, begin, start, end) in enumerate(zip(tokens, prompts, starts, ends, strict=True)):
            answer = answer_text(context, sequence, row[begin:end]) if end > start else ""
            scored = bool(context.lm.decode(row[start:end]).strip()) or (not spoke[sequence] and reasons[sequence] in FINISHING)
            answers.append(answer if end > start and scored else None)
        written = {answer: self._format.answer(answer) for answer in answers if answer is not None}  # each distinct one once
        ids, lengths = appended_ids(entry, [[] if answer is None else written[answer] for answer in answers])
        taken = torch.tensor([[answer is not None] for answer in answers], device=self._device)
        fits = self._fitting(lengths[:, None])
        new, rows, owner = self._run(entry, ids, lengths, lengths - 1, lengths[:, None] - 1, taken & fits)
        new, own = self._without_room(entry.tensors["scores"], new, taken & fits, taken & ~fits)
        return with_scores(entry, owner, new, own, taken, {"rows": rows})

    def _run(self, entry: CacheEntry, ids: Tensor, lengths: Tensor, first: Tensor, at: Tensor, taken: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Scores ``[sequences, K]`` of the sequences that took a step, where they lie now, and who holds them."""
        scores = torch.zeros(at.shape, device=self._device)
        rows = entry.tensors["rows"].flatten().clone()
        active = taken.any(-1).nonzero()[:, 0]
        if len(active) == 0:
            return scores, rows, entry.owner
        count(prm_calls=int(taken.sum()))
        cached = None if entry.owner is None else entry
        prompts = entry.tensors["prompt_lengths"].flatten()[active]
        scored = self._scorer.score(cached, active, ids[active], lengths[active], prompts, first[active], at[active])
        scores[active], rows[active] = scored.log_odds, scored.rows
        return scores, rows, scored.lease

    def _new_steps(self, context: Context, start: int, before: Tensor) -> list[list[list[int]]]:
        """Token ids of each sequence's steps from ``start`` on; none for a step that was not taken, or has no text.

        :param Tensor before: ``[*batch]``, steps with text before ``start``.
        """
        written: dict[StepText, list[int]] = {}

        def encode(step: StepText | None) -> list[int]:
            if step is None:
                return []
            if step not in written:
                written[step] = self._format.step(step.text, step.number)
            return written[step]

        return [[encode(step) for step in sequence] for sequence in step_texts(context, start, before)]
