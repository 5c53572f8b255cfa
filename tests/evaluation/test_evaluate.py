"""What eval.py calls, from workdirs to files."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vgg_jax.config import Config, LocalizationConfig
from vgg_jax.evaluation import evaluate as run
from vgg_jax.evaluation.evaluate import make_candidate, planned_rows, run_evaluation
from vgg_jax.evaluation.predictions import confusion_matrix, fuse, top_k_error
from vgg_jax.evaluation.protocols import evaluate
from vgg_jax.evaluation.results import Result
from vgg_jax.files import write_json
from vgg_jax.models import ConvNet, create_model
from vgg_jax.report.artifacts import write_artifacts
from vgg_jax.report.confusion import read_csv
from vgg_jax.report.gallery import choose_examples, load_gallery
from vgg_jax.training.workdir.facts import write_class_names

SHAPES = [(40, 56), (48, 48)] * 6


def results_of(*arguments) -> list[Result]:
    return run_evaluation(*arguments).results


def evaluate_and_show(*arguments) -> list[Result]:
    """As eval.py does."""
    evaluation = run_evaluation(*arguments)
    write_artifacts(evaluation)
    return evaluation.results


def test_rows_of_the_table(config: Config) -> None:
    several = (32, 48, 64)
    assert planned_rows(config, (), ()) == (
        ("center", (48,)),
        ("dense", (32,)),
        ("dense", (48,)),
        ("dense", (64,)),
        ("dense", several),
    )
    assert planned_rows(config, (), (40,)) == (("center", (48,)), ("dense", (40,)))
    assert planned_rows(config, ("dense", "center", "dense"), ()) == (
        ("dense", several),
        ("center", (48,)),
    )
    assert planned_rows(config, ("center", "dense"), (40, 48)) == (
        ("center", (40, 48)),
        ("dense", (40, 48)),
    )
    with pytest.raises(ValueError, match="'dense'"):
        planned_rows(config, ("dens",), ())


@pytest.fixture
def workdirs(
    make_model: Callable,
    config: Config,
    make_source: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> list[Path]:
    """Two runs, of which the second subtracts another mean."""
    source = make_source(SHAPES, corrupt=(3,))
    other = dataclasses.replace(
        config, data=dataclasses.replace(config.data, mean=(90.0, 90.0, 90.0))
    )
    runs = {"one": (make_model(0), config, 70), "two": (make_model(1), other, 90)}
    monkeypatch.setattr(run, "restore_model", lambda path: runs[path.name])
    monkeypatch.setattr(
        run,
        "open_source",
        lambda data, split: source if split == "test" else None,
    )
    folders = [tmp_path / name for name in runs]
    for folder in folders:
        folder.mkdir()
    return folders


def test_one_network(
    workdirs: list[Path],
    config: Config,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done, recorded = [], []
    real_evaluate, real_make_result = run.protocols.evaluate, run.make_result

    def spy(*args, **kwargs):
        done.append((kwargs["protocol"], kwargs["scales"]))
        return real_evaluate(*args, **kwargs)

    def record(predictions, **kwargs):
        recorded.append(predictions)
        return real_make_result(predictions, **kwargs)

    monkeypatch.setattr(run.protocols, "evaluate", spy)
    monkeypatch.setattr(run, "make_result", record)
    config.data.on_corrupt_image = "skip"
    metrics = {"step": 1, "epoch": 0.1, "train_loss": 1.0, "train_top1_error": 0.5}
    (workdirs[0] / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    results = evaluate_and_show(workdirs[:1], config)
    # Each scale is run once; the last row averages what is there.
    assert done == [
        ("center", (48,)),
        ("dense", (32,)),
        ("dense", (48,)),
        ("dense", (64,)),
    ]
    assert [result.scales for result in results] == [
        (48,), (32,), (48,), (64,), (32, 48, 64)
    ]  # fmt: skip
    model, _, _ = run.restore_model(workdirs[0])
    source = run.open_source(config.data, "test")
    direct = evaluate(model, source, config, protocol="dense", scales=(32, 48, 64))
    np.testing.assert_allclose(recorded[-1].posteriors, direct.posteriors, atol=1e-5)
    assert results[-1].top1_error == top_k_error(direct, 1)
    assert results[-1].images == len(SHAPES) - 1
    assert results[-1].skipped == ("picture3.png",)
    rows = json.loads((workdirs[0] / "eval.json").read_text())["results"]
    assert [row["scales"] for row in rows] == [list(r.scales) for r in results]
    assert rows[0]["networks"][0]["step"] == 70
    assert sorted(path.name for path in workdirs[0].iterdir()) == [
        "confusion.csv",
        "confusion.png",
        "curves.png",
        "eval.json",
        "examples.npz",
        "metrics.jsonl",
        "per_class.csv",
        "predictions",
        "predictions.png",
    ]
    matrix, names = read_csv(workdirs[0] / "confusion.csv")
    np.testing.assert_array_equal(matrix, confusion_matrix(direct))
    assert names == source.class_names
    classes = (workdirs[0] / "per_class.csv").read_text().splitlines()
    assert classes[0] == "name,images,top1_error,mistaken_for" and len(classes) == 8
    gallery = load_gallery(workdirs[0] / "examples.npz")
    assert gallery.title == "one: dense at Q = 32, 48, 64"
    right, wrong = choose_examples(direct, 24)
    shown = right + wrong
    assert [e.index for e in gallery.examples] == [e.index for e in shown]
    output = capsys.readouterr()
    assert output.out.count("one ") == 5 and "32, 48, 64" in output.out
    assert "11/12" not in output.err and "12/12 images" in output.err


def test_several_networks_are_fused(workdirs: list[Path], config: Config) -> None:
    config.data.on_corrupt_image = "skip"
    results = evaluate_and_show(workdirs, config, ("center",), (40,))
    runs = [[network.run for network in result.networks] for result in results]
    assert runs == [["one"], ["two"], ["one", "two"]]
    source = run.open_source(config.data, "test")
    alone = []
    for folder in workdirs:
        model, its_config, _ = run.restore_model(folder)
        its_config.data.on_corrupt_image = "skip"
        alone.append(
            evaluate(model, source, its_config, protocol="center", scales=(40,))
        )
    both = fuse(alone)
    for result, predictions in zip(results, [*alone, both], strict=True):
        assert result.top1_error == top_k_error(predictions, 1)
    assert len({result.top1_error.value for result in results}) > 1
    # Pictures and tables of details are of the fused row.
    matrix, _ = read_csv(workdirs[0] / "confusion.csv")
    np.testing.assert_array_equal(matrix, confusion_matrix(both))
    assert not np.array_equal(matrix, confusion_matrix(alone[0]))
    assert not np.array_equal(matrix, confusion_matrix(alone[1]))
    gallery = load_gallery(workdirs[0] / "examples.npz")
    assert gallery.title == "one + two: center at Q = 40; heat maps of one"
    right, wrong = choose_examples(both, 24)
    assert gallery.examples == tuple(right + wrong)
    assert np.abs(alone[0].posteriors - alone[1].posteriors).max() > 0.1
    assert len(json.loads((workdirs[0] / "eval.json").read_text())["results"]) == 3
    assert not (workdirs[1] / "eval.json").exists()


def test_published_errors_stand_beside_those_measured(
    workdirs: list[Path], config: Config, capsys: pytest.CaptureFixture
) -> None:
    config.data.on_corrupt_image = "skip"
    errors = {"top1_error": 28.408, "top5_error": 9.618}
    rows = [
        {"protocol": "center", "scales": [40], **errors},
        {"protocol": "center", "scales": [256], **errors},  # not measured
        {"protocol": "dense", "scales": [40], **errors},
    ]
    facts = {"file": "theirs.pth", "sha256": "0", "published": rows}
    write_json(workdirs[0] / "weights.json", facts)
    result, *_ = results_of(workdirs, config, ("center",), (40,))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "published" in line] == [
        "one, center at Q = 40: published top-1 / top-5 error 28.408% / 9.618%, here "
        f"{result.top1_error.value:.2%} / {result.top5_error.value:.2%}"
    ]


def test_what_is_refused(workdirs: list[Path], config: Config) -> None:
    with pytest.raises(ValueError, match="at least one workdir"):
        results_of([], config)
    with pytest.raises(ValueError, match=r"scale 20 .* smallest that fits is 32"):
        results_of(workdirs, config, ("center", "dense"), (20, 40))
    elsewhere = dataclasses.replace(
        config, data=dataclasses.replace(config.data, dataset="fashion_mnist")
    )
    with pytest.raises(ValueError, match=r"trained on 'folder'.* 'fashion_mnist'"):
        results_of(workdirs, elsewhere)
    with pytest.raises(ValueError, match="same one twice"):
        results_of([workdirs[0], workdirs[0]], config)
    assert not (workdirs[0] / "eval.json").exists()


def test_scores_that_are_not_finite_stop_the_evaluation(
    workdirs: list[Path], config: Config
) -> None:
    config.data.on_corrupt_image = "skip"
    model = run.restore_model(workdirs[0])[0]
    bias = np.asarray(model.fc8.bias)
    expected = (
        r"^one, center at Q = 48: the scores of picture0\.png are not finite numbers, "
        r"nor are those of 10 other images"
    )
    for value in (np.nan, np.inf, -np.inf):
        model.fc8.bias[...] = jnp.asarray(bias).at[3].set(value)
        with pytest.raises(ValueError, match=expected) as error:
            results_of(workdirs[:1], config, ("center",))
        assert "\n" not in str(error.value)
    assert not list(workdirs[0].iterdir())


def test_an_eval_json_of_something_else_is_refused_before_the_work(
    workdirs: list[Path], config: Config, passes: list[tuple[str, int]]
) -> None:
    (workdirs[0] / "eval.json").write_text("{}")
    with pytest.raises(ValueError, match="move it away"):
        results_of(workdirs, config)
    assert not passes


def test_data_of_other_classes_are_refused(
    workdirs: list[Path], config: Config
) -> None:
    write_class_names(workdirs[1], [f"class {i + 1}" for i in range(7)])
    with pytest.raises(ValueError, match="number 1 is 'class 1' there, 'class 0' in"):
        results_of(workdirs, config)


def test_runs_of_one_name_are_told_apart(
    workdirs: list[Path], config: Config, tmp_path: Path
) -> None:
    config.data.on_corrupt_image = "skip"
    (tmp_path / "b").mkdir()
    again = workdirs[0].rename(tmp_path / "b" / "two")
    results = results_of([again, workdirs[1]], config, ("center",))
    runs = [network.run for network in results[-1].networks]
    assert runs == ["b/two", f"{tmp_path.name}/two"]
    assert len(json.loads((again / "eval.json").read_text())["results"]) == 3


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(protocol, scale) of each pass over the images that is really made."""
    made = []
    real = run.protocols.evaluate

    def spy(*args, **kwargs):
        made.append((kwargs["protocol"], *kwargs["scales"]))
        return real(*args, **kwargs)

    monkeypatch.setattr(run.protocols, "evaluate", spy)
    return made


