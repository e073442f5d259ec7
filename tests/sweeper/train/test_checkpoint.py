"""Checkpoints on disk."""

import pickle

import pytest
import torch

from sweeper.errors import CheckpointError
from sweeper.train import checkpoint

STATE = {
    "step": 3,
    "diverged": False,
    "model": {"weight": torch.arange(6.0).view(2, 3)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 1)}]},
}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(checkpoint.to_bytes(STATE))
    return path


def test_a_state_comes_back_as_it_was(saved):
    found = checkpoint.load(saved)
    assert torch.equal(found["model"].pop("weight"), STATE["model"]["weight"])
    assert found["optimizer"]["state"][0]["step"].item() == 3
    assert found["optimizer"]["param_groups"] == STATE["optimizer"]["param_groups"]
    assert (found["step"], found["diverged"]) == (3, False)


def test_a_truncated_file_is_refused_wherever_it_ends(saved):
    whole = saved.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            checkpoint.load(saved)


def test_a_changed_weight_is_noticed(saved):
    whole = saved.read_bytes()
    place = whole.index(STATE["model"]["weight"].numpy().tobytes())
    saved.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint.load(saved)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint was run",))


@pytest.mark.parametrize("content", [pickle.dumps({"step": 1}), b"not ours", b""])
def test_a_foreign_file_is_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(saved)
    assert caught.value.where == str(saved)
    assert caught.value.hint


def test_no_code_in_a_checkpoint_is_run(saved):
    torch.save({"step": Bomb()}, saved)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(saved)


def test_a_file_that_holds_no_state_is_refused(saved):
    torch.save([1, 2], saved)
    with pytest.raises(CheckpointError, match="a list in the place of a state"):
        checkpoint.load(saved)


def test_a_missing_file_is_an_input_output_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.pt")
