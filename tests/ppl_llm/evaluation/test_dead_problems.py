"""A problem whose every candidate has weight zero has no answer; the others of its batch keep theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_llm import Context, reasoning
from ppl_llm.cli.details import details
from ppl_llm.cli.report import solution_of
from ppl_llm.evaluation import RecordStore, Results
from ppl_llm.evaluation.report import size
from ppl_llm.evaluation.work import SHARED, Unit, execute
from ppl_llm.inference import SMC
from ppl_llm.tasks import Problem
from tests.helpers.reasoning import LM, MAX_STEPS, MAX_TOKENS, PRM


class Walled:
    """Finds every step of the second problem impossible."""

    def step_log_odds(self, context: Context) -> Tensor:
        return torch.where(context.problem_index[..., None] == 1, -torch.inf, PRM.step_log_odds(context))


MODEL = reasoning(LM, Walled(), stop=";", max_steps=MAX_STEPS, max_tokens=MAX_TOKENS, finish="b")
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
