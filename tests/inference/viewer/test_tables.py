"""Tables of pandas and ArviZ hold the posterior's numbers. Skipped where these packages are not installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ppl_llm import SMC, BeamSearch, ParticleGibbs
from ppl_llm.inference.viewer.genealogy import Genealogy
from ppl_llm.inference.viewer.populations import one
from tests.inference.viewer.models import run, solutions, three_problems, walk, writer


def test_a_row_per_particle() -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    table, posterior = solutions().to_dataframe(), solutions()
    assert len(table) == 16 and table["weight"].sum() == pytest.approx(1)
    assert table["answer"].astype(object).where(table["answer"].notna(), None).tolist() == posterior.value.answers()
    assert table["length"].tolist() == posterior.lengths.tolist()
    torch.testing.assert_close(torch.tensor(table["log_likelihood"]), posterior.log_likelihood)
    scores = [name for name in table if name.startswith("score[")]
    assert scores == [f"score[accept_{t}]" for t in range(len(scores))]
    # Under the preset `exact` the log-likelihood is that all steps are right.
    product = torch.tensor(table[scores].to_numpy(dtype=float)).log().nan_to_num(0.0).sum(1)
    torch.testing.assert_close(product, posterior.log_likelihood, rtol=1e-5, atol=1e-5)
    recorded = run(SMC(walk(2), 4, record_log_probs=True)).to_dataframe()
    assert {"z_0", "z_1", "log_prob[z_0]", "log_prob[y_1]"} <= set(recorded)


def test_problems_islands_and_iterations() -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    table = three_problems().to_dataframe()
    assert table.groupby("problem")["weight"].sum().tolist() == pytest.approx([1, 1, 1])
    mass = table[table["problem"] == 2].groupby("answer", dropna=False)["weight"].sum()
    for answer, p in three_problems().answers()[2].probs.items():
        assert mass[mass.index.isna()].sum() == pytest.approx(p) if answer is None else mass[answer] == pytest.approx(p)
    islands = run(SMC(walk(), 4, islands=2)).to_dataframe()
    assert islands["island"].tolist() == [0] * 4 + [1] * 4
    chain = run(ParticleGibbs(walk(), 4), 3).to_dataframe()
    assert chain["iteration"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert isinstance(run(BeamSearch(writer(), 2, 2), "g").to_dataframe(), pandas.DataFrame)
    pooled = solutions().to_dataframe(equivalent=lambda a, b: True)["answer"].dropna()
    assert pooled.nunique() == 1


def test_a_row_per_particle_and_step() -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    table, found = solutions().to_dataframe(steps=True), Genealogy.of(one(solutions(), None, ""))
    assert len(table) == 16 * found.num_columns
    parents = table.pivot(index="step", columns="particle", values="parent").to_numpy()
    assert (parents[0] == -1).all() and (parents[1:] == found.parents.numpy()).all()
    assert table.groupby("step")["weight"].sum().tolist() == pytest.approx([1.0] * found.num_columns)
    assert table["text"].tolist() == [text for column in found.texts for text in column]
    assert table.groupby("step")["offspring"].sum().tolist() == [16] * found.num_columns
    assert table["log_evidence"].iloc[-1] == pytest.approx(float(solutions().log_evidence))
    assert "log_evidence" not in run(BeamSearch(writer(), 2, 2), "g").to_dataframe(steps=True)
    assert three_problems().to_dataframe(steps=True)["problem"].nunique() == 3


@pytest.fixture
def arviz() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return pytest.importorskip("arviz", reason="needs arviz")


def test_arviz_by_weight(arviz: Any) -> None:
    posterior = run(SMC(walk(3), 400, ess_threshold=0.0))
    assert float(posterior.get_ESS()) < 300
    data = posterior.to_arviz()
    assert data.posterior["z_1"].shape == (1, 400) and data.sample_stats["length"].shape == (1, 400)
    mean = float((posterior.weights * posterior.sites["z_1"]).sum())
    plain = float(posterior.sites["z_1"].mean())
    # Systematic draws miss a mean by less than the spread over their number; equal weights would miss it by 0.1 and more.
    assert abs(plain - mean) > 0.1 and float(data.posterior["z_1"].mean()) == pytest.approx(mean, abs=0.02)
    drawn = data.posterior["z_1"].to_numpy()[0]
    assert (drawn[1:] == drawn[:-1]).mean() < 0.1, "copies lie side by side"
    raw = posterior.to_arviz(resample=False)
    assert (raw.posterior["z_1"].to_numpy()[0] == posterior.sites["z_1"].numpy()).all()
    assert raw.sample_stats["weight"].to_numpy().sum() == pytest.approx(1)


def test_arviz_of_plates_and_tokens(arviz: Any) -> None:
    data = three_problems().to_arviz()
    assert data.posterior["step_0"].shape == (1, 8, 3, 5)
    pooled = run(SMC(walk(), 4, islands=2)).to_arviz()
    assert pooled.posterior["z_0"].shape == (1, 8)


def test_arviz_of_chains(arviz: Any) -> None:
    chain = run(ParticleGibbs(walk(3), 5), 12)
    data = chain.to_arviz()
    assert data.posterior["z_2"].shape == (1, 12)
    for i, value in enumerate(data.posterior["z_2"].to_numpy()[0].tolist()):
        assert value in chain.iterations[i].sites["z_2"].tolist()
    assert run(ParticleGibbs(walk(3), 5, num_references=3), 4).to_arviz().posterior["z_2"].shape == (3, 4)
    with pytest.raises(ValueError, match="resample=False keeps the weights"):
        chain.to_arviz(resample=False)
