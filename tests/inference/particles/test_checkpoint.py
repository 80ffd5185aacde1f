"""Saved states: bit for bit what an uninterrupted run gives; damaged, foreign and unfitting files are one clear error."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_llm import reasoning
from ppl_llm.inference import SMC, Enumeration, TemperMessenger, barrier
from ppl_llm.inference.util import safe_file
from tests.helpers.reasoning import LM, PRM, solve
from tests.inference.test_slices import CASES, assert_same, two_sites


@pytest.mark.parametrize("case", CASES)
def test_resumed_runs_are_the_same(case: str, tmp_path: Path) -> None:
    """From every state, by an object of its own, with another state of the random number generators around."""
    model, args, options = CASES[case]

    def smc() -> SMC:
        return SMC(model, 8, **{"ess_threshold": 0.8, **options})

    pyro.set_rng_seed(0)
    whole = smc().run(*args)
    after = torch.get_rng_state()
    pyro.set_rng_seed(0)
    for state in smc().iterate(*args):
        state.save(tmp_path / f"state {state.num_barriers} {state.complete}")
    for path in tmp_path.iterdir():
        pyro.set_rng_seed(99)
        resumed = smc().resume(path)
        assert_same(resumed, whole)
        assert torch.equal(torch.get_rng_state(), after)
        assert resumed.cost.get("tokens_sampled") == whole.cost.get("tokens_sampled")
        assert resumed.complete and resumed.audit == whole.audit


def test_slices_after_a_resumption(tmp_path: Path) -> None:
    """Saved, resumed in slices, saved again in another way, resumed."""
    smc = SMC(solve, 10, ess_threshold=1.0, max_tokens_total=1000)
    pyro.set_rng_seed(1)
    whole = smc.run("a")
    pyro.set_rng_seed(1)
    next(iter(smc.iterate("a"))).save(tmp_path / "first")
    states = list(smc.iterate_from(tmp_path / "first"))
    assert [state.num_barriers for state in states] == [2, 3, 3]
    assert_same(states[-1], whole)
    states[0].save(str(tmp_path / "second"), caches=False)
    assert_same(smc.resume(tmp_path / "second"), whole)
    assert_same(list(smc.iterate_from(tmp_path / "second"))[-1], whole)


def test_saving_in_a_callback_and_after_a_budget(tmp_path: Path) -> None:
    path = tmp_path / "state"
    pyro.set_rng_seed(2)
    whole = SMC(solve, 10, callback=lambda state: state.save(path)).run("a")
    assert_same(SMC(solve, 10).resume(path), whole)
    pyro.set_rng_seed(2)
    stopped = SMC(solve, 10, max_tokens_total=20).run("a")
    assert not stopped.complete
    stopped.save(path)
    with pytest.raises(ValueError, match=r"has sampled \d+ tokens already, max_tokens_total is 20; give more"):
        SMC(solve, 10, max_tokens_total=20).resume(path)
    assert_same(SMC(solve, 10, max_tokens_total=10_000).resume(path), whole)


def dictionary_model(data: dict[str, Any], *, scale: float) -> dict[str, Tensor]:
    z = torch.zeros(())
    for t, y in enumerate(data["y"]):
        z = pyro.sample(f"z_{t}", dist.Normal(z, scale))
        pyro.sample(f"y_{t}", dist.Normal(z, 1.0), obs=y)
        z = barrier({"z": z})["z"]
    return {"z": z}


def test_arguments_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "state"
    data = {"y": torch.tensor([0.1, 0.2, 0.3]), "name": "series", "more": [1, (2.5, None)]}
    pyro.set_rng_seed(3)
    whole = SMC(dictionary_model, 5).run(data, scale=2.0)
    pyro.set_rng_seed(3)
    next(SMC(dictionary_model, 5).iterate(data, scale=2.0)).save(path)
    assert torch.equal(SMC(dictionary_model, 5).resume(path).log_weights, whole.log_weights)
    assert torch.equal(SMC(dictionary_model, 5).resume(path, data, scale=2.0).log_weights, whole.log_weights)
    other = {**data, "y": torch.tensor([0.1, 0.2, 0.4])}
    for args, kwargs in ([(other,), {"scale": 2.0}], [(data,), {"scale": 1.0}], [(data,), {}]):
        with pytest.raises(ValueError, match=r"the run was started with the model's arguments \(.*scale=2.0\), now they are"):
            SMC(dictionary_model, 5).resume(path, *args, **kwargs)

    class Series(dict[str, Any]):
        """No plain value: code would have to be imported to read it."""

    pyro.set_rng_seed(3)
    next(SMC(dictionary_model, 5).iterate(Series(data), scale=2.0)).save(path)
    with pytest.raises(ValueError, match="does not hold the arguments of the model, which were not plain values: pass them to resume"):
        SMC(dictionary_model, 5).resume(path)
    assert torch.equal(SMC(dictionary_model, 5).resume(path, Series(data), scale=2.0).log_weights, whole.log_weights)


def test_other_settings_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "state"
    next(SMC(solve, 10).iterate("a")).save(path)
    for options, shown in (
        ({"num_particles": 12, "islands": 2}, "num_particles: 10 there, 12 here; islands: 1 there, 2 here"),
        ({"resampler": "multinomial"}, "resampler: 'systematic' there, 'multinomial' here"),
        ({"ess_threshold": 1.0}, r"ess_threshold: 0\.5 there, 1\.0 here"),
        ({"audit": True}, "audit: False there, True here"),
        ({"proposals": {"step_0": None}}, r"proposals: None there, \['step_0'\] here"),
        ({"model": two_sites}, "model: 'solve' there, 'two_sites' here"),
        ({"model": TemperMessenger(0.5)(solve)}, r"model: 'solve' there, 'TemperMessenger\(likelihood=0\.5, prior=1\.0\)\(solve\)' here"),
    ):
        with pytest.raises(ValueError, match=f"the checkpoint was made by a run with other settings: {shown}"):
            SMC(**{"model": solve, "num_particles": 10, **options}).resume(path)
    SMC(solve, 10, callback=lambda state: None, max_tokens_total=10_000).resume(path)  # these may differ


def test_settings_of_a_reasoning_model(tmp_path: Path) -> None:
    path = tmp_path / "state"
    next(SMC(reasoning(LM, PRM, stop=";", max_tokens=2), 4).iterate("a")).save(path)
    with pytest.raises(ValueError, match=r"model temperature: 1\.0 there, 0\.7 here"):
        SMC(reasoning(LM, PRM, stop=";", max_tokens=2, temperature=0.7), 4).resume(path)
    with pytest.raises(ValueError, match="model potential: 'likelihood' there, 'odds' here"):
        SMC(reasoning(LM, PRM, "its_hub", stop=";", max_tokens=2), 4).resume(path)


def test_settings_that_are_tuples(tmp_path: Path) -> None:
    """A file has lists for them."""
    path, options = tmp_path / "state", {"stop": (";", "b"), "bridge": (0.5, 0.8), "power": 2, "max_tokens": 2}
    next(SMC(reasoning(LM, PRM, **options), 4).iterate("a")).save(path)
    SMC(reasoning(LM, PRM, **{**options, "power": 2.0}), 4).resume(path)
    with pytest.raises(ValueError, match=r"model bridge: .0\.5, 0\.8. there, \(0\.5, 0\.9\) here"):
        SMC(reasoning(LM, PRM, **{**options, "bridge": (0.5, 0.9)}), 4).resume(path)


class Bomb:
    """What a malicious file would hold."""

    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


def test_damaged_and_foreign_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good, bad = tmp_path / "good", tmp_path / "bad"
    smc = SMC(solve, 10)
    next(smc.iterate("a")).save(good)
    content = good.read_bytes()
    for kept in (0, 1, 100, len(content) // 2, len(content) - 1):
        bad.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"bad cannot be read as a checkpoint of ppl_llm.SMC: it is damaged, cut off, or another kind"):
            smc.resume(bad)
    rejected = 0
    for at in range(200, len(content), 211):
        bad.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
        try:
            assert torch.equal(smc.resume(bad).log_weights, smc.resume(good).log_weights)  # padding of the archive
        except ValueError as error:
            assert "bad" in str(error)
            rejected += 1
    assert rejected > 0
    with pytest.raises(FileNotFoundError):
        smc.resume(tmp_path / "none")
    bad.write_text("a text")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        smc.resume(bad)
    torch.save({"weights": torch.zeros(3)}, bad)
    with pytest.raises(ValueError, match=r"bad is not a checkpoint of ppl_llm\.SMC"):
        smc.resume(bad)
    for dump in (pickle.dump, torch.save):
        with bad.open("wb") as file:
            dump({"kind": Bomb()}, file)
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            smc.resume(bad)
    assert not (tmp_path / "exploded").exists()
    stored = torch.load(good, weights_only=True)
    torch.save({**stored, "version": 7}, bad)
    with pytest.raises(ValueError, match=r"is a checkpoint of ppl_llm\.SMC of format 7, this program reads format 2"):
        smc.resume(bad)
    stored["content"]["log_weights"][0] += 1e-9
    torch.save(stored, bad)
    with pytest.raises(ValueError, match="is damaged: its contents do not match their checksum"):
        smc.resume(bad)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    smc = SMC(solve, 10)
    pyro.set_rng_seed(4)
    states = list(smc.iterate("a"))
    states[0].save(path)
    before = path.read_bytes()

    def die(value: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", die)
        with pytest.raises(KeyboardInterrupt):
            states[1].save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    states[1].save(path)
    assert_same(smc.resume(path), states[-1])
    with pytest.raises(FileNotFoundError):
        states[1].save(tmp_path / "no such folder" / "state")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_file_of_a_machine_with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the way is not the file, but the generators that the run would continue with."""
    model, args, options = CASES["two sites"]
    smc = SMC(model, 8, **options)
    [first, *_] = smc.iterate(*args)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        patch.setattr("ppl_llm.inference.particles.checkpoint.safe_file.write", with_generators(2))
        first.save(tmp_path / "state")
    with pytest.raises(ValueError, match="the generator states are those of 2 GPUs, here there are 0"):
        SMC(model, 8, **options).resume(tmp_path / "state")


