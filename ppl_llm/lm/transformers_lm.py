"""Local language models: any causal language model that transformers loads."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..context import Context
from ..context_cache import CacheKey
from ..inference.util.checked import checked
from ..inference.util.validation import check_count, check_optional_count
from ..kv_cache.engine import CacheEngine
from ..kv_cache.hidden import HiddenForward
from ..kv_cache.joint_pass import JointPass
from ..kv_cache.packed_linear import pack, unpack
from ..kv_cache.pool import DEFAULT_CACHE_BYTES
from ..kv_cache.support import cache_engine, context_limit, eos_ids, execution_device, lies_on
from .autoregressive import AutoregressiveLM
from .decoding.cached_decoder import CachedLogits
from .decoding.cuda_graphs import CudaCapture
from .decoding.decoder import LogitsSource, Sampler, StatesSource
from .decoding.device_batch import DeviceSampler
from .decoding.device_loop import DeviceLoop
from .decoding.joint_sampler import JointSampler
from .decoding.step_sampler import StepSampler
from .decoding.uncached_sampler import UncachedSampler
from .loading import check_network, load, load_tokenizer, locate
from .prompts import PromptBuilder
from .stopping import token_bytes

_log = logging.getLogger(__name__)

_SAMPLES = 64
"""Weights of a parameter that the identity of a network looks at."""


class TransformersLM(AutoregressiveLM):
    """A transformers causal language model as a source of reasoning steps.

    Keys and values of live contexts are kept between steps and found again by comparing tokens, so that every token is run once: a prompt
    is run once for all of its sequences, and sequences that resampling made equal share a forward pass until they differ. Models whose
    state is not keys and values, such as recurrent ones, run their prefixes again at each step, and a logged warning says so.

    :param model: a causal language model; its attention implementation is replaced by one of this package where that is possible, and
        on a CPU its linear layers multiply by packed weights (:mod:`~ppl_llm.kv_cache.packed_linear`).
    :param tokenizer: its fast tokenizer.
    :param str system_prompt: system turn before a problem given as a string; the chat template's own by default. A template that knows no
        system turn gets it at the beginning of the user turn.
    :param str chat_template: Jinja template to use in place of the tokenizer's. With a tokenizer that has none, the model continues the
        problem's plain text.
    :param dict template_options: further variables of the chat template, e.g. ``{"enable_thinking": False}`` for Qwen3.
    :param int max_length: longest context in tokens; by default, and at most, what the model was made for.
    :param int cache_bytes: memory for keys and values; the sequences of one step may exceed it.
    :param bool device_loop: keep sampling, the watch for a step's end and all lengths on the device, so that the host looks at the
        sequences once in eight tokens; on a CUDA device the token step then is a CUDA graph. By default where the model lies on one CUDA
        device.
    :ivar str fallback: why the model does without the cache of this package; empty if it does not.
    :raises ValueError: for an encoder-decoder model.
    """

    @checked
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
        check_network(model)
        check_optional_count("max_length", max_length, 2)
        check_count("cache_bytes", cache_bytes, 0)
        self.model = model.eval()
        pack(self.model)
        self.prompts = PromptBuilder(tokenizer, system_prompt, chat_template, template_options)
        self.tokenizer = self.prompts.tokenizer
        limit, name = context_limit(model.config.get_text_config())
        if max_length is not None and not 1 < max_length <= limit:
            raise ValueError(f"max_length must lie in 2 .. {limit} ({name}), got {max_length!r}")
        max_length = limit if max_length is None else max_length
        head, device = model.get_output_embeddings(), execution_device(model)
        vocab_size = getattr(head, "out_features", None) or head.weight.shape[0]
        ends = torch.tensor(sorted(eos_ids(model, tokenizer)), dtype=torch.long, device=device)
        self._key = CacheKey.of_model("lm", model)
        self._cache_engine, self.fallback = cache_engine(model, max_length, cache_bytes, device)
        graphs = device.type == "cuda" and lies_on(model, device)
        source: LogitsSource
        sampler: Sampler
        if self._cache_engine is None:
            if device_loop:
                raise ValueError(
                    f"device_loop=True needs the KV cache of this package, which {type(model).__name__} does without: {self.fallback}"
                )
            source = sampler = self._uncached()
        else:
            source = CachedLogits(self._cache_engine, self._key, vocab_size, HiddenForward(model, max_length, device))
            wanted = graphs if device_loop is None else device_loop
            loop = DeviceLoop(self._cache_engine, ends, CudaCapture(device) if graphs else None) if wanted else None
            sampler = self._cached_sampler(source, loop)
        super().__init__(source, sampler, vocab_size=vocab_size, max_length=max_length, eos_ids=ends)

    def _cached_sampler(self, source: CachedLogits, loop: DeviceLoop | None) -> Sampler:
        if loop is not None:
            source.engine.use_rows()
            return DeviceSampler(source, loop)
        on_cpu = source.engine.device.type == "cpu" and lies_on(self.model, source.engine.device)
        return StepSampler(source, JointSampler(JointPass(source.engine), inference_mode=on_cpu), batches_programs=True)

    @property
    def device_loop(self) -> DeviceLoop | None:
        """The token loop on the device, ``None`` if the host samples token by token."""
        return self._sampler.loop if isinstance(self._sampler, DeviceSampler) else None

    def use_device_loop(self, loop: DeviceLoop | None) -> None:
        """Sample with another token loop from now on, ``None`` for that of the host; not while a step is in progress."""
        assert isinstance(self._source, CachedLogits)
        self._sampler = self._cached_sampler(self._source, loop)

    def _uncached(self) -> UncachedSampler:
        sampler = UncachedSampler.tried(self.model, execution_device(self.model))
        way = "runs every prefix again at each step" if sampler.cached else "runs the whole prefix again for each token"
        _log.warning("%s %s, which is slow: %s", type(self.model).__name__, way, self.fallback)
        return sampler

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
        """Load a directory, a model of the Hugging Face Hub, a GGUF file, or ``"demo"``, the small model inside this package.

        Only safetensors and GGUF files are read and no code of the model's directory is run. The weights of a GGUF file are dequantised
        to ``dtype``, float32 by default; its tokenizer and chat template are used.

        :param device_map: where to put the model, see transformers; e.g. ``"cuda"``, or ``"auto"`` to shard it over all devices.
        :param dtype: e.g. ``torch.bfloat16``; by default that of the checkpoint.
        :param quantization_config: of transformers, e.g. a ``BitsAndBytesConfig``; a checkpoint that is quantised already needs none.
        :param kwargs: passed to transformers' ``from_pretrained``.
        :raises OSError: if there is no such model, or neither in safetensors nor in GGUF format, or the extra ``gguf`` is missing.
        :raises ValueError: if the weights are incomplete or the architecture is not supported.
        """
        from transformers import AutoModelForCausalLM

        source = locate(name_or_path, "lm")
        model, report = load(
            AutoModelForCausalLM, source, False, device_map=device_map, dtype=dtype, quantization_config=quantization_config, **kwargs
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
        texts, prompts, prefills = zip(*map(self.prompts, problems), strict=True)
        longest = max(map(len, prompts))
        if longest >= self.max_length:
            raise ValueError(f"the prompt has {longest} tokens, which leaves no room in the model's context of {self.max_length} tokens")
        return Context.root(self, texts, list(prompts), batched, prefills)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it stands.

        :raises ValueError: for a text that the tokenizer cannot write.
        """
        return self.prompts.encode(text)

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @property
    def hidden_size(self) -> int:
        """Numbers in a hidden state."""
        return cast(StatesSource, self._source).hidden.size

    @cached_property
    def identity(self) -> str:
        """Tells the network from others, wherever it was loaded from: a hash of samples of all of its weights, as bfloat16 has them."""
        digest = hashlib.blake2b(type(self.model).__name__.encode(), digest_size=8)
        for name, weight in self.model.named_parameters():
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            if weight.device.type != "meta":
                flat = weight.detach().flatten()
                digest.update(flat[:: max(1, len(flat) // _SAMPLES)].to(torch.bfloat16).float().cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def hidden_states(self, context: Context, positions: Tensor) -> Tensor:
        """Hidden states after the network's last layer, from which its head makes the next token's logits.

        Keys and values of earlier tokens are those that the steps were sampled with: for the last token of each sequence this is a pass
        over one token each, which the next step need not run again.

        :param Tensor positions: ``[*batch_shape, K]`` of tokens; negative where no state is wanted.
        :returns: ``[*batch_shape, K, H]`` float32; 0 where none is wanted.
        :raises ValueError: for a position behind the end of a sequence.
        """
        source, size = cast(StatesSource, self._source), self.hidden_size
        total, width = context.lengths.numel(), positions.shape[-1]
        flat = positions.to(self.device).expand(*context.batch_shape, width).reshape(total, width)
        if bool((flat >= context.lengths.reshape(-1, 1)).any()):
            raise ValueError(
                f"position {int(flat.max())} is behind the end of a sequence; the longest has {int(context.lengths.max())} tokens"
            )
        found = torch.zeros(total, width, size, device=self.device)
        active = (flat >= 0).any(-1).nonzero()[:, 0]
        for attempt in self._at_once.in_batches(len(active), self._source.release):
            with attempt as batch:
                found[active[batch]] = source.hidden_states(context, active[batch], flat[active[batch]])
        return torch.where(flat[..., None] >= 0, found, 0.0).view(*context.batch_shape, width, size)

    def release_caches(self) -> None:
        """Free the memory of all keys and values; contexts stay valid. What was too much for the memory before is tried again.

        Weights that were changed through ``.data`` are seen from then on.
        """
        self._source.release()
        unpack(self.model)
        self._at_once.largest = None
        if self._cache_engine is not None:
            self._cache_engine.at_once.largest = None

    @property
    def _engine(self) -> CacheEngine:
        if self._cache_engine is None:
            raise ValueError(f"{type(self.model).__name__} does without the KV cache of this package: {self.fallback}")
        return self._cache_engine

    def _token_bytes(self) -> list[bytes]:
        return token_bytes(self.tokenizer, self.vocab_size)

    def _special_ids(self, texts: tuple[str, ...]) -> list[int]:
        return [i for text, i in self.tokenizer.get_added_vocab().items() if text in texts and i < self.vocab_size]
