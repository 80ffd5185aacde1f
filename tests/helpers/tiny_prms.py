"""Tiny random process reward models in the published layouts, and their published recipes written out: one full pass, no cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    Qwen2Model,
)

from tests.helpers.tiny_models import CORPUS, _randomise, config, tokenizer, write_prm

LLAMA_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_CHAT = (
    "{{- bos_token -}}{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: 26 Jul 2024\\n\\n<|eot_id|>' -}}"
    "{%- for message in messages -%}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}"
    "{{- message['content'] | trim + '<|eot_id|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
LLAMA_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


@lru_cache
def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with Llama 3's rules, special tokens and turns."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA_SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=LLAMA_SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    fast.chat_template = LLAMA_CHAT
    return fast


@lru_cache
def mistral_tokenizer(tag: str = "ки") -> PreTrainedTokenizerFast:
    """A sentencepiece BPE as Mistral's: a word-boundary mark, byte tokens, no chat."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False)
    core.train_from_iterator([*CORPUS, f"Step 1: {tag} + - + - {tag} Step 2: {tag} к и"] * 2, trainer)
    layout = json.loads(core.to_str())
    # Bytes are ordinary tokens of the published file, not added ones; words are split by the mark alone.
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] not in byte_tokens]
    layout["pre_tokenizer"] = None
    layout["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
    }
    layout["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    layout["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    core = Tokenizer.from_str(json.dumps(layout))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@lru_cache
def skywork_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen2.5's, with a bos token, without a step token."""
    core = Tokenizer.from_str(tokenizer(step_token=None).backend_tokenizer.to_str())
    core.add_tokens([AddedToken("\n", normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return fast


def write_qwen(directory: Path, dtype: torch.dtype = torch.float32, drop: str = "") -> Path:
    return write_prm(directory, dtype, drop, max_position_embeddings=512)


def write_skywork(directory: Path, dtype: torch.dtype = torch.float32, drop: str = "", seed: int = 4) -> Path:
    """As the published directories: backbone, value head, and the head of the language model, which is of no use."""
    net = _randomise(Qwen2ForCausalLM(config(vocab_size=len(skywork_tokenizer()) + 3, max_position_embeddings=512)), seed)
    generator = torch.Generator().manual_seed(seed)
    weights = net.state_dict() | {
        "v_head.summary.weight": torch.randn(1, 32, generator=generator) / 3,
        "v_head.summary.bias": torch.randn(1, generator=generator),
    }
    return _write(directory, net, weights, "Qwen2ForPrmModel", skywork_tokenizer(), dtype, drop)


def write_shepherd(
    directory: Path, dtype: torch.dtype = torch.float32, drop: str = "", tokens: Any = None, seed: int = 5, **changes: Any
) -> Path:
    """As the published directory: a Mistral language model, whose config speaks of a sliding window."""
    tokens = tokens or mistral_tokenizer()
    sizes = SIZES | {"vocab_size": len(tokens), "sliding_window": 64, "bos_token_id": 1, "eos_token_id": 2} | changes
    net = _randomise(MistralForCausalLM(MistralConfig(**sizes)), seed)
    return _write(directory, net, net.state_dict(), "MistralForCausalLM", tokens, dtype, drop)


def write_rlhflow(
    directory: Path, dtype: torch.dtype = torch.float32, drop: str = "", tokens: Any = None, seed: int = 6, **changes: Any
) -> Path:
    """As the published directories: a Llama 3.1 language model."""
    tokens = tokens or llama_tokenizer()
    sizes = SIZES | {"vocab_size": len(tokens) + 2, "bos_token_id": 0, "eos_token_id": 4} | changes
    net = _randomise(LlamaForCausalLM(LlamaConfig(**sizes)), seed)
    return _write(directory, net, net.state_dict(), "LlamaForCausalLM", tokens, dtype, drop)


def _write(directory: Path, net: Any, weights: dict[str, Any], architecture: str, tokens: Any, dtype: torch.dtype, drop: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    settings = json.loads(net.config.to_json_string(use_diff=False)) | {"architectures": [architecture], "dtype": str(dtype)[6:]}
    (directory / "config.json").write_text(json.dumps(settings))
    kept = {name: value.to(dtype).contiguous() for name, value in weights.items() if not drop or not name.startswith(drop)}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    tokens.save_pretrained(directory)
    return directory


WRITE: dict[str, tuple[str, Callable[..., Path]]] = {
    "qwen": ("Qwen2.5-Math-PRM-7B", write_qwen),
    "skywork": ("Skywork-o1-Open-PRM-Qwen-2.5-1.5B", write_skywork),
    "math-shepherd": ("math-shepherd-mistral-7b-prm", write_shepherd),
    "rlhflow": ("Llama3.1-8B-PRM-Deepseek-Data", write_rlhflow),
}
"""The name of a published directory of each family, and who writes one like it."""

Recipe = Callable[[str, list[str]], list[float]]


@torch.no_grad()
def qwen_recipe(directory: Path) -> Recipe:
    net, tokens = Qwen2Model.from_pretrained(directory, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(directory)
    weights = {name: value.float() for name, value in load_file(directory / "model.safetensors").items()}

    @torch.no_grad()
    def scores(problem: str, steps: list[str]) -> list[float]:
        chat = [
            {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
            {"role": "user", "content": problem},
            {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
        ]
        ids = tokens(tokens.apply_chat_template(chat, tokenize=False), add_special_tokens=False, return_tensors="pt")["input_ids"]
        hidden = net(ids, use_cache=False).last_hidden_state[0]
        inner = (hidden @ weights["score.0.weight"].T + weights["score.0.bias"]).relu()
        logits = inner @ weights["score.2.weight"].T + weights["score.2.bias"]
        marked = logits[ids[0] == tokens.convert_tokens_to_ids("<extra_0>")]
        return (marked.log_softmax(-1) @ torch.tensor([-1.0, 1.0])).tolist()

    return scores


def skywork_recipe(directory: Path) -> Recipe:
    net, tokens = Qwen2Model.from_pretrained(directory, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(directory)
    weights = {name: value.float() for name, value in load_file(directory / "model.safetensors").items()}

    @torch.no_grad()
    def scores(problem: str, steps: list[str]) -> list[float]:
        newline = tokens.encode("\n")[-1]
        ids, flagged = tokens.encode(tokens.bos_token + problem + "\n"), []
        for step in steps:
            for line in step.split("\n"):
                ids = [*ids, *(tokens.encode(line) if line else []), newline]
            flagged.append(len(ids) - 1)  # a step has the score of its last line
        hidden = net(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        return (hidden @ weights["v_head.summary.weight"][0] + weights["v_head.summary.bias"])[flagged].tolist()

    return scores


def shepherd_recipe(directory: Path) -> Recipe:
    net, tokens = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(directory)

    @torch.no_grad()
    def scores(problem: str, steps: list[str]) -> list[float]:
        candidates, tag = tokens.encode("+ -")[1:], tokens.encode("ки")[-1]
        written = [step if step.startswith("Step ") else f"Step {k}: {step}".rstrip() for k, step in enumerate(steps, 1)]
        ids = torch.tensor([tokens.encode(f"{problem} " + "\n".join(f"{step} ки" for step in written))])
        logits = net(ids, use_cache=False).logits[:, :, candidates]
        return logits.log_softmax(-1)[ids == tag].diff(dim=-1).neg()[:, 0].tolist()

    return scores


def rlhflow_recipe(directory: Path) -> Recipe:
    net, tokens = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(directory)

    @torch.no_grad()
    def scores(problem: str, steps: list[str]) -> list[float]:
        candidates, conversation, found = [tokens.encode("+")[-1], tokens.encode("-")[-1]], [], []
        for k, step in enumerate(steps):
            conversation.append({"role": "user", "content": f"{problem} {step}" if k == 0 else step})
            conversation.append({"role": "assistant", "content": "+"})
            text = tokens.apply_chat_template(conversation, tokenize=False)
            ids = tokens(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            logits = net(ids, use_cache=False).logits[0, -3, candidates]
            found.append(float(logits[0] - logits[1]))
        return found

    return scores


RECIPES: dict[str, Callable[[Path], Recipe]] = {
    "qwen": qwen_recipe,
    "skywork": skywork_recipe,
    "math-shepherd": shepherd_recipe,
    "rlhflow": rlhflow_recipe,
}