def test_posteriors_are_kept_for_combining_and_fusing(
    workdirs: list[Path],
    config: Config,
    passes: list,
    capsys: pytest.CaptureFixture,
) -> None:
    config.data.on_corrupt_image = "skip"
    config.evaluation.scales = (32, 48)
    (before,) = results_of(workdirs[:1], config, ("dense",))
    (combined,) = results_of(workdirs[:1], config, ("combined",), (48,))
    assert passes == [("dense", 32), ("dense", 48), ("multicrop", 48)]
    assert combined.protocol == "combined" and combined.scales == (48,)
    passes.clear()
    results = results_of(workdirs, config, ("dense",))
    assert passes == [("dense", 32), ("dense", 48)]  # of the second network
    assert results[0] == before
    passes.clear()
    assert results_of(workdirs, config, ("dense",)) == results
    assert passes == []
    # The order is another key of the table, not of what was computed.
    again = results_of(workdirs[::-1], config, ("dense",))
    assert passes == []
    assert again[-1].top1_error == results[-1].top1_error
    # Another checkpoint has other posteriors, and the line says so.
    capsys.readouterr()
    run.restore_model(workdirs[0])[0].fc8.bias[...] += 1
    results_of(workdirs[:1], config, ("dense",), (48,))
    assert passes == [("dense", 48)]
    output = capsys.readouterr().err
    assert "dense_q48_score_map.npz is not used: it is of another network" in output


