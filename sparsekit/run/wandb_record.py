"""The run directory's record of its W&B run, and uploads to W&B other than rows: the finished model, the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekit.files import local_directory, write_json

if TYPE_CHECKING:
    import wandb

FILE = Path("wandb", "sparsekit.json")


@dataclass(frozen=True)
class Known:
    """The W&B run of a run directory.

    Attributes:
        id: The W&B run's id, with which a resumed run continues it.
        url: Its URL, if it was ever online.
        offline: One folder for each time it ran offline, relative to the run directory.
        artifact: Full name of the finished model's artifact.
    """

    id: str | None = None
    url: str | None = None
    offline: tuple[str, ...] = ()
    artifact: str | None = None

    def locations(self, out: Path) -> tuple[str, ...]:
        """The URL, and the offline folders that `wandb sync` has not uploaded yet."""
        not_uploaded = [out / name for name in self.offline if not list((out / name).glob("*.wandb.synced"))]
        return (*([self.url] if self.url else []), *map(str, not_uploaded))


def read(out: Path) -> Known:
    """Read the record of a run directory; an empty one if the file is missing or invalid."""
    try:
        found = json.loads((out / FILE).read_text("utf-8"))
        known = Known(**found | {"offline": tuple(map(str, found["offline"]))})
    except (OSError, ValueError, TypeError, KeyError):
        return Known()
    named = (known.id, known.url, known.artifact)
    return known if all(value is None or isinstance(value, str) for value in named) else Known()


def write(out: Path, known: Known) -> None:
    """Write the record to the run directory."""
    write_json(out / FILE, asdict(known))


def updated(known: Known, run: wandb.Run, out: Path) -> Known:
    """The record with the id, and the URL or offline folder, of a W&B run that has started."""
    if not run.offline:
        return replace(known, id=run.id, url=run.url)  # offline, run.url prints a warning
    folder, inside = Path(run.settings.sync_dir).absolute(), out.absolute()
    name = folder.relative_to(inside) if folder.is_relative_to(inside) else folder
    return replace(known, id=run.id, offline=(*known.offline, str(name)))


def show(run: wandb.Run, path: Path) -> None:
    """Log an HTML page under the name of its file."""
    import wandb

    run.log({path.stem: wandb.Html(str(path), inject=False)})


def upload_model(
    run: wandb.Run, files: Sequence[Path], metadata: dict[str, Any], parent: str | None, seconds: float
) -> str:
    """Upload the model as an artifact, linked to the artifact of the model that training started from.

    Args:
        run: An online run.
        files: Files and directories to upload.
        metadata: The artifact's metadata.
        parent: The model that training started from, as given by `--model.name`.
        seconds: How long to wait for the upload.

    Returns:
        The artifact's full name.
    """
    import wandb

    if (used := parent_artifact(parent)) is not None:
        run.use_artifact(used)
    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
    for path in files:
        if path.is_dir():
            artifact.add_dir(str(path), name=path.name)
        else:
            artifact.add_file(str(path), name=path.name)
    run.log_artifact(artifact).wait(timeout=round(seconds))
    return f"{run.entity}/{run.project}/{artifact.name.partition(':')[0]}:latest"


def parent_artifact(model: str | None) -> str | None:
    """The artifact of the run whose finished model `--model.name local-dir:RUN/model` names."""
    folder = local_directory(model)
    return read(folder.parent).artifact if folder else None


def summary_metadata(summary: Mapping[str, object]) -> dict[str, object]:
    """The entries of a run's summary that go into the artifact's metadata."""
    keys = ("method", "merge", "seed", "target_sparsity", "sparsity", "model_sparsity", "nonzero", "parameters")
    kept = {key: summary[key] for key in keys if key in summary}
    return kept | {key: value for key, value in summary.items() if key.startswith(("test.", "candidates."))}
