"""An explanation in words."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from .explanation import Competitor, Disliked, Explanation, Parting

_TEXT = 70
_NAMED = 3
_SURE = 2.0
"""Standard errors of a lead that more particles are not expected to turn."""


def lines(told: Explanation) -> list[str]:
    """A line on each question: what competes, where it parts, what was disliked, how sure it is, what would change it, what is unknown."""
    if not told.competitors:
        nothing = "no solution with a weight gives an answer" if told.no_answer > 0 else "every particle has weight zero"
        return [f"There is no answer: {nothing}."]
    found = [_competing(told)]
    if told.parting is not None:
        found.append(_parting(told.parting, told.competitors))
    if told.disliked:
        found.append(_disliked(told.disliked, told.dropped))
    found.append(_sure(told))
    if (change := _change(told)) is not None:
        found.append(change)
    if told.unknown:
        found.append(f"It cannot say {'; nor '.join(told.unknown)}.")
    return found


def named(answer: Hashable) -> str:
    """An answer in a sentence."""
    return short(str(answer), 40)


def short(text: str, most: int = _TEXT) -> str:
    """A text on one line, cut in the middle where it is long, without characters that drive a terminal."""
    text = " ".join("".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text).split())
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[len(text) - most // 2 :]}"


def _competing(told: Explanation) -> str:
    first, *others = told.competitors
    if told.kind == "scores":
        second = f"; the best with another answer has {named(others[0].answer)}" if others else ""
        return f"The candidate with the best score answers {named(first.answer)}{second}."
    what = {"exact": "probability", "posterior": "posterior probability", "votes": "share of the votes"}[told.kind]
    text = f"{named(first.answer)} leads with {what} {first.probability:.3f}"
    if not others and not told.no_answer:
        which = "All solutions" if first.particles == told.num_particles else "All solutions with a weight"
        return f"{which} answer {named(first.answer)}."
    if others and math.isclose(first.probability, others[0].probability, rel_tol=1e-9):
        text = f"A tie: {named(first.answer)} has {what} {first.probability:.3f}"
    if others:
        text += f"; {', '.join(f'{named(each.answer)} has {each.probability:.3f}' for each in others[: _NAMED - 1])}"
    if rest := others[_NAMED - 1 :]:
        text += f", {len(rest)} more {math.fsum(each.probability for each in rest):.3f}"
    if told.no_answer:
        text += f"; {told.no_answer:.3f} lies on solutions without an answer"
    return f"{text}."


def _parting(parting: Parting, competitors: Sequence[Competitor]) -> str:
    one, other = (named(each.answer) for each in competitors[:2])
    if not parting.shared:
        text = f"Solutions of {one} and {other} part at the first step: "
    else:
        same = "the first step" if len(parting.shared) == 1 else f"the first {len(parting.shared)} steps"
        text = f"Solutions of {one} and {other} part at step {parting.step} at the latest. Until then two of them share {same}"
        if parting.common is not None:
            text += _descent(parting.common, len(parting.shared))
        text += f", {'the last ' if len(parting.shared) > 1 else ''}“{short(parting.shared[-1])}”. Then "
    said = [f"{name} has “{short(step)}”" if step else f"{name} ends" for name, step in ((one, parting.first), (other, parting.second))]
    return f"{text}{' where '.join(said)}."


def _descent(common: int, shared: int) -> str:
    if common >= shared:
        return " of one particle, which was resampled"
    return f", {common} of them from one particle, which was resampled" if common else ", written twice"


def _disliked(steps: Sequence[Disliked], dropped: Disliked | None) -> str:
    def one(each: Disliked) -> str:
        answer = "no answer" if each.answer is None else named(each.answer)
        return f"step {each.step} “{short(each.text)}” ({each.score:.3f}, of {answer})"

    text = f"The reward disliked most {'; '.join(map(one, steps))}"
    if dropped is not None:
        text += f"; and of what was dropped step {dropped.step} “{short(dropped.text)}” ({dropped.score:.3f})"
    return f"{text}."


def _sure(told: Explanation) -> str:
    alike = f"entropy {told.entropy:.2f} nats, as of {math.exp(told.entropy):.1f} equally probable answers"
    if told.kind == "exact":
        return f"Every solution was listed, so the probabilities are exact; {alike}."
    if told.kind == "scores":
        return f"{told.num_particles} candidates, {told.distinct} different ones; only their scores decide."
    solutions = f"{told.distinct} different solution{'' if told.distinct == 1 else 's'}"
    text = f"How sure: effective sample size {told.ess:.1f} of {told.num_particles}, {solutions}"
    if told.chain:
        text += f", {told.ancestors} different iteration{'' if told.ancestors == 1 else 's'} of a chain, which are not independent"
    elif told.ancestors < told.num_particles:
        text += f" from {told.ancestors} independent beginning{'' if told.ancestors == 1 else 's'}"
    text += f"; {alike}."
    if told.error is not None:
        text += f" The standard error of the leader's probability is {told.error:.3f}"
        lead = told.competitors[0].probability - (told.competitors[1].probability if len(told.competitors) > 1 else 0.0)
        if told.lead_error:
            ratio = lead / told.lead_error
            text += f"; its lead of {lead:.3f} is {ratio:.1f} standard errors, so more particles {_turns(ratio)} turn it"
        text += "."
    if told.log_evidence is not None:
        text += f" Log evidence {told.log_evidence:.3f}"
        if len(told.part_log_evidences) > 1:
            text += f", of the parts {min(told.part_log_evidences):.3f} to {max(told.part_log_evidences):.3f}"
        text += "."
    return text


def _turns(ratio: float) -> str:
    return "are not expected to" if ratio >= _SURE else "may well"


def _change(told: Explanation) -> str | None:
    leader = named(told.competitors[0].answer)
    rival = named(told.competitors[1].answer) if len(told.competitors) > 1 else None
    parts = []
    if told.more_particles is not None:
        equal = told.kind == "votes" and math.isclose(told.ess, told.num_particles)
        unit = "vote" if equal else "vote of average weight" if told.kind == "votes" else "particle of average weight"
        several = unit.replace("vote", "votes").replace("particle", "particles") if told.more_particles != 1 else unit
        parts.append(f"{told.more_particles} more {several} with {rival or 'one other answer'}")
    if told.reward_margin is not None:
        if told.kind == "scores":
            parts.append(f"a score of {rival} that is higher by more than {told.reward_margin:.3f}")
        else:
            steps = len(told.competitors[0].steps)
            each = f", {told.reward_margin / steps:.2f} for each of {steps} steps" if steps > 1 else ""
            parts.append(
                f"rewards of all solutions of {leader} lower by a factor of more than {math.exp(told.reward_margin):.3g} "
                f"({told.reward_margin:.2f} nats{each})"
            )
    return f"What would change it: {'; or '.join(parts)}." if parts else None
