"""A run's folder belongs to one configuration, and its metrics to one history."""

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest

from tests.disk import file_sizes_up_to
from vgg_jax import distributed
from vgg_jax.config import Config, DataConfig, NiNConfig, VGGConfig, from_dict, to_dict
from vgg_jax.files import DIGEST, LineLog, explain_os_error
from vgg_jax.training.metrics import MetricWriter
from vgg_jax.training.schedule import SCHEDULES
from vgg_jax.training.workdir.facts import (
    WorkdirMismatch,
    check_class_names,
    check_data_facts,
    claim,
    read_class_names,
    read_config,
    refuse_other_run,
    with_stored_choices,
    write_class_names,
    write_data_facts,
)


def config(**changes: object) -> Config:
    base = Config(model=VGGConfig(name="vgg11"), data=DataConfig(dataset="folder"))
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model", [VGGConfig(name="vgg11"), NiNConfig(name="nin_cifar")]
)
def test_a_configuration_survives_json(model: VGGConfig | NiNConfig) -> None:
    before = config(model=model)
    after = from_dict(json.loads(json.dumps(to_dict(before))))
    assert after == before and isinstance(after.data.mean, tuple)


def test_the_same_settings_may_come_back(tmp_path: Path) -> None:
    claim(tmp_path, config())
    claim(tmp_path, config())
    assert read_config(tmp_path) == config()


def test_other_settings_are_refused_and_shown(tmp_path: Path) -> None:
    claim(tmp_path, config())
    other = config(batch_size=8, model=VGGConfig(name="vgg13"))
    with pytest.raises(WorkdirMismatch) as error:
        claim(tmp_path, other)
    assert "batch_size: 256 there, 8 now" in str(error.value)
    assert "model.name: 'vgg11' there, 'vgg13' now" in str(error.value)
    assert "num_epochs" not in str(error.value)
    assert read_config(tmp_path) == config()


def test_a_type_that_was_left_to_the_devices_stays_when_they_change(
    tmp_path: Path,
) -> None:
    claim(tmp_path, config(model=VGGConfig(name="vgg11", dtype="bfloat16")))
    left = config(model=VGGConfig(name="vgg11", dtype=None))
    refuse_other_run(tmp_path, left)
    assert with_stored_choices(left, read_config(tmp_path)).model.dtype == "bfloat16"
    with pytest.raises(WorkdirMismatch, match=r"model\.dtype: 'bfloat16' there"):
        refuse_other_run(tmp_path, config())


def test_settings_that_leave_the_steps_alone_may_change(tmp_path: Path) -> None:
    claim(tmp_path, config())
    claim(tmp_path, config(num_epochs=2.0, log_every_steps=1))
    assert read_config(tmp_path).num_epochs == 2.0


def test_the_length_of_a_cosine_is_part_of_its_run(tmp_path: Path) -> None:
    assert SCHEDULES["cosine"].depends_on_num_epochs
    assert not SCHEDULES["plateau"].depends_on_num_epochs
    assert not SCHEDULES["step"].depends_on_num_epochs
    for schedule, declared in SCHEDULES.items():
        workdir, run = tmp_path / schedule, config(num_epochs=4.0)
        run.optimizer.schedule = schedule
        workdir.mkdir()
        claim(workdir, run)
        refuse_other_run(workdir, run)
        longer = dataclasses.replace(run, num_epochs=8.0)
        if not declared.depends_on_num_epochs:
            refuse_other_run(workdir, longer)
            continue
        with pytest.raises(WorkdirMismatch) as error:
            refuse_other_run(workdir, longer)
        assert "num_epochs: 4.0 there, 8.0 now" in str(error.value)
        assert f"the {schedule} schedule depends on num_epochs" in str(error.value)


