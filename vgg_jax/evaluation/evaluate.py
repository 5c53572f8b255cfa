"""Evaluates trained networks by protocols: the table and eval.json."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vgg_jax import distributed
from vgg_jax.config import Config
from vgg_jax.console import short_names
from vgg_jax.data.sources import Source, open_source
from vgg_jax.evaluation import cache, protocols
from vgg_jax.evaluation.predictions import Predictions, fuse
from vgg_jax.evaluation.results import (
    Result,
    TrainedNetwork,
    format_table,
    make_result,
    read_json,
    write_json,
)
from vgg_jax.models import ConvNet
from vgg_jax.training.checkpoint import check_classifies, restore_model
from vgg_jax.training.workdir import check_class_names

Row = tuple[str, tuple[int, ...]]  # protocol and short sides Q


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network to evaluate; `config` says how it sees an image, and its scales Q.

    Its posteriors are kept in `workdir`.
    """

    model: ConvNet
    config: Config
    trained: TrainedNetwork
    workdir: Path


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Everything that was evaluated, and the predictions of the table's last row.

    `model`, `config` and `workdir` are those of the first network.
    """

    results: list[Result]
    model: ConvNet
    config: Config
    workdir: Path
    source: Source
    predictions: Predictions


def planned_rows(
    config: Config, names: Sequence[str], scales: Sequence[int]
) -> tuple[Row, ...]:
    """The rows of the table: (protocol, short sides Q).

    A named protocol is one row, at `scales` or else at the configuration's. Without
    names: the center crop, dense at each scale alone, dense over all of them.

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
) -> Evaluation:
    """Evaluates trained networks on the test set (section 3.2), alone and fused.

    Prints the table. Keeps each network's posteriors in `predictions/` of its workdir,
    and uses those that are there. Writes eval.json into the first workdir.

    Args:
        workdirs: of the runs; with several, rows with their posteriors averaged follow
            the rows of each.
        config: where the data are, the batch size, scales and averaging. How an image
            is cropped and normalized is each checkpoint's own; so are the scales Q of a
            network that was trained at other scales S.
        names: protocols, keys of `protocols.PROTOCOLS`; see `planned_rows` for none.
        scales: short sides Q, in pixels, in place of all configurations'.

    Raises:
        FileNotFoundError: no run or no checkpoint in a workdir.
        ValueError: settings that do not fit the networks or one another.
    """
    if not workdirs:
        raise ValueError("expected at least one workdir, got none")
    planned_rows(config, names, scales)  # a wrong name is known before a slow restore
    paths = [Path(workdir).resolve() for workdir in workdirs]
    candidates = []
    for path, name in zip(paths, short_names(paths), strict=True):
        model, trained_with, step = restore_model(path)
        candidates.append(candidate(model, trained_with, config, step, name, path))
    rows = [planned_rows(one.config, names, scales) for one in candidates]
    source = open_source(config.data, "test")
    for path in paths:
        check_class_names(path, source.class_names)
    return evaluate_candidates(candidates, source, rows)


def candidate(
    model: ConvNet,
    trained_with: Config,
    config: Config,
    step: int,
    run: str,
    workdir: Path,
) -> Candidate:
    """A restored network, to be evaluated as `config` says on what it was trained on.

    Raises:
        ValueError: it was trained on another dataset, or predicts boxes.
    """
    check_classifies(trained_with, workdir)
    theirs, ours = trained_with.data, config.data
    if theirs.dataset != ours.dataset:
        raise ValueError(
            f"{run} was trained on {theirs.dataset!r}, and the configuration's "
            f"data is {ours.dataset!r}; give the configuration that it was trained with"
        )
    data = dataclasses.replace(
        ours,
        crop=theirs.crop,
        mean=theirs.mean,
        std=theirs.std,
        whiten=theirs.whiten,
    )
    evaluation = config.evaluation
    if any(
        getattr(theirs, size) != getattr(ours, size)
        for size in ("crop", "scale_min", "scale_max")
    ):  # Q goes with S
        evaluation = dataclasses.replace(
            evaluation,
            center_scale=trained_with.evaluation.center_scale,
            scales=trained_with.evaluation.scales,
        )
    return Candidate(
        model=model,
        config=dataclasses.replace(
            config, model=trained_with.model, data=data, evaluation=evaluation
        ),
        trained=TrainedNetwork(
            run=run,
            model=trained_with.model.name,
            step=step,
            train_scale=(theirs.scale_min, theirs.scale_max),
        ),
        workdir=workdir,
    )


