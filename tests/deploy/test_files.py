"""The files in deploy/, as far as a machine without a cluster can tell: Ray's own schema, shells, the command line."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from orchestrator import cli
from orchestrator.search import SearchSpace

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
CLUSTERS = ["cluster.yaml", "own-machines.yaml"]
README = (DEPLOY / "README.md").read_text()


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


def blocks() -> list[str]:
    """The shell lines of the page, continued lines joined."""
    found = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in found for line in block.replace("\\\n", " ").splitlines()]


# --- what is typed ---


def orchestrator_commands() -> list[list[str]]:
    """Every call of the program in the files: what follows `orchestrator`, a script's variables filled in."""
    entrypoint = str(read("rayjob.yaml")["spec"]["entrypoint"])
    scripts = [path.read_text().replace("\\\n", " ") for path in SCRIPTS]
    lines = [entrypoint, *blocks(), *(line for text in scripts for line in text.splitlines() if line[:1] != "#")]
    values = {"$space": "search_spaces/cifar10_resnet56.toml", "$storage": "/shared/results", "$address": "auto"}
    found = []
    for line in lines:
        words = shlex.split(line.removesuffix(" &"), comments=True)
        for start, word in enumerate(words):
            if word == "orchestrator":
                arguments = [values.get(each, each) for each in words[start + 1 :]]
                found.append([each for each in arguments if each != "$@"])
    return found


@pytest.mark.parametrize("words", orchestrator_commands(), ids=" ".join)
def test_every_command_line_parses_and_names_a_space_that_ships(words: list[str]) -> None:
    command = get_command(cli.app).commands[words[0]]  # type: ignore[attr-defined]
    context = command.make_context(words[0], words[1:])
    if words[0] == "search":
        assert SearchSpace.read(ROOT / str(context.params["space"]).removeprefix("/workspace/"))
        assert context.params["address"]
        assert str(context.params["storage"]) != "results"


def test_the_program_is_called_in_every_way() -> None:
    assert [words[0] for words in orchestrator_commands()].count("search") == 4
    assert {words[0] for words in orchestrator_commands()} == {"search", "status", "front"}


def test_what_the_page_says_of_submission_is_what_the_script_does() -> None:
    (shown,) = [line for line in blocks() if line.startswith("ray job submit")]
    script = (DEPLOY / "submit.sh").read_text().replace("\\\n", " ")
    (done,) = [line.removeprefix("exec ") for line in script.splitlines() if line.startswith("exec ")]
    done = re.sub(r'"\$\(basename.*?\$\$"', "cifar10_resnet56-2", done).replace('"$@"', "--gpus-per-trial 0.25")
    done = done.replace('"$space"', "search_spaces/cifar10_resnet56.toml").replace('"$storage"', "/shared/results")
    assert done.split() == shown.split()


def test_the_files_that_the_page_names_are_there() -> None:
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link}
    assert {path.name for path in DEPLOY.iterdir()} - {"README.md"} == links
    assert all((ROOT / name).is_file() for name in re.findall(r"(?:deploy|search_spaces)/[\w.-]+\.\w+", README))


# --- Ray's cluster launcher ---


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_accepts_the_cluster_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_asks_for_its_token_and_keeps_its_dashboard_to_itself(name: str) -> None:
    config = read(name)
    text = (DEPLOY / name).read_text()
    starts = [
        line for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "start" in line
    ]
    assert len(starts) == 2
    options = config.get("docker", {}).get("run_options", [])
    assert "--env RAY_AUTH_MODE=token" in options or all("RAY_AUTH_MODE=token" in line for line in starts)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in text


# --- KubeRay ---


def test_the_rayjob_has_what_resumption_and_the_token_need() -> None:
    """The fields that KubeRay 1.7's schema knows; the whole of it is 25,000 lines, too many to keep here."""
    job = read("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec.keys() <= {
        "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"
    }  # fmt: skip
    assert cluster.keys() <= {
        "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"
    }  # fmt: skip
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == pinned("ray")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert spec["entrypoint"].split("--storage ")[1].split()[0] in mounted


