"""lm-evaluation-harness over an algorithm, with a task from a file here; skipped where the harness is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: lm-eval)")
pytestmark = pytest.mark.filterwarnings("ignore")

import pyro  # noqa: E402

from ppl_llm import SMC, TransformersLM, TransformersPRM, extract_answer, reasoning  # noqa: E402
from ppl_llm.evaluation.aggregators import Candidate  # noqa: E402
from ppl_llm.evaluation.harness import PPLHarnessLM, _best  # noqa: E402
from ppl_llm.tasks.load import load_problems  # noqa: E402
from tests.ppl_llm.evaluation.test_teacher_forced import plainly  # noqa: E402

LM, PRM = TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo")
PROBLEMS = [problem for problem in load_problems("demo", limit=60) if problem.metadata["level"] == 1][:6]
SMALL = {"budget": 4, "max_steps": 6, "max_tokens": 40, "batch_size": 3}


def task(folder: Path, **more: Any) -> dict[str, Any]:
    rows = [{"problem": p.text, "answer": p.answer} for p in PROBLEMS]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "task": "demo_arithmetic",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{problem}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:", "</s>"], "do_sample": False, "temperature": 0.0},
        "filter_list": [
            {"name": "strict", "filter": [{"function": "regex", "regex_pattern": r"#### (-?\d+)"}, {"function": "take_first"}]},
            {"name": "boxed", "filter": [{"function": "regex", "regex_pattern": r"boxed\{(-?\d+)\}"}, {"function": "take_first"}]},
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **more,
    }


def evaluated(monkeypatch: pytest.MonkeyPatch, folder: Path, spec: dict[str, Any], model: Any, **more: Any) -> dict[str, Any]:
    import datasets
    import lm_eval

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    found: dict[str, Any] = lm_eval.simple_evaluate(model=model, tasks=[spec], bootstrap_iters=0, **more)
    return found


def request(text: str, **options: Any) -> Any:
    return SimpleNamespace(args=(text, options))


def test_a_task_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own accuracy is that of the answers of the same algorithm run by hand, for both of its filters."""
    by_hand = PPLHarnessLM(LM, PRM, answer_line="#### {answer}", **SMALL)
    texts = by_hand.generate_until([request(p.text, until=["Question:", "</s>"]) for p in PROBLEMS])
    right = [text.rsplit("#### ", 1)[-1] == p.answer for text, p in zip(texts, PROBLEMS, strict=True)]
    assert any(right)
    found = evaluated(monkeypatch, tmp_path, task(tmp_path), PPLHarnessLM(LM, PRM, answer_line="#### {answer}", **SMALL))
    scores = found["results"]["demo_arithmetic"]
    assert scores["exact_match,strict"] == pytest.approx(sum(right) / len(right)) == pytest.approx(scores["exact_match,boxed"])
    assert [sample["resps"][0][0] for sample in found["samples"]["demo_arithmetic"][: len(texts)]] == texts


def test_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = "method=best-of-n,budget=2,lm=demo,prm=demo,max_steps=6,max_tokens=40"
    found = evaluated(monkeypatch, tmp_path, task(tmp_path), "ppl_llm", model_args=arguments, limit=2, batch_size=2)
    assert len(found["samples"]["demo_arithmetic"]) == 4 and "exact_match,boxed" in found["results"]["demo_arithmetic"]


def test_the_text_is_of_the_chosen_answer() -> None:
    """That of a filter run by hand with the same seed: its answer, from the heaviest particle that gives it."""
    hard = [problem.text for problem in load_problems("demo", limit=60) if problem.metadata["level"] == 3][:6]
    model = PPLHarnessLM(LM, PRM, **{**SMALL, "batch_size": 6})
    seeds: list[int] = []
    real = pyro.set_rng_seed
    pyro.set_rng_seed = lambda seed: (seeds.append(seed), real(seed))[1]
    try:
        texts = model.generate_until([request(text, until=[]) for text in hard])
    finally:
        pyro.set_rng_seed = real
    program = reasoning(LM, PRM, "exact", max_steps=6, stop=("\n\n",), max_tokens=40)
    real(seeds[0])
    posterior = SMC(program, 4, max_plate_nesting=1, **program.preset.smc).run(hard)
    answers = program.choose(posterior)
    assert [extract_answer(text) for text in texts] == answers and len(set(answers)) > 1
    # Showing any particle, such as the first, would give other answers.
    assert [extract_answer(text) for text in posterior.value.text[0]] != answers
    for i, text in enumerate(texts):
        particles = posterior.value.select_plate(1, i)
        weights = {n: float(posterior.weights[n, i]) for n in range(4) if particles.answers()[n] == answers[i]}
        assert weights[particles.text.index(text)] == max(weights.values())


