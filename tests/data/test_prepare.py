import pytest

from vgg_jax.data.prepare import __main__ as prepare
from vgg_jax.data.prepare.writer import Preparation


def run(capsys, *arguments: str) -> tuple[int, str]:
    code = prepare.main(arguments)
    return code, capsys.readouterr().err


def test_fashion_mnist_from_a_folder_without_the_files(tmp_path, capsys):
    arguments = ("--from", str(tmp_path), "--data_dir", str(tmp_path / "data"))
    code, error = run(capsys, "fashion_mnist", *arguments)
    assert code == 1
    assert f"cannot read {tmp_path}" in error


def test_fashion_mnist_goes_where_it_is_told(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        Preparation, "run", lambda self, *a, **options: calls.append((self.name, *a))
    )
    prepare.main(["fashion_mnist", "--data_dir", str(tmp_path)])
    assert calls == [("fashion_mnist", tmp_path, None)]


@pytest.mark.parametrize("name", prepare.PREPARATIONS)
def test_data_that_is_there_already_is_said_to_be(name, tmp_path, capsys):
    preparation = prepare.PREPARATIONS[name]
    directory = preparation.directory(tmp_path)
    directory.mkdir(parents=True)
    prepare.main([name, "--data_dir", str(tmp_path)])
    assert capsys.readouterr().out == (
        f"{preparation.title} is in {directory}, prepared by an earlier call\n"
    )


def test_unknown_dataset(capsys):
    code, error = run(capsys, "imagenet")
    assert code == 2 and "imagenet2012" in error
    code, error = run(capsys, "xyz")
    assert code == 2
    for name in ("cifar10", "cifar100", "fashion_mnist", "imagenet2012"):
        assert name in error


def test_files_that_cannot_be_fetched_must_be_named(tmp_path, capsys):
    code, error = run(capsys, "cifar10", "--data_dir", str(tmp_path))
    assert code == 2
    assert "cifar10 needs --from, the folder of cifar-10-binary.tar.gz" in error
    assert not list(tmp_path.iterdir())
