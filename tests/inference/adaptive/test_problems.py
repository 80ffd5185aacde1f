"""Lists of problems: each stops alone, as if it were alone, and its places are taken by others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm.inference import (
    SMC,
    Adaptive,
    BestOfN,
    BetaMajority,
    Importance,
    Pandora,
    SelfConsistency,
    Share,
    barrier,
    count,
    run_concurrently,
)
from tests.helpers.adaptive import answer_of, drawn
from tests.helpers.adaptive_mutants import WRONG_PLACES
from tests.helpers.waiting import Counting, wait

SERVICE = Counting()


def steps(problems: Sequence[float]) -> Tensor:
    """Two steps that wait for the others; a problem's number is how probable the answer 1 is."""
    with pyro.plate("problems", len(problems), dim=-1):
        p = torch.tensor(problems, dtype=torch.float64)
        x = pyro.sample("x", dist.Bernoulli(p))
        wait(SERVICE, x.shape[0], turns=2)
        pyro.factor("f", 0.5 * x)
        x = barrier(x)
        y = pyro.sample("y", dist.Bernoulli(0.9 * x + 0.05))
        wait(SERVICE, x.shape[0])
        count(tokens_sampled=2 * x.numel())
        pyro.factor("g", -0.3 * y)
    return y


PROBLEMS = [0.5, 0.97, 0.6, 0.02, 0.55, 0.99, 0.5, 0.95]
CASES: dict[str, tuple[Any, Any]] = {
    "self-consistency": (lambda: SelfConsistency(steps, 4, max_plate_nesting=1), BetaMajority(0.95)),
    "importance": (lambda: Importance(steps, 4, max_plate_nesting=1), BetaMajority(0.9)),
    "best-of-N": (lambda: BestOfN(steps, 4, max_plate_nesting=1), lambda posterior: float(posterior.scores.max()) > 0.4),
    "SMC": (lambda: SMC(steps, 4, ess_threshold=1.0, max_plate_nesting=1), Share(0.8)),
    "SMC, two islands": (lambda: SMC(steps, 4, ess_threshold=1.0, islands=2, max_plate_nesting=1), Share(0.8)),
}


@pytest.mark.parametrize("name", CASES)
def test_each_is_as_if_alone(name: str) -> None:
    """With the same seeds: the same particles, weights and cost, though they stop at different times and their steps are mixed."""
    make, rule = CASES[name]
    adaptive = Adaptive(make(), rule, 32, answer=answer_of)
    pyro.set_rng_seed(3)
    together = adaptive.run(PROBLEMS)
    assert len({posterior.num_drawn for posterior in together}) > 1
    pyro.set_rng_seed(3)
    seeds = torch.randint(0, 2**32, (len(PROBLEMS),)).tolist()
    for seed, problem, found in zip(seeds, PROBLEMS, together, strict=True):
        pyro.set_rng_seed(seed)
        alone = adaptive.start(([problem],), {}, listed=True).run()
        assert found.sites.keys() == alone.sites.keys() == {"x", "y"}
        assert all(torch.equal(found.sites[site], alone.sites[site]) for site in alone.sites)
        assert torch.equal(found.log_weights, alone.log_weights) and found.log_weights.shape == (alone.num_drawn,)
        assert found.stopped == alone.stopped and found.cost["tokens_sampled"] == alone.cost["tokens_sampled"] == 2 * found.num_drawn


def unequal(problems: Sequence[int]) -> Tensor:
    """A problem is the number of batches that it takes."""
    with pyro.plate("problems", len(problems), dim=-1):
        x = pyro.sample("x", dist.Bernoulli(torch.full((len(problems),), 0.5)))
        wait(SERVICE, x.shape[0])
    return x + torch.tensor(problems)


BATCHES = [12, 1, 1, 2, 1, 12, 1, 3, 1, 2]


def occupied(kind: type[Adaptive]) -> list[int]:
    """Sequences of each turn, with room for two problems at a time."""
    SERVICE.batches.clear()

    def enough(posterior: Any) -> bool:
        return bool(len(posterior.batches) >= int(posterior.value[0]) - int(posterior.sites["x"][0]))

    adaptive = kind(SelfConsistency(unequal, 4, max_plate_nesting=1), enough, max_sequences=8)
    posteriors = adaptive.run(BATCHES)
    assert [len(posterior.batches) for posterior in posteriors] == BATCHES
    return list(SERVICE.batches)


def test_places_are_given_to_other_problems() -> None:
    """36 batches of 4 in a batch of 8: never a free place but while the last problem is alone."""
    batches = occupied(Adaptive)
    assert sum(batches) == 4 * sum(BATCHES) and max(batches) == 8
    alone = batches.index(4)
    assert set(batches[:alone]) == {8} and set(batches[alone:]) == {4} and len(batches) <= 24


