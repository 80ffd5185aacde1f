"""Models on a device that is none: everything that a user runs gives what it gives on the CPU, and nothing of the host meets the device.

What is not seen here is what only a real device can do: its kernels, streams and graphs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ppl_llm import (
    PAD,
    PRESETS,
    SMC,
    Confidence,
    FunctionReward,
    HiddenStateReward,
    JudgeReward,
    LookAhead,
    ProductReward,
    ReasoningModel,
    RolloutValue,
    StepProposal,
    TransformersLM,
    TransformersORM,
    TransformersPRM,
    reasoning,
)
from ppl_llm.constraints import Choices, Constraint, Predicate, Regex, TokenSet
from ppl_llm.inference import run_concurrently
from ppl_llm.inference.util import safe_file
from ppl_llm.kv_cache import attention as attention
from ppl_llm.kv_cache import packing
from ppl_llm.lm import transformers_lm
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding import device_batch
from ppl_llm.lm.decoding.cuda_graphs import CudaCapture, SideStream
from ppl_llm.reward import StateHead
from ppl_llm.reward.calibration import CalibratedReward, Calibration
from ppl_llm.reward.prm import transformers_prm
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.fake_device import DEVICE, FakeDevice, OnDevice, move, on_device, put
from tests.helpers.tiny_models import causal_lm, reward_net, tokenizer
from tests.helpers.tiny_prms import WRITE
from tests.ppl_llm.lm.decoding.test_device_loop import OPTIONS, filtered
from tests.ppl_llm.lm.decoding.test_joint_decoding import assert_same, programs
from tests.ppl_llm.programs.test_one_program import POSTERIORS, SEARCHES
from tests.ppl_llm.reward.test_transformers_orm import make as classifier

PROBLEM = "What is 12 + 30?"


@pytest.fixture(autouse=True)
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and graphs cannot be fake: work is done at once, and captures fail, which changes no result."""

    def fail(self: CudaCapture, body: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("there is no device")

    monkeypatch.setattr(CudaCapture, "__call__", fail)
    monkeypatch.setattr(device_batch, "SideStream", lambda device: SideStream(torch.device("cpu")))


def placed(model: Any) -> Any:
    """A model on the device, which transformers would take for one that has no weights yet."""
    move(model).get_input_embeddings()._hf_hook = SimpleNamespace(execution_device=DEVICE)
    return model


class Place:
    """Where models are made: on the CPU, or on the device, there with or without the loop for devices."""

    def __init__(self, there: bool, device_loop: bool = False) -> None:
        self.there, self.device_loop = there, device_loop

    def put(self, model: Any) -> Any:
        return placed(model) if self.there else model

    @contextmanager
    def loading(self, module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """For a while, what a module loads is put there."""
        load = module.load

        def there(*arguments: Any, **options: Any) -> tuple[Any, Any]:
            model, report = load(*arguments, **options)
            return self.put(model), report

        with monkeypatch.context() as patch:
            patch.setattr(module, "load", there)
            yield

    def lm(self) -> TransformersLM:
        return TransformersLM(self.put(causal_lm(max_position_embeddings=200)), tokenizer(), device_loop=self.device_loop)

    def prm(self) -> TransformersPRM:
        return TransformersPRM(self.put(reward_net()), tokenizer())

    def model(self, preset: Any = "exact", prm: Any = None, **options: Any) -> ReasoningModel:
        return reasoning(self.lm(), prm or self.prm(), preset, **{"max_steps": 3, "max_tokens": 12, **options})


HERE, THERE, LOOP = Place(False), Place(True), Place(True, device_loop=True)
EITHER_LOOP = pytest.mark.parametrize("place", [THERE, LOOP], ids=["the ordinary loop", "the loop for devices"])
Scenario = Callable[[Place], Any]


def plain(value: Any) -> Any:
    """Tensors of the device as those of the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def compare(scenario: Scenario, place: Place) -> FakeDevice:
    """Run it here and there."""
    pyro.set_rng_seed(0)
    expected = scenario(HERE)
    with FakeDevice() as device:
        pyro.set_rng_seed(0)
        found = plain(scenario(place))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, equal_nan=True)
    return device


def summary(posterior: Any) -> dict[str, Any]:
    """What there is to a posterior, texts included."""
    texts = posterior.value.text
    found = {"texts": [ord(letter) for text in texts for letter in text], "log_weights": posterior.log_weights}
    return (
        found
        | {f"site {name}": value for name, value in posterior.sites.items()}
        | {"best": max(p for _, p in posterior.answers().probs.items())}
    )


@EITHER_LOOP
@pytest.mark.parametrize(("options"), [OPTIONS, StepOptions(stop=("a", ".\n\n"), max_tokens=20, temperature=0.7, top_p=0.9, top_k=40)])
def test_steps(place: Place, options: StepOptions):
    device = compare(lambda place: [list(sample) for sample in filtered(place.lm(), options)], place)
    assert device.operations > 1000


ALGORITHMS = [each[:3] for each in POSTERIORS if each[0].__name__ != "Enumeration"] + [(*each, ()) for each in SEARCHES]


def name_of(value: Any) -> str | None:
    return value.__name__ if isinstance(value, type) else ", ".join(value) if isinstance(value, dict) else None


@pytest.mark.parametrize(("algorithm", "arguments", "run"), ALGORITHMS, ids=name_of)
def test_every_algorithm(algorithm: Any, arguments: dict[str, Any], run: tuple[int, ...]):
    most = {"num_particles": 5, "steps": 10}
    few = {name: min(value, most[name]) if name in most else value for name, value in arguments.items()}

    def scenario(place: Place) -> Any:
        return summary(algorithm(place.model(), **few).run(*[min(each, 3) for each in run], PROBLEM))

    compare(scenario, THERE)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset: str):
    compare(lambda place: summary(SMC(place.model(preset), 4, ess_threshold=1.0).run(PROBLEM)), THERE)


def test_a_plate_of_problems_with_an_audit():
    problems = [PROBLEM, "7 * 6"]
    compare(lambda place: SMC(place.model(), 4, max_plate_nesting=1, audit=True).run(problems).log_evidence, LOOP)


def several_at_once(place: Place) -> Any:
    lm = place.lm()
    run = on_device if place.there else lambda program: program
    return run_concurrently([run(program) for program in programs(lm)], seeds=range(5))


@EITHER_LOOP
def test_programs_that_share_a_batch(place: Place):
    pyro.set_rng_seed(0)
    expected = several_at_once(HERE)
    with FakeDevice():
        found = plain(several_at_once(place))
    assert_same(found, expected)


@pytest.mark.parametrize("family", WRITE)
def test_every_family_of_reward_models(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, write = WRITE[family]
    path = write(tmp_path / family)

    def scenario(place: Place) -> Any:
        with place.loading(transformers_prm, monkeypatch):
            prm = TransformersPRM.from_pretrained(path)
        pyro.set_rng_seed(0)
        posterior = SMC(place.model(prm=prm), 4).run(PROBLEM)
        return [summary(posterior), prm.whole_log_odds(posterior.value)]

    compare(scenario, THERE)


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "bert"])
def test_other_rewards(kind: str):
    def scenario(place: Place) -> Any:
        model, tokens = classifier(kind)
        orm = TransformersORM(place.put(model), tokens, partial=True)
        context = SMC(place.model(), 4).run(PROBLEM).value
        calibrated = CalibratedReward(place.prm(), Calibration(2.0, 0.3))
        rewards = [orm, Confidence(), Confidence("entropy"), calibrated, ProductReward([place.prm(), calibrated])]
        rewards.append(JudgeReward(place.lm(), yes=5, no=9, partial=True))
        return [reward.step_log_odds(context) for reward in rewards]

    compare(scenario, THERE)


@EITHER_LOOP
def test_twists(place: Place):
    """Hidden states, and rollouts whose draws follow from the prefix."""

    def scenario(place: Place) -> Any:
        lm = place.lm()
        head = StateHead(lm.hidden_size, 8).requires_grad_(False)
        head = move(head) if place.there else head
        found = []
        for reward in (HiddenStateReward(lm, head), HiddenStateReward(lm, head, pooling="mean")):
            model = reasoning(lm, reward, "twisted", max_steps=3, max_tokens=12)
            found.append(summary(SMC(model, 4, ess_threshold=1.0).run(PROBLEM)))
        value = RolloutValue(lm, lambda problem, text: len(text) % 2 / 2 + 0.25, 2, options=StepOptions(max_tokens=12), max_steps=3)
        found.append(value.value.step_log_odds(SMC(model, 4).run(PROBLEM).value))
        return found

    compare(scenario, place)


def test_proposals_and_looking_ahead():
    def scenario(place: Place) -> Any:
        model = place.model()
        proposed = SMC(model, 4, proposals=StepProposal(temperature=1.3)).run(PROBLEM)
        ahead = SMC(model, 4, ess_threshold=1.0, selection=LookAhead.of(model)).run(PROBLEM)
        return [summary(proposed), summary(ahead)]

    compare(scenario, THERE)


LANGUAGES: dict[str, Callable[[], Constraint]] = {
    "choices": lambda: Choices(["7 * 6 = 42.\n\nHence 12 + 30.", "To add, multiply.", "é 42"]),
    "token set": lambda: TokenSet(banned=[5, 6, 7]),
    "predicate": lambda: Predicate(lambda text: "e" not in text),
    "product": lambda: Choices(["7 * 6 = 42.", "To add"]) & TokenSet(banned=[3]),
    "regex": lambda: Regex("[0-9+*= ]+"),
}


@EITHER_LOOP
@pytest.mark.parametrize("name", LANGUAGES)
def test_constraints(name: str, place: Place):
    """Weighted proposals, renormalised steps and their log-probabilities; host and device meet in masks only."""
    if name == "regex":
        pytest.importorskip("llguidance", reason="the extra `constraints`")
    constraint = LANGUAGES[name]()

    def scenario(place: Place) -> Any:
        lm = place.lm()
        pyro.set_rng_seed(0)
        model = reasoning(lm, None, max_steps=3, max_tokens=6, stop=())
        posterior = SMC(model, 5, ess_threshold=1.0, proposals=constraint).run(PROBLEM)
        context, options = lm.start(PROBLEM).expand((4,)), StepOptions((), 6, 1.2, constraint=constraint)
        torch.manual_seed(0)
        tokens, _ = lm.sample_step(context, torch.Size((4,)), options)
        return posterior.value.tokens, posterior.log_weights, tokens, lm.step_log_prob(context, tokens, options)

    compare(scenario, place)


@EITHER_LOOP
def test_factors_at_positions(place: Place):
    """Patterns end steps, and a critic reads the text up to them."""

    def scenario(place: Place) -> Any:
        critic = FunctionReward(lambda problem, text: 0.8 if "e" in text else 0.3, partial="word")
        pyro.set_rng_seed(0)
        posterior = SMC(reasoning(place.lm(), critic, every="word", max_steps=4, max_tokens=6), 6, ess_threshold=1.0).run(PROBLEM)
        return posterior.value.tokens, posterior.value.reasons, posterior.log_weights

    compare(scenario, place)


def test_slices_files_and_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there: list[bool] = []
    write, read = safe_file.write, safe_file.read

    def written(path: Path, kind: str, version: int, content: Any) -> None:
        there[:] = [isinstance(leaf, OnDevice) for leaf in tree_leaves(content)]
        write(path, kind, version, plain(content))

    def back(*arguments: Any) -> Any:
        """torch.load puts tensors where they were, if it knows that device."""
        leaves, spec = tree_flatten(read(*arguments))
        return tree_unflatten([put(leaf) if was else leaf for leaf, was in zip(leaves, there, strict=True)], spec)

    monkeypatch.setattr(safe_file, "write", written)
    monkeypatch.setattr(safe_file, "read", back)

    def scenario(place: Place) -> Any:
        smc = SMC(place.model(), 4, ess_threshold=0.9)
        states = list(smc.iterate(PROBLEM))
        states[0].save(tmp_path / "state")
        resumed = smc.resume(tmp_path / "state", PROBLEM)
        resumed.to_html(tmp_path / "page.html")
        return [summary(states[-1]), summary(resumed), resumed.ess, resumed.ancestors]

    compare(scenario, THERE)
    assert any(there) and not all(there)


def test_attention_in_batches_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "worth_padding", lambda query: query.device.type != "cpu")
    attended: list[str] = []
    batches = packing.in_batches
    monkeypatch.setattr(packing, "in_batches", lambda segments: (attended.append(segments.positions.device.type), batches(segments))[1])
    compare(lambda place: summary(SMC(place.model(), 4).run(PROBLEM)), LOOP)
    assert set(attended) == {DEVICE.type}


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mistral sliding"])
def test_other_architectures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = ARCHITECTURES[name].write(tmp_path)

    def scenario(place: Place) -> Any:
        with place.loading(transformers_lm, monkeypatch):
            lm = TransformersLM.from_pretrained(path, max_length=64)
        pyro.set_rng_seed(0)
        assert not lm.fallback
        return [list(sample) for sample in filtered(lm, StepOptions(stop="a", max_tokens=8), steps=2)]

    compare(scenario, THERE)


def waits(place: Place, tokens: int, constraint: Constraint | None = None) -> tuple[int, int]:
    """How often the host waits in a step of so many tokens, the prompt being there, and operations on the device."""
    with FakeDevice() as device:
        lm = place.lm()
        lm.eos_ids.fill_(PAD)
        context = lm.start(PROBLEM)
        for _ in range(2):
            device.waits.clear()
            before = device.operations
            lm.sample_step(context, torch.Size((12,)), StepOptions(stop=(), max_tokens=tokens, constraint=constraint))
        return len(device.waits), device.operations - before


def test_the_host_waits_once_in_eight_tokens():
    assert waits(LOOP, 33)[0] - waits(LOOP, 1)[0] == 4
    assert waits(THERE, 33)[0] - waits(THERE, 1)[0] == 4  # after the first of each eight, none of which is the last


def test_the_host_waits_at_every_token_under_a_constraint():
    """Twice where states are on the device: for the sequences that live, and the draws from what is left of a distribution's tail; twice
    more for those of texts, which are read. The figures of docs/constraints.md.
    """

    def each(constraint: Constraint | None) -> list[float]:
        return [(many - one) / 32 for many, one in zip(waits(LOOP, 33, constraint), waits(LOOP, 1, constraint), strict=True)]

    assert each(TokenSet(banned=[5]))[0] == 2
    texts, operations = each(Choices(["a" * 400, "b" * 400]))
    assert texts == 4 and operations < 1.25 * each(None)[1]


def test_the_host_waits_seldom_for_a_whole_step():
    """Sampling, scoring, weights and resampling of a filter, apart from looks at the sequences and the cost of dropping some."""
    with FakeDevice() as device:
        model = LOOP.model(max_steps=4, max_tokens=1)
        SMC(model, 6, ess_threshold=1.0).run(PROBLEM)
        device.waits.clear()
        SMC(model, 6, ess_threshold=1.0).run(PROBLEM)
        assert len(device.waits) <= 4 * 30


def test_the_device_refuses_what_a_real_one_would():
    with FakeDevice() as device:
        there, here = put(torch.arange(3.0)), torch.arange(3.0)
        for meet in (
            lambda: there + here,
            lambda: torch.cat([here, there]),
            lambda: here[put(torch.tensor([0]))],
            lambda: there.index_put((torch.tensor([0]),), torch.ones(1)),
            lambda: there.gather(0, torch.tensor([0])),
            lambda: torch.where(there > 0, here, 0.0),
        ):
            with pytest.raises(RuntimeError, match="on one device"):
                meet()
        assert not device.waits
        # As with a real one: numbers, tensors without dimensions, and indices may come from the host.
        assert (there + 1 + torch.tensor(1.0))[torch.tensor([2])].tolist() == [4.0]
        there[1:] = torch.tensor(7.0)
        there[[0]] = torch.tensor([5.0], device=DEVICE)
        assert there.cpu().tolist() == [5.0, 7.0, 7.0]
        assert isinstance(torch.rand(2, device=DEVICE), OnDevice) and not isinstance(there.cpu(), OnDevice)
        assert int(there[0]) == 5 and bool((there > 0).all())
        assert len(device.waits) == 5


def table_on_the_host(lm: TransformersLM) -> None:
    automaton = copy.copy(lm.stop_automaton(OPTIONS.stop))
    automaton.table = automaton.table.cpu()
    lm._automata[OPTIONS.stop] = automaton


def ends_on_the_host(lm: TransformersLM) -> None:
    lm._cache_engine.pool.take(None).lengths = torch.zeros(0, dtype=torch.long)


@pytest.mark.parametrize("fault", [table_on_the_host, ends_on_the_host])
def test_what_lies_on_the_host_is_noticed(fault: Callable[[TransformersLM], None]):
    with FakeDevice():
        lm = THERE.lm()
        fault(lm)
        with pytest.raises(RuntimeError, match="on one device"):
            filtered(lm)
