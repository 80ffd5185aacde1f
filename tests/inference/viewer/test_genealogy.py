"""The numbers behind every picture, compared with plain loops over the records."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from ppl_llm import DVTS, SMC, BeamSearch, Importance, ParticleGibbs, SelfConsistency, TemperedSMC
from ppl_llm.inference.viewer.genealogy import Genealogy, plain
from ppl_llm.inference.viewer.populations import Population, one, populations
from tests.inference.viewer.models import HOSTILE, run, solutions, three_problems, walk, writer


def of(posterior: Any, plate: Any = None, **kwargs: Any) -> Genealogy:
    return Genealogy.of(one(posterior, plate, "a genealogy"), **kwargs)


def paths(found: Genealogy) -> list[list[int]]:
    """The particles of each particle of the result, from its last column back to the first."""
    back = []
    for column, particle in zip(found.column.tolist(), found.particle.tolist(), strict=True):
        particles = [particle]
        for c in range(column, 0, -1):
            particles.append(int(found.parents[c - 1][particles[-1]]))
        back.append(particles)
    return back


def test_texts_of_a_line_of_descent_are_the_solution() -> None:
    found, posterior = of(solutions()), solutions()
    for n, particles in enumerate(paths(found)):
        texts = [found.texts[c][particle] for c, particle in enumerate(reversed(particles))]
        assert "".join(texts) == posterior.value[n].text
        assert [text for text in texts if text] == posterior.value[n].steps


def test_dead_branches_have_texts_and_scores() -> None:
    found = of(solutions())
    dead = ~found.alive & ~found.finished_before
    assert int(dead.sum()) > 10
    assert all(found.texts[c][particle] for c, particle in dead.nonzero().tolist())
    assert bool((~found.scores[dead].isnan()).all())
    assert any(HOSTILE in text for column in found.texts for text in column)


def test_factors_are_the_probabilities_that_steps_are_right() -> None:
    found = of(solutions())
    took_part = ~found.finished_before
    torch.testing.assert_close(found.log_factors[took_part].exp(), found.scores[took_part], rtol=1e-5, atol=1e-6)
    assert bool((found.log_factors[~took_part] == 0).all()) and bool(found.scores[~took_part].isnan().all())


@pytest.mark.parametrize("plate", [0, 1, 2])
def test_problems_of_a_plate(plate: int) -> None:
    posterior, found = three_problems(), of(three_problems(), plate)
    assert torch.equal(found.parents, posterior.ancestors[:-1, :, plate])
    torch.testing.assert_close(found.ess, posterior.ess[:, plate])
    torch.testing.assert_close(found.weights, posterior.weights[:, plate])
    assert found.log_evidence is not None
    torch.testing.assert_close(found.log_evidence[-1], posterior.log_evidence[plate])
    assert found.answers == [posterior.particle((n, plate)).answers() for n in range(8)]
    assert ["".join(found.texts[c][particle] for c, particle in enumerate(reversed(particles))) for particles in paths(found)] == [
        posterior.particle((n, plate)).text for n in range(8)
    ]


def crossings(found: Genealogy, rows: torch.Tensor) -> int:
    """Pairs of edges that cross between two columns."""
    count = 0
    for c, parents in enumerate(found.parents.tolist()):
        ends = [(int(rows[c][parent]), int(rows[c + 1][particle])) for particle, parent in enumerate(parents)]
        count += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in itertools.combinations(ends, 2))
    return count


def test_no_two_lines_cross() -> None:
    found = of(run(SMC(walk(), 12, resampler="multinomial", ess_threshold=1.0)))
    particles = torch.arange(12).expand(found.num_columns, 12)
    assert crossings(found, particles) > 0 == crossings(found, found.rows)
    assert all(sorted(row) == list(range(12)) for row in found.rows.tolist())
    assert sorted(found.last_rows.tolist()) == list(range(12))


def test_offspring_and_the_living() -> None:
    found = of(solutions())
    count = torch.zeros_like(found.offspring)
    for particles in paths(found):
        for c, particle in enumerate(reversed(particles)):
            count[c, particle] += 1
    assert torch.equal(count, found.offspring) and torch.equal(count > 0, found.alive)


def test_trimming_loses_idle_columns_only() -> None:
    posterior = run(Importance(writer(40), 4, record_log_probs=True), "g", seed=1)
    model = writer(40)
    model.early_exit = False
    late = run(Importance(model, 4), "g", seed=1)
    whole, short = of(late), of(late).trimmed()
    assert whole.num_columns == 40 and short.num_columns == int(late.lengths.max()) == posterior.num_barriers
    assert [particles[::-1][: short.num_columns] for particles in paths(whole)] == [particles[::-1] for particles in paths(short)]
    assert torch.equal(short.offspring, whole.offspring[: short.num_columns])


def test_searches_have_edges_from_where_each_finalist_ended() -> None:
    for algorithm in (BeamSearch(writer(), 4, 3), DVTS(writer(), 3, 4)):
        posterior = run(algorithm, "g")
        found = of(posterior)
        assert found.log_evidence is None
        for n, particles in enumerate(paths(found)):
            assert "".join(found.texts[c][particle] for c, particle in enumerate(reversed(particles))) == posterior.value[n].text


def test_other_posteriors() -> None:
    voted = of(run(SelfConsistency(writer(), 6), "g"))
    assert bool(voted.log_factors.isnan().all()) and bool(voted.scores.isnan().all())
    tempered = run(TemperedSMC(walk(3), 6))
    found = of(tempered)
    assert found.num_columns == len(tempered.betas) and found.last_texts is not None
    assert found.last_texts[2].split("\n")[0] == f"z_0 = {float(tempered.sites['z_0'][2]):.4g}"
    chain = run(ParticleGibbs(writer(), 4), 3, "g")
    assert [population.label for population in populations(chain)] == ["iteration 0", "iteration 1", "iteration 2"]
    assert not any(population.evidence for population in populations(chain))


def test_sites_after_the_last_barrier_have_a_column() -> None:
    import pyro
    import pyro.distributions as dist

    from ppl_llm import barrier

    def model() -> Any:
        z = barrier(pyro.sample("a", dist.Normal(torch.zeros(()), 1.0)))
        pyro.sample("fits", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        return pyro.sample("b", dist.Normal(z, 1.0))

    posterior = run(SMC(model, 5))
    found = of(posterior)
    assert found.num_columns == 2 and found.column.tolist() == [1] * 5 and found.particle.tolist() == list(range(5))
    torch.testing.assert_close(found.log_weights[1], posterior.log_weights)
    assert found.texts[1] == [plain(value) for value in posterior.sites["b"]]
    nothing = of(run(SMC(lambda: pyro.sample("a", dist.Normal(torch.zeros(()), 1.0)), 3)))
    assert nothing.num_columns == 1 and nothing.parents.shape == (0, 3)


def test_values_in_words() -> None:
    assert plain(torch.tensor(3)) == "3" and plain(torch.tensor(0.123456)) == "0.1235" and plain(torch.tensor(True)) == "True"
    assert plain(torch.tensor([1.0, 2.5])) == "[1, 2.5]" and plain(torch.zeros(3, 4)) == "float32 [3, 4]"
    two = of(run(SMC(walk(2), 2)), describe=lambda name, value: f"<{name}>")
    assert two.texts == [["<z_0>"] * 2, ["<z_1>"] * 2]


@pytest.mark.parametrize(
    ("posterior", "plate", "message"),
    [
        (three_problems, None, r"this posterior has a population for each index of its plates \(3,\): pass e.g. plate=0"),
        (three_problems, 3, "plate=3 names no population"),
        (solutions, 0, "leave plate out"),
        (lambda: run(SMC(walk(2), 3, islands=2)), None, r"pools 2 islands.*posterior.islands\[0\]"),
        (lambda: run(ParticleGibbs(walk(2), 3), 2), None, r"iterations.*posterior.iterations\[0\]"),
    ],
)
def test_one_population_at_a_time(posterior: Any, plate: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one(posterior(), plate, "a genealogy")


def test_population_of_shared_and_independent_plates() -> None:
    import pyro
    import pyro.distributions as dist

    from ppl_llm import barrier

    def model() -> Any:
        with pyro.plate("problems", 2, dim=-2):
            with pyro.plate("data", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            mean = z.mean(-1, keepdim=True)
            return barrier(pyro.sample("m", dist.Normal(mean, 1.0)))

    posterior = run(SMC(model, 4, max_plate_nesting=2))
    assert posterior.log_weights.shape == (4, 2)
    population = Population({"problem": 1}, posterior, (1,))
    assert torch.equal(population.value(posterior.sites["z"]), posterior.sites["z"][:, 1])
    assert of(posterior, 1).texts[0][0].startswith("z = [")
