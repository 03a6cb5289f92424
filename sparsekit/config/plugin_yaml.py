"""Options as YAML writes them: plugins by name, groups as mappings or with dots."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from sparsekit.config import yaml_file
from sparsekit.config.messages import GROUPED
from sparsekit.plugins import contract
from sparsekit.plugins.registry import GROUPS, Kind, discover, find, name_of

WANDB_KEY = "_wandb"
"""The key that W&B adds to its own configurations; it holds no options."""
ONE_VALUE = {"distill": "distill.model"}
"""Groups that may be given one value, and the option that it stands for."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that our loader or a plain YAML 1.1 loader would read as something else, such as `1e-05` or `2:4`."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + kinds
    for first, kinds in yaml_file.Loader.yaml_implicit_resolvers.items()
}
_Dumper.add_representer(yaml_file.Quoted, yaml.SafeDumper.represent_str)


class _ArgumentDumper(_Dumper):
    """Marks `Quoted` texts for our parser."""


_ArgumentDumper.add_representer(
    yaml_file.Quoted, lambda dumper, text: dumper.represent_scalar(yaml_file.TAG, text, "'")
)


def flat(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Options by their dotted names, from all ways to write them.

    `method: {name: imp, cycles: 2}`, `method: {class_path: imp, init_args: {cycles: 2}}`, and `method: imp` with
    `method.cycles: 2` are all `[("method", "imp"), ("method.cycles", 2)]`.
    """
    found: list[tuple[str, Any]] = []
    for group, value in values.items():
        if not isinstance(value, dict) or group not in (*GROUPS, *GROUPED):
            found.append((ONE_VALUE.get(group, group), value))
            continue
        chooser = "" if group not in GROUPS else "name" if "name" in value else "class_path"
        own = value.get("init_args") if chooser else None
        if isinstance(own, dict):
            value = {key: inner for key, inner in value.items() if key != "init_args"} | own
        found += [(group if key == chooser else f"{group}.{key}", inner) for key, inner in value.items()]
    return [(name, value) for name, value in found if name.rpartition(".")[2] != WANDB_KEY]


def text(value: object) -> str:
    """A value as one line of YAML, which a parser reads as the same value."""
    line = yaml.dump(value, None, _ArgumentDumper, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return str(line).removesuffix("...\n").strip()


def spec_of(kind: Kind, name: str, own: dict[str, Any]) -> dict[str, Any]:
    """The class of a plugin and all its options: those in `own`, and the defaults of the rest.

    Raises:
        UserError: no plugin has that name, or it cannot be loaded.
    """
    if not re.fullmatch(r"[\w-]+", name) and name not in discover().of(kind):  # a class path
        return {"class_path": name, "init_args": own}
    plugin = find(kind, name)
    return {"class_path": plugin.class_path, "init_args": contract.defaults(contract.load(plugin)) | own}


def dump(data: Any) -> str:
    """A configuration as YAML, with plugins by name."""
    for kind in GROUPS if isinstance(data, dict) else ():
        spec = data.get(kind)
        if isinstance(spec, dict) and "class_path" in spec:
            data[kind] = {"name": name_of(kind, spec["class_path"]), **spec.get("init_args", {})}
    return str(yaml.dump(data, None, _Dumper, sort_keys=False))
