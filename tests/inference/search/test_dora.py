"""DORA against a plain-Python version of its rule with the same draws, its default embedding, and what that costs."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_llm import TabularLM, TabularReward, TransformersLM, reasoning
from ppl_llm.inference import DORA, REBASE, CostMeter, FilterOptions
from ppl_llm.inference.search.dora import DoraMessenger, embedding_of
from tests.helpers.mutants import WRONG_DIRECTIONS
from tests.helpers.searches import SYMBOLS, disagreement, dora, searched, tree
from tests.helpers.tiny_models import causal_lm, tokenizer

DIRECTIONS = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.6]], dtype=torch.float64)


def embed(state: Any) -> Tensor:
    """By the last symbol of a prefix."""
    return DIRECTIONS[(state.code % (SYMBOLS + 1) - 1).clamp(min=0)]


def widths(scores: list[float], vectors: list[list[float]], diversity: float, temperature: float = 0.2) -> list[int]:
    log_weights = torch.tensor(scores, dtype=torch.float64).log()
    messenger = DoraMessenger(FilterOptions(len(scores)), temperature, diversity, lambda state: torch.tensor(vectors, dtype=torch.float64))
    messenger.state = 0
    return messenger.widths(log_weights, log_weights > -torch.inf, torch.tensor(len(scores))).tolist()


def test_widths_by_hand() -> None:
    """Of four equal scores three go the same way: they share what the fourth has alone, 4 / 2 places."""
    same, other = [1.0, 0.0], [0.0, 1.0]
    assert widths([0.5] * 4, [same, same, same, other], 0.01) == [0, 1, 1, 2]  # 2, then ceil(2 / 3), ceil(1 / 2), of ties the last first
    assert widths([0.5] * 4, [same, same, same, other], 1e9) == [1, 1, 1, 1]  # as REBASE
    assert widths([0.5] * 4, [same, [2.0, 0.0], [0.1, 0.0], other], 0.01) == [0, 1, 1, 2]  # length is no direction
    # exp(s / .2) is in the ratio 1.65 : 1; the two of the better score share it, .82 each against 1
    assert widths([0.6, 0.6, 0.5], [same, same, other], 0.01) == [0, 1, 2]
    # a prefix of score zero takes no one's place
    assert widths([0.5, 0.0, 0.5], [same, same, other], 0.01) == [1, 0, 2]


@pytest.mark.parametrize("diversity", [0.01, 0.3])
@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_dora_is_its_rule(n: int, diversity: float) -> None:
    """8 cases of 100 seeds each, in one plate."""
    model = tree(0)
    search = DORA(model, n, embed=embed, diversity_temperature=diversity, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: dora(model, draw, n, 0.2, DIRECTIONS.tolist(), diversity)) == 0.0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), length=st.integers(1, 4), n=st.integers(1, 9), ends=st.booleans())
def test_other_trees(seed: int, length: int, n: int, ends: bool) -> None:
    for final_barrier in (True, False):
        model = tree(seed, length, ends=ends, final_barrier=final_barrier, impossible=seed % 2 == 0)
        search = DORA(model, n, embed=embed, temperature=0.3, diversity_temperature=0.1, max_plate_nesting=1)
        assert disagreement(search, model, lambda d, m=model: dora(m, d, n, 0.3, DIRECTIONS.tolist(), 0.1), seed, 20) == 0.0


@pytest.mark.parametrize("name", WRONG_DIRECTIONS)
def test_rejects_wrong_directions(name: str) -> None:
    """Half of the problems are solved differently."""
    model = tree(0)
    search = WRONG_DIRECTIONS[name](model, 16, embed=embed, temperature=0.4, diversity_temperature=0.1, max_plate_nesting=1)
    assert disagreement(search, model, lambda draw: dora(model, draw, 16, 0.4, DIRECTIONS.tolist(), 0.1)) > 0.5


def test_what_is_worth_no_place_has_no_direction() -> None:
    """Of 4 places the last particle's score alone gives it .48, which a direction of its own would raise to 1.16; .54 would be enough."""
    same, other = [1.0, 0.0], [0.0, 1.0]
    assert widths([0.6, 0.6, 0.6, 0.42], [same, same, same, other], 0.01) == [1, 1, 2, 0]
    assert widths([0.6, 0.6, 0.6, 0.45], [same, same, same, other], 0.01) == [0, 1, 1, 2]


