"""Several processes train one network: with the result of one, and never with one left behind."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import parallel_cases as cases
import psutil
import pytest
import torch
from torch import Tensor, nn

from orchestrator.record import InvalidInput, Schedule
from orchestrator.training import member, parallel, share
from orchestrator.training.datasets import load
from orchestrator.training.loop import Diverged, fit
from orchestrator.training.member import Hooks, Message, Task
from orchestrator.training.parallel import ProcessFailed, fit_parallel, no_hooks
from orchestrator.training.share import Alone, tensors
from orchestrator.training.splits import DataSet, Split

TWO = ["cpu", "cpu"]


class Listed:
    """Pictures that are read one by one."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.split.images[index], int(self.split.labels[index])


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file, no process, no other norm."""
    torch.set_num_threads(1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plain = torch.batch_norm
    before = psutil.Process().children(recursive=True)  # of other tests: servers, trackers of multiprocessing
    yield
    assert list(tmp_path.glob("orchestrator-*")) == []
    assert [one for one in psutil.Process().children(recursive=True) if one not in before] == []
    assert torch.batch_norm is plain


@pytest.fixture(scope="module")
def few() -> DataSet:
    """70 digits."""
    digits = load("digits")
    assert isinstance(digits.train, Split)
    return replace(digits, train=digits.train.part(torch.arange(70)))


def schedule(**changes: Any) -> Schedule:
    return Schedule(**{"epochs": 2, "learning_rate": 0.02, "batch_size": 13, "label_smoothing": 0.1, **changes})


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Over all parameters and buffers; infinities must be in the same places."""
    pairs = zip(tensors(one).values(), tensors(other).values(), strict=True)
    differences = [torch.nan_to_num(a.double() - b.double(), nan=0.0).abs().max() for a, b in pairs]
    return float(torch.stack(differences).max())


# -- the same result ------------------------------------------------------------------------------------------------


def test_norms_see_the_whole_batch_and_pictures_change_alike(few: DataSet) -> None:
    one, two = cases.with_norms(), cases.with_norms()
    two.eval()
    parameters = list(two.parameters())
    torch.manual_seed(4)
    state = torch.get_rng_state()
    settings = schedule(augmentation="crop_flip")
    alone = fit(one, few, settings, seed=2**63 - 1, after_backward=only_penalty(one))
    together = fit_parallel(two, few, settings, seed=2**63 - 1, devices=TWO, make_hooks=cases.looks_around)
    assert torch.equal(state, torch.get_rng_state())
    assert largest_difference(one, two) < 1e-6
    assert largest_difference(one, cases.with_norms()) > 0.05
    assert together.samples == alone.samples == 2 * 5 * 13
    assert together.losses == pytest.approx(alone.losses, abs=1e-6)
    assert all(new is old and new.grad is None for new, old in zip(two.parameters(), parameters, strict=True))
    assert not any(module.training for module in two.modules())


def only_penalty(model: nn.Module) -> Callable[[], None]:
    """What looks_around adds."""
    with cases.looks_around(model) as (_, after_backward):
        assert after_backward is not None
        return after_backward


def test_files_with_a_penalty_and_a_term_of_the_loss(few: DataSet) -> None:
    one, two = cases.WithoutNorms(), cases.WithoutNorms()
    hooks, settings = cases.Oicsr.of(one), schedule(batch_size=15, momentum=0.0)
    assert isinstance(few.train, Split)
    with hooks(one) as (extra_loss, after_backward):
        fit(one, few, settings, seed=1, extra_loss=extra_loss, after_backward=after_backward)
    listed = replace(few, train=Listed(few.train))
    fit_parallel(two, listed, settings, seed=1, devices=TWO, make_hooks=hooks)
    assert largest_difference(one, two) < 1e-5
    assert largest_difference(one, cases.WithoutNorms()) > 1e-3


def test_a_batch_too_small_to_be_parted_is_not(few: DataSet) -> None:
    one, two = cases.WithoutNorms(), cases.WithoutNorms()
    settings = schedule(batch_size=3)
    reports = fit(one, few, settings, seed=1), fit_parallel(two, few, settings, seed=1, devices=TWO)
    assert reports[0].losses == reports[1].losses
    assert largest_difference(one, two) == 0


