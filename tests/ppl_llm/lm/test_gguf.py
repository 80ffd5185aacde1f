"""GGUF files: a tiny Llama, written in llama.cpp's layout, against a plain transformers model with the same weights."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy
import pyro
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as bars
from typer.testing import CliRunner

from ppl_llm import TransformersLM, TransformersPRM
from ppl_llm.cli import app
from ppl_llm.context import PAD, Context
from ppl_llm.lm.base import StepOptions
from tests.helpers.architectures import FORMATS
from tests.helpers.tiny_models import SPLIT, plain_logits, write_lm

gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra gguf)")

CHAT = FORMATS["headers"]
MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ a", "Ċ Ċ", "1 2", "Ã ©"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TOKENS = [*ALPHABET, *(merge.replace(" ", "") for merge in MERGES), *SPECIAL]
BOS, EOS = TOKENS.index("<|begin_of_text|>"), TOKENS.index("<|eot_id|>")
HEADS, KV_HEADS, LAYERS = 4, 2, 2
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama(tied: bool = False) -> LlamaForCausalLM:
    """Weights large enough that a wrong one shows. No setting is transformers' default, so that one that is not read shows too."""
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=64,
        max_position_embeddings=640,
        rms_norm_eps=3e-2,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=tied,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 1.2 / parameter.shape[-1] ** 0.5, generator=generator)
        else:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return model


def gguf_name(name: str) -> str:
    """``model.layers.1.mlp.up_proj.weight`` is ``blk.1.ffn_up.weight``."""
    base = name.removesuffix(".weight")
    if not base.startswith("model.layers."):
        return f"{NAMES[base]}.weight"
    _, _, layer, rest = base.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix as in a GGUF file.

    transformers rotates component ``i`` of a head with component ``i + D / 2``, llama.cpp ``2 i`` with ``2 i + 1``.
    """
    size = weight.shape[0] // heads
    order = [head * size + half * (size // 2) + i for head in range(heads) for i in range(size // 2) for half in range(2)]
    return weight[order]


def as_they_are(weight: Tensor, heads: int) -> Tensor:
    return weight


def write(
    path: Path,
    model: LlamaForCausalLM,
    layout: Callable[[Tensor, int], Tensor] = interleaved,
    drop: str = "",
    q8: bool = False,
    architecture: str = "llama",
    tokenizer: str = "gpt2",
) -> Path:
    """The model as a GGUF file.

    :param layout: of the rows of query and key matrices.
    :param str drop: name of a tensor to leave out.
    :param bool q8: whether matrices are in blocks of 32 integers of 8 bits with one scale; the model gets the weights that these mean.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in TOKENS])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_chat_template(CHAT.template)
    for name, parameter in model.named_parameters():
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        stored = (layout(parameter.data, heads) if heads else parameter.data).numpy()
        if name == drop:
            continue
        if q8 and parameter.dim() == 2:
            blocks = gguf.quantize(stored, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name(name), blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            meant = torch.from_numpy(decoded(blocks)).reshape(parameter.shape)
            assert not torch.equal(meant, torch.from_numpy(stored))
            if heads:
                back = torch.empty_like(meant)
                back[layout(torch.arange(len(meant)), heads)] = meant
                meant = back
            parameter.data.copy_(meant)
        else:
            writer.add_tensor(gguf_name(name), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def decoded(blocks: Any) -> Any:
    """Q8_0: blocks of 34 bytes, a scale in float16 and 32 integers of 8 bits."""
    each = numpy.ascontiguousarray(blocks).reshape(-1, 34)
    scales = each[:, :2].copy().view(numpy.float16).astype(numpy.float32)
    return scales * each[:, 2:].copy().view(numpy.int8).astype(numpy.float32)


@lru_cache
def plain_tokenizer() -> Tokenizer:
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, [tuple(merge.split(" ")) for merge in MERGES]))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return core


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf", llama())


def row(context: Context, sequence: int) -> list[int]:
    return [i for i in context.tokens[sequence].tolist() if i != PAD]


def largest_difference(lm: TransformersLM, model: LlamaForCausalLM) -> float:
    """Of the log-probabilities of steps of ragged sequences, sampled and given, from those of uncached passes of the plain model."""
    pyro.set_rng_seed(0)
    options, worst = StepOptions(max_tokens=12), 0.0
    context = lm.start("What is the sum of 12 and 30?").expand((4,))
    for _ in range(2):
        tokens, sampled = lm.sample_step(context, context.batch_shape, options)
        given = lm.step_log_prob(context, tokens, options)
        grown = context.extend(tokens)
        assert sampled is not None
        for s in range(4):
            begin, end = int(context.lengths[s]), int(grown.lengths[s])
            sequence = row(grown, s)
            log_probs = plain_logits(model, sequence[:-1]).double().log_softmax(-1)
            exact = float(log_probs[range(begin - 1, end - 1), sequence[begin:end]].sum())
            worst = max(worst, abs(float(given[s]) - exact), abs(float(sampled[s]) - exact))
        context = grown.reorder(torch.tensor([1, 1, 3, 0]))
    return worst


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("q8", [False, True])
def test_the_model_is_that_of_the_same_weights(tmp_path: Path, tied: bool, q8: bool) -> None:
    model = llama(tied)
    lm = TransformersLM.from_pretrained(write(tmp_path / "tiny.gguf", model, q8=q8))
    expected = dict(model.named_parameters())
    found = dict(lm.model.named_parameters())
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], weight), name
    sequence = list(range(40, 100))
    torch.testing.assert_close(plain_logits(lm.model, sequence), plain_logits(model, sequence), atol=1e-5, rtol=0)
    assert largest_difference(lm, model) < 1e-4
    own = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    assert all(torch.equal(weight, found[name]) for name, weight in own.named_parameters())