def test_without_a_direction_it_is_rebase() -> None:
    """At a temperature at which no score is worth less than half of a place."""
    model = tree(0)
    constant = DORA(model, 8, embed=lambda state: torch.ones(*state.code.shape, 3), temperature=5.0, max_plate_nesting=1)
    plain, _ = searched(REBASE(model, 8, temperature=5.0, max_plate_nesting=1), model)
    found, _ = searched(constant, model)
    assert plain.scores is not None and found.scores is not None and bool((plain.scores == found.scores).all())
    assert found.method == "DORA"


def test_a_population_over_a_plate_is_one_direction() -> None:
    """What a plate holds of one population is one vector: two particles are alike only if all of it is."""
    vectors = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    messenger = DoraMessenger(FilterOptions(3, 1), 0.2, 0.01, lambda state: vectors)
    messenger.state = 0
    like = torch.zeros(3, 1, dtype=torch.float64)
    found = messenger.log_distinct(like, torch.ones(3, 1, dtype=torch.bool)).exp()
    assert found[:, 0].tolist() == pytest.approx([0.5, 1.0, 0.5])


# the language model's hidden states


def network() -> TransformersLM:
    return TransformersLM(causal_lm(), tokenizer())


def test_the_embedding_of_a_context_is_the_mean_state_of_its_last_step() -> None:
    lm = network()
    context = lm.start(["ab", "ba"])
    for step in (torch.tensor([[5, 6, -1], [7, 8, 9]]), torch.tensor([[9, 4, 8], [6, -1, -1]])):
        context = context.extend(step, stop=())
    found = context.embedding()
    for k in range(2):
        ids = context.tokens[k, : int(context.lengths[k])][None]
        states = lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        mean = states[int(context.ends[k, 0]) :].mean(0)
        assert torch.allclose(found[k], mean, atol=1e-5)


def test_an_embedding_runs_the_last_step_alone() -> None:
    """Of 8 sequences of 3 steps the prompt and earlier steps are in the KV cache."""
    lm = network()
    context = lm.start("ab")
    for _ in range(3):
        sample = lm.sample_step(context, torch.Size([8]), reasoning(lm, None, max_tokens=4).options)
        context = context.extend(sample.tokens)
    with CostMeter() as meter:
        context.embedding()
    assert meter.totals["tokens_prefilled"] <= int((context.ends[:, -1] - context.ends[:, -2]).sum())
    assert meter.totals["lm_forwards"] == 1


def test_dora_on_a_language_model() -> None:
    lm = network()
    reward = TabularReward(torch.linspace(-1.0, 1.0, lm.vocab_size))
    pyro.set_rng_seed(0)
    model = reasoning(lm, reward, "twisted", max_steps=3, max_tokens=4)
    posterior = DORA(model, 8, audit=True).run("ab")
    assert posterior.audit is not None and posterior.audit.num_sites > 0 and posterior.num_particles == 8


# errors


def test_states_without_an_embedding() -> None:
    model = tree(0)
    with pytest.raises(ValueError, match=r"what the model passes to barrier has no embedding.*: give embed=, a function of that Particles"):
        DORA(model, 4, max_plate_nesting=1).run(2)
    lm = TabularLM(torch.zeros(3, 3), ["a", ";", "$"], eos="$")
    with pytest.raises(ValueError, match=r"TabularLM .*hidden states"):
        DORA(reasoning(lm, None, max_steps=2, stop=";", max_tokens=2), 4).run("a")


def test_an_embedding_inside_of_a_state() -> None:
    class Named:
        def reorder(self, index: Tensor) -> Named:
            return self

        def embedding(self) -> Tensor:
            return torch.ones(3, 2)

    assert embedding_of({"a": torch.zeros(3), "b": (1, Named())}).shape == (3, 2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4,), r"\[4, 2, D\], got \(4,\)"), ((3, 2, 5), r"got \(3, 2, 5\)"), ((4, 3, 5), r"got \(4, 3, 5\)")],
)
def test_embeddings_of_another_shape(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DORA(tree(0), 4, embed=lambda state: torch.zeros(shape), max_plate_nesting=1).run(2)
    with pytest.raises(ValueError, match="embed gave a nan"):
        DORA(tree(0), 4, embed=lambda state: torch.full((4, 2, 3), torch.nan), max_plate_nesting=1).run(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed": 3}, "embed must be a function or None, got 3"),
        ({"diversity_temperature": 0.0}, "diversity_temperature must be a finite number above 0, got 0.0"),
        ({"temperature": -1.0}, "temperature must be a finite number above 0, got -1.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DORA(tree(0), 4, **arguments)
