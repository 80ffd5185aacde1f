"""Runs with an adaptive budget: what they return, refuse, and keep when they are interrupted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm.inference import (
    DVTS,
    SMC,
    Adaptive,
    AdaptivePosterior,
    BestOfN,
    BetaMajority,
    Importance,
    Pandora,
    SameAnswers,
    SearchPosterior,
    SelfConsistency,
    Share,
    SMCFailed,
    barrier,
    count,
)
from tests.helpers.adaptive import Told, answer_of


def walk(length: int = 3) -> Tensor:
    z = torch.zeros((), dtype=torch.long)
    for t in range(length):
        z = z + pyro.sample(f"z_{t}", dist.Bernoulli(torch.full(z.shape, 0.6))).long()
        count(tokens_sampled=z.numel())
        pyro.factor(f"y_{t}", -0.7 * (z > 1).double())
        z = barrier(z)
    return z


def never(posterior: AdaptivePosterior) -> bool:
    return False


INNER: dict[str, Any] = {
    "self-consistency": lambda: SelfConsistency(walk, 4),
    "best-of-N": lambda: BestOfN(walk, 4),
    "importance sampling": lambda: Importance(walk, 4),
    "SMC": lambda: SMC(walk, 4, ess_threshold=1.0),
}


@pytest.mark.parametrize("name", INNER)
def test_to_the_end_it_is_the_algorithm_run_by_run(name: str) -> None:
    """Three batches are three runs with the same draws: their particles, weights, scores and answers."""
    pyro.set_rng_seed(0)
    adaptive = Adaptive(INNER[name](), never, 12).run()
    pyro.set_rng_seed(0)
    batches = [INNER[name]().run() for _ in range(3)]
    assert isinstance(adaptive, SearchPosterior) and adaptive.method == f"adaptive {name}"
    for site in batches[0].sites:
        assert torch.equal(adaptive.sites[site], torch.cat([each.sites[site] for each in batches]))
    if name == "best-of-N":
        scores = torch.cat([each.scores for each in batches])
        assert torch.equal(adaptive.scores, scores) and adaptive.rewards == scores.exp().tolist()
        assert adaptive.weights.argmax() == scores.argmax() and float(adaptive.weights.max()) == 1.0
    else:
        assert torch.equal(adaptive.log_weights, torch.cat([each.log_weights for each in batches]))
    assert (adaptive.num_drawn, adaptive.num_particles, len(adaptive.batches)) == (12, 12, 3)
    assert adaptive.complete and not adaptive.stopped and adaptive.cost["tokens_sampled"] == 36
    assert adaptive.decisive == (name in ("self-consistency", "best-of-N"))
    assert len(adaptive.diagnostics()["ess"]) == 3 and adaptive.diagnostics()["batches"] == 3


def test_islands_of_a_batch_are_votes_of_their_own() -> None:
    pyro.set_rng_seed(0)
    adaptive = Adaptive(SMC(walk, 4, ess_threshold=1.0, islands=2), never, 20, answer=answer_of).run()
    assert [each.num_particles for each in adaptive.batches] == [4] * 5  # two and two, and one that the budget leaves
    pyro.set_rng_seed(0)
    pairs = [SMC(walk, 4, ess_threshold=1.0, islands=islands).run() for islands in (2, 2, 1)]
    islands = [*pairs[0].parts, *pairs[1].parts, pairs[2]]
    assert adaptive.votes.log_weights == tuple(float(island.log_evidence) for island in islands)
    for shares, island in zip(adaptive.votes.shares, islands, strict=True):
        assert shares == pytest.approx(dict(island.marginal(answer_of).probs))


def test_batches_that_double() -> None:
    sizes: list[int] = []
    Adaptive(SelfConsistency(walk, 2), never, 20, doubling=True, callback=lambda p: sizes.append(p.num_particles)).run()
    assert sizes == [2, 4, 8, 16, 20]
    sizes.clear()
    Adaptive(SMC(walk, 3), never, 20, doubling=True, callback=lambda p: sizes.append(p.num_particles)).run()
    assert sizes == [3, 6, 12, 18]  # whole filters


def test_a_rule_sees_what_was_drawn() -> None:
    seen: list[Any] = []

    def rule(posterior: AdaptivePosterior) -> bool:
        seen.append((posterior.num_particles, posterior.marginal(answer_of), posterior.votes.counts))
        return len(seen) == 3

    posterior = Adaptive(SelfConsistency(Told([0, 1, 1, 2, 2, 2, 0, 0]), 2), rule, 8, answer=answer_of).run()
    assert posterior.stopped and posterior.num_drawn == 6
    assert [n for n, _, _ in seen] == [2, 4, 6]
    for (n, marginal, counts), answers in zip(seen, ([0, 1], [0, 1, 1, 2], [0, 1, 1, 2, 2, 2]), strict=True):
        assert counts == {a: pytest.approx(c) for a, c in Counter(answers).items()} and n == len(answers)
        assert marginal.mode == Counter(answers).most_common(1)[0][0]
    assert posterior.votes.counts == pytest.approx({2: 3, 1: 2, 0: 1})


def test_answers_that_count_as_the_same() -> None:
    program = [0, 1, 0, 1, 0, 1, 0, 1]
    apart = Adaptive(SelfConsistency(Told(list(program)), 2), BetaMajority(0.9), 8, answer=answer_of).run()
    same = Adaptive(SelfConsistency(Told(list(program)), 2), BetaMajority(0.9), 8, answer=answer_of, equivalent=lambda a, b: True).run()
    assert apart.num_drawn == 8 and not apart.stopped and same.num_drawn == 4 and same.stopped
    assert same.votes.counts == pytest.approx({0: 4})


def test_no_answers() -> None:
    with pytest.raises(TypeError, match=r"this model returns Tensor, which has no answers\(\): give answer=function"):
        Adaptive(SelfConsistency(walk, 4), BetaMajority()).run()
    needs_no_votes = Adaptive(SelfConsistency(walk, 4), lambda p: p.num_particles >= 8).run()
    assert needs_no_votes.num_drawn == 8
    nothing = Adaptive(SelfConsistency(walk, 4), Share(0.1), 8, answer=lambda value: None).run()
    assert not nothing.stopped and nothing.votes.counts == {}


def test_tokens_end_a_run_at_a_barrier() -> None:
    """3 steps of 4 tokens a batch. Batches that are complete are kept; without any, the particles of the barrier."""
    for limit, particles, tokens in ((12, 4, 12), (30, 8, 32), (8, 4, 8), (37, 12, 36)):
        posterior = Adaptive(SMC(walk, 4), never, 12, max_tokens_total=limit).run()
        assert (posterior.num_particles, posterior.cost["tokens_sampled"]) == (particles, tokens), limit
        assert posterior.complete is (limit == 37) and not posterior.stopped


def test_no_batch_begins_without_tokens() -> None:
    """Where every particle is done at the last barrier, as contexts tell, the batch is complete, and it is the last."""

    def model() -> Any:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        count(tokens_sampled=z.numel())
        return barrier(Ended(z))

    posterior = Adaptive(SelfConsistency(model, 4), never, 64, max_tokens_total=7).run()
    assert (posterior.num_particles, posterior.cost["tokens_sampled"]) == (8, 8) and posterior.complete


class Ended:
    """A state whose particles are all done."""

    def __init__(self, z: Tensor) -> None:
        self.z, self.done, self.batch_shape = z, torch.ones_like(z, dtype=torch.bool), z.shape

    def reorder(self, index: Tensor) -> Ended:
        return Ended(self.z.gather(0, index))

    def concatenate(self, others: list[Ended]) -> Ended:
        return Ended(torch.cat([self.z, *(other.z for other in others)]))

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, i: int) -> Ended:
        return Ended(self.z[i])


def test_a_callback_of_the_algorithm_is_kept() -> None:
    calls: list[Any] = []
    Adaptive(SelfConsistency(walk, 4, callback=calls.append), never, 8, max_tokens_total=1000).run()
    assert len(calls) == 6


def interrupted(at: int) -> BaseException:
    calls: list[int] = []

    def model() -> Tensor:
        z = walk(2)
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return barrier(z)

    pyro.set_rng_seed(0)
    with pytest.raises(KeyboardInterrupt) as caught:
        Adaptive(SelfConsistency(model, 4), BetaMajority(0.999), 64, answer=answer_of).run()
    return caught.value


def test_an_interrupted_run_keeps_its_batches() -> None:
    partial = interrupted(3).partial_posterior  # type: ignore[attr-defined]
    assert isinstance(partial, AdaptivePosterior) and partial.num_particles == 8 and not partial.complete
    assert partial.votes.total == pytest.approx(8) and "seconds" in partial.cost
    first = interrupted(1).partial_posterior  # type: ignore[attr-defined]
    assert first.num_particles == 4 and not first.complete and first.votes.total == 0


def test_batches_without_weight_add_nothing() -> None:
    """A filter that dies is a vote of weight zero; a run of nothing else fails."""
    passes: list[bool] = []

    def model() -> Tensor:
        x = pyro.sample("x", dist.Bernoulli(0.5))
        pyro.factor("wall", torch.zeros(()) if passes.pop(0) else torch.full_like(x, -torch.inf))
        return barrier(x)

    passes[:] = [True, False, True]
    posterior = Adaptive(SMC(model, 4), never, 12, answer=answer_of).run()
    assert (posterior.num_particles, posterior.num_drawn, len(posterior.batches)) == (8, 12, 2)
    passes[:] = [False] * 3
    with pytest.raises(SMCFailed, match="all 4 particles have weight zero after site 'wall'"):
        Adaptive(SMC(model, 4), never, 12, answer=answer_of).run()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adaptive(DVTS(walk, 2, 2), never), "algorithm must be a SelfConsistency, BestOfN, Importance or SMC, got .*DVTS"),
        (lambda: Adaptive(SelfConsistency(walk, 4), 0.95), "until must be a rule such as BetaMajority.*, got 0.95"),  # type: ignore[arg-type]
        (lambda: Adaptive(SelfConsistency(walk, 8), never, 4), r"max_particles must be at least the particles of a batch \(8\), got 4"),
        (lambda: Adaptive(SMC(walk, 4, islands=3), never, 8), r"max_particles must be at least the particles of a batch \(12\), got 8"),
        (
            lambda: Adaptive(SelfConsistency(walk, 4), never, max_tokens_total=0),
            "max_tokens_total must be None or an integer of at least 1, got 0",
        ),
        (lambda: Adaptive(SelfConsistency(walk, 4), never, max_sequences=0), "max_sequences must be an integer of at least 1, got 0"),
        (lambda: Adaptive(SelfConsistency(walk, 4), never, answer=3), "answer must be a function or None, got 3"),  # type: ignore[arg-type]
        (lambda: Adaptive(BestOfN(walk, 4), BetaMajority()), r"until: BetaMajority\(0.95\) counts votes, and best-of-N has none"),
        (lambda: Adaptive(BestOfN(walk, 4), SameAnswers(3)), r"until: SameAnswers\(3\) counts votes"),
        (lambda: Adaptive(SelfConsistency(walk, 4), Pandora()), r"Pandora\(0.01\) needs .* and self-consistency asks no reward"),
        (lambda: Adaptive(SMC(walk, 4), Pandora()), "the particles of a filter are not independent; take BestOfN or Importance inside"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_no_evidence_and_pages(tmp_path: Any) -> None:
    pyro.set_rng_seed(0)
    posterior = Adaptive(SMC(walk, 4, ess_threshold=1.0), never, 12, answer=answer_of).run()
    with pytest.raises(ValueError, match=r"adaptive SMC gives no evidence: .* is biased\. Run SMC or Importance on the same model"):
        _ = posterior.log_evidence
    assert "no_evidence" in posterior.diagnostics() and "evidence" not in repr(posterior)
    posterior.to_html(tmp_path / "run.html")
    assert "batch" in (tmp_path / "run.html").read_text()
    with pytest.raises(ValueError, match=r"this posterior pools 3 batches, each with .* of its own: take one of posterior.batches"):
        posterior.plot_genealogy()
    with pytest.raises(ValueError, match="cannot be saved"):
        posterior.save(tmp_path / "run.state")
