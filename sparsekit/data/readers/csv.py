"""Rows of numbers in a `.csv` file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsekit.data.examples import Data
from sparsekit.data.readers import tables
from sparsekit.errors import UserError, nearest


def read(
    root: str | None,
    file: str,
    target: list[str] | str,
    test_file: str | None = None,
    test_fraction: float = 0.2,
    separator: str = ",",
    classes: bool = False,
) -> Data:
    """Rows of numbers in a .csv file, whose first line names the columns.

    One target column of whole numbers, or of texts, holds classes; other targets are numbers to predict. All other
    columns are features, float32 [N, columns].

    Args:
        root: Folder of the files; by default the current directory.
        file: The file.
        target: Name of the column, or list of the columns, to predict.
        test_file: A file of test rows with the same columns; without one they are cut off the training rows.
        test_fraction: Fraction of the rows that is cut off for tests, above 0 and below 1.
        separator: What stands between two cells, one character; `tab` for a tabulator.
        classes: Whether the target column's numbers only name classes, which are then numbered from 0 in their order.
    """
    targets = [target] if isinstance(target, str) else target
    separator = {"tab": "\t", "\\t": "\t"}.get(separator, separator)
    if len(separator) != 1:
        raise UserError(f"--data.separator is {separator!r}; give one character, or tab")
    if not targets:
        raise UserError("--data.target is []; name a column")
    table = _Table.read(root, file, "--data.file", separator)
    for name in targets:
        if name not in table.header:
            raise UserError(
                f"--data.target {name!r} is no column of {file!r}, which has {', '.join(table.header)}."
                f"{nearest(name, table.header)}"
            )
    features = [name for name in table.header if name not in targets]
    if not features:
        raise UserError(f"--data.target names every column of {file!r}; leave some as features")
    tests = _Table.read(root, test_file, "--data.test_file", separator) if test_file is not None else None
    if tests and set(tests.header) != set(table.header):
        other = ", ".join(sorted(set(tests.header) ^ set(table.header)))
        raise UserError(f"--data.test_file {test_file!r} and {file!r} differ in their columns: {other}")
    read = [table, tests] if tests else [table]
    inputs = [each.numbers(features).astype(np.float32) for each in read]
    if len(targets) == 1 and not any(each.any_number(targets[0]) for each in read):
        column = np.array([text for each in read for text in each.column(targets[0])])
    else:
        column = np.concatenate([each.numbers(targets) for each in read])
        column = column[:, 0] if len(targets) == 1 else column
        if column.ndim == 1 and all(each.whole(targets[0]) for each in read):
            column = column.astype(np.int64)
    y, class_names = tables.targets_of(column, "--data.target", classes)
    if tests is None:
        return tables.cut(inputs[0], y, test_fraction, class_names)
    count = len(inputs[0])
    return tables.data((inputs[0], y[:count]), (inputs[1], y[count:]), class_names)


class _Table:
    """The cells of a file, as text, and the line of each row."""

    def __init__(self, name: str, header: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[int]) -> None:
        self.name, self.header, self.rows, self.lines = name, list(header), rows, lines

    @classmethod
    def read(cls, root: str | None, file: str, option: str, separator: str) -> _Table:
        """Read a file; raises UserError where it is no table."""
        path: Path = tables.path_of(root, file, option)
        lines: list[int] = []
        rows: list[list[str]] = []
        try:
            with path.open(encoding="utf-8-sig", newline="") as opened:
                reader = csv.reader(opened, delimiter=separator, strict=True)
                header = [cell.strip() for cell in next(reader, [])]
                for row in reader:
                    if row and len(row) != len(header):
                        raise UserError(
                            f"{option} {file!r}, line {reader.line_num}: {len(row)} cells, but {len(header)} columns; "
                            "correct the line, or give --data.separator"
                        )
                    if row:
                        rows.append([cell.strip() for cell in row])
                        lines.append(reader.line_num)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{option} {file!r} cannot be read: {error}; give a table as UTF-8 text") from error
        for name in header:
            if not name or header.count(name) > 1:
                raise UserError(
                    f"{option} {file!r} names {header.count(name)} columns {name!r}; give each a name in the first line"
                )
        if not rows:
            raise UserError(f"{option} {file!r} has no rows below its first line; give some")
        return cls(file, header, rows, lines)

    def column(self, name: str) -> list[str]:
        """The cells of a column."""
        index = self.header.index(name)
        return [row[index] for row in self.rows]

    def any_number(self, name: str) -> bool:
        """Whether a cell of a column is a number."""
        return any(_number(cell) is not None for cell in self.column(name))

    def whole(self, name: str) -> bool:
        """Whether every cell of a column is a whole number, written without a point."""
        return all(cell.removeprefix("-").isdecimal() for cell in self.column(name))

    def numbers(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Columns as numbers [rows, columns]; raises UserError, with its line and column, at a cell that is none."""
        columns: list[Any] = []
        for name in names:
            cells = [_number(cell) for cell in self.column(name)]
            if None in cells:
                row = cells.index(None)
                raise UserError(
                    f"{self.name}, line {self.lines[row]}, column {name!r}: {self.column(name)[row]!r} is no number; "
                    "correct it, or leave the column out of the file"
                )
            columns.append(cells)
        return np.array(columns, dtype=np.float64).T


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if np.isfinite(value) and "_" not in cell else None
