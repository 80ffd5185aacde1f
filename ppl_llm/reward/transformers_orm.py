"""Local outcome reward models: sequence classifiers."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..context_cache import CacheKey
from ..inference.util.checked import checked
from ..inference.util.validation import check_count, check_optional_count
from ..kv_cache.hidden import head_columns
from ..kv_cache.pool import DEFAULT_CACHE_BYTES
from ..lm.loading import check_network, load, load_tokenizer, locate
from ..remote.address import is_address
from .answer_reward import AnswerReward
from .prm.formats.base import ids_with_specials, neutralised
from .prm.prefix_scorer import PrefixScorer, padded

_log = logging.getLogger(__name__)

_REMEDY = (
    "a language model has no score head, it can be a judge (JudgeReward, --reward judge:DIR), and a reward model of single steps is a "
    "TransformersPRM (--reward prm:DIR)"
)


class TransformersORM(AnswerReward):
    """A transformers sequence classifier that judges finished answers, e.g. a reward model trained on preferences.

    The conversation of problem and answer is read at its last token, in the tokenizer's chat format, or as a pair of texts where it has
    none. A single label is a score x, taken as log-odds ``scale * (x - offset)``: preferences fix differences of scores only, so where
    zero lies is for the caller to say. Of several labels it is the log-odds of one against all others.

    Causal models run on the engine of the language models, which keeps what the prompts and answers of earlier calls have in common.
    See :class:`~ppl_llm.reward.answer_reward.AnswerReward` for unfinished answers. One that grows beyond the model's context gets
    log-odds -inf, with a logged warning.

    :ivar int max_length: longest conversation of problem and answer in tokens; ``None`` for a model without a bound.

    :param model: a transformers model for sequence classification.
    :param tokenizer: its tokenizer.
    :param int positive_label: the label that means right, of several; 1 by default.
    :param float scale: of a single score.
    :param float offset: score at which an answer is as likely right as wrong.
    :param str system_prompt: system turn before the problem.
    :param partial: judge unfinished answers too; ``word``, ``line`` or a regular expression for the part of them up to the last one.
    :param float pending: log-odds of an unfinished answer otherwise.
    :param int cache_bytes: memory for keys and values.
    :raises ValueError: for options that do not fit the model.
    """

    @checked
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        positive_label: int | None = None,
        scale: float = 1.0,
        offset: float = 0.0,
        system_prompt: str | None = None,
        partial: bool | str = False,
        pending: float = math.inf,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        super().__init__(partial=partial, pending=pending)
        check_network(model)
        check_count("cache_bytes", cache_bytes, 0)
        check_optional_count("positive_label", positive_label, 0)
        labels = model.config.num_labels
        if labels == 1 and positive_label is not None:
            raise ValueError("the model has a single score and no labels; positive_label does not apply")
        if labels > 1 and (scale, offset) != (1.0, 0.0):
            raise ValueError(f"scale and offset are for a single score; this model has {labels} labels")
        self.positive_label = 0 if labels == 1 else 1 if positive_label is None else positive_label
        if not 0 <= self.positive_label < labels:
            raise ValueError(f"positive_label must be one of the model's {labels} labels, 0 to {labels - 1}, got {positive_label!r}")
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale!r}")
        self._key = CacheKey.of_model("orm", model)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.scale, self.offset, self.system_prompt = scale, offset, system_prompt
        self._device = model.get_input_embeddings().weight.device
        self._scorer = PrefixScorer(model, self._causal_log_odds, cache_bytes) if _is_causal(model) else None
        self.max_length: int | None = _context_of(model, tokenizer) if self._scorer is None else self._scorer.max_length
        if self._scorer is not None:
            model.score.to(torch.float32)

    @property
    def label(self) -> str:
        own = {name: getattr(self, name) for name in ("positive_label", "scale", "offset", "system_prompt")}
        return f"{super().label} of {self._key.label}, {own}"

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, device_map: Any = None, dtype: Any = None, quantization_config: Any = None, **options: Any
    ) -> TransformersORM:
        """Load a directory or a model of the Hugging Face Hub; only safetensors are read and no code of the directory is run.

        :param options: of the constructor.
        :raises OSError: if there is no such model, or not in safetensors format.
        :raises ValueError: if it is not a complete sequence classifier.
        """
        from transformers import AutoModelForSequenceClassification

        source = locate_classifier(name_or_path)
        settings = {"device_map": device_map, "dtype": dtype, "quantization_config": quantization_config}
        try:
            model, report = load(AutoModelForSequenceClassification, source, own_attention=False, **settings)
        except ValueError as error:
            if not str(error).startswith("Unrecognized configuration class"):  # of many lines
                raise
            raise ValueError(f"{source!r} is a model of a kind that has no sequence classifier in transformers; {_REMEDY}") from error
        for problem in ("missing_keys", "unexpected_keys"):
            if report[problem]:
                raise ValueError(
                    f"{source!r} is not a complete {type(model).__name__}: {problem.replace('_', ' ')} {sorted(report[problem])[:6]}; "
                    f"{_REMEDY}"
                )
        return cls(model, load_tokenizer(source), **options)

    def release_caches(self) -> None:
        """Free the memory of all keys and values."""
        if self._scorer is not None:
            self._scorer.release()

    @torch.no_grad()
    def answer_log_odds(self, answers: Sequence[tuple[str, str]]) -> Tensor:
        encoded = [self._encoded(problem, answer) for problem, answer in answers]
        fits = [n for n, each in enumerate(encoded) if self._has_room(len(each["input_ids"]))]
        z = torch.full((len(answers),), -torch.inf, device=self._device)
        if fits:
            short = [encoded[n] for n in fits]
            z[fits] = self._plain_log_odds(short) if self._scorer is None else self._prefix_log_odds([answers[n][0] for n in fits], short)
        return z

    def _has_room(self, length: int) -> bool:
        fits = self.max_length is None or length <= self.max_length
        if not fits:
            _log.warning("an answer has %d tokens in the reward model's format, which exceeds its context of %d", length, self.max_length)
        return fits

    def _encoded(self, problem: str, answer: str) -> dict[str, list[int]]:
        """What the model takes for a problem and its answer."""
        problem, answer = (neutralised(self.tokenizer, text.strip()) for text in (problem, answer))
        if self.tokenizer.chat_template is None:
            return dict(self.tokenizer(problem, answer))
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        chat = [*system, {"role": "user", "content": problem}, {"role": "assistant", "content": answer}]
        ids = ids_with_specials(self.tokenizer, self.tokenizer.apply_chat_template(chat, tokenize=False))
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def _shared_prompt(self, problem: str, ids: list[int]) -> int:
        """How many ids an answer shares with every other answer to the problem."""
        pairs = enumerate(zip(self._encoded(problem, "")["input_ids"], ids, strict=False))
        return min(next((i for i, (bare, given) in pairs if bare != given), 0), len(ids) - 1)

    def _causal_log_odds(self, logits_to_keep: int | list[int] = 0, **inputs: Any) -> Tensor:
        hidden = head_columns(self.model.base_model(**inputs).last_hidden_state, logits_to_keep)
        return self._log_odds(self.model.score(hidden.to(self.model.score.weight.dtype)))[..., None]

    def _prefix_log_odds(self, problems: list[str], encoded: list[dict[str, list[int]]]) -> Tensor:
        """Causal models: what the prompts and answers have in common with earlier ones is not run again."""
        assert self._scorer is not None
        sequences = [each["input_ids"] for each in encoded]
        ids = padded(sequences).to(self._device)
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=self._device)
        starts = [self._shared_prompt(problem, sequence) for problem, sequence in zip(problems, sequences, strict=True)]
        shared = torch.tensor(starts, device=self._device)
        order = torch.arange(len(sequences), device=self._device)
        return self._scorer.score(None, order, ids, lengths, shared, lengths - 1, lengths[:, None] - 1).log_odds[:, 0]

    def _plain_log_odds(self, encoded: list[dict[str, list[int]]]) -> Tensor:
        """Models that read in both directions: one pass for the sequences of each length, so that none sees padding."""
        lengths = [len(each["input_ids"]) for each in encoded]
        z = torch.zeros(len(encoded), device=self._device)
        for length in set(lengths):
            where = [i for i, found in enumerate(lengths) if found == length]
            inputs = {name: torch.tensor([encoded[i][name] for i in where], device=self._device) for name in encoded[where[0]]}
            z[where] = self._log_odds(self.model(**inputs).logits).to(self._device)
        return z

    def _log_odds(self, logits: Tensor) -> Tensor:
        """``[...]`` from the logits ``[..., labels]``."""
        logits = logits.float()
        if logits.shape[-1] == 1:
            return self.scale * (logits[..., 0] - self.offset)
        others = [label for label in range(logits.shape[-1]) if label != self.positive_label]
        return logits[..., self.positive_label] - logits[..., others].logsumexp(-1)


def locate_classifier(name_or_path: str | Path) -> str:
    """The directory of a sequence classifier, or its name on the Hub.

    :raises OSError: if there is no such directory, or no model in safetensors format in it.
    :raises ValueError: for the address of a server.
    """
    if is_address(str(name_or_path)):
        raise ValueError(
            f"a sequence classifier runs in this process, and {str(name_or_path)!r} is the address of a server: give a directory or a hub "
            "name; reward models behind an address are those of steps (prm:ADDRESS) and judges (judge:ADDRESS)"
        )
    return locate(name_or_path, "orm")


def _context_of(model: Any, tokenizer: Any) -> int | None:
    """Longest text of a model that reads in both directions, as far as it or its tokenizer tells."""
    limits = getattr(model.config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)
    return min((int(limit) for limit in limits if limit is not None), default=None)


def _is_causal(model: Any) -> bool:
    """Whether a classifier is a causal backbone with a linear head named ``score``, read at the last token."""
    from transformers.modeling_layers import GenericForSequenceClassification

    return isinstance(model, GenericForSequenceClassification) and isinstance(getattr(model, "score", None), torch.nn.Linear)
