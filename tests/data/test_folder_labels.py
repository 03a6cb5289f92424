"""Which split and class an image of a folder belongs to; what is passed over, refused, or told."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from timm.data import create_dataset  # type: ignore[attr-defined]
from torchvision.datasets import ImageFolder

from sparsekit.config.options import DataConfig
from sparsekit.data import contents_at_hand
from sparsekit.data.folder_labels import Listing, list_images
from sparsekit.errors import UserError


def fill(root: Path, *folders: str, each: int = 5, suffix: str = "png") -> Path:
    """Empty files called as images; nothing here opens one."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            (root / folder / f"{number}.{suffix}").touch()
    return root


def listed(root: Path, **changes: Any) -> Listing:
    return list_images(DataConfig("imagefolder", str(root), **changes))


def by_class(listing: Listing, part: Iterable[tuple[str, int]] | None = None) -> dict[str, int]:
    """Images of each class, by name."""
    return dict(Counter(listing.classes[label] for _, label in (listing.train if part is None else part)))


def refused(root: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        listed(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- classes ------------------------------------------------------------------------------------------


def test_images_below_a_classes_folder_belong_to_it(tmp_path: Path) -> None:
    """As torchvision.datasets.ImageFolder has it."""
    fill(tmp_path, "train/cat", "train/cat/more/and more", "train/dog/images", "val/cat", "val/dog/images")
    found = listed(tmp_path)
    assert by_class(found) == {"cat": 10, "dog": 5}
    assert sorted(found.train) == sorted(ImageFolder(str(tmp_path / "train")).samples)
    assert any("15 images are deeper" in note and "belong to that class" in note for note in found.notes)


PLACES = ("a/airfield", "a/apartment_building/outdoor", "m/market/outdoor", "m/market/indoor")


def test_folders_below_a_class_that_may_be_classes_are_refused_until_it_is_said_which(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{part}/{name}" for part in ("train", "val") for name in PLACES))
    message = refused(tmp_path)
    for part in ("--data.labels", "train/a", "a/airfield", "a/apartment_building/outdoor", "folder", "path"):
        assert part in message
    assert listed(tmp_path, labels="path").classes == sorted(PLACES)
    assert by_class(listed(tmp_path, labels="path")) == dict.fromkeys(PLACES, 5)
    assert by_class(listed(tmp_path, labels="folder")) == {"a": 10, "m": 10}
    assert any("40 images are deeper" in note for note in listed(tmp_path, labels="folder").notes)


def test_sites_of_training_and_test_images_are_seen_together(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{part}/{name}/{part}site" for part in ("train", "val") for name in ("cat", "dog")))
    assert "'cat/trainsite', 'cat/valsite'" in refused(tmp_path)
    assert by_class(listed(tmp_path, labels="folder")) == {"cat": 5, "dog": 5}


def test_classes_are_in_natural_order_whatever_the_file_system_says(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/{name}" for name in ("n2", "n10", "n1", "N3", "²1²2")), each=3)
    for name in ("b.png", "B.png"):  # alike but for their case: the order of the disk must not matter
        (tmp_path / "train" / "n1" / name).touch()
    found = listed(tmp_path)
    assert found.classes == ["n1", "n2", "N3", "n10", "²1²2"]
    names = [Path(path).name for path, label in found.train if label == 0]
    assert names == ["0.png", "1.png", "2.png", "B.png", "b.png"]


def test_one_folder_a_class_is_listed_as_timm_lists_it(tmp_path: Path) -> None:
    draw = random.Random(0)
    for number in range(12):
        folder = tmp_path / "train" / f"{draw.choice(['n', 'Class ', 'x-'])}{37 * number % 100}"
        folder.mkdir(parents=True)
        for _ in range(9):
            (folder / f"{draw.choice(['Img', 'a_', ''])}{draw.randrange(10**5)}.{draw.choice(['png', 'JPEG'])}").touch()
    reader = create_dataset("", root=str(tmp_path / "train"), search_split=False).reader
    found = listed(tmp_path)
    assert found.train == reader.samples
    assert found.classes == list(reader.class_to_idx)


@pytest.mark.parametrize(("first", "second"), [("Cat", "cat"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_look_alike_are_refused(first: str, second: str, tmp_path: Path) -> None:
    message = refused(fill(tmp_path, f"train/{first}", f"train/{second}", "train/dog"))
    assert repr(first) in message
    assert repr(second) in message


def test_a_test_class_of_other_case_names_the_one_that_is_meant(tmp_path: Path) -> None:
    message = refused(fill(tmp_path, "train/Cat", "train/Dog", "val/cat", "val/Dog"))
    assert "holds a class 'cat'" in message
    assert "'Cat'" in message


def test_a_class_without_images_is_refused_and_what_its_folder_holds_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog")
    fill(tmp_path, "train/owl", suffix="heic")
    message = refused(tmp_path)
    assert "train/owl" in message
    assert "5 .heic" in message
    fill(tmp_path, "train/owl/nest")
    assert by_class(listed(tmp_path)) == {"cat": 5, "dog": 5, "owl": 5}
    (tmp_path / "train" / "cat" / "void").mkdir()
    assert listed(tmp_path, labels="folder").classes == ["cat", "dog", "owl"]
    assert "train/cat/void" in refused(tmp_path, labels="path")


# --- splits ---------------------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[list[str], str, str | None, str | None]] = {
    "train": (["train"], "train", None, None),
    "train, val": (["train", "val"], "train", None, "val"),
    "train, test": (["train", "test"], "train", None, "test"),
    "all": (["train", "val", "test"], "train", "val", "test"),
    "capitals": (["Train", "VALID", "Test"], "Train", "VALID", "Test"),
    "long names": (["training", "validation", "testing"], "training", "validation", "testing"),
    "flat": ([""], "", None, None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_of_folders_say_what_is_trained_on_held_out_and_tested(layout: str, tmp_path: Path) -> None:
    parts, train, held_out, test = LAYOUTS[layout]
    for number, part in enumerate(parts):
        fill(tmp_path / part, "cat", "dog", each=20 + number)
    found = listed(tmp_path, held_out=0.25)
    folders = {split: {Path(path).parents[1].name for path, _ in part or ()} for split, part in vars(found).items()
               if split in ("train", "held_out", "test")}  # fmt: skip
    assert folders["train"] == {train or tmp_path.name}
    assert folders["held_out"] == ({held_out} if held_out else set())
    assert folders["test"] == ({test} if test else set())
    kept, cut, tested = found.parts(DataConfig(held_out=0.25))
    assert sum(part.images for part in (kept, cut, tested)) == sum(2 * (20 + i) for i in range(len(parts)))
    assert f"{train or tmp_path.name}/" in kept.source
    assert (f"{held_out}/" if held_out else "--data.held_out 0.25") in cut.source
    assert (f"{test}/" if test else "--data.held_out 0.25") in tested.source
    assert (kept.classes, cut.classes, tested.classes) == (2, 2, 2)
    if held_out:
        assert "--data.held_out 0.25 is not used" in cut.source
        assert "--data.held_out" not in found.parts(DataConfig())[1].source


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (["train/cat", "train/dog", "val/cat", "valid/cat"], ["'val/'", "'valid/'"]),
        (["train/cat", "train/dog", "Train/cat"], ["'Train/'", "'train/'"]),
        (["val/cat", "val/dog"], ["'val'", "train/"]),
        (["cat", "dog", "test/cat", "test/dog"], ["'test'", "train/"]),
        (["cat", "dog", "Validation"], ["'Validation'", "train/"]),
        (["training_set/cat", "training_set/dog", "test_set/cat"], ["'test_set'", "train/"]),
        (["train2017", "val2017"], ["2017'", "train/"]),
        (["archive/train/cat", "archive/train/dog", "archive/val/cat", "archive/val/dog"], ["archive/val'", "train/"]),
        (["cat/train", "cat/test", "dog/train", "dog/test"], ["cat/test'", "train/"]),
    ],
)
def test_images_that_others_published_for_tests_are_never_a_class(
    folders: list[str], named: list[str], tmp_path: Path
) -> None:
    fill(tmp_path, *folders)
    for labels in (None, "folder", "path"):
        message = refused(tmp_path, labels=labels)
        assert all(part in message for part in named)


def test_classes_may_have_names_of_splits_below_train(tmp_path: Path) -> None:
    assert listed(fill(tmp_path, "train/test", "train/train", "train/car")).classes == ["car", "test", "train"]


def test_a_test_folder_without_labels_is_told_and_not_used(tmp_path: Path) -> None:
    """As ImageNet's."""
    found = listed(fill(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog", "test"))
    assert found.test is not None
    assert {Path(path).parents[1].name for path, _ in found.test} == {"val"}
    assert found.held_out is None
    assert any("test/: its 5 images" in note and "not used" in note for note in found.notes)
    assert "test/4.png" not in " ".join(found.notes)
    fill(tmp_path, "test/cat")
    assert "test/0.png" in refused(tmp_path)
    fill(tmp_path, "val")
    (tmp_path / "test").rename(tmp_path / "away")
    assert "val/0.png" in refused(tmp_path)


def test_classes_without_test_images_are_told(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog", "train/owl", "val/cat")
    (tmp_path / "val" / "dog").mkdir()
    assert "val/ has no image of 2 of 3 classes: 'dog', 'owl'" in listed(tmp_path).notes


# --- what is passed over, and links -----------------------------------------------------------------------


def test_litter_and_other_files_are_passed_over_and_counted(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog", "extra/cat", "__MACOSX/train/cat")
    fill(tmp_path, "train/cat/.ipynb_checkpoints", "train/cat/@eaDir", "train/dog/@eaDir", "val/.AppleDouble")
    fill(tmp_path, "train/$RECYCLE.BIN", "train/lost+found", "train/#recycle")
    (tmp_path / "odd\n.d").mkdir()
    for name in ("Thumbs.db", "desktop.ini", "._0.png", ".DS_Store", "a.txt", "b.TXT", "README", "notes.tar.gz"):
        (tmp_path / "train" / "cat" / name).touch()
    (tmp_path / "labels.csv").touch()
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")
    found = listed(tmp_path)
    assert by_class(found) == {"cat": 5, "dog": 5}
    (note,) = [note for note in found.notes if note.startswith("passed over: ")]
    listing = note.removeprefix("passed over: ")
    assert "2 @eaDir/" in listing
    assert "2 .txt" in listing
    assert "2 hidden" in listing
    shown = [entry.split(" ", 1) for entry in listing.split(", ")]
    # 8 folders, 2 hidden files, 2 .txt, one each of Thumbs.db, desktop.ini, README, .gz, .csv, .png
    assert sum(int(count) for count, _ in shown) == 18
    assert "\n" not in "".join(found.notes)
    assert shown[-1][1].endswith("more kinds")


@pytest.mark.parametrize("name", ["eval", "dev", "query", "holdout"])
def test_a_folder_beside_train_that_is_no_split_is_named_with_the_way_to_use_it(name: str, tmp_path: Path) -> None:
    found = listed(fill(tmp_path, "train/cat", "train/dog", f"{name}/cat", f"{name}/dog"))
    assert by_class(found) == {"cat": 5, "dog": 5}
    (note,) = found.notes
    for part in (f"{name}/", "not used", "val/", "test/"):
        assert part in note


def test_whatever_pillow_decodes_is_an_image_in_any_case_of_letters(tmp_path: Path) -> None:
    kinds = ["png", "JPG", "jpeg", "webp", "tif", "TIFF", "bmp", "gif", "jp2", "avif", "pgm", "jfif", "mpo"]
    fill(tmp_path, "train/dog")
    for kind in kinds:
        fill(tmp_path, "train/cat", each=1, suffix=kind)
    for kind in ("h5", "mpg", "eps", "pdf", "svg", "heic", "dcm"):
        fill(tmp_path, "train/cat", each=1, suffix=kind)
    found = listed(tmp_path)
    assert by_class(found) == {"cat": len(kinds), "dog": 5}
    assert all(f"1 .{kind}" in found.notes[-1] for kind in ("h5", "mpg", "eps", "pdf", "svg", "heic", "dcm"))


def test_links_to_images_and_folders_work_and_those_to_a_folder_around_them_do_not_multiply(tmp_path: Path) -> None:
    pool = fill(tmp_path / "pool", "cat", "dog", "more")
    root = tmp_path / "root"
    (root / "train" / "cat").mkdir(parents=True)
    for image in (pool / "cat").iterdir():
        (root / "train" / "cat" / image.name).symlink_to(image)
    (root / "train" / "dog").symlink_to(pool / "dog")
    (root / "train" / "cat" / "more").symlink_to(pool / "more")
    (root / "train" / "cat" / "again").symlink_to(pool / "more")
    (root / "train" / "cat" / "self").symlink_to(".")
    (root / "train" / "cat" / "up").symlink_to("..")
    (root / "train" / "above").symlink_to("../..")
    found = listed(root)
    assert by_class(found) == {"cat": 10, "dog": 5}
    assert "3 link to a folder around it" in found.notes[-1]
    assert "1 link to a folder that is read already" in found.notes[-1]


def test_one_folder_in_two_classes_or_splits_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog")
    (tmp_path / "val").symlink_to("train")
    message = refused(tmp_path)
    assert f"'{tmp_path}/train'" in message
    assert f"'{tmp_path}/val'" in message
    (tmp_path / "val").unlink()
    (tmp_path / "train" / "kitty").symlink_to("cat")
    message = refused(tmp_path)
    assert "train/kitty'" in message
    assert "train/cat'" in message


def test_an_image_that_is_linked_again_counts_once(tmp_path: Path) -> None:
    pool = fill(tmp_path / "pool", "all")
    root = fill(tmp_path / "root", "train/cat", "train/dog")
    for name in ("a.png", "b.png"):
        (root / "train" / "cat" / name).symlink_to(pool / "all" / "0.png")
    (root / "train" / "cat" / "c.png").symlink_to("1.png")
    (root / "train" / "cat" / "deeper").mkdir()
    (root / "train" / "cat" / "deeper" / "d.png").symlink_to("../c.png")
    found = listed(root)
    assert by_class(found) == {"cat": 6, "dog": 5}
    assert any(path.endswith("a.png") for path, _ in found.train)
    assert "3 link to an image that is read already" in found.notes[-1]
    with pytest.raises(UserError, match="two classes or splits"):
        listed(root, labels="path")  # where train/cat and train/cat/deeper are two classes


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("val/cat/x.png", "../../train/cat/0.png"),
        ("train/dog/x.png", "../cat/0.png"),
        ("val/dog/x.png", "../cat/0.png"),
    ],
)
def test_an_image_linked_into_two_classes_or_splits_is_refused(link: str, target: str, tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog")
    (tmp_path / link).symlink_to(target)
    message = refused(tmp_path)
    assert f"{tmp_path}/{link}'" in message
    assert os.path.normpath(tmp_path / link / ".." / target) in message
    (tmp_path / link).unlink()
    pool = fill(tmp_path / "pool", "all")
    for name in (link, "train/cat/y.png"):
        (tmp_path / name).symlink_to(pool / "all" / "0.png")
    assert f"{tmp_path}/{link}'" in refused(tmp_path)


@pytest.mark.parametrize("link", ["train/cat/7.png", "train/owl", "val", "train/cat/loop"])
def test_a_link_that_leads_nowhere_is_named(link: str, tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog")
    (tmp_path / link).symlink_to("loop" if link.endswith("loop") else "nowhere")
    message = refused(tmp_path)
    assert f"{tmp_path}/{link}" in message
    assert "remove it" in message


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the administrator, who runs tests in containers, may read all, the refusal is played."""
    fill(tmp_path, "train/cat", "train/dog/secret")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = refused(tmp_path)
    assert "train/dog/secret" in message
    assert "Permission denied" in message


def test_what_is_at_hand_is_told_without_reading_images(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog", each=10)
    found = contents_at_hand(DataConfig("imagefolder", str(tmp_path), held_out=0.2))
    assert found is not None
    assert [part.images for part in (found.train, found.held_out, found.test)] == [13, 4, 3]
    assert found.lines()[0] == "train: 13 images of 2 classes, from train/"
    assert contents_at_hand(DataConfig("imagefolder", str(tmp_path / "nowhere"))) is None
    assert contents_at_hand(DataConfig("cifar10", str(tmp_path))) is None
