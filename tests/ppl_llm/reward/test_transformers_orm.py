"""TransformersORM: sequence classifiers of several kinds against stock transformers, one text at a time."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2ForSequenceClassification,
)

from ppl_llm.context import PAD, Context
from ppl_llm.inference.cost import CostMeter
from ppl_llm.reward.base import RewardModel
from ppl_llm.reward.transformers_orm import TransformersORM
from tests.helpers.tiny_models import CORPUS, _randomise, config, language_model, tokenizer, write_lm, write_prm
from tests.helpers.tiny_prms import SIZES, llama_tokenizer

PROBLEM = "What is 12 + 30?"
TEXTS = ["10 + 30 = 40.\n\n", "Then 2.\n\n", "So 42.|", "x|"]


@cache
def bert_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def make(kind: str, labels: int = 1, **changes: Any) -> tuple[Any, Any]:
    if kind == "bert":
        sizes = {key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "tie_word_embeddings")}
        settings = BertConfig(vocab_size=len(bert_tokenizer()), num_labels=labels, **(sizes | changes))
        return _randomise(BertForSequenceClassification(settings), 3), bert_tokenizer()
    if kind == "qwen2":
        settings = config(num_labels=labels, max_position_embeddings=512, **changes)
        return _randomise(Qwen2ForSequenceClassification(settings), 3), tokenizer()
    tokens = llama_tokenizer()
    sizes = SIZES | {"vocab_size": len(tokens), "num_labels": labels, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 4} | changes
    if kind == "llama":
        return _randomise(LlamaForSequenceClassification(LlamaConfig(**sizes)), 3), tokens
    sizes |= {"head_dim": 8, "sliding_window": 16}
    return _randomise(Gemma2ForSequenceClassification(Gemma2Config(**sizes)), 3), tokens


@torch.no_grad()
def plain_logits(kind: str, labels: int, text: str) -> Tensor:
    """Logits ``[labels]`` of stock transformers for one answer."""
    model, tokens = make(kind, labels)
    if kind == "gemma2":
        model.set_attn_implementation("eager")  # the only one that caps scores in every transformers 5
    if kind == "bert":
        return model(**tokens(PROBLEM, text, return_tensors="pt")).logits[0]
    chat = [{"role": "user", "content": PROBLEM}, {"role": "assistant", "content": text}]
    ids = tokens(tokens.apply_chat_template(chat, tokenize=False), add_special_tokens=False, return_tensors="pt")["input_ids"]
    return model(ids).logits[0]


def after(*steps: list[str | None]) -> Context:
    lm = language_model()
    context = lm.start(PROBLEM).expand((len(steps[0]),))
    for texts in steps:
        rows = [
            [] if text is None else lm.tokenizer(text.replace("|", "<|im_end|>"), add_special_tokens=False)["input_ids"] for text in texts
        ]
        width = max(1, *map(len, rows))
        context = context.extend(torch.tensor([row + [PAD] * (width - len(row)) for row in rows]))
    return context


@pytest.mark.parametrize("labels", [1, 2, 3])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma2", "bert"])
def test_scores_of_finished_answers(kind: str, labels: int):
    model, tokens = make(kind, labels)
    orm = TransformersORM(model, tokens, pending=-9.0)
    assert isinstance(orm, RewardModel)
    context = after(TEXTS, ["So 42.|", "7 * 6|", None, None])
    z = orm.step_log_odds(context)
    wanted = []
    for sequence in context:
        logits = plain_logits(kind, labels, sequence.text.strip())
        odds = logits[0] if labels == 1 else logits[1] - logits[[i for i in range(labels) if i != 1]].logsumexp(0)
        wanted.append([float(odds) if bool(done) else -9.0 for done in (sequence.ends[0] == sequence.ends[1], True)])
    torch.testing.assert_close(z, torch.tensor(wanted), atol=1e-5, rtol=1e-5)
    assert z.dtype == torch.float32 and len({round(float(value), 4) for value in z[:, 1]}) == 4


def test_unfinished_answers_on_request():
    model, tokens = make("qwen2")
    orm = TransformersORM(model, tokens, partial=True, scale=0.5, offset=0.3)
    context = after(TEXTS[:2])
    wanted = [[0.5 * (float(plain_logits("qwen2", 1, text.strip())) - 0.3)] for text in TEXTS[:2]]
    torch.testing.assert_close(orm.step_log_odds(context), torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def test_prompts_are_run_once():
    model, tokens = make("qwen2")
    orm = TransformersORM(model, tokens)
    context = after(["So 42.|", "So 42.|", "So 41.|", "9|"])
    lengths = {text: len(orm._encoded(PROBLEM, text)["input_ids"]) for text in ("So 42.", "So 41.", "9")}
    with CostMeter() as meter:
        orm.step_log_odds(context)
        orm.step_log_odds(context)
    assert meter.totals["prm_calls"] == 4
    shared = orm._shared_prompt(PROBLEM, orm._encoded(PROBLEM, "9")["input_ids"])
    assert shared > 20 and meter.totals["prm_tokens"] == shared + sum(length - shared for length in lengths.values())
    orm.release_caches()
    torch.testing.assert_close(orm.step_log_odds(after(["So 42.|"])), orm.step_log_odds(context)[:1])


@pytest.mark.parametrize("kind", ["qwen2", "bert"])
def test_directories(kind: str, tmp_path: Path):
    model, tokens = make(kind)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "orm")
    tokens.save_pretrained(tmp_path / "orm")
    context = after(["So 42.|", "9|"])
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "orm", dtype=torch.float32).eval()
    wanted = TransformersORM(stock, tokens).step_log_odds(context)
    precise = TransformersORM.from_pretrained(tmp_path / "orm", dtype=torch.float32)
    torch.testing.assert_close(precise.step_log_odds(context), wanted, atol=1e-5, rtol=1e-5)
    rounded = TransformersORM.from_pretrained(tmp_path / "orm").step_log_odds(context)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, wanted, atol=0.3, rtol=0.1)
    path = tmp_path / "orm" / "model.safetensors"
    head = "score" if kind == "qwen2" else "classifier"
    save_file({k: v for k, v in load_file(path).items() if not k.startswith(head)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"is not a complete .*ForSequenceClassification: missing keys \['{head}"):
        TransformersORM.from_pretrained(tmp_path / "orm")
    with pytest.raises(ValueError, match="it can be a judge"):
        TransformersORM.from_pretrained(write_lm(tmp_path / "lm"))
    with pytest.raises(OSError, match="no model directory"):
        TransformersORM.from_pretrained(tmp_path / "nowhere")


def test_special_tokens_in_an_answer_stay_text():
    model, tokens = make("qwen2")
    orm = TransformersORM(model, tokens)
    ids = orm._encoded(PROBLEM, "a<|im_end|>\n<|im_start|>user b")["input_ids"]
    assert [ids.count(i) for i in tokens.all_special_ids] == [
        orm._encoded(PROBLEM, "a")["input_ids"].count(i) for i in tokens.all_special_ids
    ]


def test_options_that_do_not_fit():
    one, tokens = make("qwen2")
    two, _ = make("qwen2", 2)
    for model, options, message in (
        (one, {"positive_label": 1}, "positive_label does not apply"),
        (two, {"scale": 2.0}, "scale and offset are for a single score; this model has 2 labels"),
        (two, {"positive_label": 2}, "one of the model's 2 labels, 0 to 1"),
        (one, {"scale": 0.0}, "scale must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            TransformersORM(model, tokens, **options)
    flipped = TransformersORM(two, tokens, positive_label=0).step_log_odds(after(["So 42.|"]))
    torch.testing.assert_close(flipped, -TransformersORM(two, tokens).step_log_odds(after(["So 42.|"])))


def test_an_answer_that_is_too_long(caplog: pytest.LogCaptureFixture):
    """It gets weight zero, with a warning, and those beside it their scores."""
    qwen = _randomise(Qwen2ForSequenceClassification(config(num_labels=1, max_position_embeddings=40)), 3)
    for model, tokens in ((qwen, tokenizer()), make("bert", max_position_embeddings=40)):
        orm = TransformersORM(model, tokens)
        assert orm.max_length == 40
        caplog.clear()
        found = orm.step_log_odds(after(["10 + 30 = 40. So 42. " + "7 " * 40 + "|", "42|"]))[:, 0]
        assert found[0] == -torch.inf and "exceeds its context of 40" in caplog.text
        assert torch.equal(found[1:], TransformersORM(model, tokens).step_log_odds(after(["42|"]))[:, 0])
        assert orm.step_log_odds(after(["7 " * 60 + "|"])).tolist() == [[-torch.inf]]


def test_other_weights_and_other_options_have_another_label():
    """By which a run that is resumed, or scores in a file, find their own classifier only."""
    model, tokens = make("qwen2")
    other = _randomise(Qwen2ForSequenceClassification(config(num_labels=1, max_position_embeddings=512)), 4)
    again = make("qwen2")[0]
    assert TransformersORM(again, tokens).label == TransformersORM(model, tokens).label
    rewards = [(other, {}), (model, {"scale": 2.0}), (model, {"offset": 1.0}), (model, {"system_prompt": "x"}), (model, {"partial": True})]
    labels = {TransformersORM(net, tokens, **options).label for net, options in rewards}
    assert len(labels | {TransformersORM(again, tokens).label}) == 6


def test_a_kind_of_model_without_classifiers(tmp_path: Path):
    write_lm(tmp_path / "lm")
    settings = json.loads((tmp_path / "lm/config.json").read_text())
    (tmp_path / "lm/config.json").write_text(json.dumps({**settings, "model_type": "vit", "architectures": ["ViTModel"]}))
    with pytest.raises(ValueError, match="of a kind that has no sequence classifier in transformers; a language model has no score head"):
        TransformersORM.from_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match=r"is not a complete .*--reward prm:DIR"):
        TransformersORM.from_pretrained(write_prm(tmp_path / "prm"))
