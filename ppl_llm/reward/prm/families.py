"""The table of published process reward models, and how a directory is recognised as one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from ...inference.util.validation import unknown_name
from ...kv_cache.support import context_limit
from ...lm.loading import locate, unreachable
from .formats.base import PRMFormat
from .formats.math_shepherd import MathShepherdFormat
from .formats.qwen import QwenFormat
from .formats.rlhflow import RLHFlowFormat
from .formats.skywork import SkyworkFormat
from .networks import Qwen2PRM, SkyworkPRM, TokenPairPRM


@dataclass(frozen=True)
class PRMFamily:
    """A published kind of process reward model.

    A directory is recognised by an architecture or a weight that no other model has. A family without either looks like any other language
    model, so three things must agree: the architecture, whether the tokenizer has a chat template, and the model's name.

    :ivar str name: what ``family=`` takes.
    :ivar str model_name: its published name.
    :ivar str layout: what its weights consist of.
    :ivar network_class: a transformers class that its weights fit.
    :ivar format_class: makes its :class:`~ppl_llm.reward.prm.formats.base.PRMFormat` from a tokenizer and options.
    :ivar tuple vocabularies: sizes of the published models' vocabularies.
    :ivar dict published_ids: token ids in vocabularies of these sizes.
    :ivar tuple own_architectures: entries of ``architectures`` in config.json that only this family has.
    :ivar str own_weight: a weight that only this family has.
    :ivar tuple lm_architectures: of the language models that this family may look like.
    :ivar bool chat_template: whether the tokenizer of such a model has a chat template.
    :ivar str name_pattern: regular expression found in the lower-case name of such a model.
    """

    name: str
    model_name: str
    layout: str
    network_class: Any
    format_class: Callable[..., PRMFormat]
    vocabularies: tuple[int, ...]
    published_ids: dict[str, int]
    own_architectures: tuple[str, ...] = ()
    own_weight: str | None = None
    lm_architectures: tuple[str, ...] = ()
    chat_template: bool = False
    name_pattern: str = ""

    def recognises(self, architecture: str, weights: Collection[str], name: str, chat_template: bool) -> bool:
        """Whether a model is of this family.

        :param str architecture: the first of ``architectures`` in its config.json.
        :param weights: names of its weights, as far as they are known.
        :param str name: its name in lower case.
        :param bool chat_template: whether its tokenizer has one.
        """
        if architecture in self.own_architectures or self.own_weight in weights:
            return True
        alike = architecture in self.lm_architectures and chat_template == self.chat_template
        return alike and re.search(self.name_pattern, name) is not None

    def make_format(self, tokenizer: Any, vocabulary: int, **options: Any) -> PRMFormat:
        """The format, its token ids checked against the model's vocabulary and those of the published models.

        :param int vocabulary: ``config.vocab_size`` of the model.
        :raises ValueError: if the tokenizer is that of another model.
        """
        form = self.format_class(tokenizer, **options)
        for token, found in form.ids.items():
            published = self.published_ids.get(token)
            if vocabulary in self.vocabularies and published not in (None, found):
                raise ValueError(
                    f"the tokenizer gives {token!r} the id {found}, but in a {self.model_name} it is {published}: "
                    "this is the tokenizer of another model, use the one of the reward model's directory"
                )
            if found >= vocabulary:
                raise ValueError(
                    f"the tokenizer gives {token!r} the id {found}, but the model has only {vocabulary} tokens: "
                    "this is the tokenizer of another model"
                )
        return form

    def network(self, model: Any, form: PRMFormat) -> Any:
        """What computes log-odds: a model with its own head in float32, or two rows of a language model's head."""
        if hasattr(model, "with_precise_head"):
            return model.with_precise_head()
        return TokenPairPRM(model, form.good_id, form.bad_id)  # type: ignore[attr-defined]


OVERLONG = ("zero", "last")
"""Scores of steps beyond the end of a reward model's context: weight zero, or the score before it."""

_QWEN = (151936, 152064)

