"""What is sent before the end never changes, whatever happens: against all that may happen, and with rules that are wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pyro
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ppl_llm import reasoning
from ppl_llm.finishing import before_any
from ppl_llm.gateway.settled import SettledText, common_beginning, particles_of
from ppl_llm.inference import ParticlePosterior
from ppl_llm.methods import SOLVING, Call
from tests.helpers.gateway import PROBLEM, models

Particle = tuple[str, bool]

texts = st.text("ab", max_size=6)
stops = st.lists(st.text("ab", min_size=1, max_size=3), max_size=2).map(tuple)


def endings(particle: Particle, stopping: tuple[str, ...]) -> set[str]:
    """All texts that a particle may have at the end: one that has not ended may write anything, or nothing."""
    text, ended = particle
    if ended:
        return {text}
    longest = max(map(len, stopping), default=1)
    more = ("".join(letters) for length in range(longest + 1) for letters in itertools.product("ab", repeat=length))
    return {before_any(text + each, stopping) for each in more}


@st.composite
def populations(draw: Any) -> tuple[list[Particle], tuple[str, ...]]:
    """Particles as a barrier sees them: one in whose text there is a stop has ended, and its text ends before it."""
    stopping = draw(stops)
    found = []
    for text, ended in draw(st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=3)):
        cut = before_any(text, stopping)
        found.append((cut, ended or cut != text))
    return found, stopping


def sent(rule: type[SettledText], population: tuple[list[Particle], tuple[str, ...]]) -> str:
    particles, stopping = population
    return rule(stopping).advance(particles)


def possible(population: tuple[list[Particle], tuple[str, ...]]) -> list[str]:
    particles, stopping = population
    return sorted(set().union(*(endings(each, stopping) for each in particles)))


@given(populations())
@example(([("ab", False), ("aba", False)], ("ba",)))
@example(([("abb", False), ("ab", True)], ("bba",)))
def test_all_that_is_certain_is_sent_and_nothing_else(population: tuple[list[Particle], tuple[str, ...]]) -> None:
    assert sent(SettledText, population) == common_beginning(possible(population))


BYTES = (b"a", b"\xc3", b"\xa9", b"\xe2", b"\x82", b"\xac")
"""Letters, and the bytes of an e with an accent and of the euro sign."""


def read(data: bytes) -> str:
    return data.decode("utf-8", "replace")


@given(st.lists(st.lists(st.sampled_from(BYTES), max_size=5).map(b"".join), min_size=1, max_size=3))
@example([b"a\xe2\x82"])
@example([b"\xc3", b"\xc3"])
def test_characters_that_are_not_complete_are_kept_back(particles: list[bytes]) -> None:
    """Tokens may be parts of characters. Every continuation by up to three bytes begins with what was sent."""
    found = SettledText().advance([(read(each), False) for each in particles])
    more = [b"".join(each) for length in range(4) for each in itertools.product(BYTES, repeat=length)]
    assert all(read(each + rest).startswith(found) for each in particles for rest in more)
    if not any(read(each).endswith("\ufffd") for each in particles):
        assert found == common_beginning([read(each) for each in particles])


class KeepsNoBeginningOfAStop(SettledText):
    def certain(self, text: str) -> str:
        return text.rstrip("\ufffd")


class KeepsNoPartOfACharacter(SettledText):
    def certain(self, text: str) -> str:
        return text


class FollowsTheFirst(SettledText):
    def advance(self, particles: Iterable[Particle]) -> str:
        return super().advance(list(particles)[:1])


class TakesTheEndedForOpen(SettledText):
    def advance(self, particles: Iterable[Particle]) -> str:
        return super().advance([(text, False) for text, _ in particles])


class ForgetsTheEnded(SettledText):
    def advance(self, particles: Iterable[Particle]) -> str:
        particles = list(particles)
        return super().advance([each for each in particles if not each[1]] or particles)


@pytest.mark.parametrize(
    ("rule", "population"),
    [
        (KeepsNoBeginningOfAStop, ([("aab", False)], ("ba",))),
        (KeepsNoPartOfACharacter, ([("a\ufffd", False)], ())),
        (FollowsTheFirst, ([("ab", False), ("aa", False)], ())),
        (ForgetsTheEnded, ([("ab", False), ("a", True)], ())),
        (TakesTheEndedForOpen, ([("ab", True)], ("ba",))),
    ],
)
def test_wrong_rules_are_rejected(rule: type[SettledText], population: tuple[list[Particle], tuple[str, ...]]) -> None:
    right = common_beginning([before_any(text, population[1]) for text in possible(population)]).rstrip("\ufffd")
    assert sent(SettledText, population) == right != sent(rule, population)


def test_a_method_that_breaks_its_word_is_noticed() -> None:
    settled = SettledText()
    assert settled.advance([("ab", False), ("abc", True)]) == "ab"
    assert settled.advance([("ab", False)]) == "" and settled.rest("abd") == "d"
    with pytest.raises(RuntimeError, match="does not begin"):
        settled.rest("acd")


@pytest.mark.parametrize("name", [name for name, method in SOLVING.items() if method.settles])
@pytest.mark.parametrize("stop", [(), ("\n\nThird", "Fourth")])
def test_methods_that_settle_keep_their_word(name: str, stop: tuple[str, ...]) -> None:
    """Whichever particle may be chosen at the end begins with everything that was settled before; and what is read of the tokens is as much
    as reading the whole texts would give."""
    lm, prm = models()
    model = reasoning(lm, prm, max_steps=12, final_stop=stop)
    watched, plain, pieces = SettledText(stop), SettledText(stop), []

    def callback(posterior: ParticlePosterior) -> None:
        context = posterior.value
        pieces.append(watched.advance(particles_of(context)))
        plain.advance(zip(context.text, context.done.tolist(), strict=True))
        assert watched.sent == plain.sent

    settles = 0
    for seed in range(4):
        watched.sent = plain.sent = ""
        pieces.clear()
        pyro.set_rng_seed(seed)
        posterior = SOLVING[name].start(model, {"particles": 6}, Call(callback))(PROBLEM)
        assert all(text.startswith("".join(pieces)) for text in posterior.value.text)
        settles += bool("".join(pieces[:-1]))
    assert settles, "nothing was ever settled before the end"


def test_methods_that_do_not_settle_say_so() -> None:
    """Searches that set finished candidates aside, chains and ladders: a later solution need not continue what their callbacks see."""
    votes = {"best-of-n", "soft-best-of-n", "best-of-majority", "self-consistency", "multi-temperature"}
    assert {name for name, method in SOLVING.items() if method.settles} == {"smc", "importance", *votes}
    for method in SOLVING.values():
        assert method.settles_under({}) == method.settles and not method.settles_under({"until": "same:2"})
        assert not method.settles_under({"moves": 1})