def evaluate_candidates(
    candidates: Sequence[Candidate], source: Source, rows: Sequence[Sequence[Row]]
) -> Evaluation:
    """`run_evaluation` on networks and images at hand; `rows` are each network's."""
    for one, its_rows in zip(candidates, rows, strict=True):
        if len(its_rows) != len(rows[0]):
            raise ValueError(
                f"expected as many scales for {one.trained.run} as for "
                f"{candidates[0].trained.run}, whose posteriors are averaged row by "
                "row; say which --protocol, for one row each"
            )
        for protocol, scales in its_rows:
            protocols.validate_protocol(one.model, one.config, protocol, scales)
    first = candidates[0]
    table = first.workdir / "eval.json"
    read_json(table)  # what is no such file is refused before the work
    results: list[Result] = []

    def record(
        networks: Sequence[Candidate], row: Sequence[Row], predictions: Predictions
    ) -> None:
        results.append(
            make_result(
                predictions,
                networks=[one.trained for one in networks],
                protocol=row[0][0],
                scales=list(dict.fromkeys(q for _, scales in row for q in scales)),
                averaging=networks[0].config.evaluation.averaging,
                class_names=source.class_names,
                skipped=[source[int(i)]["name"] for i in predictions.skipped],
            )
        )
        if distributed.is_first():
            write_json(table, results[-1:])

    by_network: list[list[Predictions]] = []  # fused last; then by row
    for one, its_rows in zip(candidates, rows, strict=True):
        by_network.append([])
        for one_row, predictions in zip(
            its_rows, _evaluate_rows(one, source, its_rows), strict=True
        ):
            record([one], [one_row], predictions)
            by_network[-1].append(predictions)
    if len(candidates) > 1:
        by_network.append([fuse(alone) for alone in zip(*by_network, strict=True)])
        fused_rows = zip(*rows, strict=True)
        for row, predictions in zip(fused_rows, by_network[-1], strict=True):
            record(candidates, row, predictions)
    print(format_table(results))
    return Evaluation(
        results=results,
        model=first.model,
        config=first.config,
        workdir=first.workdir,
        source=source,
        predictions=by_network[-1][-1],
    )


def _evaluate_rows(
    one: Candidate, source: Source, rows: Sequence[Row]
) -> Iterator[Predictions]:
    """Predictions of one row after another; a pass that several share is run once."""
    network = cache.network_inputs(one.model, one.trained.step)
    data = cache.data_inputs(one.config.data, "test", source)
    done: dict[protocols.Pass, Predictions] = {}
    for protocol, scales in rows:
        passes = protocols.passes_of(protocol, scales)
        for one_pass in passes:
            if one_pass not in done:
                inputs = cache.all_inputs(network, data, one.config, one_pass)
                done[one_pass] = _kept_or_run(one, source, one_pass, inputs)
        yield fuse([done[one_pass] for one_pass in passes])


def _kept_or_run(
    one: Candidate, source: Source, one_pass: protocols.Pass, inputs: cache.Inputs
) -> Predictions:
    name = f"{one.trained.run}  {one_pass.protocol}  Q={one_pass.scale}"
    path = cache.cache_path(one.workdir, one_pass, one.config.evaluation.averaging)
    try:
        kept = cache.load(path, inputs)
        print(f"{name}  kept in {path}", file=sys.stderr)
        return kept
    except FileNotFoundError:
        pass
    except cache.Unusable as reason:
        print(f"{path} is not used: {reason}", file=sys.stderr)
    predictions = protocols.evaluate(
        one.model,
        source,
        one.config,
        protocol=one_pass.protocol,
        scales=(one_pass.scale,),
        progress=name if distributed.is_first() else None,
    )
    try:
        if distributed.is_first():
            cache.save(path, inputs, predictions)
    except OSError as error:  # the folder can be someone else's
        print(f"{path} is not kept: {error}", file=sys.stderr)
    return predictions
