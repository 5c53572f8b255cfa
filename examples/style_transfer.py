"""Paints one picture in the style of another (Gatys et al. 2015, arXiv:1508.06576).

  python examples/style_transfer.py CONTENT STYLE --weights FILE --output styled.jpg

The features of the result are to be near those of CONTENT, and their correlations near
those of STYLE; L-BFGS changes the pixels. Pictures on the way go beside the output. The
same command goes on after Ctrl-C, and with more --steps after the last one.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils.epath import Path

from vgg_jax import cli, files, losses
from vgg_jax.console import progress_bar
from vgg_jax.interrupt import STOPPED, Interrupt

CONTENT_LAYERS = ("relu4_2",)
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
RANGE = (0, 1)  # of the pixels
COMMAND = "examples/style_transfer.py"

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Targets:
    """What the result is to come near to; a weight of one is an error of 100 percent.

    Args:
        content: the maps of CONTENT.
        style: the Gram matrices of STYLE.
        content_weights, style_weights: for each layer one over the mean square of its
            target, so that layers of large values do not count for more.
    """

    content: dict[str, jax.Array]
    style: dict[str, jax.Array]
    content_weights: dict[str, jax.Array]
    style_weights: dict[str, jax.Array]


def make_targets(
    extractor: losses.FeatureExtractor, content: np.ndarray, style: np.ndarray
) -> Targets:
    """Computes the features of CONTENT and the Gram matrices of STYLE, once."""
    maps = extractor(content, input_range=RANGE)
    content_maps = {name: maps[name] for name in CONTENT_LAYERS}
    grams = grams_of(extractor(style, input_range=RANGE))
    return Targets(
        content_maps, grams, relative_weights(content_maps), relative_weights(grams)
    )


def relative_weights(targets: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the weights with which errors are those of the mean layer, relatively."""
    return {
        name: 1 / (len(targets) * jnp.mean(jnp.square(array)))
        for name, array in targets.items()
    }


