"""List the images of an image folder: the split of each by the folder's name, the label by the folder right below.

Does not import torch. `docs/decisions` says why the rules are as they are.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsekit.config.options import DataConfig
from sparsekit.data.contents import Part, limited_by, sizes
from sparsekit.data.decode import dark_note
from sparsekit.data.folder_walk import Tree, Walk, entries, is_litter, kind_of
from sparsekit.display.text import listed
from sparsekit.errors import UserError, nearest, printable
from sparsekit.files import expanded

if TYPE_CHECKING:
    from sparsekit.data.stream import Sample

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""The names of the splits' folders, in any case of letters."""
_NAMES = {name: split for split, names in SPLITS.items() for name in names}
_LIKE = re.compile(rf"({'|'.join(_NAMES)})[\W_\d]*(set|data|images|split)?[\W_\d]*")
"""Names that look like a split's, such as `test_set` and `val2017`, in lower case."""
_HINT = "give the folder with train/ and val/, each with one folder of images a class"


@dataclass(frozen=True)
class Listing:
    """The images of an image folder.

    Attributes:
        root: The folder.
        classes: The classes' names, in natural order.
        train: Images to train on, or to cut the other splits off.
        held_out: Held-out images; None where they are cut off the training images.
        test: Test images; None where they are cut off the training images.
        sources: The names of the splits' folders, by split of `SPLITS`.
        notes: Lines for the user: what was passed over, and what is not as one would think.
    """

    root: Path
    classes: list[str]
    train: list[Sample]
    held_out: list[Sample] | None
    test: list[Sample] | None
    sources: Mapping[str, str]
    notes: tuple[str, ...]

    def parts(self, config: DataConfig) -> tuple[Part, Part, Part]:
        """The training, held-out and test split."""
        left, whole, fraction = len(self.train), len(self.classes), config.held_out
        by_fraction = f"cut off {self.sources['train']} by --data.held_out {fraction:g}"
        tests = 0 if self.test is not None else round(fraction * left)
        if config.fold is not None:
            own = len(self.held_out or ())
            left, held = sizes(left - tests, own, replace(config, limit=None))
            both = f"{self.sources['train']} and {self.sources['val']}" if own else self.sources["train"]
            held_out = Part(held, whole, f"cut off {both} by --data.fold {config.fold}")
        elif self.held_out is not None:
            unused = f"; --data.held_out {fraction:g} is not used" if fraction != DataConfig.held_out else ""
            held_out = _part(self.held_out, f"from {self.sources['val']}{unused}")
        else:
            held_out = Part(round(fraction * left), whole, by_fraction)
            left -= held_out.images
            tests = tests and round(fraction * left)
            left -= tests
        if self.test is not None:
            test = _part(self.test, f"from {self.sources['test' if 'test' in self.sources else 'val']}")
        else:
            test = Part(tests, whole, f"{by_fraction}, as there is no val/ and no test/")
        left, _ = sizes(left, 0, replace(config, fold=None))
        return Part(left, whole, f"from {self.sources['train']}{limited_by(config)}"), held_out, test


