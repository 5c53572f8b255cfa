"""This module writes a network as StableHLO, for every platform that JAX has."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgg_jax import files
from vgg_jax.export.program import Program
from vgg_jax.models import ConvNet
from vgg_jax.models.network import class_scores

PLATFORMS = ("cpu", "cuda", "tpu")

# The files of an exported network; the program is written last, and is there only where
# the others are.
WEIGHTS, METADATA, PROGRAM = "weights.npz", "metadata.json", "program.stablehlo"


def write_stablehlo(program: Program, folder: str | os.PathLike[str]) -> None:
    """Writes a network into a folder, from which JAX alone runs it.

    The folder gets the program, which `jax.export.deserialize` reads and which has no
    weights in it; the weights, which NumPy reads; and the metadata, as JSON.

    Raises:
        FileExistsError: there is an exported network already.
        OSError: the files cannot be written.
    """
    folder = files.parse_path(folder)
    refuse_existing(folder)
    weights = program.weights()
    exported = lower(program, weights)
    folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(folder / WEIGHTS) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **weights)
    metadata = program.metadata() | {
        "layout": "NHWC",
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
    }
    files.write_json(folder / METADATA, metadata)
    with files.replacing(folder / PROGRAM) as partial:
        partial.write_bytes(bytes(exported.serialize()))


def refuse_existing(folder: files.Path) -> None:
    """Raises an error where a folder has a file of an export, or cannot be one.

    Raises:
        FileExistsError: there is one, if only of an export that was stopped.
        OSError: it is a file, or cannot be written to.
    """
    for name in (PROGRAM, METADATA, WEIGHTS):
        if (folder / name).exists():
            raise FileExistsError(
                f"{folder / name} exists already: remove it, or give another name"
            )
    files.validate_writable(folder)


def lower(program: Program, weights: Mapping[str, Any]) -> jax.export.Exported:
    """Makes the StableHLO of `(weights, images) -> output`.

    Args:
        program: the network.
        weights: what `program.weights` gives, or shapes in the place of arrays.
    """
    rows, output = program.rows, program.output
    is_whole = rows == program.model.layers
    abstract = nnx.eval_shape(
        lambda: ConvNet(
            rows,
            num_classes=program.model.num_classes if is_whole else None,
            in_channels=program.model.in_channels,
            dtype=program.model.dtype,
            rngs=nnx.Rngs(0),
        )
    )
    graphdef, state = nnx.split(abstract)

    def run(weights: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        filled = {
            path: variable.replace(weights[".".join(map(str, path))])
            for path, variable in nnx.to_flat_state(state)
        }
        model: ConvNet = nnx.merge(graphdef, nnx.from_flat_state(filled))
        if program.takes_pixels:
            assert program.normalization is not None
            images = program.normalization(images)
        maps = model.run(images, rows).astype(jnp.float32)
        match output:
            case "scores":
                return class_scores(maps)
            case "posteriors":
                return jax.nn.softmax(class_scores(maps))
            case _:
                return maps

    shapes = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in weights.items()
    }
    return jax.export.export(jax.jit(run), platforms=PLATFORMS)(
        shapes, _images(program)
    )


def _images(program: Program) -> jax.ShapeDtypeStruct:
    """Returns the shape of any number of images of any size, [n, h, w, C].

    As sides are symbols, convolutions and pools are the plain ones of `jax.lax` and not
    a choice of forms for each platform.
    """
    smallest = program.smallest_image
    shape = jax.export.symbolic_shape(
        f"n, h, w, {program.model.in_channels}",
        constraints=(f"h >= {smallest}", f"w >= {smallest}"),
    )
    dtype = jnp.uint8 if program.input == "uint8" else jnp.float32
    return jax.ShapeDtypeStruct(shape, dtype)
