"""A problem whose every candidate has weight zero has no answer; the others of its batch keep theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_llm import Context, FunctionReward, reasoning
from ppl_llm.cli.details import details
from ppl_llm.cli.report import solution_of
from ppl_llm.evaluation import Candidate, RecordStore, Results
from ppl_llm.evaluation.aggregators import majority
from ppl_llm.evaluation.report import size, tables
from ppl_llm.evaluation.work import SHARED, Unit, execute
from ppl_llm.inference import SMC
from ppl_llm.methods import BUDGETED, get_method
from ppl_llm.tasks import Problem
from tests.helpers.reasoning import LM, MAX_STEPS, MAX_TOKENS, PRM


class Walled:
    """Finds every step of the second problem impossible."""

    def step_log_odds(self, context: Context) -> Tensor:
        return torch.where(context.problem_index[..., None] == 1, -torch.inf, PRM.step_log_odds(context))


MODEL = reasoning(LM, Walled(), stop=";", max_steps=MAX_STEPS, max_tokens=MAX_TOKENS, finish="b")
MODEL_OF_DEAD = reasoning(
    LM, FunctionReward(lambda problem, text: 0.0, partial=True), stop=";", max_steps=2, max_tokens=2, answer_fallback="text"
)
PROBLEMS = [Problem("p0", "a", "7"), Problem("p1", "a", "7"), Problem("p2", "b", "7")]


@pytest.mark.parametrize("methods", [("smc",), (SHARED,), ("best-of-n",), ("beam-search",)])
def test_records_of_a_dead_problem(methods: tuple[str, ...], tmp_path: Path) -> None:
    unit = Unit(0, methods, (4,), 0)
    records = execute(unit, MODEL, PROBLEMS)
    of_method = [record for record in records if record["method"] == methods[0]]
    weighs = methods[0] != "best-of-n"  # which draws its candidates from the shared samples and scores them
    assert [record.get("dead", False) for record in of_method] == [False, True, False]
    dead = of_method[1]
    assert dead["correct"] is False and sum(dead["answers"].values()) == 0.0
    if weighs and "log_evidence" in dead:
        assert dead["log_evidence"] is None and dead["ess"][0] == 0.0
        assert of_method[0]["log_evidence"] is not None
    with RecordStore(tmp_path / "run", {"lm": "table", "num_problems": 3}) as store:
        store.append(of_method)
    assert size(Results.read(tmp_path / "run")).endswith("In 1 of 3 runs every candidate had weight zero: no answer, and counted as wrong.")


def test_what_the_command_line_shows_of_a_dead_population() -> None:
    posterior = SMC(MODEL, 4, max_plate_nesting=1).run(["a", "a", "b"])
    assert posterior.dead.tolist() == [False, True, False]
    assert MODEL.choose(posterior)[1] is None
    context, weights = posterior.value.select_plate(1, 1), posterior.weights[:, 1].tolist()
    assert solution_of(MODEL, context, weights, "never given").weight == 0.0
    told: Any = details(_Alone())
    assert "every particle has weight zero: none satisfies what is observed, so there is no answer" in told.lines
    assert told.values["dead"] is True


class _Alone:
    """The diagnostics of a single population that died."""

    unit, estimates_posterior = "step", True

    def diagnostics(self) -> dict[str, Any]:
        return {"num_particles": 4, "ess": [0.0], "resampled": [False], "complete": True, "dead": True, "log_evidence": -float("inf")}


EVERY = ["smc", SHARED, "beam-search", "dvts", "rebase", "best-first:beam_width=2", "mcts", "tempered-smc", "particle-gibbs", "suffix-mh"]


@pytest.mark.parametrize("method", [name for name in EVERY if name.partition(":")[0] in BUDGETED])
def test_a_problem_is_recorded_as_dead_whoever_shares_its_batch(method: str, tmp_path: Path) -> None:
    """Alone as among others: it is counted as wrong, and does not drop out of the accuracy."""
    method = method.partition(":")[0]
    budget = max(8, get_method(method).least)
    alone = execute(Unit(0, (method,), (budget,), 0), MODEL_OF_DEAD, PROBLEMS[:1])
    assert [(r["dead"], r["correct"], r["answer"]) for r in alone if r["method"] == method] == [(True, False, None)]
    with RecordStore(tmp_path / "run", {"lm": "table", "num_problems": 1}) as store:
        store.append(alone)
    results = Results.read(tmp_path / "run")
    assert results.accuracy(method, budget).value == 0.0 and tables(results)


def test_votes_that_ask_no_reward_have_their_samples_where_all_are_ruled_out() -> None:
    unit = Unit(0, (SHARED, "self-consistency", "best-of-n", "soft-best-of-n"), (6,), 0)
    records = {record["method"]: record for record in execute(unit, MODEL_OF_DEAD, PROBLEMS[:1])}
    answers = [c["answer"] for c in records[SHARED]["candidates"]]
    assert len(answers) == 6 and records[SHARED]["answer"] is None
    assert records["self-consistency"]["answer"] == majority([Candidate(answer) for answer in answers]) is not None
    assert records["best-of-n"]["answer"] is records["soft-best-of-n"]["answer"] is None
