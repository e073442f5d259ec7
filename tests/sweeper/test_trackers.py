"""Trackers: what each is told, once and in full; and that nothing they do reaches a trial.

TensorBoard is the real one and its event files are read back. MLflow and Weights & Biases are
small fakes that keep what real ones keep, through the calls that real ones take.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from sweeper import tracker_clients, trackers
from sweeper import trial as trial_module
from sweeper.attempt import Order, Outcome
from sweeper.config import TrialConfig
from sweeper.errors import SweeperError
from sweeper.store import open_store
from sweeper.store.root import Root
from sweeper.store.staging import StagedTrial
from sweeper.tracker_clients import CLIENTS, Run
from sweeper.trackers import check_trackers
from sweeper.trial import run_attempt

BASE = {
    "data.name": "digits",
    "model.name": "fc",
    "model.widths": [16],
    "optim.name": "adam",
    "optim.lr": 0.01,
    "optim.batch_size": 256,
    "regularize.dropout": 0.2,
    "record.schedule": "log",
    "epochs": 2,
}
CONFIG = TrialConfig.from_flat(BASE)
METRICS = ("test_loss", "test_accuracy", "train_loss", "train_accuracy", "epoch")


def order_in(folder: Path, *log_to: str, config: TrialConfig = CONFIG) -> Order:
    return Order(config.trial_id, config.to_flat(), str(folder), sweep="digits", log_to=log_to)


def run(order: Order, steps: int | None = None) -> Outcome:
    """Run an attempt, drained after so many steps of its own."""
    asked = itertools.count()
    return run_attempt(order, lambda: steps is not None and next(asked) >= steps, lambda _: None)


def log_of(order: Order) -> str:
    return (Path(order.root) / "logs" / f"{order.trial_id}.log").read_text()


def told_in_log(order: Order, tracker: str) -> list[str]:
    """The lines of the trial's log that are about a tracker."""
    return [line for line in log_of(order).splitlines() if f"] {tracker}: " in line]


def stored(order: Order, name: str) -> list[tuple[int, float]]:
    """(step, value) of every snapshot, as the store has them."""
    table = open_store(order.root).snapshots(order.trial_id)
    return list(zip(table["step"], table[name], strict=True))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the trial when nobody is told of it."""
    outcome = run(order_in(tmp_path_factory.mktemp("alone")))
    assert outcome.digest
    return outcome.digest


def fail(order: Order, n_moments: int) -> None:
    """Run an attempt that breaks after so many moments of its own."""
    train = trial_module.train

    def broken(*args, **kwargs):
        yield from itertools.islice(train(*args, **kwargs), n_moments)
        raise RuntimeError("broken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_module, "train", broken)
        with pytest.raises(RuntimeError, match="broken"):
            run(order)


# --- TensorBoard, the real one ------------------------------------------------------------


def events_of(order: Order):
    """All that TensorBoard shows of a trial."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(order.root) / "tensorboard" / order.trial_id
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def assert_is_in_tensorboard(order: Order) -> None:
    """Every metric of every snapshot, once, in order, as float32."""
    events = events_of(order)
    assert set(events.Tags()["scalars"]) == set(METRICS)
    for name in METRICS:
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(step, float(np.float32(value))) for step, value in stored(order, name)]


def test_tensorboard_shows_every_snapshot_of_the_store_and_the_digest_is_the_same(
    tmp_path: Path, expected: str
):
    order = order_in(tmp_path, "tensorboard")
    assert run(order).digest == expected
    assert_is_in_tensorboard(order)
    assert not told_in_log(order, "tensorboard")


def test_tensorboard_shows_every_snapshot_once_after_interruptions(tmp_path: Path, expected: str):
    order = order_in(tmp_path, "tensorboard")
    assert run(order, 5).state == "stopped"
    assert run(order, 3).state == "stopped"
    assert run(order).digest == expected
    assert_is_in_tensorboard(order)
    told_again = [event.wall_time for event in events_of(order).Scalars("epoch")][:5]
    recorded = [time for _, time in stored(order, "time")][:5]
    assert told_again == recorded, "when it was, not when it is told"


def test_tensorboard_shows_every_snapshot_once_after_a_failure_without_a_checkpoint(
    tmp_path: Path, expected: str
):
    order = order_in(tmp_path, "tensorboard")
    fail(order, 6)
    assert len(events_of(order).Scalars("epoch")) > 3
    assert run(order).digest == expected
    assert_is_in_tensorboard(order)


