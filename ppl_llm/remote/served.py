"""The models that a server offers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .client import ServerClient
from .errors import ServerError


class ServedModel(NamedTuple):
    """An entry of ``/v1/models``.

    :ivar int max_length: longest context in tokens; ``None`` if the server does not tell.
    :ivar str root: where the server has the model from.
    """

    name: str
    max_length: int | None = None
    root: str | None = None

    @property
    def source(self) -> str:
        """Where its tokenizer may be: the model's directory, if the server is on this machine, or its name."""
        return self.root if self.root is not None and Path(self.root).is_dir() else self.name

    def limit(self, given: int | None, configured: int | None) -> int:
        """Longest context: what was asked for, at most what the server tells, or else the model's configuration.

        :raises ValueError: if none of them is known, or more is asked for.
        """
        most = self.max_length or configured
        if given is None and most is None:
            raise ValueError("the server does not tell how long its contexts may be; pass max_length=...")
        if given is not None and (given < 2 or (most is not None and given > most)):
            raise ValueError(f"max_length must lie in 2 .. {most or 'the context of the model'}, got {given!r}")
        return given if given is not None else int(most or 0)

    @classmethod
    def find(cls, client: ServerClient, name: str | None) -> ServedModel:
        """The model of a name, or the only one there is.

        :raises ServerError: if the server cannot be reached or refuses.
        :raises ValueError: if it does not serve the model, or several and none was named.
        """
        models = cls.all(client)
        if models is None:
            if name is None:
                raise ValueError(f"{client.address.api} does not list its models; give the model's name")
            return cls(name)
        names = [model.name for model in models]
        if name is None and len(models) == 1:
            return models[0]
        if name not in names:
            asked = "serves several models; name one" if name is None else f"does not serve {name!r}"
            raise ValueError(f"{client.address.api} {asked}. It serves: {', '.join(names[:10])}")
        return models[names.index(name)]

    @classmethod
    def all(cls, client: ServerClient) -> list[ServedModel] | None:
        """Every model, or ``None`` if the server has no list of them; ``transformers serve`` lists only what was downloaded."""
        try:
            reply = client.get(f"{client.address.api}/models", max_attempts=1)
            return [cls(str(entry["id"]), entry.get("max_model_len"), entry.get("root")) for entry in reply["data"]] or None
        except ServerError as error:
            if error.status in (None, 401, 403):
                raise
            return None
        except (KeyError, TypeError, AttributeError):
            return None
