"""Digests tell arrays apart, wherever these lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vgg_jax.distributed import DATA, make_mesh
from vgg_jax.training.workdir.digest import digests, weighted_sum


def whole(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(None) for _ in shape)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_every_changed_bit_changes_the_digest(dtype: type) -> None:
    values = np.arange(60).astype(dtype).reshape(3, 4, 5)
    bits = np.dtype(f"u{values.dtype.itemsize}")
    sums = {weighted_sum(values, whole(values.shape))}
    for place in range(values.size):
        for bit in range(8 * values.dtype.itemsize):
            changed = values.copy()
            changed.view(bits).reshape(-1)[place] ^= bits.type(1 << bit)
            sums.add(weighted_sum(changed, whole(values.shape)))
    assert len(sums) == 1 + 8 * values.nbytes


def test_values_that_change_places_or_signs_change_the_digest() -> None:
    values = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    expected = weighted_sum(values, whole(values.shape))
    others = [values[::-1], values[:, ::-1], -values, values * 0, values[:, [1, 0]]]
    signs = np.where(np.arange(7) < 2, np.float32(-1), np.float32(1))
    others += [values * signs, np.roll(values, 1)]
    for other in others:
        assert weighted_sum(other, whole(other.shape)) != expected


def test_a_digest_is_that_of_the_array_on_any_devices() -> None:
    values = np.random.default_rng(0).normal(size=(2, 8, 16)).astype(np.float32)
    names = ("x", "fc6/kernel")
    tree = {"x": jnp.asarray(values), "fc6": {"kernel": jnp.asarray(values + 1)}}
    expected = digests(tree)
    assert set(expected) == set(names) and expected["x"].startswith("float32[2, 8, 16]")
    for devices in (jax.devices(), jax.devices()[:2]):
        mesh = make_mesh(devices)
        for spec in (P(), P(None, DATA), P(None, None, DATA)):
            laid = jax.device_put(tree, NamedSharding(mesh, spec))
            assert digests(laid) == expected


def test_type_and_shape_are_part_of_a_digest() -> None:
    zeros = [
        jnp.zeros((2, 3)),
        jnp.zeros((3, 2)),
        jnp.zeros(6),
        jnp.zeros((2, 3), jnp.int32),
        jnp.zeros(()),
        jnp.zeros((0, 3)),
    ]
    assert len({digests({"x": array})["x"] for array in zeros}) == len(zeros)
