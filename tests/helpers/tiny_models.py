"""Tiny random models in the layout of real ones, made in a moment."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

from ppl_llm.lm.transformers_lm import TransformersLM
from ppl_llm.reward.prm.networks import Qwen2PRM

CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = [
    "To add 12 and 30, add the tens: 10 + 30 = 40.\n\nThen add the ones: 40 + 2 = 42.\n\nThe answer is \\boxed{42}.",
    "system\nPlease reason step by step, and put your final answer within \\boxed{}.\nuser\nWhat is 12 + 30?\nassistant\n",
    "First, multiply.\n\nSo we get 7 * 6 = 42.\n\nHence the result.\n",
]


@lru_cache
def tokenizer(step_token: str | None = "<extra_0>", special: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen2.5's special tokens and chat format."""
    core = Tokenizer(models.BPE())
    # Qwen2's own rules: transformers applies them to any tokenizer.json that lies beside a Qwen2 config.
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if step_token is not None:
        core.add_tokens([AddedToken(step_token, special=special, normalized=False)])
    # Tokens that hold a delimiter inside, as in real vocabularies.
    core.add_tokens([AddedToken(".\n\n", normalized=False), AddedToken("x\n\ny", normalized=False), AddedToken("\n\n", normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    return fast


def config(**changes: Any) -> Qwen2Config:
    values = {
        "vocab_size": len(tokenizer()) + 5,  # real vocabularies are padded too
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": tokenizer().eos_token_id,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    return Qwen2Config(**(values | changes))


def _randomise(model: Any, seed: int) -> Any:
    """Weights large enough that attention and logits are far from uniform, and that a wrong key shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 1.5 / parameter.shape[1] ** 0.5, generator=generator)
    return model.eval()


def causal_lm(seed: int = 0, **changes: Any) -> Qwen2ForCausalLM:
    return _randomise(Qwen2ForCausalLM(config(**changes)), seed)


def reward_net(seed: int = 1, **changes: Any) -> Qwen2PRM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the biases of the head keep the values that torch draws
        return _randomise(Qwen2PRM(config(**changes)), seed)


def language_model(seed: int = 0, **options: Any) -> TransformersLM:
    return TransformersLM(causal_lm(seed), tokenizer(), **options)


@torch.no_grad()
def plain_logits(model: Qwen2ForCausalLM, sequence: list[int]) -> Tensor:
    """``[L, V]`` logits of one uncached forward pass of transformers."""
    return model(torch.tensor([sequence]), use_cache=False).logits[0]


@torch.no_grad()
def last_logits(model: Qwen2ForCausalLM, sequences: list[list[int]]) -> Tensor:
    """``[A, V]`` logits after each sequence, from one uncached forward pass; padding on the right does not matter to a causal model."""
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    return model(ids, use_cache=False).logits[range(len(sequences)), [len(sequence) - 1 for sequence in sequences]]


def write_lm(directory: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A directory as Qwen2.5-Instruct's: config, generation config, safetensors, tokenizer."""
    model = causal_lm(**changes).to(dtype)
    model.generation_config.eos_token_id = [tokenizer().eos_token_id, tokenizer().pad_token_id]
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def write_prm(directory: Path, dtype: torch.dtype = torch.float32, drop: str = "", tokens: Any = None, **changes: Any) -> Path:
    """A directory as Qwen2.5-Math-PRM's, with the code it ships replaced by a trap."""
    directory.mkdir(parents=True, exist_ok=True)
    net = reward_net(**changes)
    settings = json.loads(config(**changes).to_json_string(use_diff=False)) | {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
            "AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
        },
        "dtype": str(dtype).removeprefix("torch."),
    }
    (directory / "config.json").write_text(json.dumps(settings))
    for name in ("configuration_qwen2_rm.py", "modeling_qwen2_rm.py"):
        (directory / name).write_text("raise SystemExit('code of the model directory was run')\n")
    weights = {name: value.to(dtype).contiguous() for name, value in net.state_dict().items() if not drop or not name.startswith(drop)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (tokens or tokenizer()).save_pretrained(directory)
    return directory


def write_talker(directory: Path) -> Path:
    """A language model, as :func:`write_lm` writes it, for which Yes and No are single tokens."""
    write_lm(directory)
    core = Tokenizer.from_file(str(directory / "tokenizer.json"))
    core.add_tokens([AddedToken("Yes", normalized=False), AddedToken("No", normalized=False)])
    core.save(str(directory / "tokenizer.json"))
    return directory


def classifier(seed: int = 3, labels: int = 1, **changes: Any) -> Qwen2ForSequenceClassification:
    return _randomise(Qwen2ForSequenceClassification(config(num_labels=labels, **changes)), seed)


def write_orm(directory: Path, labels: int = 1, **changes: Any) -> Path:
    """A directory of a sequence classifier, such as a reward model trained on preferences."""
    classifier(labels=labels, **{"max_position_embeddings": 1024, **changes}).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


@torch.no_grad()
def plain_scores(directory: Path, problem: str, texts: list[str]) -> Tensor:
    """Scores ``[A]`` of whole answers by a classifier of one label, each in a forward pass of its own."""
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(directory)
    chats = [[{"role": "user", "content": problem}, {"role": "assistant", "content": text.strip()}] for text in texts]
    rows = [tokens(tokens.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"] for chat in chats]
    return torch.stack([model(torch.tensor([row])).logits[0, 0] for row in rows])
