"""What a sweep remembers: weights before each barrier, ancestors, factors, texts; of every particle, on every path to a posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from ppl_llm import DVTS, PIMH, SMC, BeamSearch, BestOfN, Importance, ParticleGibbs, TemperedSMC
from ppl_llm.inference import ParticleMessenger
from ppl_llm.inference.particles.history import History, ResamplingRecord
from tests.inference.viewer.models import run, solutions, three_problems, walk, writer


def check(posterior: Any) -> None:
    """Identities that tie the records of different barriers to each other and to the result, all of them exact."""
    history: History = posterior.history
    n, before = posterior.num_particles, None
    for t, step in enumerate(history.records):
        assert step.log_weights is not None and step.log_likelihood is not None
        w = step.log_weights.softmax(0)
        torch.testing.assert_close(1 / w.square().sum(0), step.ess)
        assert torch.equal(step.log_weights.logsumexp(0).isfinite(), torch.ones_like(step.ess, dtype=torch.bool))
        if before is not None:
            # A particle's weight changed by its factor, from the mean where its population was resampled.
            factor = step.log_likelihood - before.log_likelihood.gather(0, before.ancestors)
            mean = before.log_weights.logsumexp(0) - torch.tensor(float(n)).log()
            start = torch.where(before.resampled, mean.expand_as(before.log_weights), before.log_weights)
            torch.testing.assert_close(step.log_weights, start + factor)
            own = torch.arange(n).view(-1, *(1,) * (before.ancestors.dim() - 1)).expand_as(before.ancestors)
            assert torch.equal(torch.where(before.resampled, own, before.ancestors), own), t
            assert before.done is None or bool((step.done | ~before.done.gather(0, before.ancestors)).all()), (
                "a particle that was done continues"
            )
        before = step
    last = history.records[-1]
    torch.testing.assert_close(last.log_likelihood.gather(0, last.ancestors), posterior.particles.log_likelihood)
    torch.testing.assert_close(last.log_weights.logsumexp(0) - torch.tensor(float(n)).log(), posterior.particles.weights.log_mean)
    lineage = history.particle
    for t in range(len(history.records) - 1, -1, -1):
        for site in history.sites:
            if site.barriers == t and site.value is not None:
                index = lineage.reshape(*lineage.shape, *(1,) * (site.value.dim() - lineage.dim())).expand(
                    *lineage.shape, *site.value.shape[lineage.dim() :]
                )
                assert torch.equal(site.value.gather(0, index), posterior.sites[site.name])
        if t:
            lineage = history.records[t - 1].ancestors.gather(0, lineage)


SWEEPS: dict[str, Callable[[], Any]] = {
    "solutions": solutions,
    "problems": three_problems,
    "multinomial": lambda: run(SMC(walk(), 9, resampler="multinomial", ess_threshold=1.0)),
    "plate": lambda: run(SMC(walk(plates=3), 9, max_plate_nesting=1)),
    "never": lambda: run(Importance(writer(), 9), "g"),
    "island": lambda: run(SMC(writer(), 6, islands=3, ess_threshold=0.9), "g").islands[1],
    "island of problems": lambda: run(SMC(writer(), 6, islands=2, ess_threshold=0.9, max_plate_nesting=1), ["g", "gg"]).islands[1],
}


@pytest.mark.parametrize("name", SWEEPS)
def test_records_agree(name: str) -> None:
    check(SWEEPS[name]())


class RecordsAfter(ParticleMessenger):
    """Weights as they are after the barrier."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        state = super().resample(state, ess)
        self.system.records[-1] = self.system.records[-1]._replace(log_weights=self.system.weights.log_weights)
        return state


class RecordsParents(ParticleMessenger):
    """Log-likelihoods already carried to the offspring."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        state = super().resample(state, ess)
        self.system.records[-1] = self.system.records[-1]._replace(log_likelihood=self.system.log_likelihood)
        return state


class ForgetsAncestors(ParticleMessenger):
    """Every particle its own ancestor."""

    def resample(self, state: Any, ess: Tensor) -> Any:
        state = super().resample(state, ess)
        self.system.records[-1] = self.system.records[-1]._replace(
            ancestors=self.system.numbers.expand_as(self.system.records[-1].ancestors)
        )
        return state


@pytest.mark.parametrize("broken", [RecordsAfter, RecordsParents, ForgetsAncestors])
def test_rejects_wrong_records(broken: type[ParticleMessenger], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_llm.inference.smc.ParticleMessenger", broken)
    with pytest.raises(AssertionError):
        check(run(SMC(writer(), 16, ess_threshold=0.95), "g"))


def same(first: ResamplingRecord, second: ResamplingRecord) -> bool:
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_resumed_run_has_the_whole_history(tmp_path: Any) -> None:
    smc = SMC(writer(), 16, ess_threshold=0.95)
    whole = run(smc, "g")
    pyro.set_rng_seed(3)
    for state in smc.iterate("g"):
        if state.num_barriers == 4:
            state.save(tmp_path / "run.state")
            break
    resumed = smc.resume(tmp_path / "run.state")
    check(resumed)
    assert len(resumed.history.records) == len(whole.history.records)
    assert all(map(same, resumed.history.records, whole.history.records))
    scores = [[site.score for site in each.history.sites if site.score is not None] for each in (resumed, whole)]
    assert len(scores[0]) == len(scores[1]) == len(whole.history.records)
    assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(*scores, strict=True))


def test_scores_are_the_reward_models_probabilities() -> None:
    posterior, model = solutions(), writer()
    z = model.prm.step_log_odds(posterior.value)
    taken = posterior.value.reasons != 0
    found = torch.stack([posterior.site_scores[f"accept_{t}"] for t in range(z.shape[1])], 1)
    assert torch.equal(found.isnan(), ~taken)
    torch.testing.assert_close(found[taken], z.sigmoid()[taken])


def test_a_search_knows_where_its_finalists_lived() -> None:
    for algorithm in (BeamSearch(writer(), 4, 3), DVTS(writer(), 3, 4)):
        found = run(algorithm, "g")
        history = found.history
        assert bool((history.barriers < len(history.records)).all())
        values = {(site.name, site.barriers): site.value for site in history.sites if site.value is not None}
        for i, (last, particle) in enumerate(zip(history.barriers.tolist(), history.particle.tolist(), strict=True)):
            for t in range(last, -1, -1):
                assert torch.equal(values[f"step_{t}", t][particle], found.sites[f"step_{t}"][i])
                particle = int(history.records[t - 1].ancestors[particle]) if t else particle


def test_what_is_not_known_is_none() -> None:
    best = run(BestOfN(writer(), 6), "g")
    assert all(step.log_weights is not None for step in best.history.records)
    tempered = run(TemperedSMC(walk(3), 6))
    assert tempered.history.sites == () and all(step.log_likelihood is None for step in tempered.history.records)
    merged = run(PIMH(walk(3, plates=2), 4, max_plate_nesting=1), 12)
    replayed = [part for part in merged.parts if part.history.records[0].log_weights is None]
    assert replayed and all(step.log_likelihood is None for part in replayed for step in part.history.records)


def test_conditional_filters_keep_theirs() -> None:
    chain = run(ParticleGibbs(writer(), 6, num_references=2, ess_threshold=1.0), 2, "g")
    for iteration in chain.iterations:
        for part in iteration.parts:
            check(part)