def list_images(config: DataConfig) -> Listing:
    """List the images in `--data.root`, opening a few of them at most.

    The label of an image is the name of the folder right below its split's; with `--data.labels path` its whole path.

    Raises:
        UserError: a folder is missing or cannot be read, or it is unclear which split or class its images belong to.
    """
    if config.root is None:
        raise UserError(f"--data.root: imagefolder is read from files and no folder is given; {_HINT}")
    root = expanded(config.root)
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"--data.root: '{config.root}' {state}; {_HINT}")
    notes, by_path = list[str](), config.labels == "path"
    walk = Walk(by_path)
    folders, unused = _split_folders(root, walk)
    if unused:
        names = listed([*map(printable, unused)])
        notes.append(f"not used: {names}; call the folder of held-out images val/, that of test images test/")
    trees = walk.images(folders)
    if (images := _count(trees.get("test", {}))) and images == len(trees["test"][()]):
        notes.append(f"{folders['test'].name}/: its {images:,} images are in no folder of a class, so it is not used")
        del trees["test"], folders["test"]
    _check_images(folders, trees, walk)
    if folders["train"] == root:
        _check_deeper_splits(root, trees["train"])
    if config.labels is None:
        _check_depth(trees.values(), str(folders["train"]))
    _check_empty(folders["train"], trees["train"], by_path, walk)
    if deeper := sum(len(names) for tree in trees.values() for parts, names in tree.items() if len(parts) > 1):
        rule = "each path is a class of its own" if by_path else "they belong to that class"
        notes.append(f"{deeper:,} images are deeper than right below a class's folder: {rule}")
    labelled = {split: sorted(_labelled(tree, by_path), key=_by_path) for split, tree in trees.items()}
    classes = sorted({name for _, name in labelled["train"]}, key=_natural)
    _check_classes(classes, folders, labelled)
    for split in sorted(set(labelled) - {"train"}):
        if lacking := sorted(set(classes) - {name for _, name in labelled[split]}, key=_natural):
            some = f"{len(lacking):,} of {len(classes):,} classes: {listed([*map(repr, lacking)], 3)}"
            notes.append(f"{folders[split].name}/ has no image of {some}")
    if config.white is None and (text := dark_note([str(folders["train"] / path) for path, _ in labelled["train"]])):
        notes.append(text)
    if text := walk.passed_text():
        notes.append(text)
    index = {name: label for label, name in enumerate(classes)}
    samples = {
        split: [(os.path.join(folders[split], path), index[name]) for path, name in part]
        for split, part in labelled.items()
    }
    return Listing(
        root, classes, samples["train"],
        held_out=samples.get("val") if "test" in samples else None,
        test=samples.get("test", samples.get("val")),
        sources={split: f"{folder.name or folder.resolve().name}/" for split, folder in folders.items()},
        notes=tuple(notes),
    )  # fmt: skip


def _split_folders(root: Path, walk: Walk) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split of `SPLITS` that there is, without any the root for the training images; and others.

    Raises:
        UserError: two folders claim one split, or there are validation or test images but no folder train/.
    """
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    others: list[tuple[str, bool]] = []
    for entry, is_folder in entries(str(root)):
        if is_folder and (split := _NAMES.get(entry.name.casefold())):
            found[split].append(entry.name)
        else:
            others.append((entry.name, is_folder))
    for split, claim in found.items():
        if len(claim) > 1:
            both = " and ".join(repr(f"{name}/") for name in sorted(claim))
            raise UserError(f"--data.root: in {str(root)!r} {both} both name the {split} split; leave one of them")
    if found["train"]:
        unused = sorted(f"{name}/" for name, is_folder in others if is_folder and not is_litter(name))
        walk.passed.update(kind_of(name, is_dir) for name, is_dir in others if f"{name}/" not in unused)
        return {split: root / claim[0] for split, claim in found.items() if claim}, unused
    for name, is_folder in sorted(others) + [(name, True) for claim in found.values() for name in claim]:
        if is_folder and not is_litter(name) and _LIKE.fullmatch(name.casefold()):
            raise UserError(
                f"--data.root: {str(root)!r} has a folder {name!r}, but none called train; call the training "
                "images' folder train/, and those for tests val/ or test/ (a class of such a name goes into train/)"
            )
    return {"train": root}, []


def _check_images(folders: Mapping[str, Path], trees: Mapping[str, Tree], walk: Walk) -> None:
    """Raise UserError where a split has no images, or some outside of a class's folder."""
    for split, folder in folders.items():
        images, stray = _count(trees[split]), trees[split][()]
        if not images:
            passed = f" ({text})" if (text := walk.passed_text()) else ""
            raise UserError(f"--data.root: {str(folder)!r} holds no images{passed}; {_HINT}")
        if stray:
            raise UserError(
                f"--data.root: {str(folder / min(stray))!r} is not in the folder of a class, {len(stray):,} of "
                f"{images:,} images are not; {_HINT}"
            )


