"""Pictures of three drawn shapes, for runs of seconds."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np


def draw_shapes(root: Path, counts: Mapping[str, int], width: int) -> None:
    """Bars, boxes and discs, gray 32 x `width`: `root`/split/shape/number.png.

    `counts` says how many of each shape a split has.
    """
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for label, name in enumerate(("bar", "box", "disc")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 60, (32, width), np.uint8)
                x, y = rng.integers(12, 20, 2).tolist()
                if label == 0:
                    cv2.line(image, (x, 2), (x, 30), 255, 3)
                elif label == 1:
                    cv2.rectangle(image, (x - 8, y - 8), (x + 8, y + 8), 255, 2)
                else:
                    cv2.circle(image, (x, y), 8, 255, -1)
                cv2.imwrite(str(folder / f"{i}.png"), image)
