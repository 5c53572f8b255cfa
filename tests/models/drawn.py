"""Networks with weights that a test drew, their answers, and when two answers agree."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vgg_jax import create_model

Params = dict[str, dict[str, np.ndarray]]


def shapes(model: nnx.Module) -> dict[str, dict[str, tuple[int, ...]]]:
    """Every parameter's shape by module and name."""
    return jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(nnx.state(model)))


def dropout_rates(model: nnx.Module) -> dict[str, float]:
    """Every dropout by name."""
    return {n: v.rate for n, v in vars(model).items() if isinstance(v, nnx.Dropout)}


def network(name: str, seed: int = 0, **options: Any) -> tuple[Any, Params]:
    """The graph of a network, and weights that keep all its layers alive.

    He's deviation for kernels, biases and batch statistics far from zero and one, some
    variances small enough for batch normalization's epsilon to be seen.
    """
    abstract = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))
    graphdef, state = nnx.split(abstract)
    rng = np.random.default_rng(seed)

    def draw(leaf: str, shape: tuple[int, ...]) -> np.ndarray:
        if leaf == "kernel":
            deviation = np.sqrt(2 / np.prod(shape[:-1])).astype(np.float32)
            return deviation * rng.standard_normal(shape, np.float32)
        if leaf == "var":
            return np.exp(rng.uniform(np.log(1e-3), np.log(2), shape)).astype(
                np.float32
            )
        return rng.normal(0, 0.3, shape).astype(np.float32)

    params: Params = {}
    for module, leaves in nnx.to_pure_dict(state).items():
        params[module] = {leaf: draw(leaf, leaves[leaf].shape) for leaf in leaves}
        if "var" in leaves:  # a gain about one, so that a deep network stays in range
            gain = rng.uniform(0.5, 1.5, leaves["var"].shape).astype(np.float32)
            params[module]["scale"] = gain * np.sqrt(params[module]["var"])
    return graphdef, params


def images(*shape: int, seed: int = 1, deviation: float = 1.0) -> np.ndarray:
    """[N, H, W, C] with coarse shapes and fine noise, as pictures have."""
    rng = np.random.default_rng(seed)
    n, height, width, channels = shape
    coarse = rng.normal(size=(n, -(-height // 16), -(-width // 16), channels))
    coarse = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    noise = rng.normal(size=shape)
    return (deviation * (0.8 * coarse + 0.6 * noise)).astype(np.float32)


def answers(graphdef: Any, params: Mapping[str, Any], x: np.ndarray) -> dict[str, Any]:
    """Every intermediate by name in order, "score_map" and "logits", in one jit."""

    def forward(params: Any, x: jax.Array) -> dict[str, Any]:
        model = nnx.merge(graphdef, params)
        seen = model.features(x, [layer.name for layer in model.layers])
        scores = {"score_map": model.score_map(x)} if model.num_classes else {}
        return {"seen": seen, "scores": scores | {"logits": model(x)}}

    with jax.default_matmul_precision("highest"):
        found = jax.jit(forward)(params, jnp.asarray(x, jnp.float32))
    names = [layer.name for layer in nnx.merge(graphdef, params).layers]
    return {name: found["seen"][name] for name in names} | found["scores"]


def assert_same(
    got: Mapping[str, Any], want: Mapping[str, np.ndarray], tolerance: float = 1e-5
) -> None:
    """The same names in order, and values to `tolerance` of each array's largest."""
    order = ("score_map", "logits")
    assert [n for n in got if n not in order] == [n for n in want if n not in order]
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        np.testing.assert_allclose(
            got[name],
            expected,
            rtol=0,
            atol=tolerance * np.abs(expected).max(),
            err_msg=name,
        )


def assert_relus_clip(seen: Mapping[str, np.ndarray]) -> None:
    """Each ReLU sets a good share of its inputs to zero: its loss would be seen."""
    before: np.ndarray | None = None
    for name, values in seen.items():
        if name.startswith("relu"):
            assert before is not None
            clipped = (before < 0).mean()
            assert 0.1 < clipped < 0.9, (name, clipped)
        before = values