def _check_deeper_splits(root: Path, tree: Tree) -> None:
    """Raise UserError where a root without splits has folders deeper down that look like validation or test images."""
    for parts in sorted(tree):
        like = _LIKE.fullmatch(parts[-1].casefold()) if len(parts) > 1 else None
        if like and _NAMES[like[1]] != "train":
            raise UserError(
                f"--data.root: {str(root.joinpath(*parts))!r} looks like a split, but {str(root)!r} has no folder "
                f"train/; {_HINT}"
            )


def _check_depth(trees: Iterable[Tree], train: str) -> None:
    """Raise UserError where folders below a class's may be classes of their own: it has no image right below it."""
    folders: dict[str, set[tuple[str, ...]]] = {}
    for tree in trees:
        for parts, names in tree.items():
            if names:
                folders.setdefault(parts[0], set()).add(parts)
    for name, paths in sorted(folders.items()):
        if len(paths) > 1 and (name,) not in paths:
            below = [repr("/".join(parts)) for parts in sorted(paths)]
            raise UserError(
                f"--data.labels: {os.path.join(train, name)!r} holds images only in {len(below)} folders below it "
                f"({', '.join(below[:2])}{', …' if len(below) > 2 else ''}); give --data.labels folder if {name!r} is "
                "the class of them all, as in torchvision, or path if each of those is a class"
            )


def _check_empty(folder: Path, tree: Tree, by_path: bool, walk: Walk) -> None:
    """Raise UserError where the folder of a class holds no image."""
    full = {parts[:depth] for parts, names in tree.items() if names for depth in range(len(parts) + 1)}
    empty = sorted(parts for parts in tree if parts not in full and (by_path or len(parts) == 1))
    if empty:
        text = walk.passed_text()
        raise UserError(
            f"--data.root: {str(folder.joinpath(*empty[0]))!r} holds no images that Pillow reads"
            f"{f' ({text})' if text else ''}; give some, or remove the folder"
        )


def _check_classes(
    classes: list[str], folders: Mapping[str, Path], labelled: Mapping[str, list[tuple[str, str]]]
) -> None:
    """Raise UserError unless there are two classes or more, of clear names, and tests have no others."""
    train = str(folders["train"])
    if len(classes) < 2:
        raise UserError(f"--data.root: {train!r} holds images of one class, {classes[0]!r}; {_HINT}")
    alike: dict[str, str] = {}
    for name in classes:
        if (other := alike.setdefault(unicodedata.normalize("NFC", name).casefold(), name)) != name:
            raise UserError(
                f"--data.root: {train!r} has classes {other!r} and {name!r}, which differ only in capitals or in how "
                "accents are stored; join or rename them"
            )
    for split in ("val", "test"):
        for _, name in labelled.get(split, ()):
            if name not in classes:
                raise UserError(
                    f"--data.root: {str(folders[split])!r} holds a class {name!r} that {train!r} lacks."
                    f"{nearest(name, classes) or ' Give it training images, or move it away.'}"
                )


def _count(tree: Tree) -> int:
    return sum(map(len, tree.values()))


def _labelled(tree: Tree, by_path: bool) -> Iterable[tuple[str, str]]:
    """Path below the split's folder, and class, of each image."""
    for parts, names in tree.items():
        for name in names:
            yield "/".join((*parts, name)), "/".join(parts if by_path else parts[:1])


def _natural(text: str) -> tuple[list[int | str], str]:
    """Sorts numbers in texts by value, without regard to case; where that leaves two texts equal, by the texts."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text.lower())], text


def _by_path(item: tuple[str, str]) -> tuple[list[int | str], str]:
    return _natural(item[0])


def _part(samples: list[Sample], source: str) -> Part:
    return Part(len(samples), len({label for _, label in samples}), source)
