"""Local process reward models in the layout of Qwen2.5-Math-PRM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..context import PAD, Context, LaneMemo
from ..inference.cost import count
from ..lm.loading import load, load_tokenizer, locate, require_supported
from ..lm.packed_attention import PACKED
from ..lm.prefix_engine import PrefixEngine
from ..lm.slab_pool import DEFAULT_CACHE_BYTES
from .qwen_prm import Qwen2PRM
from .step_format import DEFAULT_SYSTEM_PROMPT, StepFormat


class TransformersPRM:
    """A process reward model that reads ``prompt step_1 <extra_0> step_2 <extra_0> ...`` and scores each step at its step token.

    Only new steps are run: keys and values of earlier ones are kept and found again by comparing tokens, and lanes that are equal are
    scored once. Steps travel as text, so that the language model may have another tokenizer.

    :param Qwen2PRM model: the network.
    :param tokenizer: its tokenizer.
    :param str system_prompt: system turn of the PRM's own prompt, whatever the language model was told.
    :param str step_token: the special token that ends a step.
    :param int cache_bytes: memory for keys and values; the lanes of one call may exceed it.
    """

    def __init__(
        self,
        model: Qwen2PRM,
        tokenizer: Any,
        *,
        system_prompt: str | None = DEFAULT_SYSTEM_PROMPT,
        step_token: str = "<extra_0>",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        require_supported(model)
        if model.config._attn_implementation != PACKED:
            model.set_attn_implementation(PACKED)
        self.model = model.eval().with_precise_head()
        self.tokenizer = tokenizer
        self.max_length: int = model.config.max_position_embeddings
        self._format = StepFormat(tokenizer, system_prompt, step_token)
        self._device = model.get_input_embeddings().weight.device
        self._key = object()
        self._engine = PrefixEngine(
            self.model,
            name="prm",
            tokens_counter="prm_tokens",
            num_layers=model.config.num_hidden_layers,
            max_length=self.max_length,
            cache_bytes=cache_bytes,
            device=self._device,
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device_map: Any = None,
        dtype: Any = None,
        system_prompt: str | None = DEFAULT_SYSTEM_PROMPT,
        step_token: str = "<extra_0>",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> TransformersPRM:
        """Load a Qwen2.5-Math-PRM: a directory, a name on the Hugging Face Hub, or ``"demo"`` or ``"demo-weak"`` from this package.

        Only safetensors are read, and the code that such directories ship is not run.

        :raises OSError: if there is no such model, or not in safetensors format.
        :raises ValueError: if the directory is not a Qwen2.5-Math-PRM.
        """
        source = locate(name_or_path, "prm")
        model, report = load(Qwen2PRM, source, device_map=device_map, dtype=dtype)
        missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
        if missing or unexpected:
            found = [f"{what} {keys[:6]}" for what, keys in (("missing keys", missing), ("unexpected keys", unexpected)) if keys]
            raise ValueError(f"{source!r} is not a Qwen2.5-Math-PRM (a Qwen2 backbone and a two-layer score head): {'; '.join(found)}")
        return cls(model, load_tokenizer(source), system_prompt=system_prompt, step_token=step_token, cache_bytes=cache_bytes)

    def release_caches(self) -> None:
        """Free the memory of all keys and values; contexts stay valid."""
        self._engine.pool.clear()

    @torch.no_grad()
    def step_log_odds(self, context: Context) -> Tensor:
        """Log-odds that each step is right: ``[*batch, T]`` float32.

        :raises ValueError: if a trace is longer than the model's context, or a score is nan.
        """
        memo = self._memo(context)
        scored = memo.lanes["scores"]
        if scored.shape[-1] < context.num_steps:
            context.memo[self._key] = memo = self._score_new_steps(context, memo)
        return memo.lanes["scores"].to(context.tokens.device)

    def _memo(self, context: Context) -> LaneMemo:
        """What is known of a context: the PRM's token ids of each lane, and the scores of the steps in them."""
        memo = context.memo.get(self._key)
        if memo is not None and memo.lanes["scores"].shape[:-1] == context.batch_shape:
            return memo
        prompts = [self._format.prompt(problem) for problem in context.problems]
        table = _padded(prompts).to(self._device)
        problem = context.problem_index.to(self._device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)[problem]
        lanes = {
            "ids": table[problem],
            "lengths": lengths,
            "stems": lengths,
            "scores": torch.zeros(*context.batch_shape, 0, device=self._device),
            "rows": torch.full(context.batch_shape, -1, device=self._device),
        }
        return LaneMemo(None, lanes)

    def _score_new_steps(self, context: Context, memo: LaneMemo) -> LaneMemo:
        flat = context.lengths.numel()
        known = memo.lanes["scores"].reshape(flat, -1 if memo.lanes["scores"].numel() else 0)
        added = self._new_steps(context, known.shape[-1])
        before, stems = memo.lanes["lengths"].flatten(), memo.lanes["stems"].flatten()
        ids, lengths = self._appended(memo.lanes["ids"].reshape(flat, -1), before, [[i for step in lane for i in step] for lane in added])
        sizes = torch.tensor([[len(step) for step in lane] for lane in added], device=self._device)  # [lanes, new steps]
        at = before[:, None] + sizes.cumsum(-1) - 1  # position of each new step token
        scores = torch.zeros(sizes.shape, device=self._device)
        rows, owner = memo.lanes["rows"].flatten().clone(), memo.owner
        active = (lengths > before).nonzero()[:, 0]
        if len(active):
            count(prm_calls=int((sizes > 0).sum()))
            first = before[active] + _first_size(sizes[active]) - 1
            note = memo if owner is not None else None
            seating = self._engine.seat(note, active, ids[active, : int(lengths.max())], lengths[active], first, stems[active])
            rows[active] = seating.row_of
            odds = torch.zeros(seating.num_rows, sizes.shape[1], device=self._device)
            where = torch.zeros_like(odds, dtype=torch.long)
            where[seating.row_of] = at[active]
            for members, logits in self._engine.complete(seating):
                # Outputs end with that of the last token of each sequence.
                column = (where[members] - seating.lengths[members, None] + logits.shape[1]).clamp(min=0)
                z = logits[..., 1].float() - logits[..., 0].float()
                odds[members] = z.gather(-1, column)
            scores[active] = odds[seating.row_of]
            owner = self._engine.pool.lease(seating.slab)
        scores = _repeat_last(known, scores, sizes > 0)
        self._require_numbers(scores, context)
        shape = context.batch_shape
        lanes = {
            "ids": ids.view(*shape, -1),
            "lengths": lengths.view(shape),
            "stems": stems.view(shape),
            "scores": scores.view(*shape, -1),
            "rows": rows.view(shape),
        }
        return LaneMemo(owner, lanes)

    def _new_steps(self, context: Context, start: int) -> list[list[list[int]]]:
        """Token ids of each lane's steps from ``start`` on; none for a step that a finished lane did not take."""
        flat = context.lengths.numel()
        tokens = context.tokens.reshape(flat, -1).tolist()
        starts, ends = (bounds[..., start:].reshape(flat, -1).tolist() for bounds in (context.step_starts, context.ends))
        written: dict[tuple[int, ...], list[int]] = {(): []}

        def encode(ids: tuple[int, ...]) -> list[int]:
            if ids not in written:
                written[ids] = self._format.step(context.lm.decode(list(ids)))
            return written[ids]

        return [
            [encode(tuple(row[begin:end])) for begin, end in zip(lane_starts, lane_ends, strict=True)]
            for row, lane_starts, lane_ends in zip(tokens, starts, ends, strict=True)
        ]

    def _appended(self, ids: Tensor, lengths: Tensor, added: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Lanes ``ids [A, W]`` with more ids at their ends, and their new lengths."""
        extra = _padded(added).to(self._device)
        grown = lengths + (extra != PAD).sum(-1)
        width = int(grown.max())
        if width > self.max_length:
            raise ValueError(
                f"the trace of lane {int(grown.argmax())} has {width} tokens in the reward model's format, "
                f"which exceeds its context of {self.max_length} tokens"
            )
        wide = torch.nn.functional.pad(ids, (0, max(0, width + 1 - ids.shape[1])), value=PAD)
        column = lengths[:, None] + torch.arange(extra.shape[1], device=self._device)
        return wide.scatter(1, torch.where(extra == PAD, width, column), extra)[:, :width], grown

    def _require_numbers(self, scores: Tensor, context: Context) -> None:
        bad = scores.isnan().nonzero()
        if len(bad):
            lane, step = bad[0].tolist()
            raise ValueError(
                f"the log-odds of step {step} of lane {lane} (flat, of lanes {tuple(context.batch_shape)}) is nan: "
                "the reward model's weights or activations overflow; try dtype=torch.bfloat16 or torch.float32"
            )


def _padded(rows: list[list[int]]) -> Tensor:
    """``[A, W]``, padded on the right with ``PAD``."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows], dtype=torch.long).view(len(rows), width)


def _repeat_last(known: Tensor, scores: Tensor, taken: Tensor) -> Tensor:
    """``known [A, S]`` and new ``scores [A, T]``, where steps that were not taken repeat the score before them."""
    columns = list(known.unbind(-1))
    for score, real in zip(scores.unbind(-1), taken.unbind(-1), strict=True):
        columns.append(torch.where(real, score, columns[-1]) if columns else score)
    return torch.stack(columns, -1)


def _first_size(sizes: Tensor) -> Tensor:
    """``[A]`` the first positive entry of each row."""
    return sizes.gather(-1, (sizes > 0).int().argmax(-1, keepdim=True))[:, 0]
