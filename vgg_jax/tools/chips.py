"""What the TPUs are: figures of the makers, as data."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip, as a compiler and a budget see it.

    Args:
        hbm_bytes: memory.
        hbm_bandwidth: of that memory, bytes/s.
        peak_flops: in bfloat16, FLOP/s.
        clock: cycles/s, of the compiler's cycles.
        link_bandwidth: to the other chips over all links, bytes/s in both directions.
        options: of `get_topology_desc`, so that a device is a chip.
    """

    hbm_bytes: int
    hbm_bandwidth: float
    peak_flops: float
    clock: float
    link_bandwidth: float
    options: dict[str, str] = dataclasses.field(default_factory=dict)


# By the name before the colon of a topology. Memory, bandwidths and peaks are those of
# docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e (read on 2026-11-24), whose GB
# of memory are 2^30 bytes. v4's links, six of 50 GB/s each way, are from its paper,
# arXiv:2304.01433. No page has the clock: it is the peak over what the matrix units do
# in a cycle, 2 x 128 x 128 FLOP each, with 8, 4 and 8 units in v4, v5e and v5p. By the
# compiler's estimate a product of 8192 x 8192 matrices then runs at 93, 88 and 90% of
# the peak. For v6e, two units of 256 x 256, that estimate is above the peak unless each
# does two such products a cycle; so its clock (70%).
CHIPS = {
    "v4": Chip(
        hbm_bytes=32 * 2**30,
        hbm_bandwidth=1.2e12,
        peak_flops=275e12,
        clock=1.05e9,
        link_bandwidth=600e9,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        hbm_bytes=16 * 2**30,
        hbm_bandwidth=819e9,
        peak_flops=197e12,
        clock=1.5e9,
        link_bandwidth=400e9,
    ),
    "v5p": Chip(
        hbm_bytes=95 * 2**30,
        hbm_bandwidth=2765e9,
        peak_flops=459e12,
        clock=1.75e9,
        link_bandwidth=1200e9,
    ),
    "v6e": Chip(
        hbm_bytes=32 * 2**30,
        hbm_bandwidth=1638e9,
        peak_flops=918e12,
        clock=1.75e9,
        link_bandwidth=800e9,
    ),
}