FAMILIES: dict[str, PRMFamily] = {
    family.name: family
    for family in (
        PRMFamily(
            "qwen",
            "Qwen2.5-Math-PRM",
            "a Qwen2 backbone and a two-layer score head",
            Qwen2PRM,
            QwenFormat,
            _QWEN,
            {"<extra_0>": 151651},
            own_architectures=("Qwen2ForProcessRewardModel", "Qwen2PRM"),
            own_weight="score.2.weight",
        ),
        PRMFamily(
            "skywork",
            "Skywork-o1-Open-PRM",
            "a Qwen2 backbone and a linear value head",
            SkyworkPRM,
            SkyworkFormat,
            _QWEN,
            {"\n": 198},
            own_architectures=("Qwen2ForPrmModel", "SkyworkPRM"),
            own_weight="v_head.summary.weight",
        ),
        PRMFamily(
            "math-shepherd",
            "math-shepherd-mistral-7b-prm",
            "a causal language model with its head",
            AutoModelForCausalLM,
            MathShepherdFormat,
            (32000,),
            {"+": 648, "-": 387, "ки": 12902},
            lm_architectures=("MistralForCausalLM", "LlamaForCausalLM"),
            chat_template=False,
            name_pattern="shepherd",
        ),
        PRMFamily(
            "rlhflow",
            "Llama3.1-8B-PRM of RLHFlow",
            "a causal language model with its head",
            AutoModelForCausalLM,
            RLHFlowFormat,
            (128256, 128257, 128264),
            {"+": 10, "-": 12},
            lm_architectures=("LlamaForCausalLM",),
            chat_template=True,
            name_pattern="rlhflow|prm-(deepseek|mistral)-data",
        ),
    )
}


def get_family(name: str) -> PRMFamily:
    """A family by name.

    :raises ValueError: for an unknown name, with the nearest known one.
    """
    if name not in FAMILIES:
        raise unknown_name("family", name, ("auto", *FAMILIES))
    return FAMILIES[name]


def read_config(source: str) -> dict[str, Any]:
    """The config.json of a model.

    :raises OSError: if there is none.
    """
    try:
        return dict(PreTrainedConfig.get_config_dict(source)[0])
    except OSError as error:
        raise unreachable(source, error) from error


def context_of(name: str) -> int | None:
    """Longest text in tokens that a process reward model reads, by its configuration; ``None`` where that does not tell.

    :param str name: ``demo``, ``demo-weak``, a directory, or a name on the Hub.
    :raises OSError: if there is no such model.
    """
    source = locate(name, "prm")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        raise unreachable(source, error) from error
    except ValueError:  # of an architecture that transformers does not know: loading it will say more
        return None
    return context_limit(config.get_text_config())[0]


def detect_family(source: str, config: dict[str, Any], tokenizer: Any) -> PRMFamily:
    """The family of a model, from its configuration, the names of its weights where they are at hand, and its tokenizer.

    :raises ValueError: if that does not tell; ``family=`` does.
    """
    architecture = (config.get("architectures") or ["none"])[0]
    weights, name = _weight_names(Path(source)), f"{_own_name(source)} {config.get('_name_or_path', '')}".lower()
    for family in FAMILIES.values():
        if family.recognises(architecture, weights, name, tokenizer.chat_template is not None):
            return family
    known = "; ".join(f"{family.name!r} ({family.model_name}: {family.layout})" for family in FAMILIES.values())
    raise ValueError(
        f"cannot tell from the config of {source!r} (architecture {architecture}) whether and what kind of process reward model it is. "
        f"If it is one, pass family=..., one of: {known}. On the command line that is --prm-family"
    )


def _own_name(source: str) -> str:
    """The name of a model without that of the folders around it."""
    path = Path(source)
    if not path.is_dir():
        return source
    path = path.resolve()
    return path.parents[1].name if path.parent.name == "snapshots" else path.name  # the hub's cache keeps models/NAME/snapshots/REVISION


def _weight_names(directory: Path) -> set[str]:
    """Names of the weights in a directory, without reading the weights; empty for a model that is not here yet."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return set(json.loads(index.read_text())["weight_map"])
    names: set[str] = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names