def test_gradients_that_some_or_all_processes_lack() -> None:
    both, one, none = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    (bucket,) = share._buckets(nn.ParameterList([both, one, none]))
    both.grad, one.grad, none.grad = torch.tensor([1.0, 2.0]), None, None
    others = torch.tensor([10.0, 20.0, 3.0, 4.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    bucket.add_up_(lambda flat: flat.add_(others))
    assert both.grad.tolist() == [11, 22]
    assert one.grad is not None
    assert one.grad.tolist() == [3, 4]
    assert none.grad is None


@pytest.mark.parametrize(("count", "batch_size"), [(1, 5), (3, 14), (4, 128), (8, 17)])
def test_parts_make_up_the_batch_and_differ_by_one_picture_at_most(count: int, batch_size: int) -> None:
    parts = [share.Member(nn.Identity(), index, count, batch_size).part for index in range(count)]
    numbers = [list(range(batch_size))[part] for part in parts]
    assert [number for part in numbers for number in part] == list(range(batch_size))
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 1


def test_alone_nothing_is_shared() -> None:
    weight = torch.ones(1, requires_grad=True)
    Alone().backward(3 * weight.sum())
    assert weight.grad is not None
    assert weight.grad.item() == 3
    assert Alone().over_whole_batches(weight) is weight


# -- processes that fail --------------------------------------------------------------------------------------------


def test_what_a_process_raises_is_raised(few: DataSet) -> None:
    settings = schedule(learning_rate=1e25)
    with pytest.raises(Diverged) as alone:
        fit(cases.WithoutNorms(), few, settings, seed=0)
    with pytest.raises(Diverged) as together:
        fit_parallel(cases.WithoutNorms(), few, settings, seed=0, devices=TWO)
    assert str(together.value) == str(alone.value)
    assert "loop.py" in str(together.value.__cause__)


def test_a_killed_process_ends_the_others(few: DataSet) -> None:
    before = deepcopy(model := cases.WithoutNorms())
    with pytest.raises(ProcessFailed, match=r"^training process 2 of 2 \(cpu\) was killed by SIGKILL$"):
        fit_parallel(model, few, schedule(), seed=0, devices=TWO, make_hooks=cases.killed)
    assert largest_difference(before, model) == 0


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    (left := tmp_path / "left").mkdir()
    (pids := tmp_path / "pids").mkdir()
    paths = [*filter(None, sys.path), os.getcwd()]
    environment = {**os.environ, "TMPDIR": str(left), "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen([sys.executable, cases.__file__, str(pids)], env=environment) as driver:
        wait_until(lambda: len(list(pids.iterdir())) == 2 or driver.poll() is not None)
        found = [int(path.name) for path in pids.iterdir()]
        assert len(list(left.glob("orchestrator-*"))) == 1
        for pid in found:
            os.kill(pid, signal.SIGTERM)  # as a scheduler does to all, and a terminal with SIGINT
        driver.kill()
    wait_until(lambda: not any(map(psutil.pid_exists, found)) and not list(left.glob("orchestrator-*")))


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run_instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Processes run this in place of a training."""
    monkeypatch.setattr(parallel, "START", "import os, sys\ndescriptor = int(sys.argv[1])\n" + code)
    monkeypatch.setattr(parallel, "POLL", 0.05)
    settings = {"pickled": bytes(10**7), "seed": 0, "batch_size": 2, "threads": 1}
    parallel._run(Task(schedule=schedule(), devices=("cpu",), **settings))


def test_a_process_that_never_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProcessFailed, match=r"training process 1 of 1 \(cpu\) ended early with exit code 3"):
        run_instead(monkeypatch, "raise SystemExit(3)")


def test_a_process_whose_own_process_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    listen = "while os.read(descriptor, 10**6):\n    pass\n"  # until this end of the connection is closed
    code = f"if os.fork():\n    os._exit(4)\n{listen}"
    with pytest.raises(ProcessFailed, match="ended early with exit code 4"):
        run_instead(monkeypatch, code)


def test_a_connection_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "GRACE", 0.1)
    with pytest.raises(ProcessFailed, match=r"training process 1 of 1 \(cpu\) broke off its connection"):
        run_instead(monkeypatch, "os.close(descriptor)\nimport time\ntime.sleep(600)")


class Heard:
    """A process that has said this already, or says nothing."""

    def __init__(self, name: str, message: Message | None) -> None:
        self.name, self._said = name, message
        self.connection, theirs = Pipe()
        self._theirs = theirs
        if message is not None:
            theirs.send_bytes(b"")

    def message(self) -> Message:
        assert self._said is not None
        self.connection.recv_bytes()
        return self._said

    def check(self) -> None:
        pass


def watched(*messages: Message | None) -> Message:
    heard: Any = [Heard(f"process {number}", message) for number, message in enumerate(messages, start=1)]
    return parallel._watch(heard)


def test_who_lost_the_others_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    lost, done = Message(kind="lost", text="closed by peer"), Message(kind="done")
    raised = member._told(InvalidInput("the picture is no picture"))
    with pytest.raises(InvalidInput, match=r"^the picture is no picture$"):
        watched(lost, raised)
    with pytest.raises(ProcessFailed, match=r"^process 2 lost the others: closed by peer$"):
        watched(done, lost)
    assert watched(done, Message(kind="done")) is done
    monkeypatch.setattr(parallel, "GRACE", 0.0)
    monkeypatch.setattr(parallel, "POLL", 0.01)
    with pytest.raises(ProcessFailed, match=r"^process 1 lost the others: closed by peer$"):
        watched(lost, None)


def test_what_cannot_be_raised_again_is_told() -> None:
    class Own(Exception):
        def __init__(self, number: int, reason: str) -> None:
            super().__init__(f"{number} {reason}")

    for error, text in ((Own(3, "times"), "Own: 3 times"), (SystemExit(1), "SystemExit: 1")):
        with pytest.raises(ProcessFailed, match=f"^process 1 raised {text}$"):
            watched(member._told(error))


def test_nothing_is_left_of_a_process_that_was_told_nothing(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    ours.close()
    (folder := tmp_path / "orchestrator-folder").mkdir()
    member.main(os.dup(theirs.fileno()), 0, str(folder))
    assert not folder.exists()


# -- what cannot travel ---------------------------------------------------------------------------------------------


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_what_cannot_be_pickled_is_named(few: DataSet) -> None:
    @contextmanager
    def locked(model: nn.Module, lock: Any = threading.Lock()) -> Iterator[Hooks]:  # noqa: B008
        yield None, lock

    reason = r"cannot be pickled for training on several devices: cannot pickle '_thread.lock' object; give a trial one"
    settings: dict[str, Any] = {"seed": 0, "devices": TWO}
    with pytest.raises(InvalidInput, match=f"^the network {reason}"):
        fit_parallel(Locked(), few, schedule(), **settings)
    data = replace(few, validation=[threading.Lock()])  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=f"^the data set {reason}"):
        fit_parallel(cases.WithoutNorms(), data, schedule(), **settings)
    with pytest.raises(InvalidInput, match=f"^the method's penalty {reason}"):
        fit_parallel(cases.WithoutNorms(), few, schedule(), **settings, make_hooks=locked)


def test_what_cannot_be_read_is_told() -> None:
    pickled = pickle.dumps(no_hooks).replace(b"parallel", b"parallax")
    problem = r"ModuleNotFoundError: No module named 'orchestrator\.training\.parallax'"
    with pytest.raises(InvalidInput, match=f"cannot read network, data set and penalty: {problem}"):
        member._unpickled(pickled)


def test_tensors_that_come_in_training_are_refused() -> None:
    model, trained = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    trained.register_buffer("seen", torch.zeros(1))
    with pytest.raises(InvalidInput, match="seen came, went or changed its shape in training; on several devices"):
        parallel._take_over_(model, member._weights(trained))
    with pytest.raises(InvalidInput, match="weight came, went or changed its shape in training"):
        parallel._take_over_(model, member._weights(nn.BatchNorm2d(1)))
