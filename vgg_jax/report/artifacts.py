"""What a workdir keeps of one row of the table that is more than a number."""

from pathlib import Path

from vgg_jax.config import Config
from vgg_jax.data.sources import Source
from vgg_jax.evaluation.errors import confusion_matrix
from vgg_jax.evaluation.predictions import Predictions
from vgg_jax.evaluation.results import Result, row_title, write_per_class
from vgg_jax.models import ConvNet
from vgg_jax.report import confusion, style
from vgg_jax.report.figures import draw_curves, draw_predictions
from vgg_jax.report.gallery import choose_examples, make_gallery, save_gallery

EXAMPLES = 24  # at most


def write_details(
    output: Path,
    model: ConvNet,
    source: Source,
    config: Config,
    result: Result,
    predictions: Predictions,
) -> None:
    """Into the folder `output`: examples with score maps, confusion matrix, classes.

    The score maps are of `model`, the first of the networks that `result` is of.
    examples.npz and predictions.png, confusion.csv and confusion.png, per_class.csv;
    and curves.png where there is a metrics.jsonl.
    """
    right, wrong = choose_examples(predictions, EXAMPLES)
    title = row_title(result)
    if len(result.networks) > 1:
        title += f"; score maps of {result.networks[0].run}"
    gallery = make_gallery(model, source, config, right + wrong, title=title)
    save_gallery(output / "examples.npz", gallery)
    draw_predictions(gallery, output / "predictions.png")
    matrix, names = confusion_matrix(predictions), source.class_names
    confusion.write_csv(output / "confusion.csv", matrix, names)
    style.save(confusion.draw_confusion(matrix, names), output / "confusion.png")
    write_per_class(output / "per_class.csv", result.per_class)
    metrics = output / "metrics.jsonl"
    if metrics.exists():
        draw_curves(metrics, output / "curves.png")
