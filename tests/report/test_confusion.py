"""The confusion matrix's file and picture."""

from pathlib import Path

import numpy as np
import pytest

from vgg_jax.report.confusion import NAMED, draw_confusion, read_csv, write_csv

MATRIX = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
NAMES = ("T-shirt, top", 'a "dog"', "$_$ <b>")


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "confusion.csv"
    write_csv(path, MATRIX, NAMES)
    assert path.read_text().splitlines()[1] == '"T-shirt, top",8,2,0'
    matrix, names = read_csv(path)
    np.testing.assert_array_equal(matrix, MATRIX)
    assert names == NAMES
    for text in ("true,a,b\na,1,2\n", "", "true,a\na,x\n", "true,a,b\na,1\nb,1,2\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"confusion\.csv .* delete it"):
            read_csv(path)


def test_the_picture_says_counts_and_colors_shares() -> None:
    figure = draw_confusion(MATRIX, NAMES)
    (axes,) = figure.axes
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    # (column, row): across is what was predicted.
    assert texts == {(0, 0): "8", (1, 0): "2", (1, 1): "5", (2, 1): "5"}
    shares = np.square(axes.images[0].get_array())
    np.testing.assert_allclose(shares, [[0.8, 0.2, 0], [0, 0.5, 0.5], [0, 0, 0]])
    assert [t.get_text() for t in axes.get_yticklabels()] == list(NAMES)
    figure.canvas.draw()  # names that look like formulas are text


def test_many_classes_are_not_named() -> None:
    many = NAMED + 1
    (axes,) = draw_confusion(np.eye(many, dtype=int), ["x"] * many).axes
    assert not axes.texts