def test_a_tracker_that_is_added_later_is_told_what_was_recorded_before(tmp_path: Path):
    run(order_in(tmp_path), 5)
    order = order_in(tmp_path, "tensorboard")
    assert run(order).state == "complete"
    assert_is_in_tensorboard(order)


def test_tensorboard_has_the_configuration_and_how_the_trial_ended(tmp_path: Path):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    order = order_in(tmp_path, "tensorboard")
    run(order, 4)
    run(order)
    events = events_of(order)
    found = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(found["_hparams_/session_start_info"])
    values = start.session_start_info.hparams
    assert set(values) == set(order.config)
    assert values["optim.lr"].number_value == 0.01
    assert values["model.name"].string_value == "fc"
    assert values["model.widths"].string_value == "[16]"
    assert "_hparams_/session_end_info" in found
    states = [event.tensor_proto.string_val[0] for event in events.Tensors("state/text_summary")]
    assert states == [b"stopped", b"complete"]


def test_a_stopped_trial_has_no_end_in_tensorboard(tmp_path: Path):
    order = order_in(tmp_path, "tensorboard")
    run(order, 4)
    assert "_hparams_/session_end_info" not in events_of(order).PluginTagToContent("hparams")


def test_tensorboard_is_told_that_a_trial_diverged(tmp_path: Path):
    flat = BASE | {"optim.name": "sgd", "optim.lr": 1e30}
    order = order_in(tmp_path, "tensorboard", config=TrialConfig.from_flat(flat))
    assert run(order).state == "diverged"
    (state,) = events_of(order).Tensors("state/text_summary")
    assert state.tensor_proto.string_val[0] == b"diverged"
    assert_is_in_tensorboard(order)


@pytest.mark.parametrize(
    ("earlier", "slept"),
    [
        ([], 0),
        (["events.out.tfevents.0000000990.a.1.0"], 0),
        (["events.out.tfevents.0000001000.a.1.0"], 0.75),
        (["events.out.tfevents.0000001000.a.1.9", "events.out.tfevents.0000000900.a.1.0"], 0.75),
        (["events.out.tfevents.0000005000.a.1.0"], 2),  # another machine's clock: not for ever
    ],
)
def test_an_event_file_waits_until_its_name_comes_after_those_before(monkeypatch, earlier, slept):
    waits: list[float] = []
    clock = types.SimpleNamespace(time=lambda: 1000.25, sleep=waits.append)
    monkeypatch.setattr(tracker_clients, "time", clock)
    tracker_clients._wait_to_come_after(earlier)
    assert waits == [slept]


def test_tensorboard_leaves_global_random_states_alone(tmp_path: Path):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    client = CLIENTS["tensorboard"](Run("t1", "digits", str(tmp_path), {"a": 1, "b": None}))
    client.write({"step": 0, "epoch": 0.0, "time": 1.0, "test_loss": 2.0})
    client.close("complete")
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before


def test_without_trackers_nothing_of_theirs_is_imported(tmp_path: Path):
    script = (
        "import sys; from sweeper.attempt import Order; from sweeper.trial import run_attempt\n"
        f"order = Order({CONFIG.trial_id!r}, {dict(CONFIG.to_flat())!r}, {str(tmp_path)!r})\n"
        "assert run_attempt(order, lambda: False, lambda _: None).state == 'complete'\n"
        "print(*{'tensorboard', 'torch.utils.tensorboard', 'mlflow', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# --- isolation ----------------------------------------------------------------------------


class Recording:
    """A client that keeps what it is told; `fault` is called with the name of each call."""

    def __init__(self, run: Run) -> None:
        self.steps: list[int] = []
        self.states: list[str] = []
        type(self).made.append(self)
        self.fault("open")

    def write(self, point) -> None:
        self.fault("write")
        self.steps.append(int(point["step"]))

    def close(self, state: str) -> None:
        self.fault("close")
        self.states.append(state)

    def fault(self, call: str) -> None:
        pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch):
    """Put a client in wandb's place, with a fault of one's own."""

    def put(fault=lambda _: None):
        members = {"made": [], "fault": lambda _, call: fault(call)}
        kind = type("Faulty", (Recording,), members)
        monkeypatch.setitem(CLIENTS, "wandb", kind)
        return kind

    monkeypatch.setattr(trackers._Follower, "_late", {})
    return put


