"""Methods with options after colons: what they change, and what is refused."""

from __future__ import annotations

import pyro
import pytest

from ppl_llm import TransformersLM, TransformersPRM, reasoning
from ppl_llm.evaluation.aggregators import best_of_n
from ppl_llm.evaluation.votes import from_record
from ppl_llm.evaluation.work import Unit, execute, plan
from ppl_llm.inference.posterior.island_posterior import IslandPosterior
from ppl_llm.methods import BUDGETED, get_method, independent, parse_method
from ppl_llm.programs.models import ReasoningModel, build_reasoning
from ppl_llm.tasks.load import load_problems

PROBLEMS = [problem for problem in load_problems("demo", limit=60) if problem.metadata["level"] == 1][:2]
TEXTS = [problem.text for problem in PROBLEMS]


@pytest.fixture(scope="module")
def model() -> ReasoningModel:
    lm, prm = TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo")
    return reasoning(lm, prm, max_steps=6, max_tokens=40, temperature=0.9)


def test_options_of_the_model(model: ReasoningModel) -> None:
    plain = get_method("smc")
    assert plain.adapted(model) is model and plain.aggregation(model, "mean") == "mean"
    method = get_method("smc:preset=as_paper:aggregation=last")
    changed = method.adapted(model)
    assert (changed.preset.name, changed.aggregation, changed.preset.vote) == ("as_paper", "last", "argmax")
    assert (changed.options, changed.max_steps, changed.lm, changed.prm) == (model.options, 6, model.lm, model.prm)
    assert method.aggregation(changed, "mean") == "last"
    assert model.preset.name == "exact"
    back = get_method("smc:preset=exact")
    assert back.aggregation(back.adapted(changed), "last") == "prod"
    assert get_method("smc:potential=odds:score_temperature=2").adapted(model).score_temperature == 2.0


@pytest.mark.parametrize("name", ["self-consistency", "deepconf"])
def test_a_power_without_an_effect_is_refused(model: ReasoningModel, name: str) -> None:
    powered = parse_method(f"{name}:power=2")
    with pytest.raises(ValueError, match=f"power 2 has no effect with --method {name}"):
        powered.method.start(powered.adapted(model), powered.options)


def test_options_of_methods(model: ReasoningModel) -> None:
    islands = get_method("smc:islands=2").start(model, TEXTS, 8)
    assert isinstance(islands, IslandPosterior) and islands.num_particles == 8 and len(islands.islands) == 2
    resampled = get_method("smc:ess_threshold=1:resampler=multinomial").start(model, TEXTS, 4)
    never = get_method("smc:ess_threshold=0").start(model, TEXTS, 4)
    genealogy = [[step.resampled.any() for step in posterior.particles.records] for posterior in (resampled, never)]
    assert all(genealogy[0][:-1]) and not any(genealogy[1])
    # The filter that starts a run is not part of its chain.
    assert [get_method(f"particle-gibbs:sweeps={n}").start(model, TEXTS, 8).num_particles for n in (2, 4)] == [4, 3 * 2]
    assert get_method("dvts:expand=2").start(model, TEXTS, 4).num_particles == 4


def test_records_carry_the_whole_name_and_draw_their_own_numbers(model: ReasoningModel) -> None:
    names = ("smc", "smc:preset=exact", "smc:preset=as_paper")
    units = [unit for unit in plan(1, names, [4], [0])]
    assert [unit.methods for unit in units] == [(name,) for name in names]
    assert len({unit.rng_seed for unit in units}) == 3
    records = [record for unit in units for record in execute(unit, model, PROBLEMS)]
    assert [record["method"] for record in records] == [name for name in names for _ in PROBLEMS]
    for record in records[-len(PROBLEMS) :]:  # the weights of the released code go with best-of-N, by the product of the scores
        assert record["answer"] == best_of_n([from_record(c) for c in record["candidates"]], "prod")


def test_least_budgets() -> None:
    assert [get_method(name).least for name in ("smc", "smc:islands=4", "particle-gibbs:sweeps=8", "dvts:expand=8", "dvts")] == [
        1,
        4,
        16,
        8,
        4,
    ]
    with pytest.raises(ValueError, match="needs a budget of at least 16"):
        list(plan(1, ["particle-gibbs:sweeps=8"], [8], [0]))
    assert len(list(plan(1, ["smc:islands=4"], [2, 4, 8], [0]))) == 2


