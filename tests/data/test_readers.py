"""The data sets that come as plugins: arrays, tables, tars and torchvision's, against what the files hold."""

from __future__ import annotations

import csv
import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import pickled, publish, write_cifar
from PIL import Image

from sparsekit.config.options import DataConfig
from sparsekit.data import ExampleData, FolderData, load
from sparsekit.data.readers import csv as csv_reader
from sparsekit.data.readers import npz, timm_images
from sparsekit.errors import UserError
from sparsekit.testing import check_dataset

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def refused(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def pairs(examples: Any) -> list[tuple[tuple[float, ...], Any]]:
    """Inputs and targets of a split, as plain numbers that can be counted."""
    inputs, targets = examples
    return [(tuple(x.flatten().tolist()), tuple(y.flatten().tolist())) for x, y in zip(inputs, targets, strict=True)]


# --- npz ------------------------------------------------------------------------------------------


def test_arrays_are_split_once_and_every_class_has_its_share(tmp_path: Path) -> None:
    x, y = RNG.normal(size=(60, 2, 3)), np.repeat([0, 1, 2], [10, 20, 30])
    np.savez(tmp_path / "a.npz", x=x, y=y)
    data = npz.read(None, str(tmp_path / "a.npz"), test_fraction=0.3)
    train: Any
    test: Any
    train, test = data.train, data.test
    assert (train[0].dtype, train[1].dtype) == (torch.float32, torch.int64)
    assert Counter(test[1].tolist()) == {0: 3, 1: 6, 2: 9}
    assert Counter(pairs(train) + pairs(test)) == Counter(pairs((torch.tensor(x).float(), torch.tensor(y))))
    again: Any = npz.read(str(tmp_path), "a.npz", test_fraction=0.3).test
    assert torch.equal(again[0], test[0])


@pytest.mark.parametrize(("channels", "shape"), [("last", (4, 5, 5, 3)), ("first", (4, 3, 5, 5)), ("none", (4, 5, 5))])
def test_bytes_are_images_from_0_to_1(tmp_path: Path, channels: Any, shape: tuple[int, ...]) -> None:
    x = RNG.integers(0, 256, shape).astype(np.uint8)
    np.savez(tmp_path / "a.npz", a=x, b=[0, 1, 0, 1], c=x, d=[1, 0, 1, 1])
    options: dict[str, Any] = {"x": "a", "y": "b", "test_x": "c", "test_y": "d", "channels": channels}
    data: Any = npz.read(str(tmp_path), "a.npz", **options)
    expected = (
        {"last": x.transpose(0, 3, 1, 2), "first": x, "none": x[:, None]} if len(shape) == 4 else {"none": x[:, None]}
    )
    assert data.train[0].shape == data.test[0].shape == expected[channels].shape
    torch.testing.assert_close(data.train[0], torch.tensor(expected[channels] / 255).float())
    assert data.test[1].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("y", "dtype", "names"),
    [
        (np.array(["b", "a", "b", "c"] * 5), torch.int64, ("a", "b", "c")),
        (np.linspace(0, 1, 20), torch.float32, ()),
        (RNG.random((20, 3)) < 0.5, torch.float32, ()),
        (np.arange(20, dtype=np.uint8) % 4, torch.int64, ()),
    ],
)
def test_what_targets_become(tmp_path: Path, y: Any, dtype: torch.dtype, names: tuple[str, ...]) -> None:
    np.savez(tmp_path / "a.npz", x=RNG.integers(0, 9, (20, 4)), y=y)
    data: Any = npz.read(str(tmp_path), "a.npz", test_fraction=0.5)
    assert data.train[0].dtype == torch.int64  # numbers of words, say
    assert data.train[1].dtype == data.test[1].dtype == dtype
    assert data.class_names == names
    assert data.train[1].shape[1:] == y.shape[1:]


def test_numbers_may_be_names_of_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((30, 2)), y=np.array([2, 10, 30] * 10))
    data: Any = npz.read(str(tmp_path), "a.npz", classes=True)
    assert data.class_names == ("2", "10", "30")
    assert Counter(data.test[1].tolist()) == {0: 2, 1: 2, 2: 2}
    file = write(tmp_path / "a.csv", [["x", "y"], *([i, [2, 10, 30][i % 3]] for i in range(30))])
    rows: Any = csv_reader.read(None, file, "y", classes=True)
    assert rows.class_names == ("2", "10", "30")
    assert all(int(x) % 3 == y for x, y in zip(rows.train[0][:, 0], rows.train[1], strict=True))
    config = DataConfig("csv", batch_size=4, options={"file": file, "target": "y"})
    assert "data.train has no example of class 0, but of class 30; number" in refused(load, config, CPU, False)
    assert "--data.classes true: --data.y has shape" in refused(npz.read, str(tmp_path), "a.npz", y="x", classes=True)


