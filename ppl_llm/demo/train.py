"""Train the demo models: ``python -m ppl_llm.demo.train --out DIR`` does everything from the seed, on two CPU cores."""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen2ForCausalLM

from .card import write_card
from .corpus import Encoded, Labelled, drill_example, lm_example, train_problems
from .fit import demo_config, fit
from .measure import by_level, calibration_error, flat, level_aurocs, pass_at_1, sample_attempts, step_error_rate, step_log_odds
from .problems import held_out
from .reward import Qwen2PRM, calibrate, fit_prm, judge_from, reward_pools
from .tokenizer import train_tokenizer

log = logging.getLogger("ppl_llm.demo.train")

CHECKPOINT_EVERY = 50
FIND_STEPS, GATHER_STEPS, WEAK_STEPS = 200, 1750, 250
NUM_SAMPLES = 7680  # solutions of the language model that the reward models learn from
HORIZON = 2000  # where the learning rate of the backbone would reach zero
WISHED_PASS_AT_1 = {1: 0.70, 2: 0.50, 3: 0.35, 4: 0.20, 5: 0.10, 6: 0.04}


def train_backbone(tokenizer: PreTrainedTokenizerBase, checkpoints: Path, steps: int, seed: int) -> None:
    """Train the language model on right solutions and on arithmetic drills, keeping a checkpoint every fifty steps."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(demo_config(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id))
    checkpoints.mkdir(parents=True, exist_ok=True)

    def pools() -> Iterator[list[Encoded]]:
        rng, hardest = random.Random(seed), 3.0
        while True:  # short problems first: the look-up of an operation is learnt on them at half the cost
            problems = [lm_example(tokenizer, problem) for problem in train_problems(768, rng, int(hardest))]
            yield problems + [drill_example(tokenizer, rng) for _ in problems]
            hardest = min(6.0, hardest + 0.25)

    def keep(done: int) -> bool:
        if done % CHECKPOINT_EVERY == 0:
            torch.save(model.state_dict(), checkpoints / f"{done:05d}.pt")
        return False

    fit(
        model,
        lambda ids: model(input_ids=ids, use_cache=False).logits,
        pools(),
        steps,
        seed,
        0.01,
        decay=1.0,
        horizon=HORIZON,
        on_step=keep,
    )


def load_checkpoint(tokenizer: PreTrainedTokenizerBase, path: Path) -> Qwen2ForCausalLM:
    """The language model as it was at a checkpoint."""
    model = Qwen2ForCausalLM(demo_config(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id))
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def level_pass_at_1(attempts: list[Labelled]) -> dict[int, float]:
    """pass@1 per level."""
    return by_level(attempts, lambda indices: pass_at_1([attempts[i] for i in indices]))


def distance(measured: dict[int, float]) -> float:
    """Mean squared difference to the wished pass@1 on the scale of log-odds (of figures kept away from 0 and 1)."""

    def log_odds(share: float) -> float:
        share = min(max(share, 0.02), 0.98)
        return math.log(share / (1 - share))

    return sum((log_odds(measured[level]) - log_odds(wish)) ** 2 for level, wish in WISHED_PASS_AT_1.items()) / len(WISHED_PASS_AT_1)


def choose_lm(tokenizer: PreTrainedTokenizerBase, checkpoints: Path, seed: int, neighbours: int = 2) -> Path:
    """The early checkpoint whose pass@1 comes closest to the wished one: bisection on the mean, then a look at the neighbours."""
    paths, problems = sorted(checkpoints.glob("*.pt")), held_out(120, seed, "validation")
    seen: dict[int, dict[int, float]] = {}

    def look(index: int) -> dict[int, float]:
        if index not in seen:
            seen[index] = level_pass_at_1(sample_attempts(load_checkpoint(tokenizer, paths[index]), tokenizer, problems, 4, seed))
            log.info("%s: pass@1 %s, distance %.2f", paths[index].stem, seen[index], distance(seen[index]))
        return seen[index]

    low, high = 0, len(paths) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sum(look(middle).values()) < sum(WISHED_PASS_AT_1.values()) else (low, middle)
    candidates = range(max(0, low - neighbours + 1), min(len(paths), high + neighbours))
    return paths[min(candidates, key=lambda index: distance(look(index)))]


def export(model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write a model directory in the layout of the Hugging Face Hub."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    if isinstance(model, Qwen2PRM):
        config |= {"architectures": ["Qwen2ForProcessRewardModel"], "num_labels": 2}
    else:
        GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True).save_pretrained(
            directory
        )
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def reward_figures(prm: Qwen2PRM, tokenizer: PreTrainedTokenizerBase, validation: list[Labelled], test: list[Labelled]) -> dict[str, Any]:
    """Calibrate on ``validation`` and measure on ``test``."""
    before = calibration_error(*flat(test, step_log_odds(prm, tokenizer, test)))
    temperature = calibrate(prm, tokenizer, validation)
    return {
        "temperature": temperature,
        "ece_before": before,
        "ece_after": calibration_error(*flat(test, step_log_odds(prm, tokenizer, test))),
        "auroc": level_aurocs(prm, tokenizer, test),
        "parameters": sum(parameter.numel() for parameter in prm.parameters()),
    }


def finish(tokenizer: PreTrainedTokenizerBase, checkpoints: Path, out: Path, seed: int) -> dict[str, Any]:
    """From the backbone's checkpoints to the three model directories and their figures."""
    backbone = load_checkpoint(tokenizer, max(checkpoints.glob("*.pt")))
    chosen = choose_lm(tokenizer, checkpoints, seed)
    lm = load_checkpoint(tokenizer, chosen)
    export(lm, tokenizer, out / "lm")

    validation = sample_attempts(lm, tokenizer, held_out(240, seed, "validation"), 2, seed + 1)
    test_problems = held_out(600, seed)
    test = sample_attempts(lm, tokenizer, test_problems, 4, seed + 2)
    figures: dict[str, Any] = {
        "lm": {
            "checkpoint": int(chosen.stem),
            "parameters": lm.num_parameters(),
            "pass_at_1": level_pass_at_1(test),
            "step_error_rate": by_level(test, lambda indices: step_error_rate([test[i] for i in indices])),
            "problems": len(test_problems),
            "samples": len(test),
        },
        "backbone": {"pass_at_1": level_pass_at_1(sample_attempts(backbone, tokenizer, test_problems, 1, seed))},
    }
    log.info("%s", json.dumps(figures))
    own = sample_attempts(lm, tokenizer, train_problems(NUM_SAMPLES, random.Random(99)), 1, 99)
    prm = judge_from(backbone, tokenizer, 2, seed)
    fit_prm(prm, tokenizer, reward_pools(own, tokenizer, seed), validation, FIND_STEPS, seed, 0.01)
    fit_prm(prm, tokenizer, reward_pools(own, tokenizer, seed + 1, every=13), validation, GATHER_STEPS, seed, 0.01)
    weak = judge_from(backbone, tokenizer, 0, seed)
    fit_prm(weak, tokenizer, reward_pools(own, tokenizer, seed, after_mistake=0), validation, WEAK_STEPS, seed, 0.004)
    for name, model in (("prm", prm), ("weak_prm", weak)):
        figures[name] = reward_figures(model, tokenizer, validation, test)
        export(model, tokenizer, out / name)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for lm, prm, weak_prm, MODEL_CARD.md and the checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1650, help="optimiser steps of the backbone")
    parser.add_argument("--resume", action="store_true", help="use the checkpoints that an earlier run left in DIR")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(2)
    out, seed, began = arguments.out, arguments.seed, time.monotonic()
    tokenizer, checkpoints = train_tokenizer(seed=seed), out / "checkpoints"
    if not arguments.resume:
        train_backbone(tokenizer, checkpoints, arguments.steps, seed)
    figures = finish(tokenizer, checkpoints, out, seed)
    minutes = f"{(time.monotonic() - began) / 60:.0f} minutes on two shared CPU cores" + (" after the backbone" if arguments.resume else "")
    stages = {"find": FIND_STEPS, "gather": GATHER_STEPS, "weak": WEAK_STEPS, "own": NUM_SAMPLES}
    figures["run"] = {"seed": seed, "steps": arguments.steps, "time": minutes} | stages
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_card(figures, out / "MODEL_CARD.md")
    log.info("%s", json.dumps(figures))


if __name__ == "__main__":
    main()
