"""Lists what GPUs can do at most."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Card:
    """The peaks of a kind of card in FLOP/s, of dense products, without sparsity.

    Args:
        bfloat16: of products of bfloat16, summed in float32; None where a card has no
            units for them.
        tf32: of products of float32 of which the units take 10 bits; None likewise.
        float32: of float32 throughout.
    """

    bfloat16: float | None
    tf32: float | None
    float32: float

    def peak(self, dtype: str, tf32: bool) -> float | None:
        """Returns the peak of a computation in a type, "bfloat16" or "float32".

        Args:
            dtype: the type.
            tf32: whether products of float32 may be of their first 10 bits.
        """
        if dtype == "bfloat16":
            return self.bfloat16
        return (tf32 and self.tf32) or self.float32


_T = 1e12
# What is in the name that the driver gives a card, and its peaks. They are those of
# NVIDIA's data sheets, and of its papers on the architectures of the two GeForces: half
# of what these say of sparse products. The first that fits counts.
CARDS = {
    r"A100": Card(312 * _T, 156 * _T, 19.5 * _T),
    r"H100 PCIe": Card(756 * _T, 378 * _T, 51 * _T),
    r"H100 NVL|H200 NVL": Card(835 * _T, 417.5 * _T, 60 * _T),
    r"H100|H200|GH200": Card(989.5 * _T, 494.5 * _T, 67 * _T),
    r"L4": Card(121 * _T, 60 * _T, 30.3 * _T),
    r"L40S": Card(362 * _T, 183 * _T, 91.6 * _T),
    r"A10": Card(125 * _T, 62.5 * _T, 31.2 * _T),
    r"T4": Card(None, None, 8.1 * _T),
    r"V100.SXM2": Card(None, None, 15.7 * _T),
    r"V100.PCIE": Card(None, None, 14 * _T),
    r"RTX 4090": Card(165.2 * _T, 82.6 * _T, 82.6 * _T),
    r"RTX 3090": Card(71 * _T, 35.6 * _T, 35.6 * _T),
}


def find_card(name: str) -> Card | None:
    """Returns the peaks of a card by its name, such as "NVIDIA A100-SXM4-80GB".

    None stands for a card that is not known, such as a laptop's, a "Ti" or a part of a
    card.
    """
    if re.search(r"\b(Laptop|Ti|D|MIG)\b", name):
        return None
    words = (card for pattern, card in CARDS.items() if _has(name, pattern))
    return next(words, None)


def _has(name: str, pattern: str) -> bool:
    return re.search(rf"(?<![\w.])(?:{pattern})(?![\w.])", name) is not None
