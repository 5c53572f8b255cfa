"""Writes what eval.py leaves beside eval.json: examples, figures and CSV files."""

from vgg_jax.evaluation.evaluate import Evaluation
from vgg_jax.evaluation.predictions import confusion_matrix
from vgg_jax.evaluation.results import row_title, write_per_class
from vgg_jax.report.confusion import draw_confusion, write_csv
from vgg_jax.report.figures import draw_curves, draw_predictions, save_figure
from vgg_jax.report.gallery import choose_examples, make_gallery, save_gallery

EXAMPLES = 24  # at most


def write_artifacts(evaluation: Evaluation) -> None:
    """Writes examples with heat maps, the confusion matrix and the classes.

    Into the first workdir: examples.npz and predictions.png, confusion.csv and
    confusion.png, per_class.csv; and curves.png where there is a metrics.jsonl. All are
    of the table's last row; the heat maps are of the first of its networks.
    """
    output, source = evaluation.workdir, evaluation.source
    predictions, result = evaluation.predictions, evaluation.results[-1]
    right, wrong = choose_examples(predictions, EXAMPLES)
    title = row_title(result)
    if len(result.networks) > 1:
        title += f"; heat maps of {result.networks[0].run}"
    gallery = make_gallery(
        evaluation.model, source, evaluation.config, right + wrong, title=title
    )
    save_gallery(output / "examples.npz", gallery)
    draw_predictions(gallery, output / "predictions.png")
    matrix, names = confusion_matrix(predictions), source.class_names
    write_csv(output / "confusion.csv", matrix, names)
    save_figure(draw_confusion(matrix, names), output / "confusion.png")
    write_per_class(output / "per_class.csv", result.per_class)
    metrics = output / "metrics.jsonl"
    if metrics.exists():
        draw_curves(metrics, output / "curves.png")