@pytest.mark.parametrize("error", [OSError(28, "no space"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["open", "write", "close"])
def test_a_tracker_that_fails_changes_no_trial_and_is_named_once(
    tmp_path: Path, expected: str, client, where: str, error: BaseException
):
    calls: list[str] = []

    def fault(call: str) -> None:
        calls.append(call)
        if call == where:
            raise error

    client(fault)
    order = order_in(tmp_path, "wandb")
    assert run(order).digest == expected
    (line,) = told_in_log(order, "wandb")
    assert type(error).__name__ in line
    assert calls.count(where) == 1, "silent from its first failure on"
    assert calls[-1] == where


def test_a_tracker_that_fails_leaves_the_others_alone(tmp_path: Path, expected: str, client):
    def fault(_: str) -> None:
        raise ValueError("no")

    client(fault)
    order = order_in(tmp_path, "wandb", "tensorboard")
    assert run(order).digest == expected
    assert_is_in_tensorboard(order)
    assert not told_in_log(order, "tensorboard")


def test_a_tracker_that_cannot_be_imported_changes_no_trial(
    tmp_path: Path, expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    order = order_in(tmp_path, "wandb")
    assert run(order).digest == expected
    (line,) = told_in_log(order, "wandb")
    assert "ModuleNotFoundError" in line


def test_event_files_that_cannot_be_written_change_no_trial(
    tmp_path: Path, expected: str, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    order = order_in(tmp_path, "tensorboard")
    assert run(order).digest == expected
    assert len(told_in_log(order, "tensorboard")) == 1


# TensorBoard's own writing thread ends with the error, which Python tells of besides.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_in_the_middle_of_event_files_changes_no_trial(
    tmp_path: Path, expected: str, monkeypatch: pytest.MonkeyPatch
):
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, written = RecordWriter.write, itertools.count()

    def fill(self, data) -> None:
        if next(written) >= 10:
            raise OSError(28, "no space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", fill)
    order = order_in(tmp_path, "tensorboard")
    assert run(order).digest == expected
    (line,) = told_in_log(order, "tensorboard")
    assert "no space left" in line
    monkeypatch.undo()


def test_a_tracker_that_hangs_is_waited_for_once_until_it_is_back(
    tmp_path: Path, expected: str, client, monkeypatch: pytest.MonkeyPatch
):
    back = threading.Event()
    kind = client(lambda call: call == "open" and back.wait(60))
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.01)
    order = order_in(tmp_path / "a", "wandb")
    assert run(order).digest == expected
    (line,) = told_in_log(order, "wandb")
    assert "nobody waits" in line
    # The next trial in this process does not wait for it again.
    order = order_in(tmp_path / "b", "wandb")
    assert run(order).digest == expected
    (line,) = told_in_log(order, "wandb")
    assert "still busy" in line
    assert len(kind.made) == 1
    back.set()
    trackers._Follower._late["wandb"].join(60)
    (late,) = kind.made
    assert late.states == ["complete"], "late, but all of it"
    assert late.steps == [step for step, _ in stored(order, "epoch")]
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 60)
    order = order_in(tmp_path / "c", "wandb")
    assert run(order).digest == expected
    assert not told_in_log(order, "wandb")


def test_a_client_works_off_the_training_thread_on_what_is_durable(tmp_path: Path, client):
    order = order_in(tmp_path, "wandb")
    seen: list[tuple[str, int]] = []
    kind = client()

    def write(self, point) -> None:
        staged = StagedTrial(Root(tmp_path).predictions, order.trial_id)
        steps = [staged.moment(i)["step"] for i in range(staged.n_recorded)]
        seen.append((threading.current_thread().name, steps.count(point["step"])))

    kind.write = write
    run(order, 5)  # staged snapshots are gone when a trial is complete
    assert len(seen) > 3
    assert set(seen) == {("track-wandb", 1)}


def test_each_end_is_told(tmp_path: Path, client):
    kind = client()
    order = order_in(tmp_path, "wandb")
    run(order, 3)
    fail(order, 2)
    run(order)
    run(order)  # complete already: nobody is told
    assert [made.states for made in kind.made] == [["stopped"], ["failed"], ["complete"]]


def test_a_history_that_cannot_be_read_stops_the_trackers_and_not_the_trial(
    tmp_path: Path, expected: str, client, monkeypatch: pytest.MonkeyPatch
):
    kind = client()

    def refuse(*_: object) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(trackers, "StagedTrial", refuse)
    order = order_in(tmp_path, "wandb")
    assert run(order).digest == expected
    assert not kind.made
    assert len(told_in_log(order, "wandb")) == 1


def test_no_secret_of_an_error_gets_into_the_log(
    tmp_path: Path, client, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")

    def fault(_: str) -> None:
        raise ValueError("https://me:hunter2@host/a?sig=xyz\nrefused 0123456789abcdef")

    client(fault)
    order = order_in(tmp_path, "wandb")
    run(order, 1)
    assert not {secret for secret in ("hunter2", "xyz", "0123456789") if secret in log_of(order)}
    (line,) = told_in_log(order, "wandb")
    assert "ValueError: https://host/a refused (WANDB_API_KEY)" in line


# --- MLflow and Weights & Biases, faked ---------------------------------------------------


class FakeMlflow:
    """What a tracking server keeps, behind the client's methods that we use."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, types.SimpleNamespace] = {}
        self.is_raced = False

    def get_experiment_by_name(self, name):
        found = self.experiments.get(name)
        return found and types.SimpleNamespace(experiment_id=found)

    def create_experiment(self, name):
        if name in self.experiments or self.is_raced:
            self.experiments.setdefault(name, "another's")
            raise RuntimeError("RESOURCE_ALREADY_EXISTS")
        return self.experiments.setdefault(name, f"e{len(self.experiments)}")

    def search_runs(self, experiment_ids, filter_string, max_results):
        matches = [
            run
            for run in self.runs.values()
            if run.experiment in experiment_ids
            and filter_string == f"tags.`sweeper.trial_id` = '{run.tags['sweeper.trial_id']}'"
        ]
        return matches[:max_results]

    def create_run(self, experiment_id, run_name, tags):
        info = types.SimpleNamespace(run_id=f"r{len(self.runs)}")
        run = types.SimpleNamespace(
            info=info, experiment=experiment_id, name=run_name, tags=dict(tags), params={}
        )
        run.metrics, run.statuses = [], []
        return self.runs.setdefault(info.run_id, run)

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100
        assert len(metrics) <= 1000
        for key, value in params:
            assert isinstance(value, str)
            assert key not in self.runs[run_id].params, "parameters cannot be changed"
            self.runs[run_id].params[key] = value
        self.runs[run_id].metrics.extend(metrics)

    def get_metric_history(self, run_id, key):
        of_key = [metric for metric in self.runs[run_id].metrics if metric[0] == key]
        return [types.SimpleNamespace(step=step) for _, _, _, step in of_key]

    def set_tag(self, run_id, key, value):
        self.runs[run_id].tags[key] = value

    def update_run(self, run_id, status):
        self.runs[run_id].statuses.append(status)

    set_terminated = update_run


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    server = FakeMlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    tracking, entities = types.ModuleType("mlflow.tracking"), types.ModuleType("mlflow.entities")
    tracking.MlflowClient = lambda tracking_uri: {"http://server": server}[tracking_uri]
    entities.Metric = lambda key, value, timestamp, step: (key, value, timestamp, step)
    entities.Param = lambda key, value: (key, value)
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return server


def test_mlflow_has_one_run_a_trial_with_every_snapshot_once(
    tmp_path: Path, expected: str, mlflow: FakeMlflow
):
    order = order_in(tmp_path, "mlflow")
    run(order, 4)
    fail(order, 3)
    assert run(order).digest == expected
    assert not told_in_log(order, "mlflow")
    (found,) = mlflow.runs.values()
    assert found.name == order.trial_id
    assert found.experiment == mlflow.experiments["digits"]
    assert set(found.params) == set(order.config)
    assert found.params["model.widths"] == "[16]"
    for name in METRICS:
        shown = [(step, value) for key, value, _, step in found.metrics if key == name]
        assert shown == stored(order, name)
    assert found.statuses == ["KILLED", "RUNNING", "FAILED", "RUNNING", "FINISHED"]
    assert found.tags["sweeper.state"] == "complete"


def test_two_slots_may_make_the_experiment_of_mlflow_at_once(tmp_path: Path, mlflow: FakeMlflow):
    mlflow.is_raced = True
    run(order_in(tmp_path, "mlflow"), 1)
    assert [found.experiment for found in mlflow.runs.values()] == ["another's"]


def test_mlflow_without_its_address_is_not_left_to_its_default(
    tmp_path: Path, mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    order = order_in(tmp_path, "mlflow")
    run(order, 1)
    assert "MLFLOW_TRACKING_URI is not set" in told_in_log(order, "mlflow")[0]
    assert not mlflow.runs


class FakeWandbRun:
    """A run that its server goes on with: `step` is the first that it would take."""

    def __init__(self, history: dict[int, dict[str, float]]) -> None:
        self.history, self.summary, self.ends = history, {}, []
        self.step = max(history, default=-1) + 1
        self.preempting = False

    def log(self, data, step):
        assert step >= max(self.history, default=-1), "wandb drops it with a warning"
        self.history[step] = data

    def mark_preempting(self):
        self.preempting = True

    def finish(self, exit_code):
        self.ends.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module whose `inits` are the arguments of each run that was opened, and the run."""
    module = types.ModuleType("wandb")
    module.inits, module.histories, module.setups = [], {}, []
    module.Settings = lambda **settings: settings
    module.setup = lambda settings: module.setups.append(settings)

    def init(**arguments):
        opened = FakeWandbRun(module.histories.setdefault(arguments["id"], {}))
        module.inits.append((arguments, opened))
        return opened

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    return module


def test_wandb_has_one_run_a_trial_with_every_snapshot_once(
    tmp_path: Path, expected: str, wandb: types.ModuleType
):
    order = order_in(tmp_path, "wandb")
    run(order, 4)
    fail(order, 3)
    assert run(order).digest == expected
    assert not told_in_log(order, "wandb")
    for name in METRICS:
        shown = [(step, data[name]) for step, data in wandb.histories[order.trial_id].items()]
        assert shown == stored(order, name)
    ends = [(opened.summary["state"], opened.preempting, opened.ends) for _, opened in wandb.inits]
    assert ends == [("stopped", True, [1]), ("failed", False, [1]), ("complete", False, [0])]
    arguments, _ = wandb.inits[0]
    assert arguments == {
        "id": order.trial_id,
        "name": order.trial_id,
        "project": "digits",
        "config": dict(order.config),
        "resume": "allow",
        "reinit": "create_new",
        "dir": str(tmp_path),
        "settings": {"console": "off", "silent": True},
    }
    assert {"silent": True} in wandb.setups, "or it asks for a key on the terminal"


def test_wandb_keeps_to_the_folder_that_its_user_named(
    tmp_path: Path, wandb: types.ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "other"))
    run(order_in(tmp_path, "wandb"), 1)
    assert wandb.inits[0][0]["dir"] is None


# --- at launch ----------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that are found and must not be imported."""
    for name in ("tensorboard", "mlflow", "wandb"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")


@pytest.mark.usefixtures("installed")
def test_trackers_are_found_without_importing_them_and_named_once():
    assert check_trackers([], "s3://bucket/x") == ()
    assert check_trackers(["wandb", "mlflow", "wandb"], "s3://bucket/x") == ("wandb", "mlflow")
    assert check_trackers(["tensorboard"], Path("runs/digits")) == ("tensorboard",)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "root", "text", "hint"),
    [
        (
            "tensorbord",
            "runs/a",
            "--log-to: unknown tracker `tensorbord`; one of tensorboard, mlflow, wandb",
            "did you mean `tensorboard`?",
        ),
        (
            "tensorboard",
            "s3://bucket/a",
            "--log-to: `tensorboard` with a store that is a URL; a folder, for its event files",
            "leave out `--store`, or log to another tracker",
        ),
    ],
)
def test_a_tracker_that_cannot_be_is_refused(name: str, root: str, text: str, hint: str):
    with pytest.raises(SweeperError) as caught:
        check_trackers([name], root)
    assert (str(caught.value), caught.value.hint) == (text, hint)
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("installed")
def test_mlflow_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(SweeperError, match="without MLFLOW_TRACKING_URI"):
        check_trackers(["mlflow"], "runs/a")


def test_a_tracker_that_is_not_installed_is_refused_a_folder_of_its_name_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    for _ in range(2):
        with pytest.raises(SweeperError, match="`wandb` is not installed") as caught:
            check_trackers(["wandb"], "runs/a")
        assert "pip install 'sweeper[wandb]'" in caught.value.hint
        (tmp_path / "wandb").mkdir(exist_ok=True)  # as wandb makes one where it runs
