"""Two processes against one: the same weights, one key, one ledger; and no failure of one that hangs the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dpeq.errors import ConfigError
from dpeq.privacy.ledger import Ledger, read_ledger
from dpeq.privacy.randomness import Randomness
from dpeq.training.distributed import Ranks, joined
from dpeq.training.loop import _Hand, train
from dpeq.training.state import OptimizerSettings

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import two_ranks  # noqa: E402

CPU = torch.device("cpu")
TORCHRUN_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _start(folder: Path, *before: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in TORCHRUN_NAMES}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(HERE.parent.parent)}
    command = [sys.executable, *before, str(HERE / "two_ranks.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Every case and every disagreement, in two processes under torchrun."""
    folder = tmp_path_factory.mktemp("session")
    _start(folder, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return folder, [json.loads((folder / f"session.{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    _start(folder)
    return folder, json.loads((folder / "failures.json").read_text())


@pytest.mark.parametrize("name", two_ranks.CASES)
def test_two_processes_make_the_weights_and_the_ledger_of_one(session, tmp_path, name):
    folder, bodies = session
    alone = two_ranks.train_case(name, tmp_path, Ranks())
    expected = load_file(tmp_path / f"{name}.0.safetensors")
    first, second = (load_file(folder / f"{name}.{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(first[key], value, atol=1e-5, rtol=1e-5, msg=key)
        assert torch.equal(first[key], second[key]), key
    assert (folder / f"{name}.jsonl").read_bytes() == (tmp_path / f"{name}.jsonl").read_bytes()
    led, followed = (body["cases"][name] for body in bodies)
    for key in ("steps", "stopped", "mark"):
        assert led[key] == followed[key] == alone[key]
    steps = [[step["step"] for step in case["seen"]] for case in (led, followed, alone)]
    assert steps[0] == steps[1] == steps[2]
    digests = [[step["digest"] for step in case["seen"]] for case in (led, followed)]
    assert digests[0] == digests[1], "weights, average and optimiser are equal after every step"
    for mine, theirs in zip(led["seen"], alone["seen"], strict=True):
        assert mine["private"] == (theirs["private"] and pytest.approx(theirs["private"], rel=1e-5))
    assert [step["private"] for step in followed["seen"]] == [None] * len(followed["seen"])


def test_the_cases_cover_what_they_are_meant_to(session):
    """Steps without units, ranks without units, a stop, private records."""
    folder, (led, _) = session
    units = [step["private"]["units"] for step in led["cases"]["augment"]["seen"]]
    assert min(units) >= 2, "both ranks had some"
    sizes = []
    for step in range(1, two_ranks.STEPS + 1):
        coins = Randomness.create(11).stream("sampling", step).uniform(10)
        sizes.append(int((coins < two_ranks.CASES["few units"].plan["sample_rate"]).sum()))
    assert 0 in sizes
    assert 1 in sizes
    assert led["cases"]["stopped"]["stopped"]
    assert led["parted"]
    assert read_ledger(folder / "stopped.jsonl").steps == 2
    assert [step["step"] for step in led["cases"]["resumed"]["seen"]] == [3, 4]


@pytest.mark.parametrize("name", two_ranks.CASES)
def test_noise_coins_and_spends_are_rank_0s_alone_and_nothing_is_pickled(session, name):
    _, (led, followed) = session
    case, calls = two_ranks.CASES[name], led["calls"][name]
    steps = case.stop or two_ranks.STEPS
    assert calls["poisson_sample"] == calls["spend"] == steps
    assert calls["add_noise"] == (0 if case.plan.get("noise_multiplier") == 0.0 else steps)
    assert calls["_object_to_tensor"] == calls["_tensor_to_object"] == 0
    assert set(followed["calls"][name].values()) == {0}, "no stream is even opened where there is no key"


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("plan", "privacy plan"),
        ("data", "training data"),
        ("labels", "training data"),
        ("settings", "configuration"),
        ("augment", "configuration"),
        ("images", "configuration"),
        ("metrics", "configuration"),
        ("network", "network"),
    ],
)
def test_ranks_that_disagree_are_refused_before_anything_is_spent(session, what, named):
    folder, bodies = session
    for body in bodies:
        assert body["refused"][what].startswith(f"The {named} of rank 1 differs from rank 0's; start ")
    assert read_ledger(folder / f"differs-{what}.jsonl").steps == 0


def test_texts_and_tensors_cross_as_they_are(session):
    _, bodies = session
    for body in bodies:
        told = body["told"]
        assert told["text"] == "Grüße, " * 1000
        assert told["nothing"] == ""
        assert told["tensors"] == {"a": ["torch.float32", 2.0], "b": ["torch.bfloat16", [[1.0] * 3] * 2]}
        assert told["aligned"] == [[[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], [True, False]]
    assert bodies[0]["told"]["added"] == [1 + 2.0**-39] * 3, "in double precision"
    assert bodies[1]["told"]["added"] == [0.0] * 3, "a sum without noise stays with rank 0"


@pytest.mark.parametrize(("name", "dead", "code"), [("kill 0", 0, -9), ("kill 1", 1, -9), ("remembers", 1, 2)])
def test_the_death_of_one_rank_ends_the_other_in_one_sentence(failures, name, dead, code):
    """Without torchrun, which would end it anyway. The step that died is in the ledger, and none after it."""
    folder, ended = failures
    survivor = 1 - dead
    assert ended[name][str(dead)][0] == code
    assert ended[name][str(survivor)][0] == 1
    assert ended[name][str(survivor)][1] < ended[name][str(dead)][1] + 10, "long before patience runs out"
    said = (folder / f"{name}.{survivor}.err").read_text()
    assert said.startswith(f"Error: Rank {survivor} of 2 lost the others")
    assert said.count("\n") == 1
    assert read_ledger(folder / f"{name}.jsonl").steps == 3
    assert read_ledger(folder / f"{name}.jsonl").torn is None


def test_a_silent_rank_is_waited_for_no_longer_than_patience(failures):
    folder, ended = failures
    code, seconds = ended["silent"]["0"]
    assert code == 1
    assert 5 < seconds < 50, "rank 1 sleeps for a minute"
    assert "silent for too long" in (folder / "silent.0.err").read_text()
    assert read_ledger(folder / "silent.jsonl").steps == 3


@given(units=st.integers(0, 40), views=st.integers(1, 4), world=st.integers(1, 5))
def test_every_unit_goes_to_one_rank_with_all_its_views(units, views, world):
    hand = _Hand(1, False, 0, torch.arange(units * views) + 7, None)
    shares = [hand.share(Ranks(rank, world), views) for rank in range(world)]
    assert sorted(torch.cat(shares).tolist()) == list(range(units * views))
    for share in shares:
        assert torch.equal(share.view(-1, views) // views, share.view(-1, views)[:, :1].expand(-1, views) // views)
    assert max(map(len, shares)) - min(map(len, shares)) <= views


@pytest.mark.parametrize("rank", [0, 1])
def test_only_rank_0_may_hold_the_key_and_the_ledger(tmp_path, rank):
    plan, model = two_ranks.make_plan(), torch.nn.Linear(2, 2)
    key = Randomness.create(0)
    with Ledger.create(tmp_path / "l.jsonl", plan) as ledger:
        for given_ledger, given_key in [(ledger, None), (None, key), (ledger, key) if rank else (None, None)]:
            with pytest.raises(ValueError, match="and no other rank does"):
                train(
                    model,
                    two_ranks.patients(),
                    plan,
                    given_ledger,
                    OptimizerSettings(0.1),
                    given_key,
                    device=CPU,
                    ranks=Ranks(rank, 2),
                )
        assert ledger.steps == 0


@pytest.fixture
def bare(monkeypatch):
    for name in (*TORCHRUN_NAMES, "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_torchrun_there_is_one_process_and_every_exchange_is_the_identity(bare):
    with joined(CPU) as ranks:
        assert ranks == Ranks()
        total = torch.ones(2)
        assert ranks.add_up(total) is ranks.spread(total) is total
        assert ranks.say("text") == "text"
        assert ranks.hand_out({"a": total})["a"].tolist() == [1, 1]
        ranks.agree("plan", "x")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK of the environment"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE of the environment"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT of the environment"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "RANK is 2 of WORLD_SIZE 2"),
        ({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "1"}, "spend the budget twice"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(bare, given, message):
    for name, value in given.items():
        bare.setenv(name, value)
    with pytest.raises(ConfigError, match=message), joined(CPU):
        pass


def test_a_process_without_a_gpu_of_its_own_is_refused(bare):
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in given.items():
        bare.setenv(name, value)
    bare.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="one process per GPU"), joined(torch.device("cuda")):
        pass
