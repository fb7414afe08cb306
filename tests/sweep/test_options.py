"""Several values after one option, as a person writes them."""

import pytest
import typer
from typer.testing import CliRunner

from dpeq.options import ManyValues, split_values

app = typer.Typer()


@app.command(cls=ManyValues)
def verb(
    config: str,
    overrides: list[str] | None = typer.Argument(None),
    epsilon: list[str] | None = typer.Option(None, "--epsilon"),
    model: list[str] | None = typer.Option(None, "--model"),
    seeds: int = typer.Option(1, "--seeds"),
    dry: bool = typer.Option(False, "--dry"),
) -> None:
    print(config, overrides or [], split_values(epsilon), split_values(model), seeds, dry)


@pytest.mark.parametrize(
    "line",
    [
        "x.yaml a.b=1 --epsilon 1 2 inf --model d4 cnn-twin --seeds 3",
        "x.yaml --epsilon 1 2 inf a.b=1 --model d4 cnn-twin --seeds 3",
        "x.yaml --epsilon 1,2,inf a.b=1 --model d4,cnn-twin --seeds 3",
        "x.yaml --epsilon 1 --epsilon 2 --epsilon inf --model=d4 --seeds=3 --model cnn-twin a.b=1",
        "--seeds 3 x.yaml a.b=1 --epsilon=1 2 inf --model d4 --model cnn-twin",
        "--epsilon 1 2 inf --model d4 cnn-twin --seeds 3 -- x.yaml a.b=1",
    ],
)
def test_the_same_grid_however_it_is_written(line):
    result = CliRunner().invoke(app, line.split())
    assert result.output.strip() == "x.yaml ['a.b=1'] ['1', '2', 'inf'] ['d4', 'cnn-twin'] 3 False"


def test_an_option_of_one_value_takes_one():
    result = CliRunner().invoke(app, ["x.yaml", "--seeds", "3", "a.b=1", "--dry", "--epsilon", "1"])
    assert result.output.strip() == "x.yaml ['a.b=1'] ['1'] [] 3 True"


def test_a_missing_value_is_refused():
    result = CliRunner().invoke(app, ["x.yaml", "--epsilon"])
    assert result.exit_code == 2
    assert "--epsilon" in result.output