def with_generators(number: int) -> Any:
    write = safe_file.write

    def written(path: Path, kind: str, version: int, content: dict[str, Any]) -> None:
        states = {**content["rng"], "cuda": [torch.zeros(16, dtype=torch.uint8)] * number}
        write(path, kind, version, {**content, "rng": states})

    return written


def test_what_cannot_be_saved() -> None:
    with pytest.raises(ValueError, match=r"this ParticlePosterior cannot be saved; states of SMC\.run, SMC\.iterate and its callback can"):
        Enumeration(solve).run("a").save("state")


def test_plain_values() -> None:
    assert safe_file.is_plain({"a": [1, 2.5, None, ("text", b"bytes", True)], 3: torch.zeros(2, dtype=torch.bfloat16)})
    assert (
        not safe_file.is_plain([object()])
        and not safe_file.is_plain({(1, 2): 3})
        and not safe_file.is_plain(torch.nn.Parameter(torch.ones(1)))
    )
    tensors = [torch.tensor(1.0), torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), torch.tensor(True), torch.zeros(0)]
    values = [1, 1.0, True, "1", None, [1], [[1]], {"1": 1}, float("nan"), *tensors]
    assert len({safe_file.digest(value) for value in values}) == len(values)
    assert safe_file.same(float("nan"), float("nan")) and not safe_file.same(1, True)
