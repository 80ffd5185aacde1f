"""Every family of process reward models: directories in the published layout against the published recipe, in one pass without a cache."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from ppl_llm.context import PAD, Context
from ppl_llm.inference.cost import CostMeter
from ppl_llm.lm.loading import load
from ppl_llm.reward.prm.families import FAMILIES
from ppl_llm.reward.prm.formats.base import one_block
from ppl_llm.reward.prm.formats.math_shepherd import MathShepherdFormat
from ppl_llm.reward.prm.formats.rlhflow import RLHFlowFormat
from ppl_llm.reward.prm.formats.skywork import SkyworkFormat
from ppl_llm.reward.prm.prefix_scorer import PrefixScorer
from ppl_llm.reward.prm.transformers_prm import TransformersPRM
from tests.helpers.tiny_models import language_model, tokenizer
from tests.helpers.tiny_prms import RECIPES, WRITE, Recipe, llama_tokenizer, mistral_tokenizer, skywork_tokenizer
from tests.ppl_llm.reward.test_rewards import DIFFERENCE, evidence, prior, program

TOLERANCE = 1e-5
NAMES = list(FAMILIES)
WORDS = ["add", "12", "+", "30", "=", "40.", "Then", "ones", "\\boxed{42}", "so", "$x$", "7*6", "é", "(a)", "-", "1,000", "3.14"]
PROBLEMS = ["What is 12 + 30?", "Find $x$ with x^2 = 7"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {name: write(root / published) for name, (published, write) in WRITE.items()}


@pytest.fixture(scope="module")
def recipes(directories: dict[str, Path]) -> dict[str, Recipe]:
    return {name: RECIPES[name](path) for name, path in directories.items()}


def written(texts: list[str | None]) -> Tensor:
    """A step for each sequence; ``None`` for a finished sequence, ``|`` for the end of text."""
    rows = [[] if text is None else tokenizer()(text.replace("|", "<|im_end|>"), add_special_tokens=False)["input_ids"] for text in texts]
    width = max(1, *map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def sentence(rng: random.Random, step: int) -> str:
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
    text = rng.choice([text, text, f"Step {step + 1}: {text}", f"{text}\n{rng.choice(WORDS)}"])
    return text + rng.choice(["\n\n", "\n\n", ".\n\n", "|"])


def expected(recipe: Recipe, context: Context, whole: Callable[[str], str] | None = None) -> Tensor:
    """Scores by the recipe; a finished sequence repeats its last one."""
    rows = []
    for sequence in context:
        said, scored = [], []  # steps with text, and an end without any
        for k, step in enumerate(sequence.steps):
            scored.append(bool(step.strip()) or (not any(scored) and bool(sequence.done) and k == len(sequence.steps) - 1))
            if scored[-1]:
                said.append(step.strip())
        if whole is None:
            scores = recipe(sequence.problem, said) if said else []
        else:
            decoded = ["".join(sequence.steps[: k + 1]) for k, own in enumerate(scored) if own]
            scores = [recipe(sequence.problem, [whole(text)])[0] for text in decoded]
        assert len(scores) == len(said)
        own = torch.zeros(sequence.num_steps, dtype=torch.long)
        own[: len(scored)] = torch.tensor(scored)
        rows.append(torch.tensor([torch.inf, *scores])[own.cumsum(-1)])
    return torch.stack(rows)


def run_filter(prm: TransformersPRM, check: Callable[[Context], None], seed: int, problems: Any = PROBLEMS[0], steps: int = 4) -> None:
    """A random particle filter: ragged steps, sequences that finish, resampling, evicted caches, steps without scoring."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    context = language_model().start(problems).expand((5,))
    for step in range(steps):
        texts = [None if done else sentence(rng, step) for done in context.done.tolist()]
        context = context.extend(written(texts))
        if rng.random() < 0.8 or step + 1 == steps:
            check(context)
        if rng.random() < 0.2:
            prm.release_caches()
        context = context.reorder(torch.randint(0, 5, (5,), generator=generator))
    check(context)


