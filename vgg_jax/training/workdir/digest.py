"""This module computes digests of arrays that do not depend on where these lie.

The digest of an array is its type, its shape and the sum, modulo 2^64, of the bits of
every element times an odd weight of the element's place. A sum has no order, so that
each host adds up the parts that it has, and an array gives the same digest on any
number of devices and hosts, whole or sharded, without being gathered. A change of one
element always changes the sum, for an odd weight has an inverse; any other change
leaves it as it was with a chance of 2^-32 at most.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vgg_jax import distributed


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree, under the names of their paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def digests(tree: Any) -> dict[str, str]:
    """Computes the digest of each array of a tree, under the names of its path.

    On several hosts all of them must call it, with the same tree.
    """
    leaves = leaves_by_name(tree)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        sums = np.array(list(threads.map(_own_sum, leaves.values())), np.uint64)
    is_shared = np.array([_is_shared(array) for array in leaves.values()], bool)
    if is_shared.any() and distributed.several():
        # Without 64-bit types JAX would cut the sums, so halves travel.
        halves = multihost_utils.process_allgather(sums.view(np.uint32))
        totals = np.ascontiguousarray(halves).view(np.uint64).sum(0, dtype=np.uint64)
        sums = np.where(is_shared, totals, sums)
    return {
        name: f"{array.dtype}{list(array.shape)} {int(total):016x}"
        for (name, array), total in zip(leaves.items(), sums, strict=True)
    }


def _is_shared(array: jax.Array) -> bool:
    """Returns whether other hosts have parts of an array that this one has not."""
    return not (array.is_fully_addressable or array.is_fully_replicated)


def _own_sum(array: jax.Array) -> int:
    """Adds up what this host is to add: all of an array, or the parts that it owns."""
    shards = array.addressable_shards
    if _is_shared(array):
        parts = [shard for shard in shards if shard.replica_id == 0]
    else:
        parts = list({str(shard.index): shard for shard in shards}.values())
    total = sum(weighted_sum(np.asarray(part.data), part.index) for part in parts)
    return total % 2**64


def weighted_sum(values: np.ndarray, index: Sequence[slice]) -> int:
    """Adds up the weighted bits of a part of an array, modulo 2^64.

    The weight of an element is the product of a weight for each of its indices.

    Args:
        values: the part.
        index: where in the array it lies, a slice for each axis.
    """
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    sums: Any = np.ascontiguousarray(values).view(unsigned).reshape(values.shape)
    for axis in reversed(range(values.ndim)):
        rows = sums.reshape(math.prod(sums.shape[:-1]), sums.shape[-1])
        weights = _weights(axis, index[axis].start or 0, sums.shape[-1])
        products = np.einsum(
            "ij,j->i", rows, weights, dtype=np.uint64, casting="unsafe"
        )
        sums = products.reshape(sums.shape[:-1])
    return int(sums)


def _weights(axis: int, start: int, count: int) -> np.ndarray:
    """Returns odd pseudo-random numbers for consecutive indices, uint64 [count].

    They are the generator SplitMix64 at these places of its sequence, made odd.
    """
    place = np.arange(start, start + count, dtype=np.uint64) + np.uint64(axis << 48)
    z = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)
