"""This module writes a network as ONNX: a node for each row, in float32.

ONNX has channels before rows and columns, so maps are [N, C, H, W] and kernels
[out, in, h, w]. Every map has the name of its row.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg_jax import files
from vgg_jax.export.program import Program
from vgg_jax.models.layers import (
    AveragePool,
    BatchNorm,
    Conv,
    Dropout,
    Layer,
    LocalResponseNorm,
    MaxPool,
    Pool,
    Relu,
    channels_after,
    check_size,
    output_size,
)
from vgg_jax.version import __version__

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto, ValueInfoProto

# Operators and format as runtimes from 2022 on have them; all that the rows need.
OPSET, IR_VERSION = 17, 8

EMBEDDED = 2**31 - 2**20  # the most bytes of weights that fit into one file of Protobuf
ALIGNMENT = 4096  # bytes, of weights beside the file, so that they can be mapped

EXTRA = "`pip install -r requirements-export.txt`"
IMAGES = "images"


def write_onnx(
    program: Program,
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = 1,
    image_size: tuple[int, int] | None = None,
) -> None:
    """Writes a network as an ONNX file, whole or not at all.

    Normalized images are [N, C, H, W], pixels [N, H, W, C]. Weights of more than 2 GiB
    are in a file of their own beside it, with ".data" after the name.

    Args:
        program: the network.
        path: the file.
        batch_size: the number of images; None for any number.
        image_size: the height and width of the images, in pixels; None for any size.

    Raises:
        FileExistsError: there is a file already.
        ImportError: onnx is not installed.
        OSError: the file cannot be written.
        ValueError: ONNX does not have a row of the network, or the sizes do not fit it.
    """
    path = files.parse_path(path)
    refuse_existing(path)
    require_onnx()
    import onnx
    from onnx import helper

    if batch_size is not None and batch_size < 1:
        raise ValueError(f"expected batches of 1 image or more, got {batch_size}")
    if image_size is not None:
        check_size(program.rows, *image_size)
    nodes = [*_input_nodes(program), *_row_nodes(program), *_output_nodes(program)]
    arrays = _arrays(program)
    is_beside = sum(array.nbytes for array in arrays.values()) > EMBEDDED
    tensors = _outside(arrays, _data_path(path)) if is_beside else _inside(arrays)
    graph = helper.make_graph(
        nodes,
        "network",
        [_input(program, batch_size, image_size)],
        [_output(program, batch_size, image_size)],
        tensors,
    )
    model = helper.make_model(
        graph,
        producer_name="vgg_jax",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, _texts(program.metadata()))
    try:
        with files.replacing(path) as partial:
            onnx.save_model(model, os.fspath(partial))
            try:
                onnx.checker.check_model(os.fspath(partial), full_check=True)
            except Exception as error:  # of several classes, by the version of onnx
                partial.unlink()
                raise ValueError(f"onnx refuses what was written: {error}") from error
    except BaseException:
        if is_beside:  # weights without their network would be in the next try's way
            _data_path(path).unlink(missing_ok=True)
        raise


def refuse_existing(path: files.Path) -> None:
    """Raises an error where a file is in the way, or cannot be written.

    Raises:
        FileExistsError: there is a file of this name, or weights beside one.
        OSError: its folder does not exist or cannot be written to.
    """
    for place in (path, _data_path(path)):
        if place.exists():
            raise FileExistsError(
                f"{place} exists already: remove it, or give another name"
            )
    if not files.is_in_bucket(path) and not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; make it first")
    files.validate_writable(path.parent)


def _data_path(path: files.Path) -> files.Path:
    """Returns the file of weights that are too large for the file itself."""
    return path.with_name(f"{path.name}.data")


def require_onnx() -> None:
    """Raises an error where onnx is not installed.

    Raises:
        ImportError: the message says what to type.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ImportError(f"writing ONNX needs {error.name}: {EXTRA}") from error


def _texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Returns metadata as ONNX keeps them: texts as they are, all else as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in metadata.items()
        if value is not None
    }


def _node(operator: str, inputs: list[str], output: str, **options: Any) -> "NodeProto":
    """Makes a node that has the name of its output."""
    from onnx import helper

    return helper.make_node(operator, inputs, [output], name=output, **options)


def _input_nodes(program: Program) -> Iterator["NodeProto"]:
    """Makes what normalizes pixels, and puts their channels first."""
    from onnx import TensorProto

    if program.takes_pixels:
        yield _node("Cast", [IMAGES], "pixels", to=TensorProto.FLOAT)
        yield _node("Sub", ["pixels", "mean"], "centered")
        yield _node("Div", ["centered", "std"], "normalized")
        yield _node("Transpose", ["normalized"], "channels_first", perm=[0, 3, 1, 2])


def _row_nodes(program: Program) -> Iterator["NodeProto"]:
    """Makes the node of each row, whose input is the map of the row before."""
    before = "channels_first" if program.takes_pixels else IMAGES
    for row in program.rows:
        yield _row_node(row, before, program)
        before = row.name