def test_an_evaluation_that_was_stopped_goes_on(
    workdirs: list[Path],
    config: Config,
    passes: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config.data.on_corrupt_image = "skip"
    real = run.protocols.evaluate

    def stopped(*args, **kwargs):
        if kwargs["scales"] == (48,):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(run.protocols, "evaluate", stopped)
        with pytest.raises(KeyboardInterrupt):
            results_of(workdirs[:1], config, ("dense",))
    assert passes == [("dense", 32)]
    results_of(workdirs[:1], config, ("dense",))
    assert passes == [("dense", 32), ("dense", 48), ("dense", 64)]


def test_hosts_run_a_pass_that_one_of_them_has_not_kept(
    workdirs: list[Path],
    config: Config,
    passes: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config.data.on_corrupt_image = "skip"
    before = results_of(workdirs[:1], config, ("center",))
    monkeypatch.setattr(run.distributed, "gather", lambda has_it: [has_it, False])
    assert results_of(workdirs[:1], config, ("center",)) == before
    assert passes == [("center", 48)] * 2


def test_a_damaged_file_is_made_again(
    workdirs: list[Path],
    config: Config,
    passes: list,
    capsys: pytest.CaptureFixture,
) -> None:
    config.data.on_corrupt_image = "skip"
    (before,) = results_of(workdirs[:1], config, ("center",))
    (kept,) = (workdirs[0] / "predictions").iterdir()
    kept.write_bytes(kept.read_bytes()[:-40])
    assert results_of(workdirs[:1], config, ("center",)) == [before]
    assert passes == [("center", 48)] * 2
    assert "is not used: it is damaged" in capsys.readouterr().err
    assert results_of(workdirs[:1], config, ("center",)) == [before]
    assert passes == [("center", 48)] * 2


def test_a_folder_that_cannot_be_written_is_evaluated(
    workdirs: list[Path], config: Config, capsys: pytest.CaptureFixture
) -> None:
    config.data.on_corrupt_image = "skip"
    (workdirs[1] / "predictions").touch()  # not a folder, even to root
    results = results_of(workdirs, config, ("center",))
    assert len(results) == 3
    assert "is not kept" in capsys.readouterr().err


def test_scales_go_with_those_of_training(
    workdirs: list[Path], config: Config, passes: list
) -> None:
    config.data.on_corrupt_image = "skip"
    config.evaluation.scales = (48, 56)
    theirs = run.restore_model(workdirs[1])[1]
    theirs.data = dataclasses.replace(theirs.data, scale_min=40)
    theirs.evaluation = dataclasses.replace(
        theirs.evaluation, scales=(40, 64), center_scale=40
    )
    results = results_of(workdirs, config, ("dense", "center"))
    assert passes == [
        ("dense", 48), ("dense", 56), ("center", 48),
        ("dense", 40), ("dense", 64), ("center", 40),
    ]  # fmt: skip
    assert results[-2].scales == (48, 56, 40, 64)
    theirs.evaluation.scales = (40,)
    with pytest.raises(ValueError, match=r"as many scales for two as for one"):
        results_of(workdirs, config)


@pytest.mark.parametrize("size", ["crop", "scale_min", "scale_max"])
def test_a_network_sees_images_as_in_its_training(
    model: ConvNet, config: Config, tmp_path: Path, size: str
) -> None:
    data = dataclasses.replace(config.data, mean=(1.0,) * 3, std=(2.0,) * 3)
    evaluation = dataclasses.replace(
        config.evaluation, scales=(40,), center_scale=40, batch_size=3
    )
    theirs = dataclasses.replace(config, data=data, evaluation=evaluation)
    same = make_candidate(model, theirs, config, 1, "run", tmp_path).config
    assert same.data == data
    assert same.evaluation == config.evaluation
    setattr(data, size, 40)
    found = make_candidate(model, theirs, config, 1, "run", tmp_path).config
    assert found.data.crop == data.crop
    assert (found.evaluation.scales, found.evaluation.center_scale) == ((40,), 40)
    assert found.evaluation.batch_size == config.evaluation.batch_size


def test_a_network_of_boxes_is_sent_to_its_own_command(
    config: Config, tmp_path: Path
) -> None:
    boxes = dataclasses.replace(config, localization=LocalizationConfig())
    model = nnx.eval_shape(
        lambda: create_model(**dataclasses.asdict(config.model), rngs=nnx.Rngs(0))
    )
    with pytest.raises(ValueError, match=r"predicts boxes.* vgg_jax\.localization"):
        make_candidate(model, boxes, config, 1, "run", tmp_path)
