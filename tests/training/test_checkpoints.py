"""Checkpoints: whole or refused, and which are kept."""

import numpy as np
import pytest

from kerasnorm.errors import CorruptFileError
from kerasnorm.training import checkpoints

STATE = {"model/000": np.arange(6, dtype=np.float32), "optimizer/000": np.array(3)}


def save(folder, epoch, is_best=False):
    return checkpoints.save(folder, STATE, {"epoch": epoch, "is_best": is_best})


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state, facts = checkpoints.load(save(tmp_path, 3))
    assert facts["epoch"] == 3
    assert state.keys() == STATE.keys()
    assert all(np.array_equal(state[name], STATE[name]) for name in STATE)


def test_the_last_two_and_the_best_are_kept(tmp_path):
    for epoch in range(1, 7):
        save(tmp_path, epoch, is_best=epoch in (1, 3))
    names = [path.name for path in checkpoints.checkpoint_folders(tmp_path)]
    assert names == ["epoch-003", "epoch-005", "epoch-006"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, harm, caplog):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    victim = newest / (checkpoints.MANIFEST if harm == "manifest" else checkpoints.STATE)
    if harm == "flip":
        damage(victim)
    elif harm == "remove":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:10])
    _, facts = checkpoints.load_newest(tmp_path)
    assert facts["epoch"] == 1
    assert "epoch-002" in caplog.messages[0]
    assert caplog.records[0].levelname == "WARNING"


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CorruptFileError, match="no checkpoint"):
        checkpoints.load_newest(tmp_path)


def test_a_failed_save_leaves_no_litter(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        checkpoints.save(tmp_path, STATE, {"epoch": 1, "loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_neighbour_does_not_stop_a_save(tmp_path):
    for epoch in (1, 2, 3):
        (save(tmp_path, epoch) / checkpoints.MANIFEST).write_text("{")
    save(tmp_path, 4)
    assert checkpoints.load_newest(tmp_path)[1]["epoch"] == 4


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_trained_again_after_damage_is_kept(tmp_path, count):
    for epoch in range(1, 8):
        save(tmp_path, epoch, is_best=epoch == 4)
    for path in checkpoints.checkpoint_folders(tmp_path)[-count:]:
        damage(path / checkpoints.STATE)
    first = checkpoints.load_newest(tmp_path)[1]["epoch"] + 1
    for epoch in range(first, 8):
        save(tmp_path, epoch)
        assert checkpoints.load_newest(tmp_path)[1]["epoch"] == epoch
    names = [path.name for path in checkpoints.checkpoint_folders(tmp_path)]
    assert names == ["epoch-004", "epoch-006", "epoch-007"]
