"""The verb ``dpeq export``."""

import sys

import pytest

from dpeq.cli import main


def run_verb(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["dpeq", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_export_writes_what_is_asked_and_says_how_near_it_is(private_run, tmp_path, monkeypatch, capsys):
    assert run_verb(monkeypatch, private_run, "--out", tmp_path, "--format", "onnx") == 0
    assert [p.name for p in tmp_path.iterdir()] == [f"{private_run.name}.onnx"]
    assert "outputs equal within" in capsys.readouterr().out
    assert run_verb(monkeypatch, private_run, "--out", tmp_path, "--format", "onnx") == 2
    assert "exists already" in capsys.readouterr().err


def test_unknown_formats_and_runs_are_refused(private_run, tmp_path, monkeypatch, capsys):
    assert run_verb(monkeypatch, private_run, "--out", tmp_path, "--format", "pickle") == 2
    assert "use one of: onnx, torchscript, monai" in capsys.readouterr().err
    assert run_verb(monkeypatch, tmp_path / "nowhere", "--out", tmp_path) == 3
    assert not list(tmp_path.iterdir())
