"""What eval.py does: networks and protocols to a table, eval.json and pictures."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from vgg_jax.config import Config
from vgg_jax.data.sources import Source, open_source
from vgg_jax.evaluation import pictures, protocols
from vgg_jax.evaluation.predictions import Predictions, fuse
from vgg_jax.evaluation.report import (
    Result,
    TrainedNetwork,
    format_table,
    make_result,
    write_json,
)
from vgg_jax.models import ConvNet
from vgg_jax.training.checkpoint import restore_model

Row = tuple[str, tuple[int, ...]]  # protocol and short sides Q


@dataclasses.dataclass(frozen=True)
class Contender:
    """A network to evaluate; `config.data` says how it sees an image."""

    model: ConvNet
    config: Config
    trained: TrainedNetwork


def planned_rows(
    config: Config, names: Sequence[str], scales: Sequence[int]
) -> tuple[Row, ...]:
    """The rows of the table: (protocol, short sides Q).

    A named protocol is one row, at `scales` or else at the configuration's. Without
    names: the centre crop, dense at each scale alone, dense over all of them.

    Raises:
        ValueError: an unknown protocol; the message names the nearest.
    """
    if names:
        rows = [
            (name, tuple(scales) or protocols.default_scales(name, config))
            for name in names
        ]
    else:
        several = tuple(scales) or protocols.default_scales("dense", config)
        rows = [("center", protocols.default_scales("center", config))]
        rows += [("dense", (scale,)) for scale in several]
        rows += [("dense", several)]
    return tuple(dict.fromkeys(rows))


def run_evaluation(
    workdirs: Sequence[Path | str],
    config: Config,
    names: Sequence[str] = (),
    scales: Sequence[int] = (),
) -> list[Result]:
    """Evaluate trained networks on the test set (section 3.2), alone and fused.

    Prints the table. Writes eval.json, predictions.png and, from metrics.jsonl,
    curves.png into the first workdir.

    Args:
        workdirs: of the runs; with several, rows with their posteriors averaged follow
            the rows of each.
        config: where the data are, the batch size, scales and averaging. How an image
            is cropped and normalised is each checkpoint's own.
        names: protocols, keys of `protocols.PROTOCOLS`; see `planned_rows` for none.
        scales: short sides Q, in pixels, in place of the configuration's.

    Raises:
        FileNotFoundError: no run or no checkpoint in a workdir.
        ValueError: settings that do not fit the networks or one another.
    """
    if not workdirs:
        raise ValueError("expected at least one workdir, got none")
    rows = planned_rows(config, names, scales)
    paths = [Path(workdir).resolve() for workdir in workdirs]
    contenders = []
    for path, name in zip(paths, _short_names(paths), strict=True):
        model, trained_with, step = restore_model(path)
        contenders.append(contender(model, trained_with, config, step, name))
    return evaluate_contenders(
        contenders, open_source(config.data, "test"), rows, paths[0]
    )


def contender(
    model: ConvNet, trained_with: Config, config: Config, step: int, run: str
) -> Contender:
    """A restored network, to be evaluated as `config` says on what it was trained on.

    Raises:
        ValueError: it was trained on another dataset.
    """
    theirs, ours = trained_with.data, config.data
    if theirs.dataset != ours.dataset:
        raise ValueError(
            f"{run} was trained on {theirs.dataset!r}, and the configuration's "
            f"data is {ours.dataset!r}; give the configuration that it was trained with"
        )
    data = dataclasses.replace(ours, crop=theirs.crop, mean=theirs.mean, std=theirs.std)
    return Contender(
        model=model,
        config=dataclasses.replace(config, model=trained_with.model, data=data),
        trained=TrainedNetwork(
            run=run,
            model=trained_with.model.name,
            step=step,
            train_scale=(theirs.scale_min, theirs.scale_max),
        ),
    )


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as tell them apart."""
    if len(set(paths)) < len(paths):
        raise ValueError("expected different workdirs to fuse, got the same one twice")
    for parts in itertools.count(1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def evaluate_contenders(
    contenders: Sequence[Contender],
    source: Source,
    rows: Sequence[Row],
    output: Path,
) -> list[Result]:
    """`run_evaluation` on networks and images at hand, into the folder `output`."""
    for one in contenders:
        for protocol, scales in rows:
            protocols.check(one.model, one.config, protocol, scales)
    results: list[Result] = []
    found: list[list[Predictions]] = []  # by network, then by row

    def record(
        networks: Sequence[Contender], row: Row, predictions: Predictions
    ) -> None:
        protocol, scales = row
        results.append(
            make_result(
                predictions,
                networks=[one.trained for one in networks],
                protocol=protocol,
                scales=scales,
                averaging=networks[0].config.evaluation.averaging,
                class_names=source.class_names,
                skipped=[source[int(i)]["name"] for i in predictions.skipped],
            )
        )
        write_json(output / "eval.json", results[-1:])

    for one in contenders:
        found.append([])
        for row, predictions in zip(
            rows, _evaluate_rows(one, source, rows), strict=True
        ):
            record([one], row, predictions)
            found[-1].append(predictions)
    if len(contenders) > 1:
        for row, *alone in zip(rows, *found, strict=True):
            record(contenders, row, fuse(alone))
    print(format_table(results))
    first = contenders[0]
    pictures.draw_predictions(
        first.model, source, first.config, output / "predictions.png", found[0][-1]
    )
    metrics = output / "metrics.jsonl"
    if metrics.exists():
        pictures.draw_curves(metrics, output / "curves.png")
    return results


def _evaluate_rows(
    one: Contender, source: Source, rows: Sequence[Row]
) -> Iterator[Predictions]:
    """Predictions of one row after another; a scale that several share is run once."""
    alone: dict[tuple[str, int], Predictions] = {}
    for protocol, scales in rows:
        for scale in scales:
            if (protocol, scale) not in alone:
                alone[protocol, scale] = protocols.evaluate(
                    one.model,
                    source,
                    one.config,
                    protocol=protocol,
                    scales=(scale,),
                    progress=f"{one.trained.run}  {protocol}  Q={scale}",
                )
        yield fuse([alone[protocol, scale] for scale in scales])
