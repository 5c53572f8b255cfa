"""What the values of a line must not hide."""

import jax.numpy as jnp
import pytest

from vgg_jax.training.metrics import (
    TrainingDiverged,
    summarize_training,
    summarize_validation,
)
from vgg_jax.training.objectives import Sums


def sums(loss: float, weight: float, norm: float = 1.0) -> Sums:
    values = {"loss": loss, "top1_error": weight / 2, "top5_error": 0.0}
    values |= {"weight": weight, "gradient_norm": norm}
    return {name: jnp.float32(value) for name, value in values.items()}


def validation(loss: float, weight: float) -> Sums:
    return {k: v for k, v in sums(loss, weight).items() if k != "gradient_norm"}


def test_means_weigh_every_image_once() -> None:
    values = summarize_training([sums(8.0, 8.0), sums(1.0, 4.0, 3.0)], 20, batch_size=8)
    assert values == {
        "train_loss": 0.75,
        "train_top1_error": 0.5,
        "gradient_norm": 3.0,
        "skipped_images": 4.0,
    }
    assert "skipped_images" not in summarize_training([sums(8.0, 8.0)], 20, 8)
    assert summarize_validation([validation(3.0, 4.0), validation(1.0, 4.0)], 9) == {
        "validation_loss": 0.5,
        "validation_top1_error": 0.5,
        "validation_top5_error": 0.0,
    }


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_divergence(bad: float) -> None:
    for wrong in (sums(bad, 8.0), sums(8.0, 8.0, norm=bad)):
        with pytest.raises(TrainingDiverged, match="in steps 19 to 20"):
            summarize_training([wrong, sums(8.0, 8.0)], 20, batch_size=8)
    with pytest.raises(TrainingDiverged, match="validation loss after step 9"):
        summarize_validation([validation(bad, 4.0)], 9)


def test_images_that_cannot_be_read_are_no_divergence() -> None:
    with pytest.raises(ValueError, match="no training image of steps 19 to 20 could"):
        summarize_training([sums(0.0, 0.0), sums(0.0, 0.0)], 20, batch_size=8)
    with pytest.raises(ValueError, match="no validation image could"):
        summarize_validation([validation(0.0, 0.0)], 9)