def compare(prm: TransformersPRM, recipe: Recipe, whole: Callable[[str], str] | None = None) -> Callable[[Context], None]:
    def check(context: Context) -> None:
        scores = prm.step_log_odds(context)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, expected(recipe, context, whole), atol=TOLERANCE, rtol=TOLERANCE)

    return check


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_published_recipe(name: str, directories: dict[str, Path], recipes: dict[str, Recipe]):
    prm = TransformersPRM.from_pretrained(directories[name])
    assert prm.family == name
    for seed in range(3):
        run_filter(prm, compare(prm, recipes[name]), seed, PROBLEMS[seed % 2])


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_answer_as_one_step(name: str, directories: dict[str, Path], recipes: dict[str, Recipe]):
    """The model-based form: at each step the recipe, given everything so far as a single step."""
    prm = TransformersPRM.from_pretrained(directories[name], whole_answer=True)

    def whole(text: str) -> str:
        return " ".join(line.strip() for line in text.split("\n") if line.strip()) if name == "skywork" else one_block(text)

    for seed in range(2):
        run_filter(prm, compare(prm, recipes[name], whole), seed, PROBLEMS[seed % 2], steps=3)
    per_step = TransformersPRM.from_pretrained(directories[name])
    with pytest.raises(AssertionError, match="not close"):
        run_filter(per_step, compare(per_step, recipes[name], whole), 1, steps=3)

    def check(context: Context) -> None:
        wanted = expected(recipes[name], context, whole)[..., -1]
        torch.testing.assert_close(per_step.whole_log_odds(context), wanted, atol=TOLERANCE, rtol=TOLERANCE)

    run_filter(per_step, check, 1, steps=3)


