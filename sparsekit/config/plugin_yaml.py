"""Plugins in YAML, by name: `method: gmp`, `method: {name: imp, cycles: 2}`; and the class that a name stands for."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import yaml

from sparsekit.config import wandb_args, yaml_file
from sparsekit.config.options import FitConfig
from sparsekit.plugins import contract
from sparsekit.plugins.registry import GROUPS, Kind, discover, find, name_of
from sparsekit.plugins.signatures import options_of


def own_options(kind: Kind, name: str) -> list[str]:
    """The options of a plugin; none where its name is no plugin's, which is told where it is used."""
    plugins = discover().of(kind).get(name, ())
    return list(options_of(plugins[0])) if len(plugins) == 1 else []


def class_path(kind: Kind, name: str) -> str:
    """The class that a plugin's name stands for; what is no name is a class path already.

    Raises:
        UserError: it cannot be found or loaded.
    """
    if re.fullmatch(r"[\w-]+", name):
        plugin = find(kind, name)
        contract.load(plugin)  # here, where a failure can be told with its distribution
        return plugin.class_path
    return name


def spec_of(kind: Kind, name: str, own: dict[str, Any]) -> dict[str, Any]:
    """A class and all its options, those in `own` and the defaults of the rest."""
    name = name_of(kind, name)
    if not re.fullmatch(r"[\w-]+", name):
        return {"class_path": name, "init_args": own}
    plugin = find(kind, name)
    return {"class_path": plugin.class_path, "init_args": contract.defaults(contract.load(plugin)) | own}


def load(text: str) -> Any:
    """YAML in which `method: gmp` and `method: {name: imp, cycles: 2}` stand for a class and its options."""
    data = yaml_file.parse(text)
    if _is_config(data):
        data = wandb_args.nested(data)
    if _is_config(data) and isinstance(data.get("distill"), str):
        data["distill"] = {"model": data["distill"]}
    for kind in GROUPS if _is_config(data) else ():
        spec = data.get(kind)
        if kind in data and spec is None:  # `method:` and nothing after it
            del data[kind]
        if isinstance(spec, str):
            spec = {"name": spec}
        if isinstance(spec, dict) and isinstance(spec.get("name"), str):
            own = {key: value for key, value in spec.items() if key != "name"}
            data[kind] = spec_of(kind, spec["name"], own)
        elif isinstance(spec, dict) and isinstance(spec.get("class_path"), str):
            own = spec.get("init_args", {})
            data[kind] = spec_of(kind, spec["class_path"], own) if isinstance(own, dict) else spec
    return data


def _is_config(data: Any) -> bool:
    """Whether YAML holds options of ours; mappings for timm, whose keys may bear any name, pass through here too."""
    if not isinstance(data, dict):
        return False
    others = {str(key).partition(".")[0] for key in data} - {*GROUPS, "_wandb"}
    return not others or bool(others & {item.name for item in fields(FitConfig)})


def dump(data: Any) -> str:
    """YAML that `load` reads, plugins by name."""
    for kind in GROUPS if isinstance(data, dict) else ():
        spec = data.get(kind)
        if isinstance(spec, dict) and "class_path" in spec:
            data[kind] = {"name": name_of(kind, spec["class_path"]), **spec.get("init_args", {})}
    return str(yaml.safe_dump(data, sort_keys=False))
