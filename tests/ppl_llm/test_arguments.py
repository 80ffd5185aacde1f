"""Arguments of a wrong type: every public constructor refuses them when it is called, in one line that names the argument.

Wrong values follow from the annotations of the constructor, so that a new argument is tested when it is written.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2ForSequenceClassification

import ppl_llm
import ppl_llm.constraints
import ppl_llm.inference
import ppl_llm.reward
from ppl_llm.inference import replicate, run_concurrently
from ppl_llm.lm.base import StepOptions
from ppl_llm.reward import Calibration
from tests.helpers.reasoning import LM, PRM
from tests.helpers.tiny_models import causal_lm, config, reward_net, tokenizer

MODULES = (ppl_llm, ppl_llm.inference, ppl_llm.constraints, ppl_llm.reward)


def model() -> None:
    """Never run."""


def fn(*args: Any) -> float:
    return 1.0


MODEL: dict[str, Any] = {"model": model}
WITH_PARTICLES: dict[str, Any] = {"model": model, "num_particles": 4}

VALID: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("SMC", "Importance", "TemperedSMC", "WasteFreeSMC", "ParticleGibbs", "PIMH"), WITH_PARTICLES),
    **dict.fromkeys(("DORA", "SpeculativeRejection"), WITH_PARTICLES),
    **dict.fromkeys(("ABMCTS", "MCTS", "BlockMH"), MODEL),
    "Twist": {"value": PRM, "verifier": fn},
    "RolloutValue": {"lm": LM, "verifier": fn},
    "PrefixValue": {"prm": PRM, "weights": torch.zeros(4)},
    "ProgramServer": {},
    "NormalScores": {},
    "BetaScores": {},
    **dict.fromkeys(("REBASE", "BestOfN", "SelfConsistency"), WITH_PARTICLES),
    **dict.fromkeys(("SuffixMH", "PrefixWalk", "BestFirst", "Enumeration"), MODEL),
    "PMMH": {**WITH_PARTICLES, "parameters": ["theta"]},
    "ParallelTempering": {"model": model, "betas": [0.5, 1.0]},
    "BeamSearch": {"model": model, "beam_width": 2, "expand": 2},
    "DVTS": {"model": model, "num_subtrees": 2, "expand": 2},
    "EntropicAnnealing": {"num_steps": 3},
    "FilterOptions": {"num_particles": 4},
    "ProposalMessenger": {"proposals": {}},
    "TemperMessenger": {},
    "replicate": {"model": model, "num_replicas": 2, "max_plate_nesting": 0},
    "run_concurrently": {"programs": []},
    "reasoning": {"lm": LM, "prm": PRM},
    "Adaptive": {"algorithm": ppl_llm.inference.SelfConsistency(model, 4), "until": lambda posterior: True},
    "revise": {"model": ppl_llm.reasoning(LM, PRM)},
    "Aggregate": {"model": ppl_llm.reasoning(LM, PRM), "num_particles": 4},
    "DeepConf": {"model": ppl_llm.reasoning(LM, confidence=ppl_llm.Confidence()), "num_particles": 4},
    "LookAhead": {"lm": LM, "prm": PRM},
    "StepProposal": {"temperature": 2.0},
    "StepOptions": {},
    "Thinking": {},
    "LLMStep": {"context": LM.start("a")},
    "StepReward": {"prm": PRM, "context": LM.start("a")},
    "SMCFilterAdapter": {"model": ppl_llm.reasoning(LM, PRM)},
    "TabularLM": {"logits": torch.zeros(2, 2), "symbols": ["a", "$"], "eos": "$"},
    "TabularReward": {"log_odds": torch.zeros(2)},
    "FunctionReward": {"fn": fn},
    "Confidence": {},
    "ProductReward": {"rewards": [PRM, PRM]},
    "SumReward": {"rewards": [PRM, PRM]},
    "CalibratedReward": {"prm": PRM, "calibration": Calibration(2.0)},
    "Calibration": {},
    "MathEquivalence": {},
    "TransformersLM": {"model": causal_lm(), "tokenizer": tokenizer()},
    "TransformersPRM": {"model": reward_net(), "tokenizer": tokenizer()},
    "TransformersORM": {"model": Qwen2ForSequenceClassification(config(num_labels=1)), "tokenizer": tokenizer()},
    "JudgeReward": {"lm": LM, "yes": "a", "no": "b"},
    "OpenAILM": {"base_url": "http://localhost:1"},
    "RemotePRM": {"base_url": "http://localhost:1"},
    "Automaton": {"table": torch.zeros(1, 256, dtype=torch.long), "accepting": torch.ones(1, dtype=torch.bool)},
    "Choices": {"texts": ["a"]},
    "JsonSchema": {"schema": {"type": "string"}},
    "Lark": {"grammar": 'start: "a"'},
    "PerStep": {"constraint": ppl_llm.constraints.Choices(["a"])},
    "Predicate": {"allows": fn},
    "Regex": {"pattern": "a"},
    "TokenSet": {"allowed": [1]},
}

FUNCTIONS: dict[str, Callable[..., Any]] = {"replicate": replicate, "run_concurrently": run_concurrently, "StepOptions": StepOptions}

EXEMPT = {
    "what algorithms make": {
        "AuditMessenger",
        "AuditReport",
        "ChainPosterior",
        "AdaptivePosterior",
        "Decision",
        "DiscreteMarginal",
        "IslandPosterior",
        "ParallelTemperingPosterior",
        "ParticleMessenger",
        "PowerMessenger",
        "RejuvenateMessenger",
        "UntilMessenger",
        "ParticlePosterior",
        "PooledPosterior",
        "ReferenceMessenger",
        "SearchPosterior",
        "TemperedPosterior",
        "Trajectory",
        "Weights",
        "Context",
        "ReasoningModel",
        "SavedCalibration",
        "Vocabulary",
    },
    "without arguments, errors, names and data": {"CostMeter", "AuditError", "SMCFailed", "StopReason", "Preset", "Problem", "PRMFamily"},
    "rules for stopping, with tests of their own": {"BetaMajority", "Pandora", "SameAnswers", "Share"},
    "a regular expression, whose constructor is that of str": {"StopPattern"},
    "made from a file or by training, with tests of their own": {"HiddenStateReward", "StateHead"},
    "any number of arguments, tested below": {"Product"},
    "handlers that a function or an algorithm makes": {"PowerMessenger", "RejuvenateMessenger", "UntilMessenger"},
    "parts with tests of their own": {"BetaScores", "NormalScores", "StateHead", "HiddenStateReward", "StopPattern", "ProgramServer"},
}

PUBLIC = {name: getattr(module, name) for module in MODULES for name in module.__all__} | FUNCTIONS
CONSTRUCTORS = {name: value for name, value in PUBLIC.items() if name in VALID}

WRONG: dict[str, tuple[Any, ...]] = {
    "bool": ("yes", 1, None, [True]),
    "int": ("x", 2.5, [3], True),
    "float": ("x", [0.5], True),
    "str": (3, ["x"], b"x"),
    "Callable": (3, "x"),
    "Mapping": (3, "x", [("a", 1)]),
    "Sequence": (3, object()),
    "Iterable": (3, object()),
    "Tensor": ("x", 3),
    "LanguageModel": ("gpt2", 3),
    "RewardModel": ("prm", 3),
    "Constraint": ("[0-9]+", 3),
    "Proposals": (3, "x", {"z": 3}, {"z": "x"}, {3: None}),
    "ScorePosterior": (3, ["x"]),
    "Selection": (3, "x"),
    "Kernel": (3, "x"),
    "EntropicAnnealing": (3, "x"),
    **dict.fromkeys(("Score", "Prompt", "CandidatesPrompt", "Algorithm", "Embed", "Until", "Equivalent"), (3, "x")),
    "Resampler": (3, [3], len),
    "ConditionalResampler": (3, len),
    "Preset": (3, ["exact"]),
    "Context": ("a", 3),
    "StepOptions": (3, "x"),
    "Calibration": (3, "x"),
    "ReasoningModel": (3, "x"),
    **dict.fromkeys(("Embed", "ScorePosterior"), (3,)),
}
"""Of each kind of argument; what another kind of the same annotation allows is left out."""

ALLOWS: dict[str, Callable[[Any], bool]] = {
    "None": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "tuple": lambda value: isinstance(value, tuple | list) and all(isinstance(item, str) for item in value),
    "Mapping": lambda value: isinstance(value, dict),
    "Sequence": lambda value: isinstance(value, list),
}


def kinds(annotation: str) -> list[str]:
    """Names of the alternatives of an annotation."""
    while "[" in annotation:
        annotation = re.sub(r"\[[^\[\]]*\]", "", annotation)
    return [part.strip() for part in annotation.split("|")]


def cases() -> list[Any]:
    found = []
    for name, constructor in CONSTRUCTORS.items():
        for parameter in inspect.signature(constructor).parameters.values():
            alternatives = kinds(str(parameter.annotation))
            if parameter.kind is inspect.Parameter.VAR_KEYWORD or parameter.name == "device" or "Any" in alternatives:
                continue
            wrong = [value for kind in alternatives for value in WRONG.get(kind, ())]
            wrong = [value for value in wrong if not any(ALLOWS[kind](value) for kind in alternatives if kind in ALLOWS)]
            wrong = wrong if "None" in alternatives else [*wrong, None]
            assert wrong and set(alternatives) <= {*WRONG, *ALLOWS, "tuple", "Kernel"} | UNDERSTOOD, (name, parameter)
            found += [pytest.param(name, parameter.name, value, id=f"{name}-{parameter.name}-{value!r:.20}") for value in wrong]
    return found


UNDERSTOOD = {"Verifier", "dict", "ConditionalResampler", "Any"}


@pytest.mark.parametrize(("name", "parameter", "value"), cases())
def test_a_wrong_type_is_refused_by_name(name: str, parameter: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{parameter}\b") as caught:
        CONSTRUCTORS[name](**{**VALID[name], parameter: value})
    assert "\n" not in str(caught.value) and re.search(r"must|unknown|needs", str(caught.value)), caught.value


@pytest.mark.parametrize("name", ["TransformersLM", "TransformersPRM", "TransformersORM"])
def test_a_name_in_the_place_of_a_network_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(ValueError, match=r"model must be a model of transformers that is loaded; from_pretrained\('gpt2'\) loads one"):
        CONSTRUCTORS[name](**{**VALID[name], "model": "gpt2"})


def test_parts_of_a_product_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"the constraints of a Product must be of ppl_llm\.constraints, got 3"):
        ppl_llm.constraints.Product(ppl_llm.constraints.Choices(["a"]), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("SMC", {"num_particles": np.int64(4), "ess_threshold": np.float32(0.5), "audit": np.bool_(True)}),
        ("MCTS", {"simulations": np.int32(4), "exploration": np.float32(1.0)}),
        ("BlockMH", {"moves": np.int64(2)}),
        ("SpeculativeRejection", {"keep": np.float32(0.5), "marks": np.array([1, 2])}),
        ("SpeculativeRejection", {"marks": [np.int64(1), np.int64(2)]}),
        ("ParallelTempering", {"betas": np.array([0.5, 1.0], dtype=np.float32)}),
        ("ParallelTempering", {"betas": iter([0.5, 1.0])}),
        ("reasoning", {"power": np.float32(2.0), "bridge": np.int64(3), "max_steps": np.int64(3)}),
        ("reasoning", {"power": 2.0, "bridge": np.linspace(1, 2, 3)}),
    ],
)
def test_numbers_of_numpy_are_numbers(name: str, numbers: dict[str, Any]) -> None:
    made = CONSTRUCTORS[name](**{**VALID[name], **numbers})
    if name == "SMC":  # what a file of a run holds
        assert type(made.settings["num_particles"]) is int and made.settings["audit"] is True


@pytest.mark.parametrize("name", VALID)
def test_the_right_types_are_taken(name: str) -> None:
    if name not in SERVERS:
        CONSTRUCTORS[name](**VALID[name])


SERVERS = {"OpenAILM", "RemotePRM"}
"""Their constructors ask a server."""


def test_every_public_constructor_is_tested() -> None:
    exempt = set().union(*EXEMPT.values())
    classes = {name for name, value in PUBLIC.items() if inspect.isclass(value) and not inspect.isabstract(value)}
    protocols = {name for name in classes if getattr(PUBLIC[name], "_is_protocol", False)}
    assert classes - protocols - exempt - set(VALID) == set()
    assert set(VALID) <= set(PUBLIC)
