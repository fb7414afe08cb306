import pytest

from dpeq.training.provenance import command_line


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["train", "pneumoniamnist", "privacy.epsilon=3"], "dpeq train pneumoniamnist privacy.epsilon=3"),
        (["train", "Doe^Jane.yaml", "--baseline"], "dpeq train <path> --baseline"),
        (
            ["train", "demo", "data.manifest=/ct/Doe/m", "--runs=doe/runs"],
            "dpeq train demo data.manifest=<path> --runs=<path>",
        ),
        (["train", "demo", "data.manifest=/x/patient=DOE/y=1/m.json"], "dpeq train demo data.manifest=<path>"),
        (["train", "demo", "data.root=DOE", "--reports", "DOE"], "dpeq train demo data.root=<path> --reports <path>"),
        (["train", "--resume", "DOE"], "dpeq train --resume <path>"),
        (["train", "demo", "a/DOE=1"], "dpeq train demo <path>"),
        (["train", "demo", "--data-root", "~doe"], "dpeq train demo --data-root <path>"),
        (["train", "demo", "data.spacing=[2,2,2]", "name=a b"], "dpeq train demo 'data.spacing=[2,2,2]' 'name=a b'"),
        (["train", "demo", "model.weights=doe.safetensors"], "dpeq train demo model.weights=<path>"),
        (["train", "demo", "training.seed=17"], "dpeq train demo training.seed=<seed>"),
        (["train", "demo", "training.seed=null"], "dpeq train demo training.seed=null"),
        (["train", "demo", "model.name=package.module:Net"], "dpeq train demo model.name=package.module:Net"),
    ],
)
def test_the_command_is_told_without_paths_and_seeds(typed, told):
    assert command_line("dpeq", typed) == told


def test_a_file_without_a_telling_name_is_a_path_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "doe").write_text("")
    assert command_line("dpeq", ["train", "doe", "--runs", "roe"]) == "dpeq train <path> --runs <path>"
