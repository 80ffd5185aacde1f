"""What backends keep about contexts, stored and restored."""

from __future__ import annotations

import torch

from ppl_llm.context_cache import CacheKey, StoredOwner, find_entry, label_of
from ppl_llm.reward.score_cache import ScoreCache
from tests.helpers.reasoning import LM, PRM


def test_scores_travel_with_a_context() -> None:
    context = LM.start(["a", "ba"])
    scores = torch.tensor([[0.5], [1.5]])
    ScoreCache().put(context, scores, "somebody")
    restored = LM.start(["a", "ba"]).restore_cache(context.cache_state())
    swapped = restored.reorder(torch.tensor([1, 0]))
    reader = ScoreCache()
    assert torch.equal(reader.get(restored), scores) and torch.equal(reader.get(swapped), scores.flip(0))
    assert ScoreCache().get(LM.start(["a", "ba"])).shape == (2, 0)


def test_notes_of_backends_that_cannot_be_told_apart_stay_behind() -> None:
    context = LM.start("a")
    for _ in range(2):
        ScoreCache().put(context, torch.zeros(1), "somebody")
    assert context.cache_state() == {}


def test_an_owner_is_handed_over_once() -> None:
    adopted: list[str] = []

    def adopt(state: str) -> list[str]:
        adopted.append(state)
        return adopted

    owner = StoredOwner("keys and values")
    assert owner.hand_over(adopt) is owner.hand_over(adopt) is adopted and adopted == ["keys and values"]
    assert StoredOwner(None).hand_over(adopt) is None and len(adopted) == 1
    assert find_entry(LM.start("a").cache_entries, CacheKey("nobody"), adopt) is None


def test_labels() -> None:
    first, second = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    labels = {CacheKey.of_model("lm", model).label for model in (first, second)}
    assert len(labels) == 2 and all(label.startswith("lm Linear 9 ") for label in labels)
    with torch.device("meta"):
        assert CacheKey.of_model("lm", torch.nn.Linear(2, 3)).label == "lm Linear 9"
    assert label_of(PRM) == "TabularReward"