def test_the_parts_of_a_batch_belong_to_a_run_with_batch_normalization(
    tmp_path: Path,
) -> None:
    for model in (
        VGGConfig(name="vgg11", num_classes=7),
        VGGConfig(name="vgg11_bn", num_classes=7),
        VGGConfig(name="vgg11", num_classes=7, batch_norm=True),
    ):
        workdir = tmp_path / f"{model.name} {model.batch_norm}"
        workdir.mkdir()
        claim(workdir, config(model=model))
        parts = config(model=model, accumulate_steps=2)
        if model.name == "vgg11" and not model.batch_norm:
            refuse_other_run(workdir, parts)
            continue
        with pytest.raises(WorkdirMismatch) as error:
            refuse_other_run(workdir, parts)
        assert "accumulate_steps: 1 there, 2 now" in str(error.value)
        assert "takes the statistics of each part" in str(error.value)
        refuse_other_run(workdir, config(model=model, remat=True))


def test_a_number_of_classes_left_to_the_data_is_the_stored_one(tmp_path: Path) -> None:
    claim(tmp_path, config(model=VGGConfig(name="vgg11", num_classes=7)))
    refuse_other_run(tmp_path, config(model=VGGConfig(name="vgg11", num_classes=None)))
    with pytest.raises(WorkdirMismatch, match=r"num_classes: 7 there, 8 now"):
        refuse_other_run(tmp_path, config(model=VGGConfig(name="vgg11", num_classes=8)))


def test_no_run_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python train\.py --config"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "",
        '{"model": {"name": "vgg1',
        "[]",
        "3",
        "{}",
        '{"model": 1, "data": 2}',
        '{"model": {"name": "vgg11", "color": 1}, "data": {"dataset": "folder"}}',
        '{"model": {"name": "vgg11"}, "data": {"dataset": "folder"}, "num_epochs": -1}',
        '{"model": {"name": "vgg11"}, "data": {"dataset": "folder", "crop": 1%s}}'
        % ("0" * 400),
        pytest.param("[" * 100_000, id="nested"),
    ],
)
def test_a_damaged_configuration_is_named(damage: str, tmp_path: Path) -> None:
    claim(tmp_path, config())
    path = tmp_path / "config.json"
    path.write_text(damage)
    for read in (lambda: read_config(tmp_path), lambda: claim(tmp_path, config())):
        with pytest.raises(ValueError, match="delete this file") as error:
            read()
        assert str(path) in str(error.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="delete this file"):
        read_config(tmp_path)


def test_a_run_from_before_a_setting_existed_had_its_default(tmp_path: Path) -> None:
    claim(tmp_path, config())
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    del settings["data"]["flip"], settings[DIGEST]  # which was not kept either
    path.write_text(json.dumps(settings))
    claim(tmp_path, config())
    assert read_config(tmp_path) == config()


def test_a_changed_character_of_a_configuration_is_noticed(tmp_path: Path) -> None:
    claim(tmp_path, config())
    path = tmp_path / "config.json"
    text = path.read_text()
    assert '"batch_size": 256' in text
    path.write_text(text.replace('"batch_size": 256', '"batch_size": 257'))
    with pytest.raises(ValueError, match="has changed since it was written"):
        read_config(tmp_path)
    lines = [line for line in path.read_text().splitlines() if DIGEST not in line]
    path.write_text("\n".join(lines).replace("},\n}", "}\n}").replace(",\n}", "\n}"))
    assert read_config(tmp_path).batch_size == 257  # changed by its owner


def test_a_damaged_line_of_metrics_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = b'{"step": 1, "epoch": 0.5}\n'
    for damage in (
        *(b'{"step": 1, "tr\n', b"[1]\n", b"{}\n", b'{"step": "\xff"}\n'),
        *(b'{"step": 1}\n', b'{"step": 1, "epoch": "half"}\n'),
    ):
        path.write_bytes(line + damage + line)
        with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged in line 2"):
            MetricWriter(tmp_path, 3)