@pytest.mark.parametrize("name", NAMES)
def test_increments_of_the_whole_answer_leave_its_score(name: str, directories: dict[str, Path], recipes: dict[str, Recipe]):
    """Under the difference potential the evidence is sum_x p(x) s_T(x) with s_T by the recipe; as likelihoods they count every prefix."""
    prm = TransformersPRM.from_pretrained(directories[name], whole_answer=True)
    context, p = prior(steps=2)
    score = {text: recipes[name]("a", [text.replace("$", "")])[0] for text in set(context.text)}
    wanted = float((p * torch.tensor([score[text] for text in context.text]).sigmoid()).sum())
    assert evidence(program(prm, DIFFERENCE, 2)) == pytest.approx(wanted, rel=1e-4)
    assert evidence(program(prm, "likelihood", 2)) != pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("whole_answer", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_only_new_tokens_are_run_and_equal_sequences_once(name: str, whole_answer: bool, directories: dict[str, Path]):
    prm = TransformersPRM.from_pretrained(directories[name], whole_answer=whole_answer)
    context = language_model().start(PROBLEMS[0]).expand((4,))
    first, second = "Step 1: 12 + 30\n\n", "Step 2: so 42.\n\n"
    context = context.extend(written([first] * 4))
    with CostMeter() as meter:
        prm.step_log_odds(context)
        prm.step_log_odds(context)
    form = prm._format
    prompt = len(form.prompt(PROBLEMS[0]))
    assert meter.totals["prm_tokens"] == prompt + len(form.step(first, 0)) and meter.totals["prm_calls"] == 4
    context = context.reorder(torch.tensor([3, 0, 0, 1])).extend(written([second] * 3 + ["Step 2: x\n\n"]))
    with CostMeter() as meter:
        prm.step_log_odds(context)
    new = [len(form.step(text, 1)) for text in (second, "Step 2: x")]
    if whole_answer:  # the tag of the first step is read over
        assert meter.totals["prm_tokens"] <= sum(new) + 2 * len(form.step("", 0)) and meter.totals["prm_forwards"] == 1
    else:
        assert meter.totals["prm_tokens"] == sum(new)


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_problems(name: str, directories: dict[str, Path], recipes: dict[str, Recipe]):
    prm = TransformersPRM.from_pretrained(directories[name])
    context = language_model().start(PROBLEMS).expand((3, 2))
    rng = random.Random(7)
    for step in range(2):
        texts = written([sentence(rng, step).replace("|", "\n\n") for _ in range(6)])
        context = context.extend(texts.view(3, 2, -1))
        wanted = torch.stack([expected(recipes[name], context[i]) for i in range(3)])
        torch.testing.assert_close(prm.step_log_odds(context), wanted, atol=TOLERANCE, rtol=TOLERANCE)
        context = context.reorder(torch.randint(0, 3, (3, 2), generator=torch.Generator().manual_seed(step)))


# ------------------------------------------------------------------------------------------------ mutants that the recipe must reject


def _late(scorer: Any) -> Callable[..., Any]:
    score = scorer.score
    return lambda entry, index, ids, lengths, prompts, first, at: score(
        entry, index, ids, lengths, prompts, (first - 1).clamp(min=0), at - 1
    )


MUTANTS: dict[str, tuple[list[str], Callable[[TransformersPRM], None]]] = {
    "read one token early": (NAMES, lambda prm: setattr(prm._scorer, "score", _late(prm._scorer))),
    "signs swapped": (["math-shepherd", "rlhflow"], lambda prm: prm.model.rows.neg_()),
    "no bos": (["math-shepherd", "skywork"], lambda prm: _drop_first(prm)),
    "steps not numbered": (["math-shepherd"], lambda prm: setattr(prm._format, "_number_steps", False)),
    "problem and first step in two turns": (
        ["rlhflow"],
        lambda prm: setattr(prm._format, "prompt", _suffixed(prm._format.prompt, prm._format._next[-4:])),
    ),
    "no newline before a step": (["math-shepherd"], lambda prm: setattr(prm._format, "step", _joined(prm._format))),
    "newline tokenized with its line": (["skywork"], lambda prm: setattr(prm._format, "step", _merged(prm._format))),
    "another system prompt": (["qwen"], lambda prm: setattr(prm._format, "_system_prompt", "You are a judge.")),
}


def _drop_first(prm: TransformersPRM) -> None:
    prompt = prm._format.prompt
    prm._format.prompt = lambda problem: prompt(problem)[1:]  # type: ignore[method-assign]


def _suffixed(prompt: Callable[[str], list[int]], extra: list[int]) -> Callable[[str], list[int]]:
    return lambda problem: prompt(problem) + extra


def _joined(form: Any) -> Callable[[str, int], list[int]]:
    return lambda text, index: form._after_word(f" Step {index + 1}: {text.strip().removeprefix(f'Step {index + 1}: ')} ки")


def _merged(form: Any) -> Callable[[str, int], list[int]]:
    return lambda text, index: list(form._tokenizer(text.strip() + "\n\n")["input_ids"])


@pytest.mark.parametrize(("mutant", "name"), [(mutant, name) for mutant, (names, _) in MUTANTS.items() for name in names])
def test_mutants_are_rejected(mutant: str, name: str, directories: dict[str, Path], recipes: dict[str, Recipe]):
    prm = TransformersPRM.from_pretrained(directories[name])
    MUTANTS[mutant][1](prm)
    with pytest.raises(AssertionError, match="not close"):
        for seed in range(3):
            run_filter(prm, compare(prm, recipes[name]), seed)


# --------------------------------------------------------------------------------------------------------- what a step may contain


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_step(name: str, directories: dict[str, Path], recipes: dict[str, Recipe]):
    prm = TransformersPRM.from_pretrained(directories[name])
    for steps in (["\n\n", "so 42.\n\n"], ["12 + 30\n\n", "\n\n", "42|"], ["\n\n", "\n\n"]):
        context = language_model().start(PROBLEMS[0]).expand((1,))
        for text in steps:
            context = context.extend(written([text]))
        torch.testing.assert_close(prm.step_log_odds(context), expected(recipes[name], context), atol=TOLERANCE, rtol=TOLERANCE)


SEPARATORS = {
    "qwen": ["a <extra_0> b", "<extra_0><extra_0>", "<|im_end|>\n<|im_start|>user"],
    "skywork": ["<|im_end|> a", "<|endoftext|>"],
    "math-shepherd": ["a ки b", "ки", "ки ки\nки Step 2: ки", "</s> a"],
    "rlhflow": ["a <|eot_id|> b", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n+", "+"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in SEPARATORS.items() for text in texts])
def test_a_step_cannot_write_the_separator(name: str, text: str, directories: dict[str, Path]):
    """The separator stands where the format puts it and nowhere else, and the text is all there."""
    prm = TransformersPRM.from_pretrained(directories[name])
    form, tokens = prm._format, prm.tokenizer
    plain, tricky = form.step("so", 1), form.step(text, 1)
    special = set(tokens.all_special_ids) | set(form.ids.values())
    if name == "rlhflow":
        special -= set(form.ids.values())  # a plus sign in a sum is one
    of = lambda ids: [i for i in ids if i in special]  # noqa: E731
    newline_inside = text.count("\n") if name == "skywork" else 0
    assert len(of(tricky)) == len(of(plain)) + newline_inside
    said = tokens.decode(tricky, clean_up_tokenization_spaces=False)
    assert text.replace("ки", "к и") in said if name == "math-shepherd" else text in said
    lm = language_model()
    ids = lm.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    context = lm.start(PROBLEMS[0]).extend(torch.tensor([*ids, *written(["\n\n"])[0].tolist()]))
    assert prm.step_log_odds(context).shape == (1,)


def test_lines_of_a_skywork_step():
    form = SkyworkFormat(skywork_tokenizer())
    assert form.step("one\ntwo\n\n", 0) == form.step("one", 0) + form.step("two", 1)
    assert form.step("one\n\ntwo", 0).count(form.step_id) == 3  # a blank line inside is a line
    assert form.step("\n\n", 0) == [form.step_id]
    assert form.answer("one\n\ntwo\n\n").count(form.step_id) == 1


def test_numbers_of_math_shepherd_steps():
    form = MathShepherdFormat(mistral_tokenizer())
    assert form.step("add", 1) == form.step("Step 2: add\n\n", 1) != form.step("Step 3: add", 1)
    bare = MathShepherdFormat(mistral_tokenizer(), number_steps=False)
    assert bare.step("add", 1) != form.step("add", 1) and bare.step("Step 2: add", 1) == form.step("Step 2: add", 1)


def test_both_layouts_of_sentencepiece_tokenizers():
    """Newer files mark words in the pre-tokenizer in place of the normalizer; pieces and the whole text have the same ids in both."""
    layout = json.loads(mistral_tokenizer().backend_tokenizer.to_str())
    layout |= {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    }
    newer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(layout)), bos_token="<s>", unk_token="<unk>")
    for tokens in (mistral_tokenizer(), newer):
        form = MathShepherdFormat(tokens)
        pieces = form.prompt("What is 12 + 30?") + form.step("Step 1: add the tens\n= 40.\n\n", 0) + form.step("Step 2: (a)", 1)
        assert pieces == tokens.encode("What is 12 + 30? Step 1: add the tens\n= 40. ки\nStep 2: (a) ки")


def test_a_window_that_a_trace_exceeds(tmp_path: Path):
    """math-shepherd's config has one; here it is shorter than the trace, and the recipe without a window is another model."""
    directory = WRITE["math-shepherd"][1](tmp_path / "math-shepherd", sliding_window=24)
    prm = TransformersPRM.from_pretrained(directory)
    context = language_model().start(PROBLEMS[0]).expand((2,))
    for _ in range(3):
        context = context.extend(written(["add 12 so 30 = 40. Then ones\n\n", "7*6 $x$ add 12 so 30 = 40. Then ones -\n\n"]))
    compare(prm, RECIPES["math-shepherd"](directory))(context)
    unlimited = RECIPES["math-shepherd"](WRITE["math-shepherd"][1](tmp_path / "unlimited", sliding_window=None))
    with pytest.raises(AssertionError, match="not close"):
        compare(prm, unlimited)(context)


# --------------------------------------------------------------------------------------------------- directories: detection and faults


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_weights(name: str, tmp_path: Path):
    """Scores are float32; with the weights widened on loading they are exactly those of the recipe on the widened weights."""
    published, write = WRITE[name]
    directory = write(tmp_path / published, torch.bfloat16)
    context = language_model().start(PROBLEMS[0]).expand((2,))
    context = context.extend(written(["12 + 30 = 42.\n\n", "so 7*6\n\n"])).extend(written(["Then 42|", "add\n\n"]))
    wanted = expected(RECIPES[name](directory), context)
    rounded = TransformersPRM.from_pretrained(directory)
    scores = rounded.step_log_odds(context)
    assert next(rounded.model.parameters()).dtype == torch.bfloat16 and scores.dtype == torch.float32
    torch.testing.assert_close(scores, wanted, atol=0.25, rtol=0.1)  # 8 bits
    # The read-out itself is not rounded: scores in bfloat16 would be.
    assert not torch.equal(scores, scores.bfloat16().float())
    precise = TransformersPRM.from_pretrained(directory, dtype=torch.float32)
    torch.testing.assert_close(precise.step_log_odds(context), wanted, atol=TOLERANCE, rtol=TOLERANCE)


HEADS = {"qwen": "score", "skywork": "v_head", "math-shepherd": "lm_head", "rlhflow": "lm_head"}


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_head(name: str, tmp_path: Path):
    published, write = WRITE[name]
    directory = write(tmp_path / published, drop=HEADS[name])
    with pytest.raises(ValueError, match=rf"is not a {FAMILIES[name].model_name} .*missing keys \['{HEADS[name]}"):
        TransformersPRM.from_pretrained(directory)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_layer(name: str, tmp_path: Path):
    published, write = WRITE[name]
    with pytest.raises(ValueError, match=r"missing keys \['model\.layers\.1"):
        TransformersPRM.from_pretrained(write(tmp_path / published, drop="model.layers.1.mlp"))


def test_unknown_and_wrong_families(directories: dict[str, Path], tmp_path: Path):
    from_pretrained = TransformersPRM.from_pretrained
    with pytest.raises(ValueError, match="unknown family 'math_shepherd'; did you mean 'math-shepherd'"):
        from_pretrained(directories["math-shepherd"], family="math_shepherd")
    with pytest.raises(ValueError, match=r"is not a Skywork-o1-Open-PRM .*missing keys .*v_head"):
        from_pretrained(directories["qwen"], family="skywork", step_token="\n")
    with pytest.raises(ValueError, match="the tokenizer has no step token '<extra_0>'"):
        from_pretrained(directories["skywork"], family="qwen")
    with pytest.raises(ValueError, match="no chat template, which an RLHFlow PRM needs"):
        from_pretrained(directories["math-shepherd"], family="rlhflow")
    # A language model is not taken for a reward model because it looks like one, not even in a folder of reward models.
    for name, lookalike in (("rlhflow", "rlhflow-prms/Llama-3.1-8B-Instruct"), ("math-shepherd", "shepherd/Mistral-7B-PRM-v0.1")):
        directory = WRITE[name][1](tmp_path / lookalike)
        with pytest.raises(ValueError, match=r"cannot tell .*pass family=\.\.\."):
            from_pretrained(directory)
        assert from_pretrained(directory, family=name).family == name
    # The cache of the hub keeps a model's name above its revision.
    cached = WRITE["rlhflow"][1](tmp_path / "models--RLHFlow--Llama3.1-8B-PRM-Deepseek-Data" / "snapshots" / "0123abc")
    assert from_pretrained(cached).family == "rlhflow"
    # Weights tell where the architecture's name does not, e.g. after fine-tuning.
    for name in ("qwen", "skywork"):
        renamed = WRITE[name][1](tmp_path / f"mine-{name}")
        settings = json.loads((renamed / "config.json").read_text())
        (renamed / "config.json").write_text(json.dumps(settings | {"architectures": ["Qwen2ForCausalLM"], "auto_map": {}}))
        assert from_pretrained(renamed).family == name


@pytest.mark.parametrize(
    ("name", "vocabulary", "message"),
    [
        ("math-shepherd", 32000, r"gives '\+' the id \d+, but in a math-shepherd-mistral-7b-prm it is 648"),
        ("rlhflow", 128256, r"gives '\+' the id \d+, but in a Llama3.1-8B-PRM of RLHFlow it is 10"),
        ("math-shepherd", 300, r"gives '\+' the id \d+, but the model has only 300 tokens"),
        ("qwen", 152064, "gives '<extra_0>' the id .*it is 151651"),
        ("skywork", 151936, r"gives '\\n' the id .*it is 198"),
    ],
)
def test_wrong_ids(name: str, vocabulary: int, message: str):
    """A model of the published vocabulary with the tokenizer of another model is refused, before its weights are read."""
    tokens = {"qwen": tokenizer, "skywork": skywork_tokenizer, "math-shepherd": mistral_tokenizer, "rlhflow": llama_tokenizer}[name]()
    with pytest.raises(ValueError, match=message):
        FAMILIES[name].make_format(tokens, vocabulary)
    FAMILIES[name].make_format(tokens, 5000)


def test_wrong_ids_of_a_directory(tmp_path: Path):
    directory = WRITE["math-shepherd"][1](tmp_path / "math-shepherd", vocab_size=32000, hidden_size=8, num_attention_heads=2)
    with pytest.raises(ValueError, match="this is the tokenizer of another model"):
        TransformersPRM.from_pretrained(directory)


def test_tokens_that_are_not_single():
    with pytest.raises(ValueError, match="must be three known tokens of a math-shepherd tokenizer"):
        MathShepherdFormat(mistral_tokenizer("xyz"))
    with pytest.raises(ValueError, match="must be three known tokens"):
        MathShepherdFormat(mistral_tokenizer(), good_token="good")
    with pytest.raises(ValueError, match="'good', the grade of a good step, is 4 tokens"):
        RLHFlowFormat(llama_tokenizer(), good_token="good")
    with pytest.raises(TypeError, match="step_tag"):
        RLHFlowFormat(llama_tokenizer(), step_tag="ки")  # type: ignore[call-arg]


def test_a_template_without_boundaries_is_refused():
    tokens = llama_tokenizer().__class__(tokenizer_object=llama_tokenizer().backend_tokenizer, eos_token="<|eot_id|>")
    tokens.chat_template = "{% for m in messages %}{{ m['content'] }}tep{% endfor %}"  # "words" + "tep" merge to "word" + "step"
    with pytest.raises(ValueError, match="joins the tokens of a turn"):
        RLHFlowFormat(tokens)
    tokens.chat_template = "{% for m in messages | reverse %}{{ m['content'] }}<|eot_id|>{% endfor %}"
    with pytest.raises(ValueError, match="turn by turn"):
        RLHFlowFormat(tokens)


def test_a_model_that_the_engine_cannot_hold(directories: dict[str, Path]):
    prm = TransformersPRM.from_pretrained(directories["rlhflow"])
    prm.model.config.layer_types = ["linear_attention", "full_attention"]

    class Hybrid:
        config = prm.model.config
        _supports_attention_backend = True

    with pytest.raises(ValueError, match="Hybrid cannot be used as a reward model here: it has layers of the kind linear_attention"):
        PrefixScorer(Hybrid(), prm.model.log_odds, 0)


def test_loading_options_reach_transformers(directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, Any]] = []

    def spy(cls: Any, source: str, **options: Any) -> Any:
        seen.append(options)
        return load(cls, source, **(options | {"quantization_config": None}))

    monkeypatch.setattr("ppl_llm.reward.prm.transformers_prm.load", spy)
    prm = TransformersPRM.from_pretrained(
        directories["rlhflow"], device_map="cpu", dtype=torch.bfloat16, quantization_config="4 bits", cache_bytes=0, good_token="*"
    )
    assert seen == [{"device_map": "cpu", "dtype": torch.bfloat16, "quantization_config": "4 bits"}]
    assert prm._format.good_id == llama_tokenizer().convert_tokens_to_ids("*") and prm._scorer.engine.pool.cache_bytes == 0