def test_a_worker_of_the_rayjob_holds_trials() -> None:
    spec = read("rayjob.yaml")["spec"]
    (container,) = spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    share = float(spec["entrypoint"].split("--gpus-per-trial ")[1].split()[0])
    assert 0 < share <= float(container["resources"]["limits"]["nvidia.com/gpu"])


# --- the image ---


def test_the_image_is_built_from_what_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    extras = re.findall(r"/source\[([\w,]+)\]", text)[0].split(",")
    assert set(extras) <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert "cluster" in extras
    named = {
        image
        for name in ("cluster.yaml", "rayjob.yaml")
        for image in re.findall(r"image: (\S+)", (DEPLOY / name).read_text())
    }
    assert len(named) == 1
    assert named.pop() in text


# --- the scripts ---


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_that_bash_reads(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(script: Path) -> None:
    subprocess.run(["shellcheck", str(script)], check=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["submit.sh"], "usage: .*submit.sh SPACE.toml STORAGE"),
        (["submit.sh", "a.toml"], "usage: .*submit.sh SPACE.toml STORAGE"),
        (["submit.sh", "a.toml", "results"], "STORAGE is results; it must begin with / or be a URI"),
        (["slurm.sh", "a.toml"], "usage: sbatch .*slurm.sh SPACE.toml STORAGE"),
    ],
)
def test_a_script_says_what_it_wants(words: list[str], message: str) -> None:
    done = subprocess.run(["bash", str(DEPLOY / words[0]), *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.match(message, done.stderr)


class Slurm:
    """Stand-ins for SLURM's and Ray's commands, in a folder before all others: each notes how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self._write("hostname", "echo 10.0.0.7 10.0.1.7")
        self._write("scontrol")
        self._write("ray")
        self._write(
            "srun", f'touch "{folder}/running"; trap "exit 143" TERM; sleep "$SECONDS_OF_STEP" & wait $!; exit $CODE'
        )

    def _write(self, name: str, text: str = "") -> None:
        path = self.folder / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{self.calls}"\n{text}\n')
        path.chmod(0o755)

    def start(self, *, code: int, seconds: float) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder),
            "SLURM_JOB_ID": "123456",
            "SLURM_NNODES": "3",
            "CODE": str(code),
            "SECONDS_OF_STEP": str(seconds),
        }
        command = ["bash", str(DEPLOY / "slurm.sh"), "space.toml", "/shared/results", "--gpus-per-trial", "0.5"]
        return subprocess.Popen(command, env=environment, cwd=self.folder, stderr=subprocess.PIPE, text=True)

    def called(self, name: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.split()[0] == name]


@pytest.mark.parametrize("code", [0, 3])
def test_the_slurm_script_ends_as_the_search_ends(tmp_path: Path, code: int) -> None:
    slurm = Slurm(tmp_path)
    process = slurm.start(code=code, seconds=0)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert slurm.called("scontrol") == []
    assert slurm.called("ray") == ["ray get-auth-token --generate"]
    assert slurm.called("srun") == [
        "srun --nodes=3 --ntasks=3 ray symmetric-run --address 10.0.0.7:23456 --min-nodes 3 -- "
        "orchestrator search space.toml --storage /shared/results --address 10.0.0.7:23456 --gpus-per-trial 0.5"
    ]


def test_the_slurm_script_queues_anew_when_its_time_is_nearly_over(tmp_path: Path) -> None:
    slurm = Slurm(tmp_path)
    process = slurm.start(code=0, seconds=1)
    deadline = time.monotonic() + 30
    while not (tmp_path / "running").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    _, printed = process.communicate(timeout=30)
    assert "the job queues anew" in printed
    assert slurm.called("scontrol") == ["scontrol requeue 123456"]


def test_ray_knows_the_command_and_the_options_of_the_slurm_script() -> None:
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    line = next(line for line in (DEPLOY / "slurm.sh").read_text().splitlines() if "ray symmetric-run" in line)
    options = shlex.split(line.strip().removesuffix("\\"))[2:-1]
    assert curate_and_validate_ray_start_args(options) == []
    assert {option.opts[0] for option in symmetric_run.params} >= {"--address", "--min-nodes"}