def test_bad_arrays_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.zeros(3), images=np.zeros((4, 2)), words=np.array(["a"] * 4))
    np.savez(tmp_path / "o.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("no zip")
    read = npz.read
    assert "--data.file 'b.npz': there is no file" in refused(read, str(tmp_path), "b.npz")
    assert "--data.x 'image' is no array" in (message := refused(read, str(tmp_path), "a.npz", x="image"))
    assert "Did you mean 'images'?" in message
    assert "shapes (4, 2) and (3,)" in refused(read, str(tmp_path), "a.npz")
    assert "--data.x: <U1" in refused(read, str(tmp_path), "a.npz", x="words", y="words")
    assert "--data.test_x and --data.test_y belong together" in refused(read, str(tmp_path), "a.npz", test_x="x")
    for file in ("one.npy", "text.npz"):
        assert f"--data.file '{file}' is no .npz file" in refused(read, str(tmp_path), file)
    assert "--data.file 'o.npz' cannot be read" in refused(read, str(tmp_path), "o.npz")
    assert "--data.test_fraction 1 of" in refused(read, str(tmp_path), "a.npz", y="images", test_fraction=1.0)


# --- csv ------------------------------------------------------------------------------------------


def write(path: Path, rows: list[list[Any]], separator: str = ",") -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return str(path)


def test_columns_are_features_and_targets(tmp_path: Path) -> None:
    rows: list[list[Any]] = [[i / 4, i % 3, -i * 1e3, "abc"[i % 3]] for i in range(30)]
    file = write(tmp_path / "a.csv", [["one", "number", "two", "name"], *rows])
    by_name: Any = csv_reader.read(None, file, "name")
    assert by_name.class_names == ("a", "b", "c")
    assert Counter(pairs(by_name.train) + pairs(by_name.test)) == Counter(
        ((r[0], float(r[1]), r[2]), ("abc".index(r[3]),)) for r in rows
    )
    assert Counter(by_name.test[1].tolist()) == {0: 2, 1: 2, 2: 2}
    rows = [[i, i % 3, i / 2, 5 * i] for i in range(10)]
    file = write(tmp_path / "b.csv", [["x", "class", "half", "five"], *rows], ";")
    tests = write(tmp_path / "c.csv", [["x", "class", "half", "five"], *rows[:3]], ";")
    whole: Any = csv_reader.read(None, file, "class", test_file=tests, separator=";")
    assert (whole.train[1].dtype, len(whole.train[1]), len(whole.test[1])) == (torch.int64, 10, 3)
    assert whole.test[0].tolist() == [[r[0], r[2], r[3]] for r in rows[:3]]
    several: Any = csv_reader.read(None, file, ["half", "five"], test_file=tests, separator=";")
    assert several.test[1].tolist() == [[r[2], r[3]] for r in rows[:3]]
    assert several.test[1].dtype == torch.float32
    half: Any = csv_reader.read(str(tmp_path), "b.csv", ["half"], separator=";")
    assert half.train[1].shape == (8,)


BAD = {
    "a cell": ("x,y\n1,0\n\n2a,1\n", "line 4, column 'x': '2a' is no number"),
    "an empty cell": ("x,y\n1,0\n,1\n", "line 3, column 'x': '' is no number"),
    "no number at all": ("x,y\n1,0\nnan,1\n", "line 3, column 'x': 'nan' is no number"),
    "mixed classes": ("x,y\n1,0\n2,b\n", "line 3, column 'y': 'b' is no number"),
    "a short row": ("x,y\n1,0\n2\n", "line 3: 1 cells, but 2 columns"),
    "another separator": ("x;y\n1;0\n", "--data.target 'y' is no column"),
    "a column twice": ("x,x,y\n1,0,0\n", "names 2 columns 'x'"),
    "no name": ("x,,y\n1,0,0\n", "names 1 columns ''"),
    "no rows": ("x,y\n", "has no rows"),
    "nothing": ("", "has no rows"),
    "no feature": ("y\n1\n2\n", "--data.target names every column"),
    "no text": (b"x,y\n\xff,1\n", "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_told_with_line_and_column(tmp_path: Path, case: str) -> None:
    content, words = BAD[case]
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in refused(csv_reader.read, str(tmp_path), "a.csv", "y")


def test_bad_options_of_a_table_are_told(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [["x", "label"], *([i, i % 2] for i in range(9))])
    write(tmp_path / "b.csv", [["z", "label"], [1, 0]])
    folder = str(tmp_path)
    message = refused(csv_reader.read, folder, "a.csv", "labl")
    assert "--data.target 'labl' is no column of 'a.csv', which has x, label. Did you mean 'label'?" in message
    assert "differ in their columns: x, z" in refused(csv_reader.read, folder, "a.csv", "label", test_file="b.csv")
    assert "--data.separator is ', '" in refused(csv_reader.read, folder, "a.csv", "label", separator=", ")
    assert "--data.target is []" in refused(csv_reader.read, folder, "a.csv", [])


# --- images ---------------------------------------------------------------------------------------


def tar(path: Path, classes: dict[str, int], start: int = 0) -> str:
    """A tar of PNG files, each of one grey level: 10 per class and one more for each image."""
    with tarfile.open(path, "w") as file:
        for number, (name, count) in enumerate(classes.items()):
            for i in range(count):
                data = io.BytesIO()
                Image.new("RGB", (9, 7), (start + 30 * number + i,) * 3).save(data, "PNG")
                info = tarfile.TarInfo(f"{name}/{i}.png")
                info.size = data.tell()
                data.seek(0)
                file.addfile(info, data)
    return str(path)


def test_a_tar_is_read_as_the_folder_that_it_was_made_of(tmp_path: Path) -> None:
    root = tar(tmp_path / "a.tar", {"b": 12, "a": 8, "c": 10})
    data: Any = timm_images.tar(root, test_fraction=0.5)
    assert data.class_names == ("a", "b", "c")
    seen = [(image.getpixel((0, 0))[0], data.class_names[label]) for part in (data.train, data.test) for image, label in
            (part[i] for i in range(len(part)))]  # fmt: skip
    expected = {"b": range(12), "a": range(30, 38), "c": range(60, 70)}
    assert Counter(seen) == Counter((grey, name) for name, greys in expected.items() for grey in greys)
    assert Counter(data.test.targets) == {0: 4, 1: 6, 2: 5}
    tests = tar(tmp_path / "t.tar", {"c": 2, "b": 3}, start=100)
    other: Any = timm_images.tar(root, test_root=tests)
    assert [other.class_names[label] for label in other.test.targets] == ["b"] * 3 + ["c"] * 2
    assert len(other.train) == 30


def test_a_tar_trains_as_an_image_folder_does(tmp_path: Path) -> None:
    root = tar(tmp_path / "a.tar", {"b": 12, "a": 8, "c": 10})
    options = {"test_fraction": 0.2}
    config = DataConfig("imagetar", root, batch_size=4, image_size=8, workers=0, held_out=0.25, options=options)
    data = load(config, CPU, False)
    assert isinstance(data, FolderData)
    assert (data.train_size, data.held_out_size, data.test_size) == (18, 6, 6)
    first = [(images.clone(), labels) for images, labels in data.train_batches(1, 7)]
    assert all(images.shape == (4, 3, 8, 8) for images, _ in first)
    later = list(data.train_batches(1, 7, start=3))
    assert all(torch.equal(a, b) for x, y in zip(first[3:], later, strict=True) for a, b in zip(x, y, strict=True))
    tests: Any = timm_images.tar(root, **options).test
    shown = torch.cat([images[:, 0, 4, 4] for images, _ in data.raw_batches("test")])
    assert shown.round().tolist() == [tests[i][0].getpixel((0, 0))[0] for i in range(6)]
    with_workers = load(DataConfig(**{**vars(config), "workers": 2}), CPU, False)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, with_workers.train_batches(1, 7), strict=True))


def test_bad_tars_are_told(tmp_path: Path) -> None:
    read, names = timm_images.tar, {"train/a": 2, "val/a": 1}
    assert "--data.root: no tar is given" in refused(read, None)
    assert "neither a .tar file nor a folder" in refused(read, str(tmp_path / "a.zip"))
    assert "folders of classes in train/ and val/" in refused(read, tar(tmp_path / "s.tar", names))
    assert "images in no folder" in refused(read, tar(tmp_path / "n.tar", {".": 2}))
    assert "holds no image" in refused(read, tar(tmp_path / "e.tar", {}))
    (tmp_path / "x.tar").write_text("nothing")
    assert "--data.root" in refused(read, str(tmp_path / "x.tar"))
    a, b = tar(tmp_path / "a.tar", {"a": 4, "b": 4}), tar(tmp_path / "b.tar", {"a": 1, "z": 1})
    assert "has a class 'z' that --data.root lacks" in refused(read, a, test_root=b)


def test_torchvisions_sets_by_their_names_in_timm(tmp_path: Path) -> None:
    message = refused(timm_images.torchvision, str(tmp_path), "mnist")
    assert "--data.name torch/mnist with --data.root" in message
    assert "Unknown torchvision dataset moon" in refused(timm_images.torchvision, None, "moon")


def test_hugging_face_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install datasets" in refused(timm_images.hugging_face, None, "cifar10")


# --- all of them ------------------------------------------------------------------------------------


def test_the_readers_keep_the_contract(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=RNG.normal(size=(20, 2)), y=np.arange(20) % 2)
    write(tmp_path / "a.csv", [["x", "label"], *([i, i % 2] for i in range(20))])
    check_dataset(npz.read, root=str(tmp_path), file="a.npz")
    check_dataset(csv_reader.read, root=str(tmp_path), file="a.csv", target="label")
    check_dataset(timm_images.tar, root=tar(tmp_path / "a.tar", {"a": 9, "b": 9}))


def test_limit_fold_mean_and_std_hold_for_arrays(tmp_path: Path) -> None:
    x, y = RNG.normal(size=(100, 3)).astype(np.float32), np.arange(100) % 4
    np.savez(tmp_path / "a.npz", x=x, y=y, test_x=x[:8], test_y=y[:8])
    options = {"file": "a.npz", "test_x": "test_x", "test_y": "test_y"}
    base: dict[str, Any] = {"name": "npz", "root": str(tmp_path), "batch_size": 4, "workers": 0, "options": options}
    data = load(DataConfig(**base, limit=20, fold="2/5", mean=[1.0, 2.0, 3.0], std=2.0), CPU, False)
    assert isinstance(data, ExampleData)
    assert (data.train_size, data.held_out_size, data.test_size) == (20, 20, 8)
    inputs = torch.cat([inputs for inputs, _ in data.evaluation_batches("test")])
    torch.testing.assert_close(inputs, (torch.tensor(x[:8]) - torch.tensor([1.0, 2.0, 3.0])) / 2.0)
    assert Counter(torch.cat([labels for _, labels in data.evaluation_batches("held_out")]).tolist()) == dict.fromkeys(
        range(4), 5
    )
    assert data.inputs.mean == (1.0, 2.0, 3.0)
    message = refused(load, DataConfig(**base, mean=[1.0, 2.0]), CPU, False)
    assert "--data.mean has 2 values for 3 channels" in message


def test_published_files_by_torchvisions_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py", 10, 100, pickled(4))
    publish(monkeypatch, tmp_path / "cifar-10-batches-py", 10)
    own = load(DataConfig("cifar10", str(tmp_path), batch_size=10), CPU, False)
    theirs: Any = timm_images.torchvision(str(tmp_path), "cifar10")
    shown = torch.cat([images for images, _ in own.raw_batches("test")])
    assert len(theirs.test) == len(shown)
    for index, image in enumerate(shown):
        assert np.array_equal(np.asarray(theirs.test[index][0]), image.permute(1, 2, 0))
    assert list(own.class_names) == list(theirs.class_names)


def test_an_array_that_is_not_there_is_told_by_its_option(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((8, 2)), y=np.zeros(8))
    with pytest.raises(UserError) as told:
        npz.read(str(tmp_path), "a.npz", y="nope")
    assert str(told.value).startswith("--data.y 'nope' is no array of 'a.npz'")
    assert "cannot be read" not in str(told.value)
    (tmp_path / "b.npz").write_text("no archive")
    with pytest.raises(UserError) as told:
        npz.read(str(tmp_path), "b.npz")
    assert str(told.value).count("--data.file") == 1
