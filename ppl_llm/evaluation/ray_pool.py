"""Units of work on a Ray cluster (extra ``ray``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from ..tasks.base import Problem
from .pool import TRIES, Outcome
from .source import Models
from .work import Unit, execute


class _Actor:
    """Loads the models once and does one unit at a time."""

    def __init__(self, models: Models, parts: Sequence[Sequence[Problem]]) -> None:
        self.parts, self.model, self.votes = parts, models.load(), models.vote_options()

    def execute(self, unit: Unit) -> list[dict[str, Any]] | str:
        try:
            return execute(unit, self.model, self.parts[unit.group], **self.votes)
        except Exception as error:
            return f"{type(error).__name__}: {error}"


class RayPool:
    """Like :class:`~ppl_llm.evaluation.pool.Pool`, with actors of a Ray cluster, each with its own copy of the models.

    An actor that dies is replaced and its unit done again; a unit that fails three times is given up.

    :param Models models: loaded once by each actor.
    :param parts: groups of problems.
    :param str address: of the cluster; ``auto`` finds the one this machine belongs to, ``local`` starts one here.
    :param int workers: actors; 0 takes one for each GPU of the cluster, or one for each CPU without GPUs.
    :raises ImportError: without ray, naming the extra.
    """

    def __init__(self, models: Models, parts: Sequence[Sequence[Problem]], address: str, workers: int = 0) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError("--ray needs ray; install it with: pip install 'ppl-llm[ray]'") from error
        self.ray = ray
        self.models, self.parts, self.address, self.num_workers = models, parts, address, workers
        self.actors: list[Any] = []

    def __enter__(self) -> RayPool:
        self.ray.init(address=self.address, log_to_driver=False, ignore_reinit_error=True)
        resources = self.ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self.num_workers = self.num_workers or gpus or cpus
        self.options = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors.clear()
        self.ray.shutdown()

    def _new_actor(self) -> Any:
        return self.ray.remote(_Actor).options(**self.options).remote(self.models, self.parts)

    def run(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """Outcomes, as they come."""
        todo, tries = deque(units), dict.fromkeys(units, 0)
        self.actors = [self._new_actor() for _ in range(min(self.num_workers, len(units)))]
        idle = list(self.actors)
        busy: dict[Any, tuple[Any, Unit]] = {}
        while todo or busy:
            while idle and todo:
                actor, unit = idle.pop(), todo.popleft()
                busy[actor.execute.remote(unit)] = (actor, unit)
            (ready,), _ = self.ray.wait(list(busy), num_returns=1)
            actor, unit = busy.pop(ready)
            try:
                answer = self.ray.get(ready)
            except self.ray.exceptions.RayError as error:
                answer = f"the worker died: {str(error).splitlines()[0]}"
                self.actors.remove(actor)
                actor = self._new_actor()
                self.actors.append(actor)
            idle.append(actor)
            if isinstance(answer, list):
                yield Outcome(unit, answer)
                continue
            tries[unit] += 1
            if tries[unit] < TRIES:
                todo.append(unit)
            else:
                yield Outcome(unit, [], answer)
