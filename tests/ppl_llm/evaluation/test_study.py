"""The study's shortcuts leave distributions alone, its synthetic reward models err as they say, and its runs can be interrupted."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

from benchmarks.study import run as study_run
from benchmarks.study.cached_reward import CachedReward, select_sequences
from benchmarks.study.models import LIMITS, Networks
from benchmarks.study.prefix_table import Ints, PrefixTable
from benchmarks.study.settings import SETTINGS, STRONG, VOTES
from benchmarks.study.synthetic import PRIOR_LOG_ODDS, Errors, SyntheticReward, labels
from benchmarks.study.table_lm import TableLM
from benchmarks.study.table_prm import TablePRM
from benchmarks.study.tables import repeat
from ppl_llm import SMC, TransformersLM, TransformersPRM, reasoning
from ppl_llm.demo.corpus import corrupt
from ppl_llm.demo.problems import held_out
from ppl_llm.evaluation.metrics import auroc
from ppl_llm.evaluation.records import read_records
from ppl_llm.inference import ParticlePosterior, SuffixMH, TemperedSMC
from ppl_llm.methods import METHODS
from ppl_llm.tasks.load import load_problems

PROBLEMS = [problem.text for problem in load_problems("demo", limit=6)]


@pytest.fixture(scope="module")
def plain() -> TransformersLM:
    return TransformersLM.from_pretrained("demo")


@pytest.fixture(scope="module")
def table() -> TableLM:
    return TableLM.from_pretrained("demo")


@pytest.fixture(scope="module")
def prm() -> TransformersPRM:
    return TransformersPRM.from_pretrained("demo")


def filtered(lm: TransformersLM, prm: TransformersPRM, seed: int, temperature: float = 1.0) -> ParticlePosterior:
    pyro.set_rng_seed(seed)
    model = reasoning(lm, prm, temperature=temperature, **LIMITS)  # type: ignore[arg-type]
    return SMC(model, 8, max_plate_nesting=1, record_log_probs=True).run(PROBLEMS)


class Nearsighted(PrefixTable):
    """A mutant that takes each token to stand one place earlier in the attention than it does."""

    def _paths(self, nodes: Ints) -> Ints:
        path = super()._paths(nodes)
        return np.where(np.arange(path.shape[1]) == self._depth[nodes][:, None] - 1, path[:, :1], path)


@pytest.mark.parametrize("temperature", [1.0, 1.4])
def test_the_table_draws_what_the_language_model_draws(
    plain: TransformersLM, table: TableLM, prm: TransformersPRM, temperature: float
) -> None:
    for seed in range(2):  # the second time most prefixes are known
        expected, found = (filtered(lm, prm, seed, temperature) for lm in (plain, table))
        assert torch.equal(expected.value.tokens, found.value.tokens)
        assert torch.allclose(expected.log_evidence, found.log_evidence, atol=1e-4)
        for name, log_prob in expected.site_log_probs.items():
            assert torch.allclose(log_prob, found.site_log_probs[name], atol=1e-3)


def test_a_table_that_looks_at_wrong_tokens_is_noticed(plain: TransformersLM, prm: TransformersPRM) -> None:
    wrong = TableLM.from_pretrained("demo")
    wrong.table = Nearsighted(wrong.model.model, wrong.model.lm_head)
    assert filtered(plain, prm, 0).value.text != filtered(wrong, prm, 0).value.text


def test_the_table_scores_given_steps_and_takes_part_in_moves(plain: TransformersLM, table: TableLM, prm: TransformersPRM) -> None:
    posterior = filtered(plain, prm, 3)
    first = torch.stack([posterior.sites["step_0"]])[0]
    options = reasoning(plain, prm, **LIMITS).options  # type: ignore[arg-type]
    expected = plain.step_log_prob(plain.start(PROBLEMS), first, options)
    assert torch.allclose(expected, table.step_log_prob(table.start(PROBLEMS), first, options), atol=1e-3)
    answers = []
    for lm in (plain, table):
        pyro.set_rng_seed(5)
        model = reasoning(lm, prm, **LIMITS)  # type: ignore[arg-type]
        answers.append(TemperedSMC(model, 4, betas=[0.0, 0.5, 1.0], kernel=SuffixMH, max_plate_nesting=1).run(PROBLEMS[:3]).value.text)
    assert answers[0] == answers[1]


def test_the_table_has_the_hidden_states_of_the_language_model(plain: TransformersLM, table: TableLM, prm: TransformersPRM) -> None:
    """At some positions of each sequence, void ones among them. A table of other tokens has others."""
    context = filtered(plain, prm, 4).value
    ends, starts = context.lengths - 1, context.step_starts[..., -1]
    positions = torch.stack([ends, torch.full_like(ends, -1), starts.minimum(ends)], -1)
    positions[0, 0] = -1
    expected, found = plain.hidden_states(context, positions), table.hidden_states(context, positions)
    assert expected.abs().max() > 1 and torch.allclose(expected, found, atol=1e-3)
    assert (found[0, 0] == 0).all() and (found[..., 1, :] == 0).all()
    wrong = TableLM.from_pretrained("demo")
    wrong._table_sampler.states = Nearsighted(wrong.model.model, lambda states: states)
    assert not torch.allclose(expected, wrong.hidden_states(context, positions), atol=0.1)
    states = wrong._table_sampler.states
    assert len(states) > 0
    wrong.forget()
    assert len(states) == 0


@pytest.mark.parametrize("name", ["demo", "demo-weak"])
def test_tables_of_scores_are_those_of_the_reward_model(table: TableLM, name: str) -> None:
    fast, slow = CachedReward(TablePRM.from_pretrained(name)), TransformersPRM.from_pretrained(name)
    context = filtered(table, fast, 1).value  # type: ignore[arg-type]
    assert torch.allclose(fast.step_log_odds(context), slow.step_log_odds(replace(context, cache_entries={})), atol=1e-4)
    some = torch.tensor([5, 0, 11])
    assert torch.equal(
        fast.step_log_odds(select_sequences(context, some)), fast.step_log_odds(context).reshape(-1, context.num_steps)[some]
    )


class Counting:
    """Notes how many solutions it was asked about."""

    def __init__(self, prm: TransformersPRM) -> None:
        self.prm, self.asked = prm, 0

    def step_log_odds(self, context: object) -> torch.Tensor:
        self.asked += len(context)  # type: ignore[arg-type]
        return self.prm.step_log_odds(context)  # type: ignore[arg-type]


def test_no_solution_is_scored_twice(table: TableLM) -> None:
    inner = Counting(TablePRM.from_pretrained("demo"))
    cached = CachedReward(inner)  # type: ignore[arg-type]
    posterior = filtered(table, cached, 2)  # type: ignore[arg-type]
    asked, calls = inner.asked, posterior.cost["prm_calls"]
    assert 0 < asked < calls
    again = filtered(table, cached, 2)  # type: ignore[arg-type]
    assert inner.asked == asked and again.cost["prm_calls"] == calls
    cached.forget()
    assert torch.equal(cached.step_log_odds(posterior.value), cached.step_log_odds(again.value)) and inner.asked > asked


# Synthetic reward models ------------------------------------------------------------------------------------------------------------


def spoilt(number: int) -> list[tuple[str, list[str]]]:
    """Solutions with mistakes, most of them different."""
    rng = random.Random(0)
    found = []
    for problem in held_out(number):
        steps = corrupt(problem, 0.4, rng).steps
        found.append((problem.text, [step + "\n\n" for step in steps]))
    return found


SOLUTIONS = spoilt(1500)


def measured(errors: Errors) -> tuple[float, float, float]:
    """AUROC, correlation of neighbouring errors, and slope of a logistic regression of labels on scores."""
    reward = SyntheticReward(errors)
    scored = []
    for problem, steps in SOLUTIONS:
        rights = labels(problem, steps)
        if errors.judges == "prefix":
            rights = [all(rights[: t + 1]) for t in range(len(rights))]
        scored.append((rights, reward.scores(problem, steps)))
    flat = [(z, right) for rights, odds in scored for z, right in zip(odds, rights, strict=True)]
    z, y = np.array([z for z, _ in flat]), np.array([right for _, right in flat])
    means, variance = [z[y].mean(), z[~y].mean()], (z[y].var() + z[~y].var()) / 2
    return auroc(z, y), repeat(scored), float((means[0] - means[1]) / variance)


@pytest.mark.parametrize(
    "errors",
    [
        Errors(0.96),
        Errors(0.77),
        Errors(0.86, repeat=0.5),
        Errors(0.86, repeat=0.9),
        Errors(0.86, sharpness=4.0),
        Errors(0.86, repeat=0.5, judges="prefix"),
    ],
)
def test_synthetic_reward_models_err_as_they_say(errors: Errors) -> None:
    # About 8,000 steps: standard errors near 0.005, 0.01 and 0.03; neighbours of AUROC in the study are 0.09 apart, of repeat 0.4.
    found, correlation, slope = measured(errors)
    assert found == pytest.approx(errors.auroc, abs=0.03)
    assert correlation == pytest.approx(errors.repeat, abs=0.06)
    assert slope * errors.sharpness == pytest.approx(1.0, abs=0.15)


def test_errors_that_do_not_repeat_are_noticed() -> None:
    _, correlation, _ = measured(Errors(0.86, repeat=0.0))
    assert correlation != pytest.approx(0.5, abs=0.06)


def test_blind_spots() -> None:
    errors = Errors(0.96, fooled=0.3)
    d, reward = errors.separation, SyntheticReward(errors)
    scored = [(right, z, step) for problem, steps in SOLUTIONS[:600] for right, z, step in _scored(reward, problem, steps)]
    top = d * d / 2 + 2 * d + PRIOR_LOG_ODDS
    wrong = [z == pytest.approx(top) for right, z, _ in scored if not right]
    assert 0.25 < sum(wrong) / len(wrong) < 0.35
    assert not any(z == pytest.approx(top, abs=1e-9) for right, z, _ in scored if right)


def _scored(reward: SyntheticReward, problem: str, steps: list[str]) -> list[tuple[bool, float, str]]:
    return list(zip(labels(problem, steps), reward.scores(problem, steps), steps, strict=True))


def test_synthetic_scores_depend_on_the_text_alone(table: TableLM) -> None:
    context = filtered(table, CachedReward(SyntheticReward(Errors(0.86, 0.9))), 4).value  # type: ignore[arg-type]
    sequences = select_sequences(context, torch.arange(8 * len(PROBLEMS)))
    scores = SyntheticReward(Errors(0.86, 0.9)).step_log_odds(sequences)
    order = torch.randperm(len(sequences))
    assert torch.equal(SyntheticReward(Errors(0.86, 0.9)).step_log_odds(select_sequences(sequences, order)), scores[order])
    assert not torch.equal(SyntheticReward(Errors(0.86, 0.9), seed=1).step_log_odds(sequences), scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5,), "auroc must lie between 0.5 and 1, got 0.5"),
        ((0.8, 1.5), "repeat"),
        ((0.8, 0.5, 0.0), "sharpness"),
        ((0.8, 0.5, 1.0, "step", 1.5), "fooled"),
        ((0.8, 0.5, 1.0, "all"), "judges must be one of step, prefix"),
    ],
)
def test_errors_out_of_range(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Errors(*arguments)  # type: ignore[arg-type]


# Runs -------------------------------------------------------------------------------------------------------------------------------


def test_a_run_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_run, "_networks", Networks(), raising=False)
    setting = replace(STRONG, methods=(*VOTES, "smc", "smc:preset=as_paper"), budgets=(1, 2), seeds=(0,), problems=3)
    problems = study_run._parts(3)[0]

    def records(folder: Path) -> list[dict[str, object]]:
        return [{name: value for name, value in record.items() if name not in ("seconds", "cost")} for record in read_records(folder)]

    study_run._setting(tmp_path / "00", setting, 0, problems)
    whole = records(tmp_path / "00")
    assert len(whole) == 3 * 2 * 6 and (tmp_path / "00" / study_run.STEPS).exists()
    lines = (tmp_path / "00" / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "00" / "records.jsonl").write_text("".join(lines[:-7]) + '{"problem": "cut')
    times = (tmp_path / "00" / study_run.TIMES).read_text().splitlines()
    study_run._setting(tmp_path / "00", setting, 0, problems)
    assert sorted(map(json.dumps, records(tmp_path / "00"))) == sorted(map(json.dumps, whole))
    done = (tmp_path / "00" / study_run.TIMES).read_text().splitlines()
    assert 0 < len(done) - len(times) < len(times)
    study_run._setting(tmp_path / "00", setting, 0, problems)
    assert (tmp_path / "00" / study_run.TIMES).read_text().splitlines() == done


def test_settings_have_names_of_their_own_and_known_methods() -> None:
    names = [setting.name for setting in SETTINGS]
    assert len(set(names)) == len(names)
    assert {method.split(":")[0] for setting in SETTINGS for method in setting.methods} <= set(METHODS)
    for setting in SETTINGS:
        assert list(study_run.plan(1, setting.methods, setting.budgets, setting.seeds))
    assert STRONG.problems >= 300 and study_run.tasks(((STRONG,),), 50) == [(0, 0), (0, 1)]


def test_parts_of_the_study() -> None:
    """By name and budget; what it does not have is named."""
    assert study_run.chosen(None, None) == [list(settings) for settings in study_run.PASSES]
    ((strong, none),) = study_run.chosen(["strong-more", "none-more"], [4, 16])
    assert (strong.name, none.name, strong.budgets, none.prm) == ("strong-more", "none-more", (4, 16), None)
    with pytest.raises(ValueError, match="no setting 'strog'"):
        study_run.chosen(["strog"], None)
    with pytest.raises(ValueError, match=r"setting 'map-0.96-0.0' has none of the budgets 1, 2"):
        study_run.chosen(["map-0.96-0.0", "strong"], [1, 2])


def test_the_later_methods_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the tables, with a reward and without one; a posterior of each problem where a rule stops it."""
    monkeypatch.setattr(study_run, "_networks", Networks(), raising=False)
    problems = study_run._parts(2)[0]
    for ((setting,),) in (study_run.chosen([name], [8]) for name in ("strong-more", "none-more")):
        study_run._setting(tmp_path / setting.name, setting, 0, problems)
        records = list(read_records(tmp_path / setting.name))
        assert {record["method"] for record in records} == set(setting.methods)
        assert len(records) == 2 * len(setting.methods) and all(record["cost"]["tokens_sampled"] > 0 for record in records)
        assert all(("drawn" in record) == (":until=" in record["method"]) for record in records)
