"""Local language models: any causal language model that transformers loads."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..context import PAD, Context, LaneMemo
from ..context_cache import NoteKey, note_of
from ..inference.concurrent.program import current_program
from ..kv_cache.engine import PrefixEngine
from ..kv_cache.joint_pass import JointPass
from ..kv_cache.lookup import seat
from ..kv_cache.pool import DEFAULT_CACHE_BYTES
from ..kv_cache.seating import Seating
from ..kv_cache.support import context_limit, eos_ids, execution_device, lies_on, slab_engine
from .autoregressive import DecodingLM, Draw, Move, Moves
from .base import StepOptions
from .decoding.cached_decoder import SlabDecoder
from .decoding.device_batches import DeviceBatches
from .decoding.device_loop import DeviceLoop, LaneTask
from .decoding.joint_decoding import advance_together
from .decoding.uncached_decoder import PlainDecoding
from .loading import load, load_tokenizer, locate
from .prompts import PromptBuilder
from .token_bytes import token_bytes

_log = logging.getLogger(__name__)

_LOGITS_ELEMENTS = 2**24
"""Logits ``[a, M, V]`` made at a time when given steps are scored (64 MiB); a single step may exceed it."""


class TransformersLM(DecodingLM):
    """A transformers causal language model as a source of reasoning steps.

    Keys and values of live contexts are kept between steps and found again by comparing tokens, so that every token is run once: a prompt
    is run once for all of its lanes, and lanes that resampling made equal share a forward pass until they differ. Models whose state is not
    keys and values, such as recurrent ones, run their prefixes anew at each step, and a logged warning says so.

    :param model: a causal language model; its attention implementation is replaced by one of this package where that is possible.
    :param tokenizer: its fast tokenizer.
    :param str system_prompt: system turn before a problem given as a string; the chat template's own by default. A template that knows no
        system turn gets it at the beginning of the user turn.
    :param str chat_template: Jinja template to use in place of the tokenizer's. With a tokenizer that has none, the model continues the
        problem's plain text.
    :param dict template_options: further variables of the chat template, e.g. ``{"enable_thinking": False}`` for Qwen3.
    :param int max_length: longest context in tokens; by default, and at most, what the model was made for.
    :param int cache_bytes: memory for keys and values; the lanes of one step may exceed it.
    :param bool device_loop: keep sampling, the watch for a step's end and all lengths on the device, so that the host looks at the lanes
        once in eight tokens; on a CUDA device the token step then is a CUDA graph. By default where the model lies on one CUDA device.
    :ivar str fallback: why the model does without the cache of this package; empty if it does not.
    :raises ValueError: for an encoder-decoder model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        device_loop: bool | None = None,
    ) -> None:
        self.model = model.eval()
        self._prompt = PromptBuilder(tokenizer, system_prompt, chat_template, template_options)
        self.tokenizer = self._prompt.tokenizer
        limit, name = context_limit(model.config.get_text_config())
        if max_length is not None and not 1 < max_length <= limit:
            raise ValueError(f"max_length must lie in 2 .. {limit} ({name}), got {max_length!r}")
        self.max_length = limit if max_length is None else max_length
        head = model.get_output_embeddings()
        self.vocab_size = getattr(head, "out_features", None) or head.weight.shape[0]
        device = execution_device(model)
        self.eos_ids = torch.tensor(sorted(eos_ids(model, tokenizer)), dtype=torch.long, device=device)
        self._key = NoteKey.of_model("lm", model)
        self._slab_engine, self.fallback = slab_engine(model, self.max_length, cache_bytes, device)
        self._plain = PlainDecoding(model, device) if self._slab_engine is None else None
        self._device_loop = self._loop_on(device, device_loop)
        # Weights that are moved to where they are needed may not become inference tensors.
        self._whole_on_cpu = device.type == "cpu" and lies_on(model, device)
        if self._plain is not None:
            way = "runs every prefix again at each step" if self._plain.cached else "runs the whole prefix again for each token"
            _log.warning("%s %s, which is slow: %s", type(model).__name__, way, self.fallback)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device_map: Any = None,
        dtype: Any = None,
        quantization_config: Any = None,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        device_loop: bool | None = None,
        **kwargs: Any,
    ) -> TransformersLM:
        """Load a directory, a model of the Hugging Face Hub, or ``"demo"``, the small model inside this package.

        Only safetensors are read and no code of the model's directory is run.

        :param device_map: where to put the model, see transformers; e.g. ``"cuda"``, or ``"auto"`` to shard it over all devices.
        :param dtype: e.g. ``torch.bfloat16``; by default that of the checkpoint.
        :param quantization_config: of transformers, e.g. a ``BitsAndBytesConfig``; a checkpoint that is quantised already needs none.
        :param kwargs: passed to transformers' ``from_pretrained``.
        :raises OSError: if there is no such model, or not in safetensors format.
        :raises ValueError: if the weights are incomplete or the architecture is not supported.
        """
        from transformers import AutoModelForCausalLM

        source = locate(name_or_path, "lm")
        model, report = load(
            AutoModelForCausalLM, source, None, device_map=device_map, dtype=dtype, quantization_config=quantization_config, **kwargs
        )
        for problem in ("missing_keys", "unexpected_keys"):
            if report[problem]:
                raise ValueError(
                    f"{source!r} is not a complete {type(model).__name__}: {problem.replace('_', ' ')} {sorted(report[problem])[:6]}; "
                    "a reward model or a bare backbone cannot be used as a language model"
                )
        return cls(
            model,
            load_tokenizer(source),
            system_prompt=system_prompt,
            chat_template=chat_template,
            template_options=template_options,
            max_length=max_length,
            cache_bytes=cache_bytes,
            device_loop=device_loop,
        )

    def start(self, problem: Any) -> Context:
        """The context of a problem, before any step.

        :param problem: a string, a list of chat messages ``{"role": ..., "content": ...}``, or a list of problems (a batch dimension).
            Messages bring their own system turn; if the last one is the assistant's, the model continues it.
        :raises ValueError: if a problem is empty or its prompt fills the model's context.
        """
        batched = isinstance(problem, (list, tuple)) and not (problem and isinstance(problem[0], dict))
        problems = list(problem) if batched else [problem]
        if not problems:
            raise ValueError("start() got an empty list; give at least one problem")
        texts, prompts = zip(*(self._prompt(each) for each in problems), strict=True)
        longest = max(map(len, prompts))
        if longest >= self.max_length:
            raise ValueError(f"the prompt has {longest} tokens, which leaves no room in the model's context of {self.max_length} tokens")
        return Context.root(self, texts, list(prompts), batched)

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def release_caches(self) -> None:
        """Free the memory of all keys and values; contexts stay valid. What was too much for the memory before is tried again."""
        self._free_memory()
        self._at_once.largest = None
        if self._slab_engine is not None:
            self._slab_engine.at_once.largest = None

    def _free_memory(self) -> None:
        if self._slab_engine is not None:
            self._slab_engine.pool.clear()

    @property
    def _engine(self) -> PrefixEngine:
        if self._slab_engine is None:
            raise ValueError(f"{type(self.model).__name__} does without the slab engine: {self.fallback}")
        return self._slab_engine

    def _loop_on(self, device: torch.device, wanted: bool | None) -> DeviceLoop | None:
        graphs = device.type == "cuda" and lies_on(self.model, device)
        if wanted and self._slab_engine is None:
            raise ValueError(
                f"device_loop=True needs the cache of this package, which {type(self.model).__name__} is without: {self.fallback}"
            )
        if self._slab_engine is None or not (graphs if wanted is None else wanted):
            return None
        return DeviceLoop.captured(self._slab_engine, self.eos_ids) if graphs else DeviceLoop(self._slab_engine, self.eos_ids)

    def _run(self, context: Context, active: Tensor, options: StepOptions, u: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        if self._device_loop is not None:
            room = (self.max_length - context.lengths).flatten().clamp(max=options.max_tokens)
            automaton = self.stop_automaton(options.stop)
            task = LaneTask(self._decoder(context, active), u, room, options, automaton, tokens, log_probs)
            program = current_program()
            return self._device_loop.run(task) if program is None else self._device_batches.run(program, task)
        if self._plain is None:
            return super()._run(context, active, options, u, tokens, log_probs)
        sequences, lengths = context.tokens.reshape(-1, context.tokens.shape[-1])[active], context.lengths.flatten()[active]
        room = (self.max_length - lengths).clamp(max=options.max_tokens)
        automaton = self.stop_automaton(options.stop)
        sampled = self._plain.sample(sequences, lengths, room, options, automaton, self.eos_ids, u[active])
        tokens[active], log_probs[active] = sampled

    def _moves(self, context: Context, active: Tensor, options: StepOptions, u: Tensor, tokens: Tensor, log_probs: Tensor) -> Moves:
        moves = super()._moves(context, active, options, u, tokens, log_probs)
        move = next(moves)
        with self._engine.pool.reserved(context.memo[self._key].owner.slab), suppress(StopIteration):
            while True:
                move = moves.send((yield move))

    def _advance(self, moves: Sequence[Move]) -> list[Draw]:
        # Without versions and views to keep account of, passes of few lanes, which consist of small operations, take 6 % less time.
        with torch.inference_mode() if self._whole_on_cpu else nullcontext():
            return advance_together(moves, self._joint_pass)

    @cached_property
    def _joint_pass(self) -> JointPass:
        return JointPass(self._engine)

    @cached_property
    def _device_batches(self) -> DeviceBatches:
        assert self._device_loop is not None
        return DeviceBatches(self._engine, self._device_loop)

    @property
    def batches_programs(self) -> bool:  # type: ignore[override]
        """Unless there is no slab."""
        return self._slab_engine is not None

    def _token_bytes(self) -> list[bytes]:
        return token_bytes(self.tokenizer, self.vocab_size)

    def _special_ids(self, texts: tuple[str, ...]) -> list[int]:
        return [i for text, i in self.tokenizer.get_added_vocab().items() if text in texts and i < self.vocab_size]

    def _decoder(self, context: Context, active: Tensor) -> SlabDecoder:
        tokens = context.tokens.reshape(-1, context.tokens.shape[-1])[active]
        lengths = context.lengths.flatten()[active]
        seating, rows = self._seat(context, active, tokens, lengths, lengths - 1, len(active))
        return SlabDecoder(self._engine, seating, active, rows)

    def _step_logits(self, context: Context, active: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        before = context.lengths.flatten()[active]
        # The step's last token is not run: its logits are of no interest.
        ends = before + (tokens != PAD).sum(-1) - 1
        whole = torch.nn.functional.pad(context.tokens.reshape(-1, context.tokens.shape[-1])[active], (0, tokens.shape[1] + 1), value=PAD)
        column = torch.arange(tokens.shape[1], device=tokens.device)
        whole.scatter_(1, torch.where(tokens == PAD, whole.shape[1] - 1, before[:, None] + column), tokens)
        whole = torch.where(torch.arange(whole.shape[1], device=whole.device) < ends[:, None], whole, PAD)
        if self._plain is not None:
            yield from self._plain.step_logits(whole[:, : int(ends.max())], before, tokens.shape[1])
            return
        seating, rows = self._seat(context, active, whole, ends, before - 1, 0)
        rows[active] = seating.row_of
        width = tokens.shape[1]
        at_once = max(1, _LOGITS_ELEMENTS // (width * self.vocab_size))
        place = torch.zeros(seating.num_rows, dtype=torch.long, device=self.device)
        wanted = seating.lengths[:, None] - width + column  # a row may stand for lanes that began their step at different places
        for members, logits in self._engine.complete(seating, wanted, max_rows=at_once):
            place[members] = torch.arange(len(members), device=self.device)
            for lanes in torch.isin(seating.row_of, members).nonzero()[:, 0].split(at_once):
                at = (before + width - 1 - ends)[lanes, None] + column
                mine = logits[place[seating.row_of[lanes]]]
                yield lanes, mine.gather(1, at.clamp(max=width - 1)[..., None].expand(-1, -1, logits.shape[2]))

    def _seat(
        self, context: Context, active: Tensor, tokens: Tensor, lengths: Tensor, known: Tensor, num_rows: int
    ) -> tuple[Seating, Tensor]:
        """Seat sequences, and note on the context where they are: a table of rows for the caller to fill."""
        tokens = tokens[:, : int(lengths.max())]
        stems = context.prompt_lengths.flatten()[active]
        note = note_of(context, self._key, self._engine.pool.adopt)
        seating = seat(self._engine, note, active, tokens, lengths, known, stems, num_rows)
        rows = torch.full((context.lengths.numel(),), -1, device=self.device)
        context.memo[self._key] = LaneMemo(self._engine.pool.lease(seating.slab), {"rows": rows.view(context.batch_shape)})
        return seating, rows
