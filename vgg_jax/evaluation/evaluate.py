"""Evaluates trained networks by protocols; writes the table and eval.json."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

from etils.epath import Path

from vgg_jax import distributed
from vgg_jax.config import Config, shared_settings
from vgg_jax.console import short_names
from vgg_jax.data.base import name_of
from vgg_jax.data.sources import Source, open_source
from vgg_jax.evaluation import cache, protocols
from vgg_jax.evaluation.predictions import NotFiniteError, Predictions, fuse
from vgg_jax.evaluation.results import (
    Result,
    TrainedNetwork,
    format_table,
    make_result,
    read_results,
    write_results,
)
from vgg_jax.files import parse_path, resolve
from vgg_jax.models import ConvNet
from vgg_jax.training.workdir.checkpoint import check_classifies, restore_model
from vgg_jax.training.workdir.facts import check_class_names
from vgg_jax.training.workdir.weights_folder import published_results

Row = tuple[str, tuple[int, ...]]  # protocol and short sides Q


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network to evaluate.

    Args:
        model: the network.
        config: how the network sees an image, and its scales Q.
        trained: which run and step its weights are of.
        workdir: the folder where its posteriors are kept.
    """

    model: ConvNet
    config: Config
    trained: TrainedNetwork
    workdir: Path


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Everything that was evaluated, and the predictions of the table's last row.

    Args:
        results: the rows of the table.
        model, config, workdir: the first network, its configuration and its folder.
        source: the images.
        predictions: the posteriors of the last row.
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
    """Returns the rows of the table, a protocol and its short sides Q each.

    A named protocol is one row, at `scales` or else at the configuration's. Without
    names the rows are the center crop, dense at each scale alone, and dense over all
    of them.

    Raises:
        ValueError: a protocol is unknown; the message names the nearest.
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
        workdirs: the folders of the runs. With several, rows with their posteriors
            averaged follow the rows of each.
        config: says where the data are, the batch size, scales and averaging. How an
            image is cropped and normalized is each checkpoint's own; so are the scales
            Q of a network that was trained at other scales S.
        names: protocols, keys of `protocols.PROTOCOLS`; without any the rows are those
            that `planned_rows` gives.
        scales: short sides Q, in pixels, in place of all configurations'.

    Raises:
        FileNotFoundError: a workdir has no run or no checkpoint.
        ValueError: settings do not fit the networks or one another.
    """
    if not workdirs:
        raise ValueError("expected at least one workdir, got none")
    planned_rows(config, names, scales)  # a wrong name is known before a slow restore
    paths = [resolve(parse_path(workdir)) for workdir in workdirs]
    distributed.agree(
        shared_settings(config)
        | {"workdirs": [path.name for path in paths], "protocols": names, "Q": scales}
    )
    candidates = []
    for path, name in zip(paths, short_names(paths), strict=True):
        model, trained_with, step = restore_model(path)
        candidates.append(make_candidate(model, trained_with, config, step, name, path))
    rows = [planned_rows(one.config, names, scales) for one in candidates]
    source = open_source(config.data, "test")
    for path in paths:
        check_class_names(path, source.class_names)
    return evaluate_candidates(candidates, source, rows)


def make_candidate(
    model: ConvNet,
    trained_with: Config,
    config: Config,
    step: int,
    run: str,
    workdir: Path,
) -> Candidate:
    """Makes a candidate of a restored network.

    Crop, normalization and model are those that it was trained with; everything else
    is as `config` says, but for the scales Q of a network that was trained at another
    crop or at other scales S.

    Args:
        model: the network.
        trained_with: the configuration of its run.
        config: the configuration of the evaluation.
        step: the training step that the weights are of.
        run: the name of its run, for messages and the table.
        workdir: the folder of its run.

    Raises:
        ValueError: the network was trained on another dataset, or predicts boxes.
    """
    check_classifies(trained_with, workdir)
    trained_data = trained_with.data
    if trained_data.dataset != config.data.dataset:
        raise ValueError(
            f"{run} was trained on {trained_data.dataset!r}, and the configuration's "
            f"data is {config.data.dataset!r}; give the configuration that it was "
            "trained with"
        )
    data = dataclasses.replace(
        config.data,
        crop=trained_data.crop,
        mean=trained_data.mean,
        std=trained_data.std,
        whiten=trained_data.whiten,
    )
    evaluation = config.evaluation
    if any(
        getattr(trained_data, name) != getattr(config.data, name)
        for name in ("crop", "scale_min", "scale_max")
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
            train_scale=(trained_data.scale_min, trained_data.scale_max),
        ),
        workdir=workdir,
    )