def test_metrics_on_a_full_disk_name_their_file(tmp_path: Path) -> None:
    def write(log: LineLog | MetricWriter) -> None:
        with file_sizes_up_to(10_000), contextlib.closing(log):
            for step in range(1, 500):
                if isinstance(log, LineLog):
                    log.append(f"step {step:20}\n")
                else:
                    log.write(step, {"train_loss": 0.1})

    log, lines = tmp_path / "log", tmp_path / "metrics.jsonl"
    with pytest.raises(OSError, match="File too large") as error:
        write(LineLog(log))
    assert explain_os_error(error.value, []) == f"{log}: File too large"
    with pytest.raises(OSError, match="File too large") as error:
        write(MetricWriter(tmp_path, 0))  # TensorBoard's file is the longer one
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert explain_os_error(error.value, []) == f"{events.parent}: File too large"
    assert events.stat().st_size == 10_000 > lines.stat().st_size
    assert json.loads(lines.read_text().splitlines()[-1])["step"] > 100


def test_labels_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    check_class_names(tmp_path, ("a", "b"))  # of a run from before names were kept
    write_class_names(tmp_path, ("a", "b"))
    check_class_names(tmp_path, ("a", "b"))
    for others in (("a", "c"), ("b", "a"), ("a",), ("a", "b", "c")):
        with pytest.raises(WorkdirMismatch, match="other classes: number"):
            check_class_names(tmp_path, others)


def test_other_data_is_refused_and_shown(tmp_path: Path) -> None:
    facts = {"images": 3, "axes": None}
    check_data_facts(tmp_path, facts)  # of a run from before they were kept
    write_data_facts(tmp_path, facts)
    check_data_facts(tmp_path, facts)
    check_data_facts(tmp_path, facts | {"another": 1})
    with pytest.raises(WorkdirMismatch) as error:
        check_data_facts(tmp_path, {"images": 4, "axes": [[1.5]]})
    assert "images: 3 there, 4 now" in str(error.value)
    assert "axes: None there, [[1.5]] now" in str(error.value)
    text = (tmp_path / "data.json").read_text()
    for damage in ("", "[]", '{"images": ', text.replace("3", "4", 1)):
        (tmp_path / "data.json").write_text(damage)
        with pytest.raises(WorkdirMismatch, match=r"data\.json.*[dD]elete it"):
            check_data_facts(tmp_path, facts)


def test_of_several_hosts_the_first_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    claim(tmp_path, config())
    write_class_names(tmp_path, ("a", "b"))
    write_data_facts(tmp_path, {"images": 3})
    assert not list(tmp_path.iterdir())


def test_class_names(tmp_path: Path) -> None:
    assert read_class_names(tmp_path) is None
    write_class_names(tmp_path, ("T-shirt/top", "b\u00e9ret"))
    assert read_class_names(tmp_path) == ("T-shirt/top", "b\u00e9ret")
    path = tmp_path / "class_names.json"
    text = path.read_text()
    path.write_text('["a", "b"]')  # of an earlier state of this project
    assert read_class_names(tmp_path) == ("a", "b")
    for damage in ("{}", "[1]", "3"):
        path.write_text(damage)
        with pytest.raises(ValueError, match=r"class_names\.json as a list of names"):
            read_class_names(tmp_path)
    for damage in ("", text[:-5], text.replace("shirt", "skirt")):
        path.write_text(damage)
        with pytest.raises(ValueError, match=r"names\.json is damaged: .*Delete it"):
            read_class_names(tmp_path)


def test_metrics_past_the_checkpoint_are_taken_out(tmp_path: Path) -> None:
    with MetricWriter(tmp_path, 0) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"epoch": step / 20, "train_loss": 1.0 / step})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "train_')  # killed while writing
    with MetricWriter(tmp_path, 20) as writer:
        writer.write(30, {"epoch": 1.5, "train_loss": 7.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[-1]["train_loss"] == 7.0
    assert list((tmp_path / "tensorboard").glob("events.*"))