def test_rows_in_another_order_are_noticed(tmp_path: Path) -> None:
    """The mutant of the tests above: query and key rows of the file as in transformers. Log-probabilities of steps differ by nats."""
    model = llama()
    lm = TransformersLM.from_pretrained(write(tmp_path / "tiny.gguf", model, layout=as_they_are))
    assert largest_difference(lm, model) > 0.1


def test_the_number_format_is_chosen_by_the_caller(path: Path) -> None:
    lm = TransformersLM.from_pretrained(path, dtype=torch.bfloat16)
    expected = llama().bfloat16().state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in lm.model.state_dict().items())


def test_the_tokenizer_and_the_chat_template_are_those_of_the_file(path: Path) -> None:
    lm = TransformersLM.from_pretrained(path)
    for text in ["the thin cat in the hat", "12 + 30 = 42\n\n\\boxed{42}", "  \t caféé \n\n\n ü 漢", "<|eot_id|>the<|begin_of_text|>"]:
        ids = plain_tokenizer().encode(text).ids
        assert lm.tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert lm.decode(ids) == plain_tokenizer().decode(ids, skip_special_tokens=True)
    assert lm.decode([TOKENS.index("Ġthe"), TOKENS.index("Ã©")]) == " theé"
    problem = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert row(lm.start([problem]), 0) == plain_tokenizer().encode(CHAT.prompt).ids


def test_a_completion_ends_with_the_end_token_of_the_file(path: Path) -> None:
    lm = TransformersLM.from_pretrained(path)
    assert lm.eos_ids.tolist() == [EOS] and lm.max_length == 640
    pyro.set_rng_seed(0)
    context = lm.start("the").expand((64,))
    tokens, _ = lm.sample_step(context, context.batch_shape, StepOptions(stop=(), max_tokens=32))
    ended = 0
    for ids in tokens.tolist():
        step = [i for i in ids if i != PAD]
        assert EOS not in step[:-1]
        assert len(step) == 32 or step[-1] == EOS
        ended += step[-1] == EOS
    assert ended > 0 and context.extend(tokens).done.sum() == ended


def test_the_commands_take_a_file(path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(path), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ok"] and report["kind"] == "lm"
    arguments = ["solve", "12 + 30?", "--lm", str(path), "--particles", "3", "--max-tokens-completion", "8", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["settings"]["reward"] == "none"


class Terminal(io.StringIO):
    """Where progress bars are seen."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_bars_are_for_terminals(kind: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one nothing is printed, whether weights are read from one format or the other; with one both tell how far they are."""
    source = path if kind == "gguf" else write_lm(tmp_path / "lm")
    seen, unseen, off = Terminal(), io.StringIO(), Terminal()
    bars.enable_progress_bar()
    for stream in (unseen, seen, unseen):
        monkeypatch.setattr(sys, "stderr", stream)
        TransformersLM.from_pretrained(source)
        assert bars.is_progress_bar_enabled(), "as it was"
    assert unseen.getvalue() == ""
    assert "Loading weights" in seen.getvalue() and ("GGUF tensors" in seen.getvalue()) == (kind == "gguf")
    monkeypatch.setattr(sys, "stderr", off)
    bars.disable_progress_bar()
    try:
        TransformersLM.from_pretrained(source)
        assert not bars.is_progress_bar_enabled() and off.getvalue() == "", "who wants none gets none"
    finally:
        bars.enable_progress_bar()


def test_the_commands_print_no_bar(path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "ppl_llm.cli", "check", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"there is no GGUF file '.*absent\.gguf'"):
        TransformersLM.from_pretrained(tmp_path / "absent.gguf")


def test_a_directory_of_gguf_files_names_them(path: Path) -> None:
    (path.parent / "config.json").write_text("{}")
    with pytest.raises(OSError, match=r"holds GGUF files and no \*\.safetensors: give one of them, tiny\.gguf"):
        TransformersLM.from_pretrained(path.parent)


def test_reward_models_are_not_read_from_gguf_files(path: Path) -> None:
    with pytest.raises(OSError, match=r"tiny\.gguf' is a GGUF file, from which only language models are read"):
        TransformersPRM.from_pretrained(path)


def test_a_missing_extra_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(OSError, match=r"tiny\.gguf' is a GGUF file, and reading it needs gguf: pip install 'ppl-llm\[gguf\]'"):
        TransformersLM.from_pretrained(path)
    result = CliRunner().invoke(app, ["check", str(path)])
    assert result.exit_code != 0 and "ppl-llm[gguf]" in result.output


@pytest.mark.parametrize("content", [b"", b"PK", b"this is no model, but it is long enough for a header" * 20])
def test_another_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.gguf").write_bytes(content)
    with pytest.raises(OSError, match=r"other\.gguf' is not in GGUF format"):
        TransformersLM.from_pretrained(tmp_path / "other.gguf")


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_half_a_file_is_named(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(OSError, match=r"cannot load the model file '.*tiny\.gguf', which is incomplete"):
        TransformersLM.from_pretrained(path)


@pytest.mark.parametrize("kind", [{"architecture": "grok"}, {"tokenizer": "rwkv"}])
def test_a_kind_that_is_not_read_is_named(tmp_path: Path, kind: dict[str, str]) -> None:
    path = write(tmp_path / "tiny.gguf", llama(), **kind)
    reason = rf"cannot load the model file '.*tiny\.gguf', .* a kind that transformers does not read: .*{next(iter(kind.values()))}"
    with pytest.raises(OSError, match=reason):
        TransformersLM.from_pretrained(path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", llama(), drop="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ValueError, match=r"not a complete LlamaForCausalLM: missing keys \['model\.layers\.1\.mlp\.up_proj\.weight'\]"):
        TransformersLM.from_pretrained(path)
