"""Makes pictures for the examples, so that they need no download."""

import cv2
import numpy as np

SHAPES = ("background", "disk", "square", "triangle")
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
)


def shapes(count: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws colored shapes over one another on a colored ground, in light noise.

    Returns:
        images uint8 [count, side, side, 3], and masks int32 [count, side, side] with
        the number in `SHAPES` that each pixel shows.
    """
    rng = np.random.default_rng(seed)
    images = np.empty((count, side, side, 3), np.uint8)
    masks = np.zeros((count, side, side), np.int32)
    corners = np.array(((-1, 1), (1, 1), (0, -1)))
    for image, mask in zip(images, masks, strict=True):
        image[:] = rng.integers(0, 256, 3)
        for _ in range(rng.integers(2, 5)):
            kind = int(rng.integers(1, len(SHAPES)))
            x, y = (
                int(place) for place in rng.integers(side // 8, side - side // 8, 2)
            )
            radius = int(rng.integers(side // 10, side // 4))
            for canvas, color in ((image, rng.integers(0, 256, 3)), (mask, (kind,))):
                color = tuple(map(int, color))
                if kind == 1:
                    cv2.circle(canvas, (x, y), radius, color, -1)
                elif kind == 2:
                    ends = (x - radius, y - radius), (x + radius, y + radius)
                    cv2.rectangle(canvas, *ends, color, -1)
                else:
                    cv2.fillPoly(canvas, [corners * radius + (x, y)], color)
    noise = rng.normal(0, 8, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8), masks


def letters(
    text: str, per_letter: int, side: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the letters of a text in colors, fonts, sizes and angles by chance.

    Returns:
        images uint8 [N, side, side, 3], and labels int32 [N], places in `text`.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(
        np.repeat(np.arange(len(text), dtype=np.int32), per_letter)
    )
    images = np.empty((len(labels), side, side, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        ground, ink = rng.permutation(
            rng.integers(((0,), (150,)), ((106,), (256,)), (2, 3))
        )
        image[:] = ground
        font, size = FONTS[rng.integers(len(FONTS))], rng.uniform(0.6, 0.9) * side / 32
        (width, height), _ = cv2.getTextSize(text[label], font, size, 2)
        corner = (side - width) // 2, (side + height) // 2
        cv2.putText(image, text[label], corner, font, size, ink.tolist(), 2)
        turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(-25, 25), 1)
        turn[:, 2] += rng.uniform(-side / 12, side / 12, 2)
        border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": ground.tolist()}
        image[:] = cv2.warpAffine(image, turn, (side, side), **border)
    noise = rng.normal(0, 12, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8), labels


def mean_iou(predicted: np.ndarray, masks: np.ndarray) -> float:
    """Returns the intersection over union of each of `SHAPES`, averaged."""
    pairs = [(predicted == kind, masks == kind) for kind in range(len(SHAPES))]
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))