@pytest.mark.parametrize("name", WRONG_PLACES)
def test_rejects_places_that_are_kept(name: str) -> None:
    """In lockstep half of the batch waits for the slowest problem: a quarter more turns."""
    batches = occupied(WRONG_PLACES[name])
    assert len(batches) > 24 and batches[batches.index(4) :].count(8) > 0


def test_in_a_program_that_shares_its_batches() -> None:
    """Of ``run_concurrently``: its problems take turns with the other programs', one after the other."""
    adaptive = Adaptive(SelfConsistency(steps, 4, max_plate_nesting=1), BetaMajority(0.95), 16, answer=answer_of)
    one, other = run_concurrently([lambda: adaptive.run(PROBLEMS[:3]), lambda: adaptive.run(PROBLEMS[3:5])], seeds=[1, 2])
    assert len(one) == 3 and len(other) == 2
    pyro.set_rng_seed(2)
    first = adaptive.start(([PROBLEMS[3]],), {}, listed=True).run()
    assert torch.equal(first.sites["y"], other[0].sites["y"])


def test_an_interrupt_keeps_what_every_problem_has() -> None:
    calls: list[Any] = []

    def stop(posterior: Any) -> None:
        calls.append(posterior)
        if len(calls) == 6:
            raise KeyboardInterrupt

    adaptive = Adaptive(SelfConsistency(steps, 4, max_plate_nesting=1), BetaMajority(0.95), 64, answer=answer_of, callback=stop)
    pyro.set_rng_seed(0)
    with pytest.raises(KeyboardInterrupt) as caught:
        adaptive.run(PROBLEMS)
    partial = caught.value.partial_posteriors  # type: ignore[attr-defined]
    assert len(partial) == len(PROBLEMS) and sum(each is not None for each in partial) >= 4
    assert sum(each.num_particles for each in partial if each is not None and each.batches[0].complete) >= 4 * 6

    calls.clear()
    kept: list[Any] = []

    def nested() -> None:
        try:
            adaptive.run(PROBLEMS)
        except KeyboardInterrupt as error:
            kept.extend(error.partial_posteriors)  # type: ignore[attr-defined]

    run_concurrently([nested], seeds=[0])
    assert len(kept) == len(PROBLEMS) and kept[0] is not None and kept[-1] is None


def test_a_dead_problem_has_a_dead_posterior_and_the_others_run_on() -> None:
    def walls(problems: Sequence[float]) -> Tensor:
        with pyro.plate("problems", len(problems), dim=-1):
            x = pyro.sample("x", dist.Bernoulli(torch.full((len(problems),), 0.9)))
            pyro.factor("wall", torch.where(torch.tensor(problems) > 0, -torch.inf, torch.zeros(())) - 0.1 * x)
        return barrier(x)

    pyro.set_rng_seed(0)
    for algorithm, rule in ((Importance, BetaMajority(0.9)), (SMC, Share(0.5)), (BestOfN, Pandora(0.02))):
        live, dead = Adaptive(algorithm(walls, 4, max_plate_nesting=1), rule, 12, answer=answer_of).run([0.0, 1.0])
        assert not live.dead and live.stopped and dead.dead and not dead.stopped and dead.num_drawn == 12
        assert len(dead.marginal(answer_of)) == 0 and float(dead.weights.sum()) == 0.0


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        (torch.zeros(3), r"the model has independent plates \(3,\) around all its sites: each problem stops alone"),
        (None, "the model has independent plates"),
    ],
)
def test_a_plate_that_is_no_list_is_refused(problems: Any, message: str) -> None:
    def model(values: Any) -> Tensor:
        with pyro.plate("problems", 3, dim=-1):
            return pyro.sample("x", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=message):
        Adaptive(SelfConsistency(model, 2, max_plate_nesting=1), BetaMajority(), answer=answer_of).run(problems)


def test_a_list_without_a_plate_is_refused() -> None:
    """A list that is the data of one problem: its plate is around some sites only."""

    def model(values: list[float]) -> Tensor:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("data", len(values), dim=-1):
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(values))
        return z

    adaptive = Adaptive(Importance(model, 4, max_plate_nesting=1), BetaMajority(), 16, answer=lambda z: int(z.flatten()[0]))
    with pytest.raises(ValueError, match=r"the model has no plate of problems: .* the model's first argument"):
        adaptive.run([0.1, 0.2])
    pyro.set_rng_seed(0)
    whole = Importance(lambda: model([0.1, 0.2]), 4, max_plate_nesting=1)
    assert Adaptive(whole, BetaMajority(), 16, answer=lambda z: int(z.flatten()[0])).run().log_weights.dim() == 1


def test_many_draws_count_once() -> None:
    pyro.set_rng_seed(0)
    posteriors = Adaptive(SelfConsistency(drawn, 2, max_plate_nesting=1), BetaMajority(0.8), 8, answer=answer_of).run([None] * 20)
    assert [p.cost["tokens_sampled"] for p in posteriors] == [p.num_drawn for p in posteriors]