def evaluate_candidates(
    candidates: Sequence[Candidate], source: Source, rows: Sequence[Sequence[Row]]
) -> Evaluation:
    """Evaluates restored networks on images, alone and fused.

    Prints the table, keeps posteriors and writes eval.json, see `run_evaluation`.

    Args:
        candidates: the networks.
        source: the images.
        rows: the rows of the table for each network, as many for every one.

    Raises:
        ValueError: a protocol does not fit a network, the networks have different
            numbers of rows, or eval.json is another kind of file.
    """
    for candidate, own_rows in zip(candidates, rows, strict=True):
        if len(own_rows) != len(rows[0]):
            raise ValueError(
                f"expected as many scales for {candidate.trained.run} as for "
                f"{candidates[0].trained.run}, whose posteriors are averaged row by "
                "row; say which --protocol, for one row each"
            )
        for protocol, scales in own_rows:
            protocols.validate_protocol(
                candidate.model, candidate.config, protocol, scales
            )
    first = candidates[0]
    path = first.workdir / "eval.json"
    read_results(path)  # what is no such file is refused before the work
    results: list[Result] = []

    def record(
        networks: Sequence[Candidate], row: Sequence[Row], predictions: Predictions
    ) -> None:
        results.append(
            make_result(
                predictions,
                networks=[candidate.trained for candidate in networks],
                protocol=row[0][0],
                scales=list(dict.fromkeys(q for _, scales in row for q in scales)),
                averaging=networks[0].config.evaluation.averaging,
                dataset=first.config.data.dataset,
                data_dir=cache.data_folder(first.config.data),
                class_names=source.class_names,
                skipped=[name_of(source, int(i)) for i in predictions.skipped],
            )
        )
        if distributed.is_first():
            write_results(path, results[-1:])

    by_network: list[list[Predictions]] = []  # the predictions of each row
    for candidate, own_rows in zip(candidates, rows, strict=True):
        by_network.append([])
        for row, predictions in zip(
            own_rows, _evaluate_rows(candidate, source, own_rows), strict=True
        ):
            record([candidate], [row], predictions)
            by_network[-1].append(predictions)
    last = by_network[-1][-1]
    if len(candidates) > 1:
        for fused_row, to_fuse in zip(
            zip(*rows, strict=True), zip(*by_network, strict=True), strict=True
        ):
            last = fuse(to_fuse)
            record(candidates, fused_row, last)
    print(format_table(results))
    for candidate in candidates:
        for line in _published_beside(candidate, results):
            print(line)
    return Evaluation(
        results=results,
        model=first.model,
        config=first.config,
        workdir=first.workdir,
        source=source,
        predictions=last,
    )


def _published_beside(candidate: Candidate, results: Sequence[Result]) -> Iterator[str]:
    """Sets what was published for foreign weights beside what was measured."""
    for published in published_results(candidate.workdir):
        for result in results:
            row = (result.protocol, tuple(result.scales), len(result.networks))
            is_same = row == (published.protocol, tuple(published.scales), 1)
            if is_same and result.networks[0] == candidate.trained:
                yield (
                    f"{candidate.trained.run}, {result.protocol} at Q = "
                    f"{', '.join(map(str, result.scales))}: published top-1 / top-5 "
                    f"error {published.top1_error}% / {published.top5_error}%, here "
                    f"{result.top1_error.value:.2%} / {result.top5_error.value:.2%}"
                )


def _evaluate_rows(
    candidate: Candidate, source: Source, rows: Sequence[Row]
) -> Iterator[Predictions]:
    """Yields the predictions of each row; a pass that several rows share runs once."""
    network = cache.network_inputs(candidate.model, candidate.trained.step)
    data = cache.data_inputs(candidate.config.data, "test", source)
    distributed.agree(network | cache.shared(data) | {"rows": rows})
    done: dict[protocols.Pass, Predictions] = {}
    for protocol, scales in rows:
        passes = protocols.passes_of(protocol, scales)
        for one_pass in passes:
            if one_pass not in done:
                inputs = cache.all_inputs(network, data, candidate.config, one_pass)
                done[one_pass] = _kept_or_run(candidate, source, one_pass, inputs)
        yield fuse([done[one_pass] for one_pass in passes])


def _kept_or_run(
    candidate: Candidate, source: Source, one_pass: protocols.Pass, inputs: cache.Inputs
) -> Predictions:
    """Returns the posteriors of a pass that were kept, or else runs and keeps it."""
    name = f"{candidate.trained.run}  {one_pass.protocol}  Q={one_pass.scale}"
    averaging = candidate.config.evaluation.averaging
    path = cache.cache_path(candidate.workdir, one_pass, averaging)
    kept = None
    try:
        kept = cache.load(path, inputs)
    except FileNotFoundError:
        pass
    except cache.Unusable as reason:
        print(f"{path} is not used: {reason}", file=sys.stderr)
    # A pass that one host ran while another had it would wait for that one for ever.
    everyone_has_it = all(distributed.gather(kept is not None))
    if kept is not None and everyone_has_it:
        print(f"{name}  kept in {path}", file=sys.stderr)
        return kept
    try:
        predictions = protocols.evaluate(
            candidate.model,
            source,
            candidate.config,
            protocol=one_pass.protocol,
            scales=(one_pass.scale,),
            progress=name if distributed.is_first() else None,
        )
    except NotFiniteError as error:
        raise NotFiniteError(f"{candidate.trained.run}, {error}") from error
    try:
        if distributed.is_first():
            cache.save(path, inputs, predictions)
    except OSError as error:  # the folder can be someone else's
        print(f"{path} is not kept: {error}", file=sys.stderr)
    return predictions