def _row_node(row: Layer, before: str, program: Program) -> "NodeProto":
    """Makes the node of a row.

    Raises:
        ValueError: ONNX has no such row.
    """
    match row:
        case Conv(name, _, kernel, stride, padding):
            return _node(
                "Conv",
                [before, f"{name}.kernel", f"{name}.bias"],
                name,
                kernel_shape=[kernel] * 2,
                strides=[stride] * 2,
                pads=[padding] * 4,
            )
        case BatchNorm(name):
            arrays = [f"{name}.{array}" for array in ("scale", "bias", "mean", "var")]
            epsilon = getattr(program.model, name).epsilon
            return _node("BatchNormalization", [before, *arrays], name, epsilon=epsilon)
        case LocalResponseNorm(name, size, alpha, beta, k):
            if size % 2 == 0:
                raise ValueError(
                    f"expected an odd size of {name}, which ONNX needs, got {size}"
                )
            # ONNX divides alpha by the size.
            options = {"size": size, "alpha": alpha * size, "beta": beta, "bias": k}
            return _node("LRN", [before], name, **options)
        case Relu(name):
            return _node("Relu", [before], name)
        case MaxPool(name):
            return _node("MaxPool", [before], name, **_windows(row))
        case AveragePool(name):
            windows = _windows(row)
            return _node("AveragePool", [before], name, **windows, count_include_pad=0)
        case Dropout(name):
            return _node("Identity", [before], name)
        case _:
            raise ValueError(f"there is no rule for {row} in ONNX")


def _windows(pool: Pool) -> dict[str, Any]:
    """Returns the options of a pool.

    Raises:
        ValueError: a last window would begin outside of the map, which ONNX leaves out.
    """
    if pool.ceil_mode and pool.stride > pool.window:
        raise ValueError(
            f"{pool.name}: expected a stride of at most the window in a pool that "
            f"rounds up, got stride {pool.stride} and window {pool.window}"
        )
    return {
        "kernel_shape": [pool.window] * 2,
        "strides": [pool.stride] * 2,
        "ceil_mode": int(pool.ceil_mode),
    }


def _output_nodes(program: Program) -> Iterator["NodeProto"]:
    """Makes what turns the last row's map into the output."""
    last = program.rows[-1].name
    if program.output == "score_map":
        yield _node("Identity", [last], "score_map")
    elif program.output in ("scores", "posteriors"):
        yield _node("GlobalAveragePool", [last], "mean_over_space")
        yield _node("Flatten", ["mean_over_space"], "scores", axis=1)
        if program.output == "posteriors":
            yield _node("Softmax", ["scores"], "posteriors", axis=1)


def _arrays(program: Program) -> dict[str, np.ndarray]:
    """Returns every constant of the network, with the axes of ONNX."""
    arrays = {
        name: array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        for name, array in program.weights().items()
    }
    if program.takes_pixels:
        assert program.normalization is not None
        arrays["mean"] = np.asarray(program.normalization.mean, np.float32)
        arrays["std"] = np.asarray(program.normalization.std, np.float32)
    return arrays


def _inside(arrays: Mapping[str, np.ndarray]) -> list["TensorProto"]:
    """Returns the constants with their values."""
    from onnx import numpy_helper

    return [
        numpy_helper.from_array(np.ascontiguousarray(array), name)
        for name, array in arrays.items()
    ]


def _outside(arrays: Mapping[str, np.ndarray], data: files.Path) -> list["TensorProto"]:
    """Writes the values of constants into a file; returns where each is in it."""
    from onnx import TensorProto

    tensors = []
    with files.replacing(data) as partial, open(partial, "wb") as file:
        for name, array in arrays.items():
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            place = {
                "location": data.name,
                "offset": str(file.tell()),
                "length": str(array.nbytes),
            }
            file.write(np.ascontiguousarray(array, "<f4").data)
            tensor = TensorProto(
                name=name,
                dims=array.shape,
                data_type=TensorProto.FLOAT,
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
            tensors.append(tensor)
    return tensors


def _input(
    program: Program, batch_size: int | None, image_size: tuple[int, int] | None
) -> "ValueInfoProto":
    """Describes the images."""
    from onnx import TensorProto, helper

    sides = image_size or ("H", "W")
    channels = program.model.in_channels
    shape = [channels, *sides] if not program.takes_pixels else [*sides, channels]
    dtype = TensorProto.UINT8 if program.input == "uint8" else TensorProto.FLOAT
    return helper.make_tensor_value_info(IMAGES, dtype, [batch_size or "N", *shape])


def _output(
    program: Program, batch_size: int | None, image_size: tuple[int, int] | None
) -> "ValueInfoProto":
    """Describes the output: [N, classes], or a map [N, C, h, w]."""
    from onnx import TensorProto, helper

    channels = program.model.in_channels
    for row in program.rows:
        channels = channels_after(row, channels)
    shape: list[int | str] = [batch_size or "N", channels]
    if program.output not in ("scores", "posteriors"):
        sides = image_size and [output_size(program.rows, side) for side in image_size]
        shape += sides or ["h", "w"]
    return helper.make_tensor_value_info(program.output, TensorProto.FLOAT, shape)
