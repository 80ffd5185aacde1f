"""A run of the demo models that is killed and resumed by another process: the same tokens, weights and answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from ppl_llm import SMC, Context, ReasoningModel, TransformersLM, TransformersPRM, reasoning
from ppl_llm.inference import ParticlePosterior
from tests.inference.test_slices import assert_same

PROBLEM = "Start with 7. Add 5. Multiply by 3. Subtract 4. Add 9. Give the answer mod 10."
PROBLEMS = [PROBLEM, "Start with 2. Multiply by 4. Add 7. Give the answer mod 10."]

CHILD = """
import sys, time
import pyro
from tests.ppl_llm.cli.test_resume import PROBLEM, smc
pyro.set_rng_seed(0)
for state in smc().iterate(PROBLEM):
    if state.num_barriers <= int(sys.argv[2]):
        state.save(sys.argv[1])
        time.sleep(0.2)  # it is killed sooner or later in the steps after
"""


@cache
def model() -> ReasoningModel:
    return reasoning(TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo"), "exact", max_steps=8)


def smc(**options: Any) -> SMC:
    return SMC(model(), 8, **{"ess_threshold": 0.9, **options})


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: the number of threads decides how sums are rounded
    yield
    torch.set_num_threads(before)


def forget() -> None:
    """What a new process would know of the caches of this one."""
    model().lm.release_caches()  # type: ignore[attr-defined]
    model().prm.release_caches()  # type: ignore[attr-defined]


def test_killed_and_resumed(tmp_path: Path) -> None:
    """SIGKILL while the run saves its states; this process resumes from the last file, bit for bit."""
    path = tmp_path / "state"
    pyro.set_rng_seed(0)
    whole = smc().run(PROBLEM)
    assert whole.num_barriers >= 4 and bool(whole.resampled.any())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), "3"], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not path.exists():
        assert child.poll() is None and time.monotonic() < deadline, child.stderr and child.stderr.read()
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert child.stderr is not None
    child.stderr.close()
    forget()
    pyro.set_rng_seed(1)
    resumed = smc().resume(path)
    assert_same(resumed, whole)
    assert resumed.answers().probs == whole.answers().probs
    counted = ("tokens_sampled", "tokens_prefilled", "lm_forwards", "prm_tokens", "prm_forwards", "prm_calls")
    assert {name: resumed.cost[name] for name in counted} == {name: whole.cost[name] for name in counted}  # no work was done twice


def test_slices_do_no_work_twice() -> None:
    forget()
    pyro.set_rng_seed(0)
    whole = smc().run(PROBLEM)
    forget()
    pyro.set_rng_seed(0)
    *_, last = smc().iterate(PROBLEM)
    assert_same(last, whole)
    assert {name: cost for name, cost in last.cost.items() if "seconds" not in name} == {
        name: cost for name, cost in whole.cost.items() if "seconds" not in name
    }


def test_problems_islands_and_audit(tmp_path: Path) -> None:
    path = tmp_path / "state"

    def run(use: Any) -> ParticlePosterior:
        forget()
        return use(SMC(model(), 4, max_plate_nesting=1, islands=2, audit=True))

    pyro.set_rng_seed(2)
    whole = run(lambda smc: smc.run(PROBLEMS))
    pyro.set_rng_seed(2)
    states = run(lambda smc: smc.iterate(PROBLEMS))
    next(states)
    next(states).save(path)
    resumed = run(lambda smc: smc.resume(path))
    assert_same(resumed, whole)
    assert [answers.probs for answers in resumed.answers()] == [answers.probs for answers in whole.answers()]
    assert resumed.audit is not None and resumed.audit.error == 0.0


def test_interrupted_in_the_middle_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caches have gone on beyond the last barrier by then; what they hold of the state is still found."""
    forget()
    pyro.set_rng_seed(0)
    whole = smc().run(PROBLEM)
    forget()
    engine = model().lm._engine  # type: ignore[attr-defined]
    forward, calls = engine.forward, []

    def interrupted(**inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 45:
            raise KeyboardInterrupt
        return forward(**inputs)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "forward", interrupted)
        pyro.set_rng_seed(0)
        with pytest.raises(KeyboardInterrupt) as caught:
            list(smc().iterate(PROBLEM))
    partial = caught.value.partial_posterior
    assert 0 < partial.num_barriers < whole.num_barriers and not partial.complete
    partial.save(tmp_path / "state")
    forget()
    resumed = smc().resume(tmp_path / "state")
    assert torch.equal(resumed.value.tokens, whole.value.tokens)
    assert dict(resumed.answers().probs) == pytest.approx(dict(whole.answers().probs), abs=1e-5)
    torch.testing.assert_close(resumed.log_weights, whole.log_weights, atol=1e-5, rtol=0)


def test_without_caches_up_to_rounding(tmp_path: Path) -> None:
    """A fraction of the size: prompts and steps are run again, in other batches, hence up to the rounding of float32."""
    small, large = tmp_path / "small", tmp_path / "large"
    pyro.set_rng_seed(3)
    states = smc().iterate(PROBLEM)
    next(states)
    state = next(states)
    state.save(small, caches=False)
    state.save(large)
    *_, whole = states
    assert small.stat().st_size < large.stat().st_size / 10
    forget()
    resumed = smc().resume(small)
    assert torch.equal(resumed.value.tokens, whole.value.tokens)
    assert dict(resumed.answers().probs) == pytest.approx(dict(whole.answers().probs), abs=1e-5)
    torch.testing.assert_close(resumed.log_weights, whole.log_weights, atol=1e-5, rtol=0)
    assert resumed.cost["tokens_prefilled"] > whole.cost["tokens_prefilled"]


def test_other_networks_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "state"
    next(smc().iterate(PROBLEM)).save(path)
    weak = reasoning(model().lm, TransformersPRM.from_pretrained("demo-weak"), "exact")
    with pytest.raises(ValueError, match=r"model prm: 'prm Qwen2PRM .*' there, 'prm Qwen2PRM .*' here"):
        SMC(weak, 8, ess_threshold=0.9).resume(path)


def test_a_context_keeps_its_caches_on_the_way() -> None:
    """Stored and restored: the next step runs its own tokens only, and the KV cache is handed over once."""
    lm = model().lm
    forget()
    pyro.set_rng_seed(4)
    *_, state = (state for _, state in zip(range(2), smc().iterate(PROBLEM), strict=False))
    context: Context = state.value
    notes = context.cache_state()
    assert {label.split()[0] for label in notes} == {"lm", "prm"}
    bare = Context(**{**vars(context), "cache_entries": {}})
    forget()
    restored = bare.restore_cache(notes)
    options = model().options
    pyro.set_rng_seed(5)
    first = lm.sample_step(context.restore_cache({}), context.batch_shape, options)
    for copy in (restored, restored.reorder(torch.arange(8))):
        pyro.set_rng_seed(5)
        again = lm.sample_step(copy, context.batch_shape, options)
        assert torch.equal(again.tokens, first.tokens)
    assert len(lm._engine.pool.caches) <= 2  # type: ignore[attr-defined]
