"""lm-evaluation-harness through the gateway: the answers of the adapter in the process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppl_llm.demo import held_out
from tests.helpers.gateway import models, running

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytest.importorskip("aiohttp", reason="lm-evaluation-harness lacks its extra api")

NEARLY_GREEDY = 0.05
"""Runs of both ways have different seeds; at this temperature the demo model's problems have one solution."""


def task(folder: Path) -> dict[str, Any]:
    data = folder / "problems.jsonl"
    data.write_text("".join(json.dumps({"problem": each.text, "answer": each.answer}) + "\n" for each in held_out(6, 5)))
    return {
        "task": "demo_sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{problem}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:", "</s>"], "max_gen_toks": 200, "temperature": NEARLY_GREEDY},
        "filter_list": [
            {"name": "boxed", "filter": [{"function": "regex", "regex_pattern": r"boxed\{(-?\d+)\}"}, {"function": "take_first"}]}
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def told(found: Any) -> tuple[float, dict[int, tuple[str, str]]]:
    samples = {each["doc_id"]: (each["resps"][0][0].strip(), each["filtered_resps"][0]) for each in found["samples"]["demo_sums"]}
    return float(found["results"]["demo_sums"]["exact_match,boxed"]), samples


def test_the_gateway_gives_what_the_adapter_gives(tmp_path: Path) -> None:
    import lm_eval.models.openai_completions

    from ppl_llm.evaluation.harness import PPLHarnessLM

    options: dict[str, Any] = {"tasks": [task(tmp_path)], "apply_chat_template": True, "log_samples": True}
    with running() as up:
        arguments = f"base_url={up.url}/v1/chat/completions,model=demo:smc-8,num_concurrent=3,max_retries=1"
        served = told(lm_eval.simple_evaluate(model="local-chat-completions", model_args=arguments, **options))
    lm, prm = models()
    here = told(lm_eval.simple_evaluate(model=PPLHarnessLM(lm, prm, method="smc", budget=8, temperature=NEARLY_GREEDY), **options))
    assert served == here and len(served[1]) == 6 and served[0] > 0
