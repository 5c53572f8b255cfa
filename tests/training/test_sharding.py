"""Groups of devices that share the fully-connected layers: their size."""

import pytest

from vgg_jax.training.sharding import members_of_group

VGG16 = [(7, 7, 512, 4096), (1, 1, 4096, 4096), (1, 1, 4096, 1000)]


@pytest.mark.parametrize(
    ("devices", "images", "members"),
    [
        (1, 32, 1),
        (8, 1, 8),
        (8, 128, 8),
        (256, 32, 16),
        (1024, 32, 16),
        (256, 1, 64),  # few images: it is the weights that would travel
        (256, 128, 8),
        (6, 32, 2),  # 3 does not divide 4096
        (5, 32, 1),
    ],
)
def test_members_of_a_group_for_vgg16(devices: int, images: int, members: int) -> None:
    assert members_of_group(devices, VGG16, images) == members


def test_a_device_of_more_groups_sends_no_more() -> None:
    def sent(devices: int) -> float:
        """The numbers that a device sends, for 32 images each."""
        members = members_of_group(devices, VGG16, 32)
        inputs = 2 * 32 * (25088 + 4096 + 1000) * (members - 1)
        weights = (25088 * 4096 + 4096 * 4096 + 4096 * 1000) / members
        return inputs + 2 * weights * (1 - members / devices)

    two_groups, *more = (sent(2**power) for power in range(5, 13))
    # A sum over groups costs each up to twice its part, over two of them once.
    assert all(number < 1.5 * two_groups for number in more)