def grams_of(maps: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Computes the Gram matrices of the layers that make the style."""
    styled = {name: maps[name] for name in STYLE_LAYERS}
    return losses.gram_matrices(styled, normalization="positions")


def make_step(
    extractor: losses.FeatureExtractor,
    targets: Targets,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    style_weight: float,
    smoothness: float,
) -> Step:
    """Returns the compiled function that takes a step: image, state -> both, loss."""

    def loss(image: jax.Array) -> jax.Array:
        maps = extractor(image, input_range=RANGE)
        content = losses.feature_loss(maps, targets.content, targets.content_weights)
        style = losses.style_loss(grams_of(maps), targets.style, targets.style_weights)
        roughness = losses.total_variation(image, error="squared") / image.size
        return (content + style_weight * style + smoothness * roughness)[0]

    @jax.jit
    def step(image: jax.Array, state: Any) -> tuple[jax.Array, Any, jax.Array]:
        if optax.tree.get(state, "grad") is None:
            value, gradient = jax.value_and_grad(loss)(image)
        else:  # with L-BFGS the line search has computed both already
            value, gradient = optax.value_and_grad_from_state(loss)(image, state=state)
        updates, state = optimizer.update(
            gradient, state, image, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(image, updates), state, value

    return step


def read_picture(path: Path) -> np.ndarray:
    """Reads a picture as uint8 [H, W, 3].

    Raises:
        ValueError: it is no picture.
    """
    encoded = np.frombuffer(path.read_bytes(), np.uint8)
    picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB) if encoded.size else None
    if picture is None:
        raise ValueError(f"{path}: expected a picture, such as a JPEG or a PNG")
    return picture


def rescale(picture: np.ndarray, side: int) -> np.ndarray:
    """Rescales to a longer side: uint8 [H, W, 3] -> float32 [1, h, w, 3], 0 to 1."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    size = (round(width * scale), round(height * scale))
    return cv2.resize(picture, size, interpolation=kind)[None] / np.float32(255)


def write_picture(path: Path, image: jax.Array) -> None:
    """Writes [1, H, W, 3] from 0 to 1 as a picture, whole or not at all."""
    pixels = np.asarray(jnp.clip(jnp.round(255 * image[0]), 0, 255), np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
    kind = path.suffix.lower() or ".jpg"
    written, encoded = cv2.imencode(kind, pixels[:, :, ::-1], quality)
    assert written, kind
    with files.replacing(path) as partial:
        partial.write_bytes(encoded.tobytes())


def restore(path: Path, run: str, start: Any) -> tuple[int, Any]:
    """Reads the number of steps, and the image and the optimizer's state after them.

    Args:
        path: the file, which may not be there.
        run: what the result depends on, as JSON.
        start: both before the first step.

    Raises:
        ValueError: the file is of other pictures or settings, or damaged.
    """
    if not path.exists():
        return 0, start
    leaves, structure = jax.tree.flatten(start)
    names = [f"leaf{i}" for i in range(len(leaves))]
    kept = files.load_arrays(path, ("run", "step", *names), COMMAND)
    if str(kept["run"]) != run:
        raise ValueError(
            f"{path} is of other pictures or settings: delete it, or choose another "
            "--output"
        )
    arrays = [jnp.asarray(kept[name]) for name in names]
    return int(kept["step"]), jax.tree.unflatten(structure, arrays)


def keep(path: Path, run: str, step: int, state: Any) -> None:
    """Writes what `restore` reads, whole or not at all."""
    leaves = {f"leaf{i}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    files.save_arrays(path, {"run": np.array(run), "step": step, **leaves})


def run(values: argparse.Namespace) -> int:
    """Paints; returns the exit code."""
    content, style = (
        rescale(read_picture(path), values.size)
        for path in (values.content, values.style)
    )
    extractor = losses.FeatureExtractor.load(
        values.weights, CONTENT_LAYERS + STYLE_LAYERS, pools="average"
    )
    optimizer = optax.lbfgs() if values.optimizer == "lbfgs" else optax.adam(0.02)
    step_once = make_step(
        extractor,
        make_targets(extractor, content, style),
        optax.with_extra_args_support(optimizer),
        style_weight=values.style_weight,
        smoothness=values.smoothness,
    )
    settings = ("optimizer", "style_weight", "smoothness", "size")
    facts = {name: getattr(values, name) for name in settings}
    digests = [files.array_digest(picture) for picture in (content, style)]
    described = json.dumps({**facts, "pictures": digests, "weights": values.weights})
    kept = values.output.with_suffix(".npz")
    image = jnp.asarray(content)
    done, (image, state) = restore(kept, described, (image, optimizer.init(image)))
    with (
        Interrupt() as interrupt,
        progress_bar("style", values.steps, done=done, unit="steps") as bar,
    ):
        interrupt.postpone()
        while done < values.steps:
            image, state, value = step_once(image, state)
            done += 1
            bar.set_description(f"loss {value:.4f}", refresh=False)
            bar.update(1)
            stopped = interrupt.requested()
            if stopped or done % values.every == 0 or done == values.steps:
                keep(kept, described, done, (image, state))
                name = f"{values.output.stem}.{done:04}{values.output.suffix}"
                write_picture(values.output.with_name(name), image)
            if stopped:
                print(f"stopped after step {done}; the same command goes on")
                return STOPPED + stopped
    write_picture(values.output, image)
    print(f"{values.output}: {done} steps")
    return cli.DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser(f"python {COMMAND}", __doc__)
    for name, help in (
        ("content", "the picture of what is to be seen"),
        ("style", "the picture of how it is to be painted"),
    ):
        parser.add_argument(name, type=cli.path, metavar=name.upper(), help=help)
    options: list[tuple[str, Callable[[str], Any], Any, str]] = [
        ("weights", str, "torchvision/vgg16", "a file of a VGG-16 or -19, or a name"),
        ("output", cli.path, Path("styled.jpg"), "the picture to write"),
        ("size", cli.positive, 256, "the longer side of the result in pixels"),
        ("steps", cli.positive, 200, "steps in all"),
        ("every", cli.positive, 50, "steps from one picture on the way to the next"),
        ("optimizer", cli.one_of(("lbfgs", "adam")), "lbfgs", "lbfgs or adam"),
        ("style_weight", float, 100.0, "the weight of style; that of content is 1"),
        ("smoothness", float, 1.0, "the weight of total variation"),
    ]
    for name, kind, default, help in options:
        parser.add_argument(
            f"--{name}", type=kind, default=default, help=f"{help}; {default}"
        )
    return cli.command(run, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
