"""Tiny random models of many architectures, in directories as their publishers lay them out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.helpers.tiny_models import CHATML, CORPUS, SPLIT

_REFUSE = "{{ raise_exception('no such turn') }}"
_TURNS = "{%- for m in messages -%}"
_ROLE = "{%- set role = 'model' if m.role == 'assistant' else m.role -%}"


@dataclass(frozen=True)
class ChatFormat:
    """A chat format of real models.

    :ivar str template: written for these tests.
    :ivar str prompt: what a system turn ``S`` and a user turn ``U`` become.
    """

    template: str
    prompt: str
    special: tuple[str, ...]
    plain: tuple[str, ...] = ()


FORMATS = {
    "chatml": ChatFormat(
        CHATML,
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n",
        ("<|im_end|>", "<|im_start|>"),
    ),
    "chatml with thoughts": ChatFormat(
        CHATML + "{%- if add_generation_prompt and enable_thinking is defined and not enable_thinking -%}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n",
        ("<|im_end|>", "<|im_start|>"),
        ("<think>", "</think>"),
    ),
    "headers": ChatFormat(
        "{{- bos_token -}}" + _TURNS + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content|trim + '<|eot_id|>' }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
    "instructions": ChatFormat(
        "{{- bos_token -}}" + _TURNS + "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}" + _REFUSE + "{%- endif -%}"
        "{%- if m.role == 'user' -%}{{ '[INST] ' + m.content + ' [/INST]' }}{%- else -%}{{ ' ' + m.content + eos_token }}{%- endif -%}"
        "{%- endfor -%}",
        "<s>[INST] S\n\nU [/INST]",
        ("</s>", "<s>"),
    ),
    "turns": ChatFormat(
        "{{- bos_token -}}"
        + _TURNS
        + "{%- if m.role == 'system' -%}"
        + _REFUSE
        + "{%- endif -%}"
        + _ROLE
        + "{{ '<start_of_turn>' + role + '\\n' + m.content|trim + '<end_of_turn>\\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}",
        "<bos><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\n",
        ("<end_of_turn>", "<bos>", "<start_of_turn>"),
    ),
    "roles": ChatFormat(
        _TURNS + "{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}",
        "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\n",
        ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
    ),
}


@lru_cache
def tokenizer(kind: str, chat: str) -> PreTrainedTokenizerFast:
    """A small BPE, ``byte-level`` (as GPT-2, Qwen, Llama 3) or ``sentencepiece`` (as Llama 2, Mistral, Gemma), with a chat format."""
    form = FORMATS[chat]
    core = Tokenizer(models.BPE(byte_fallback=kind == "sentencepiece", unk_token="<unk>" if kind == "sentencepiece" else None))
    specials = [*(["<unk>"] if kind == "sentencepiece" else []), *form.special]
    if kind == "byte-level":
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        core.decoder = decoders.ByteLevel()
        first: list[str] = pre_tokenizers.ByteLevel.alphabet()
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        first = []
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=340, special_tokens=specials, initial_alphabet=first, show_progress=False)
    )
    if kind == "sentencepiece":
        trained = json.loads(core.to_str())["model"]
        vocab = trained["vocab"] | {f"<0x{byte:02X}>": len(trained["vocab"]) + byte for byte in range(256)}
        core.model = models.BPE(vocab, [tuple(pair) for pair in trained["merges"]], byte_fallback=True, unk_token="<unk>")
    core.add_tokens([AddedToken(text, normalized=False) for text in (*form.plain, "\n\n")])
    bos = next((text for text in form.special if text in ("<s>", "<bos>", "<|begin_of_text|>")), None)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=form.special[0], bos_token=bos)
    fast.chat_template = form.template
    return fast


@dataclass(frozen=True)
class Architecture:
    """
    :ivar str config: name of the transformers config class, without ``Config``.
    :ivar dict settings: besides the common tiny sizes.
    :ivar dict outer: settings of the config around that of the text model, for models that also see images.
    :ivar float scale: of the random weights.
    :ivar str fallback: what the warning says if the model cannot use the KV cache, empty if it can.
    """

    config: str
    chat: str = "chatml"
    kind: str = "byte-level"
    settings: dict[str, Any] = field(default_factory=dict)
    fallback: str = ""
    outer: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.2

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tokenizer(self.kind, self.chat)

    def model(self) -> Any:
        """Weights large enough that logits are far from uniform, and that a wrong key shows."""
        sizes = {
            "vocab_size": len(self.tokenizer) + 3,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 128,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": None,
        }
        settings = sizes | self.settings
        config = getattr(transformers, f"{self.config}Config")(**({"text_config": settings, **self.outer} if self.outer else settings))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "conv" not in name:
                parameter.data.normal_(0, self.scale / parameter.shape[-1] ** 0.5, generator=generator)
            if name.endswith("sinks"):
                parameter.data.normal_(0, 1.0, generator=generator)
        return model.eval()

    def write(self, directory: Path, **options: Any) -> Path:
        self.model().save_pretrained(directory, **options)
        self.tokenizer.save_pretrained(directory)
        return directory


_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

_LONG = {
    "sliding_window": None,
    "original_max_position_embeddings": 64,
    "rope_scaling": {"short_factor": [1.1] * 4, "long_factor": [2.0] * 4, "rope_type": "longrope", "rope_theta": 10000.0},
}

ARCHITECTURES = {
    "llama": Architecture("Llama", "headers"),
    "llama 2": Architecture("Llama", "instructions", "sentencepiece"),
    "mistral": Architecture("Mistral", "instructions", "sentencepiece", {"sliding_window": None}),
    "mistral sliding": Architecture("Mistral", "instructions", "sentencepiece", {"sliding_window": 6}),
    "mixtral": Architecture("Mixtral", "instructions", "sentencepiece", {"num_local_experts": 4}),
    "qwen2": Architecture("Qwen2"),
    "qwen2 sliding": Architecture("Qwen2", settings={"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": Architecture("Qwen3", "chatml with thoughts", settings={"head_dim": 8}),
    "qwen3 moe": Architecture("Qwen3Moe", "chatml with thoughts", settings={"head_dim": 8, "num_experts": 4, **_EXPERTS}),
    "gemma": Architecture("Gemma", "turns", "sentencepiece", {"head_dim": 8}),
    "gemma2": Architecture("Gemma2", "turns", "sentencepiece", {"head_dim": 8, "attn_logit_softcapping": 1.5, **_SLIDING}),
    "gemma3": Architecture("Gemma3Text", "turns", "sentencepiece", {"head_dim": 8, **_SLIDING}),
    "gemma3 with images": Architecture(
        "Gemma3",
        "turns",
        "sentencepiece",
        {"head_dim": 8, **_SLIDING},
        outer={
            **{"mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7},
            "vision_config": {
                **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
                **{"image_size": 28, "patch_size": 14},
            },
        },
    ),
    "gemma4": Architecture(
        "Gemma4Text",
        "turns",
        "sentencepiece",
        {"head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 1000, "hidden_size_per_layer_input": 8, **_SLIDING},
        scale=0.7,  # attention scores are not divided by the square root of the width: rounding counts for more
    ),
    "phi": Architecture("Phi"),
    "phi3": Architecture("Phi3", "roles", "sentencepiece", {"sliding_window": 6}),
    "phi3 long": Architecture("Phi3", "roles", "sentencepiece", _LONG),
    "ministral": Architecture("Ministral", "instructions", "sentencepiece", {"head_dim": 8, **_SLIDING}),
    "gpt-oss": Architecture("GptOss", settings={"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, **_SLIDING}),
    "gpt-neox": Architecture("GPTNeoX"),
    "olmo2": Architecture("Olmo2"),
    "olmo3": Architecture("Olmo3", settings=_SLIDING),
    "granite": Architecture("Granite", scale=0.7),  # as Gemma 4
    "cohere2": Architecture("Cohere2", settings=_SLIDING),
    "glm4": Architecture("Glm4", settings={"head_dim": 8}),
    "smollm3": Architecture("SmolLM3"),
    "starcoder2": Architecture("Starcoder2", settings={"sliding_window": 6}),
    # Tried on a few tokens when loaded:
    "gpt2": Architecture("GPT2", settings={"n_inner": 48}),
    "deepseek v3": Architecture(
        "DeepseekV3",
        settings={
            **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
            **{"v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, **_EXPERTS},
        },
    ),
    # Not on the KV cache:
    "mamba": Architecture("Mamba", fallback="again at each step, which is slow: it has layers of the kind linear_attention"),
    "qwen3 next": Architecture(
        "Qwen3Next",
        settings={
            **{"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
            **{"layer_types": ["linear_attention", "full_attention"], "num_experts": 4, "shared_expert_intermediate_size": 16, **_EXPERTS},
        },
        fallback="again at each step, which is slow: it has layers of the kind linear_attention",
    ),
    "qwen3.5": Architecture(
        "Qwen3_5Text",
        settings={
            **{"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
            "layer_types": ["linear_attention", "full_attention"],
        },
        fallback="again at each step, which is slow: it has layers of the kind linear_attention",
    ),
    "qwen3.5 without attention": Architecture(
        "Qwen3_5Text",
        settings={
            **{"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
            "layer_types": ["linear_attention", "linear_attention"],
        },
        fallback="again for each token, which is slow",
    ),
    "falcon": Architecture("Falcon", fallback="again at each step, which is slow: it does not take an attention function"),
    "exaone4": Architecture("Exaone4", settings=_SLIDING, fallback="again at each step, which is slow: its attention slides over 6 tokens"),
    "rwkv": Architecture("Rwkv", settings={"attention_hidden_size": 32}, fallback="again for each token, which is slow"),
}