def test_the_particle_that_is_shown() -> None:
    pool = [
        Candidate("1", weight=0.1, step_log_odds=(9.0,)),
        Candidate("2", weight=0.2, step_log_odds=(1.0,)),
        Candidate("2", weight=0.4, step_log_odds=(0.0,)),
        Candidate("2", weight=0.3, step_log_odds=(2.0,)),
        Candidate(None, weight=0.0, step_log_odds=(99.0,)),
    ]
    assert _best(pool, "2", "posterior", "prod") == 2 and _best(pool, "2", "weighted", "prod") == 3
    assert _best(pool, None, "posterior", "prod") == 2 and _best(pool, None, "best-of-n", "prod") == 0


def test_until_and_limits() -> None:
    model = PPLHarnessLM(LM, PRM, **SMALL)
    problem = PROBLEMS[0].text
    free, ended, short, line = (
        model.generate_until([request(problem, **options)])[0]
        for options in ({}, {"until": [" = "]}, {"max_gen_toks": 3}, {"until": "\n\n"})
    )
    assert "\n\n" in free and "boxed" in free
    assert " = " not in ended and 0 < len(ended) < len(free)
    assert 0 < len(LM.tokenizer(short, add_special_tokens=False)["input_ids"]) <= 3
    assert "\n\n" not in line and line.startswith("First")
    # Where the text is cut the particles stop: nothing is written that nobody reads.
    program, _, _ = model._program({"until": [" = "]})
    (context, particle, _), *_ = model._solve(program, [problem])
    assert context.done.all() and context.num_steps == 1 and context[particle].text.endswith(" = ")


def test_chat_messages_are_the_problem() -> None:
    model = PPLHarnessLM(LM, PRM, **SMALL)
    messages = model.apply_chat_template([{"role": "user", "content": PROBLEMS[0].text}])
    assert model.generate_until([request(messages)]) == PPLHarnessLM(LM, PRM, **SMALL).generate_until([request(PROBLEMS[0].text)])
    assert model.tok_encode(messages) == LM.start(PROBLEMS[0].text).tokens.tolist()


def test_log_likelihoods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PPLHarnessLM(LM, PRM, **SMALL)
    pairs = [("1 + 1 =", " 2"), ("1 + 1 =", " 3 and so on"), ("First: 2 + 3 = ", "5")]
    found = model.loglikelihood([SimpleNamespace(args=pair) for pair in pairs], disable_tqdm=True)
    for pair, (log_prob, greedy) in zip(pairs, found, strict=True):
        expected, best = plainly(*model._encode_pair(*pair))
        assert log_prob == pytest.approx(expected, abs=2e-4) and greedy == best
    text = "First: 2 + 3 = 5"
    rolling = model.loglikelihood_rolling([SimpleNamespace(args=(text,))])
    assert rolling == [pytest.approx(plainly([model.eot_token_id], model.tok_encode(text))[0], abs=2e-4)]
    choices = task(
        tmp_path,
        output_type="multiple_choice",
        doc_to_choice=["{{answer}}", "99"],
        doc_to_target=0,
        generation_kwargs=None,
        filter_list=None,
        metric_list=[{"metric": "acc"}],
    )
    choices = {name: value for name, value in choices.items() if value is not None}
    chosen = evaluated(monkeypatch, tmp_path, choices, model, limit=3, apply_chat_template=True)
    assert 0 <= chosen["results"]["demo_arithmetic"]["acc,none"] <= 1


def test_mistakes() -> None:
    for arguments, message in (
        ({"method": "smcc"}, "unknown method 'smcc'; did you mean 'smc'"),
        ({"method": "particle-gibbs", "budget": 4}, "budget of 'particle-gibbs' must be an integer of at least 8, got 4"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"answer_line": "####"}, r"answer_line must hold \{answer\}, got '####'"),
    ):
        with pytest.raises(ValueError, match=message):
            PPLHarnessLM(LM, PRM, **arguments)
    served = PPLHarnessLM(SimpleNamespace(), PRM)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tasks of the output type generate_until, such as gsm8k, work with every model"):
        served.loglikelihood([SimpleNamespace(args=("a", "b"))], disable_tqdm=True)
