"""Models on servers, by address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ..remote.address import Address, is_address
from . import loading

if TYPE_CHECKING:
    from ..lm.base import LanguageModel
    from ..reward.base import RewardModel
    from ..reward.calibration import Calibration


class Served(NamedTuple):
    """What is known of a model besides where it is: options that go with an address.

    :ivar str option: of the command line, ``lm`` or ``prm``.
    :ivar str where: the address, or whatever else names a model; empty where there is none.
    :ivar str model: the name it is served under.
    :ivar str tokenizer: a directory or hub name.
    :ivar str family: of a process reward model.
    """

    option: str
    where: str
    model: str | None = None
    tokenizer: str | None = None
    family: str | None = None

    def check(self) -> None:
        """
        :raises ValueError: for an address that makes no sense, a family that does not exist, and options that have no effect.
        """
        if self.family is not None:
            if not self.where:
                raise ValueError(f"--{self.option}-family is for a process reward model, and the reward is another one or none")
            from ..reward.prm.families import get_family

            get_family(self.family)
        if is_address(self.where):
            Address.parse(self.where)
            return
        for name in ("model", "tokenizer"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"--{self.option}-{name} goes with the address of a server, such as --{self.option} http://host:8000/v1, "
                    f"but --{self.option} is {self.where!r}"
                )

    def settings(self) -> dict[str, str]:
        """What was given, for the report."""
        named = {"model": self.model, "tokenizer": self.tokenizer, "family": self.family}
        return {f"{self.option}_{name}": value for name, value in named.items() if value is not None}


def load_lm(served: Served, device: str | None = None, dtype: str | None = None, **options: Any) -> LanguageModel:
    """A language model here or on a server; see :func:`ppl_llm.cli.loading.load_lm`."""
    if not is_address(served.where):
        return loading.load_lm(served.where, device, dtype, **options)
    with importing():
        from ..lm.openai_lm import OpenAILM

        return OpenAILM(served.where, served.model, tokenizer=served.tokenizer, **options)


def load_named_lm(name: str, device: str | None = None, dtype: str | None = None) -> LanguageModel:
    """A language model of which only the name or the address is known."""
    return load_lm(Served("lm", name), device, dtype)


def load_prm(served: Served, device: str | None = None, calibration: Calibration | None = None, dtype: str | None = None) -> RewardModel:
    """A process reward model here or on a server; see :func:`ppl_llm.cli.loading.load_prm`."""
    if not is_address(served.where):
        return loading.load_prm(served.where, device, calibration, dtype, served.family or "auto")
    with importing():
        from ..reward.calibration import CalibratedReward
        from ..reward.prm.remote_prm import RemotePRM

        prm = RemotePRM(served.where, served.model, served.family or "auto", tokenizer=served.tokenizer)
        return prm if calibration is None else CalibratedReward(prm, calibration)


@contextmanager
def importing() -> Iterator[None]:
    """A missing extra is for the user to mend, not a defect."""
    try:
        yield
    except ImportError as error:
        raise ValueError(str(error)) from error