@pytest.mark.parametrize(
    ("name", "budget", "sizes"),
    [
        ("smc:islands=4", 16, {"particles": 4}),
        ("particle-gibbs", 16, {"particles": 4, "iterations": 3}),
        ("pimh:sweeps=2", 16, {"particles": 8, "iterations": 1}),
        ("suffix-mh", 9, {"iterations": 12, "warmup": 4}),
        ("tempered-smc", 16, {"particles": 8}),
        ("tempered-smc:betas=0.1,0.5,1:kernel=particle-gibbs", 30, {"particles": 3}),
        ("waste-free-smc", 16, {"particles": 8}),
        ("waste-free-smc:chain_length=2:betas=1", 16, {"particles": 12}),
        ("parallel-tempering", 15, {"iterations": 6, "warmup": 2}),
        ("beam-search:expand=2", 16, {"beam_width": 8}),
        ("dvts", 16, {"subtrees": 4}),
    ],
)
def test_what_a_budget_means(name: str, budget: int, sizes: dict[str, int]) -> None:
    """By hand: a move writes half a solution (suffix-mh) or three (particle-gibbs); the first filter of a chain counts."""
    method = get_method(name)
    sized = method.sized(budget)
    assert {option: sized[option] for option in sizes} == sizes
    assert all(size >= 1 for option, size in method.sized(method.least).items() if option in sizes and option != "warmup")


@pytest.mark.parametrize("name", sorted(set(BUDGETED) - {"self-consistency", "best-of-n", "weighted-best-of-n", "importance"}))
def test_a_budget_is_kept(model: ReasoningModel, name: str) -> None:
    """Tokens sampled, against those of as many independent solutions: equal but for chance, and for what is rounded down."""
    budget = max(8, get_method(name).least)
    pyro.set_rng_seed(0)
    expected = independent(model, TEXTS, 8 * budget).cost["tokens_sampled"] / 8
    spent = get_method(name).start(model, TEXTS, budget).cost["tokens_sampled"]
    assert 0.4 * expected < spent < 1.5 * expected


def test_different_options_are_different_units() -> None:
    seeds = {Unit(0, (f"smc:islands={n}",), (8,), 0).rng_seed for n in (1, 2, 4)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smcc:islands=2", "unknown method 'smcc'; did you mean 'smc'"),
        ("smc:preset=as_papr", "unknown preset 'as_papr'; did you mean 'as_paper'"),
        ("smc:island=4", "did you mean 'islands'"),
        ("smc:islands=0", "islands must be an integer of at least 1, got 0"),
        ("smc:islands=two", "islands must be an integer, got 'two'"),
        ("smc:islands", "expected option=value after the colon, got 'islands'"),
        ("smc:islands=", "expected option=value"),
        ("smc:ess_threshold=2", "ess_threshold must lie in"),
        ("smc:resampler=foo", "unknown resampler 'foo'"),
        ("smc:preset=exact:aggregation=min", "aggregation and temperature go with the other potentials"),
        ("importance:islands=2", "method 'importance' takes no options"),
        ("particle-gibbs:islands=2", "unknown particle-gibbs option 'islands'"),
    ],
)
def test_mistakes(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_method(name)


@pytest.mark.parametrize("name", ["smc:waits=1", "power-smc", "smc:max_thinking=8"])
def test_a_name_keeps_how_scores_are_aggregated(name: str) -> None:
    """``--aggregation max`` is the target of every method; one that sets something else in the model leaves it."""
    model = build_reasoning(None, None, "twisted", aggregation="max", score="log_odds", close="|")
    adapted = get_method(name).adapted(model)
    assert adapted is not model and (adapted.aggregation, adapted.score) == ("max", "log_odds")
    assert get_method("smc:preset=twisted:aggregation=mean").adapted(model).aggregation == "mean"
    assert get_method("smc:preset=as_paper").adapted(model).aggregation == "prod"
