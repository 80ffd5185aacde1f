"""Calibrations in files, each for one reward model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..lm.loading import locate
from ..remote.address import is_address
from .calibration import Calibration

FILE = "ppl_llm_calibration.json"
"""In a reward model's directory."""

_BLOCKS, _BLOCK = 16, 2**16
"""How many places of a file of weights are looked at, and how many bytes at each."""


@dataclass(frozen=True)
class SavedCalibration:
    """A calibration, whose it is, and what it was fitted on.

    :ivar Calibration calibration: the map.
    :ivar str prm: name of the reward model, as it was given.
    :ivar str identity: see :func:`identity_of`.
    :ivar dict fitted_on: plain values.
    :ivar dict held_out: reliability before and after on problems that it was not fitted on; plain values.
    """

    calibration: Calibration
    prm: str
    identity: str
    fitted_on: dict[str, Any] = field(default_factory=dict)
    held_out: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """As JSON."""
        plain = asdict(self)
        Path(path).write_text(json.dumps({**plain.pop("calibration"), **plain}, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> SavedCalibration:
        """
        :raises OSError: if there is no such file.
        :raises ValueError: for a file that holds none.
        """
        try:
            values = json.loads(Path(path).read_text())
            return cls(Calibration(values.pop("temperature"), values.pop("bias")), **values)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{str(path)!r} does not hold a calibration ({error}); make one with: ppl-llm calibrate RUN") from error


def identity_of(prm: str | Path) -> str:
    """Tells a reward model from others, wherever its files are: a hash of its configuration and of samples of its weights. A model on a
    server, or on the Hub and not yet here, is known by its name only.

    :raises OSError: if there is no such directory, or it holds no model.
    """
    if is_address(str(prm)):
        return f"address {prm}"
    directory = Path(locate(prm, "prm"))
    if not directory.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(str(prm), "config.json")
        if not isinstance(cached, str):
            return f"name {prm}"
        directory = Path(cached).parent
    digest = hashlib.blake2b((directory / "config.json").read_bytes(), digest_size=8)
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for i in range(_BLOCKS):
                file.seek(max(0, size - _BLOCK) * i // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return f"files {digest.hexdigest()}"


def load_calibration(path: str | Path, prm: str | Path) -> Calibration:
    """The calibration in a file.

    :param prm: the reward model that it is for: a directory, a name, or an address.
    :raises OSError: if there is no such file or model.
    :raises ValueError: if the file holds none, or one that was fitted for another reward model.
    """
    saved, found = SavedCalibration.load(path), identity_of(prm)
    by_name = "name" in (saved.identity.split()[0], found.split()[0])
    if saved.identity != found and not (by_name and saved.prm == str(prm)):
        raise ValueError(
            f"the calibration in {str(path)!r} was fitted for the reward model {saved.prm!r} ({saved.identity}), and this is {str(prm)!r} "
            f"({found}); fit one for it with: ppl-llm calibrate RUN"
        )
    return saved.calibration


def find_calibration(prm: str | Path, calibration: Calibration | str | Path | bool | None) -> Calibration | None:
    """The calibration of a reward model: as given, from a file, or for ``True`` from the one in the model's directory.

    :raises OSError: if there is no such file.
    :raises ValueError: as :func:`load_calibration`.
    """
    if calibration is None or calibration is False or isinstance(calibration, Calibration):
        return calibration or None
    if calibration is not True:
        return load_calibration(calibration, prm)
    path = Path(locate(prm, "prm")) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no calibration {str(path)!r}; make one with: ppl-llm calibrate RUN, or name the file of one")
    return load_calibration(path, prm)