@pytest.mark.parametrize("name", ["math-shepherd", "rlhflow"])
def test_the_rest_of_the_head_is_freed(name: str, directories: dict[str, Path]):
    """Of a vocabulary's rows of the head two are kept: a float32 vector and a number."""
    prm = TransformersPRM.from_pretrained(directories[name])
    names = {key for key, _ in prm.model.named_parameters()} | {key for key, _ in prm.model.named_buffers()}
    assert {"rows", "shift"} <= names and not any("lm_head" in key for key in names)


def test_a_head_that_two_rows_do_not_describe(directories: dict[str, Path]):
    lm = AutoModelForCausalLM.from_pretrained(directories["rlhflow"])
    lm.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="LlamaForCausalLM changes its logits"):
        TransformersPRM(lm, llama_tokenizer(), family="rlhflow")


def test_a_head_with_a_bias(directories: dict[str, Path]):
    lm = AutoModelForCausalLM.from_pretrained(directories["rlhflow"]).eval()
    context = language_model().start(PROBLEMS[0]).expand((1,)).extend(written(["so 42\n\n"]))
    plain = TransformersPRM(lm, llama_tokenizer(), family="rlhflow").step_log_odds(context)
    lm.lm_head.bias = torch.nn.Parameter(torch.arange(float(len(lm.lm_head.weight))))
    form = RLHFlowFormat(llama_tokenizer())
    shifted = TransformersPRM(lm, llama_tokenizer(), family="rlhflow").step_log_odds(context)
    torch.testing.assert_close(shifted, plain + form.good_id - form.bad_id)
