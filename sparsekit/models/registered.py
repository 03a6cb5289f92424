"""Models that timm knows once a package's modules, named under `sparsekit.models`, are imported."""

from __future__ import annotations

from sparsekit.errors import UserError
from sparsekit.plugins.registry import discover


def is_registered(name: str) -> bool:
    """Whether timm knows a model, if need be after importing the modules of packages that bring some.

    Raises:
        UserError: timm does not know it, and such a module cannot be imported.
    """
    import timm  # only now: it costs 3 s

    from sparsekit.models import cifar  # noqa: F401  (registers its models with timm)

    wrong: UserError | None = None
    for plugin in (plugin for found in discover().of("model").values() for plugin in found):
        if timm.is_model(name):
            return True
        try:
            plugin.load()
        except UserError as error:
            wrong = error
    if wrong and not timm.is_model(name):
        raise UserError(f"--model.name {name!r} is not a timm model, and {wrong}") from wrong
    return timm.is_model(name)
