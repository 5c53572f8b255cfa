"""Section 2.3's argument for 3x3, in numbers."""

import pytest

from vgg_jax.tools.stacks import compare_stacks, format_stacks


def test_the_papers_comparison() -> None:
    two3, one5, three3, one7 = compare_stacks(channels=64, image_size=10)
    assert two3.receptive_field == one5.receptive_field == 5
    assert three3.receptive_field == one7.receptive_field == 7
    c2 = 64 * 64
    stacks = (two3, one5, three3, one7)
    assert [s.weights for s in stacks] == [18 * c2, 25 * c2, 27 * c2, 49 * c2]
    assert [s.weights_per_c2 for s in stacks] == [18, 25, 27, 49]
    assert [s.convolutions for s in stacks] == [2, 1, 3, 1]
    assert [s.multiply_adds for s in stacks] == [100 * s.weights for s in stacks]
    assert [s.activations for s in stacks] == [n * 100 * 64 for n in (2, 1, 3, 1)]
    assert three3.activation_bytes == 4 * three3.activations


def test_the_table() -> None:
    lines = format_stacks(compare_stacks(channels=512, image_size=14)).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[5:7] for line in lines[2:]] == [
        ["18", "C^2"], ["25", "C^2"], ["27", "C^2"], ["49", "C^2"]]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"image_size": 0}])
def test_nothing_to_compare(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        compare_stacks(**wrong)
