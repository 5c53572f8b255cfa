from vgg_jax.data import fashion_mnist
from vgg_jax.data.prepare import __main__ as prepare


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
    monkeypatch.setattr(fashion_mnist, "prepare", lambda *a: calls.append(a))
    prepare.main(["fashion_mnist", "--data_dir", str(tmp_path)])
    assert calls == [(tmp_path, None)]


def test_data_that_is_there_already_is_said_to_be(tmp_path, capsys):
    there = tmp_path / "fashion_mnist" / fashion_mnist.VERSION
    there.mkdir(parents=True)
    prepare.main(["fashion_mnist", "--data_dir", str(tmp_path)])
    assert capsys.readouterr().out == f"Fashion-MNIST is in {there}\n"


def test_unknown_dataset(capsys):
    code, error = run(capsys, "imagenet")
    assert code == 2 and "imagenet2012" in error
