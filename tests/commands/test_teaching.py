"""`orchestrator teach`: from a space file to an agent that a trial can ask, and one line for each mistake."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator import cli, trial
from orchestrator.methods.agent_file import read_card
from orchestrator.search import SearchSpace
from orchestrator.store import StageStore

pytest.importorskip("stable_baselines3", reason="stable-baselines3 (extra agent) is not installed")

Run = Callable[..., Result]
SPACE = """
[trial]
model = "cifarnet"
dataset = "digits"
method = "conditional_agent"
iterations = 1
group_cap = 0.8
regularization_weight = 0.0
dense = { epochs = 1, learning_rate = 0.1, batch_size = 64 }
sparse = { epochs = 0, learning_rate = 0.1 }
recovery = { epochs = 0, learning_rate = 0.1 }
method_options = { agent = "AGENT", repair = false }

[search]
pruning_ratio = { choices = [0.4, 0.6] }
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    agent = tmp_path / "agent.safetensors"

    def invoke(*typed: str, space: str = SPACE) -> Result:
        (tmp_path / "tiny.toml").write_text(space.replace("AGENT", str(agent)))
        where = ["--out", str(agent), "--storage", str(tmp_path / "results")]
        return CliRunner().invoke(cli.app, ["teach", str(tmp_path / "tiny.toml"), *where, *typed])

    return invoke


def test_an_agent_is_taught_and_asked(run: Run, tmp_path: Path) -> None:
    result = run("--rates", "0.4,0.6", "--episodes", "4")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("episode 4 of 4: asked for 0.6, flops_kept 0.")
    assert lines[1] == f"{tmp_path / 'agent.safetensors'}, taught on cifarnet and digits"
    assert lines[4].split() == [
        "rate",
        "flops_kept",
        "reward",
        "uniform",
        "flops_kept",
        "uniform",
        "reward",
        "better",
        "by",
    ]
    assert [line.split()[0] for line in lines[5:]] == ["0.4", "0.6"]
    assert all(0 < float(line.split()[1]) <= float(line.split()[0]) for line in lines[5:])
    assert read_card(tmp_path / "agent.safetensors").options["repair"] is False
    again = run("--rates", "0.4,0.6", "--episodes", "4")
    assert "this very agent is there; nothing is left to teach" in again.stdout
    assert again.stdout.splitlines()[-2:] == lines[-2:]
    spec = SearchSpace.read(tmp_path / "tiny.toml").spec({"pruning_ratio": 0.4})
    outcome = trial.run(spec, StageStore(tmp_path / "results" / "tiny"))
    assert outcome.failure is None
    assert len(outcome.reused) == 1  # the dense stage that the agent was taught on
    assert outcome.points[-1].flops_kept == read_card(tmp_path / "agent.safetensors").answers[1].flops_kept


@pytest.mark.parametrize("rates", ["", "half", "0.5,1.5", "0"])
def test_rates_that_are_none(run: Run, rates: str) -> None:
    result = run("--rates", rates)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: --rates is {rates!r}; it must be shares between 0 and 1, such as 0.3,0.5")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--rates", "0.5,0.5"], "--rates is '0.5,0.5'; give each rate once"),
        (["--group-cap", "0"], "--group-cap is 0; it must be a share between 0 and 1, such as 0.8"),
        (["--group-cap", "1.5"], "--group-cap is 1.5; it must be a share between 0 and 1, such as 0.8"),
        (["--out", "."], "--out is '.', a folder; give a file in it, such as agent.safetensors"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(run: Run, typed: list[str], message: str) -> None:
    result = run(*typed)
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")


def test_what_is_wrong_with_the_network_names_the_space_file(run: Run, tmp_path: Path) -> None:
    result = run(space=SPACE.replace('"cifarnet"', '"cifarnt"'))
    assert result.stderr.startswith("error: tiny.toml: unknown model 'cifarnt'; did you mean cifarnet")
    result = run(space=SPACE.replace('dataset = "digits"', 'dataset = "digits"\nweights = "none.pt"'))
    assert result.stderr == "error: tiny.toml: weights: none.pt: no such file\n"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_said_before_anything_is_computed(run: Run, device: str, tmp_path: Path) -> None:
    result = run("--device", device)
    assert result.exit_code == 2
    assert result.stderr == f"error: --device is {device!r}, which this machine does not have\n"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('model = "cifarnet"', 'model = { choices = ["cifarnet", "resnet20"] }', "model"),
        ("seed = 0", "seed = { choices = [0, 1] }", "seed"),
    ],
)
def test_a_space_of_several_networks_is_refused(run: Run, old: str, new: str, field: str) -> None:
    result = run(space=SPACE.replace(f"{old}\n", "") + f"{new}\n")
    assert result.exit_code == 2
    assert f"error: tiny.toml: search.{field} varies; an agent is taught on one network" in result.stderr


def test_a_dense_schedule_that_varies_is_refused(run: Run) -> None:
    space = SPACE.replace("epochs = 1, learning", "learning") + "dense = { epochs = { choices = [1, 2] } }\n"
    assert "search.dense.epochs varies; an agent is taught on one network" in run(space=space).stderr
