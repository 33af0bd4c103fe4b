"""Checkpoints: exact round trip, whole files under every kind of failure, clear refusals."""

import datetime
import errno
import pickle
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from endless import shared_lists
from tiny import tiny_space

from supernet import checkpoint, load_subnet, load_supernet
from supernet.build import make_data, open_run
from supernet.calibrate import track_statistics
from supernet.checkpoint import FORMAT, VERSION, kept_files, load, newest_whole, save
from supernet.errors import UserError
from supernet.net import Supernet
from supernet.runs import plain, write_json


def state(value: float = 1.0) -> dict[str, Any]:
    return {
        "step": 7,
        "weights": OrderedDict(a=torch.full((300, 300), value), b=torch.randn(3, dtype=torch.float64)),
        "nested": [1, 2.5, "x", None, True, (torch.arange(3), {0: "int key"})],
    }


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    wanted = state()
    save(path, wanted)
    found = load(path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted["weights"].items():
        assert torch.equal(found["weights"][name], tensor)
        assert found["weights"][name].dtype == tensor.dtype
    assert found["nested"][:5] == wanted["nested"][:5]
    assert isinstance(found["nested"][5], tuple)
    assert found["nested"][5][1] == {0: "int key"}


def test_real_optimizer_and_generator_state(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    save(tmp_path / "c.pt", {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()})
    found = load(tmp_path / "c.pt")
    fresh = torch.optim.AdamW([weight])
    fresh.load_state_dict(found["optimizer"])
    assert torch.equal(fresh.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg"])
    torch.set_rng_state(found["rng"])


@pytest.mark.parametrize(
    "bad",
    [
        *(np.float64(1), np.zeros(2), object(), Path("x"), {1, 2}, torch.Size([1]), {(1,): 2}, torch.float32),
        *(torch.eye(2).to_sparse(), torch.empty(2, device="meta"), torch.zeros(2, dtype=torch.uint16)),
        *(torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.float8_e4m3fn)),
    ],
)
def test_other_types_are_refused_before_anything_is_written(tmp_path: Path, bad: Any) -> None:
    save(tmp_path / "c.pt", {"step": 1})
    with pytest.raises(TypeError, match=r"state\['deep'\]\[1\]"):
        save(tmp_path / "c.pt", {"deep": [0, bad]})
    assert load(tmp_path / "c.pt") == {"step": 1}
    with pytest.raises(ValueError, match="format"):
        save(tmp_path / "c.pt", {"format": "mine"})


@pytest.mark.parametrize("links", [True, False])
def test_the_newest_files_are_kept_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:  # as on some network and memory card file systems

        def refused(*names: Any) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr("os.link", refused)
    path = tmp_path / "c.pt"
    (tmp_path / "c-x.pt").touch()
    for step in range(5):
        save(path, {"step": step}, keep=3)
    assert [(file.name, load(file)["step"]) for file in kept_files(path)] == [("c.pt", 4), ("c-1.pt", 3), ("c-2.pt", 2)]
    save(path, {"step": 5})
    assert [load(file)["step"] for file in kept_files(path)] == [5, 3, 2]
    assert {file.name for file in tmp_path.iterdir()} == {"c.pt", "c-1.pt", "c-2.pt", "c-x.pt"}


def test_the_newest_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(UserError, match="does not exist"):
        newest_whole(path)
    for step in range(3):
        save(path, {"step": step, "w": torch.arange(100.0)}, keep=3)
    for name, data in (("c.pt", path.read_bytes()[:-9]), ("c-1.pt", b"")):
        assert newest_whole(path).name == name
        (tmp_path / name).write_bytes(data)
    assert load(newest_whole(path))["step"] == 0
    (tmp_path / "c-2.pt").unlink()
    with pytest.raises(UserError, match=r"c\.pt is truncated"):
        newest_whole(path)
    path.write_bytes(b"\x80\x02")  # whole, as far as anyone can tell, but of somebody else
    save(tmp_path / "c-1.pt", {"step": 1})
    with pytest.raises(UserError, match="not made by this project"):
        newest_whole(path)


def test_what_the_disk_does_not_give_back_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    save(path, {"step": 1}, keep=2)
    read = checkpoint._digest_of

    def damaged(temporary: Path) -> bytes:
        data = bytearray(temporary.read_bytes())
        data[len(data) // 3] ^= 1
        temporary.write_bytes(data)
        return read(temporary)

    monkeypatch.setattr(checkpoint, "_digest_of", damaged)
    with pytest.raises(UserError, match="other bytes than were written"):
        save(path, state(), keep=2)
    assert load(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def test_files_that_unfold_to_more_than_they_are(tmp_path: Path) -> None:
    """A gigabyte of zeros takes a megabyte when compressed; torch compresses nothing."""
    path = tmp_path / "c.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("c/data.pkl", "w") as entry:
        for _ in range(64):
            entry.write(bytes(2**20))
    with pytest.raises(UserError, match="damaged"):
        load(path)


def test_truncated_files_are_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save(path, {"w": torch.arange(500.0)})
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"c\.pt is (empty|truncated or damaged)"):
            load(path)


def test_flipped_bit_in_a_weight_is_found(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save(path, {"w": torch.zeros(10_000)})
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        load(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(UserError, match="does not exist"):
        load(path)
    with pytest.raises(UserError, match="not a file"):
        load(tmp_path)
    path.write_bytes(pickle.dumps({"format": FORMAT, "version": VERSION}))
    with pytest.raises(UserError, match="not a checkpoint"):
        load(path)
    torch.save({"format": FORMAT, "version": VERSION, "when": datetime.date(2020, 1, 1)}, path)
    with pytest.raises(UserError, match="not made by this project or is unsafe"):
        load(path)
    for foreign in ({"state_dict": {}}, [1], torch.zeros(2), {"format": "another"}):
        torch.save(foreign, path)
        with pytest.raises(UserError, match="not made by this project"):
            load(path)
    torch.save({"format": FORMAT, "version": VERSION + 1}, path)
    with pytest.raises(UserError, match="upgrade"):
        load(path)


def test_loading_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"format": FORMAT, "version": 1, "x": Evil()}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="unsafe"):
        load(tmp_path / "c.pt")
    assert not (tmp_path / "touched").exists()


def unending() -> dict[str, Any]:
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    own: dict[str, Any] = {}
    own["own"] = own
    return {**shared_lists(), "deep": deep, "own": own}


@pytest.mark.parametrize("what", unending())
def test_what_has_no_end_is_refused(tmp_path: Path, what: str) -> None:
    torch.save({"format": FORMAT, "version": VERSION, "config": unending()[what]}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="without end"):
        load(tmp_path / "c.pt")


def test_mappings_with_attributes_of_their_own(tmp_path: Path) -> None:
    """They stand before the methods; a network's state has one that is torch's."""
    for name in ("get", "_metadata"):
        weights = OrderedDict(w=torch.ones(1))
        setattr(weights, name, {})
        torch.save({"format": FORMAT, "version": VERSION, "model": weights}, tmp_path / "c.pt")
        if name == "get":
            with pytest.raises(UserError, match="unsafe"):
                load(tmp_path / "c.pt")
    assert load(tmp_path / "c.pt")["model"]["w"].item() == 1


def test_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The largest file that this process may write stands in for the end of the disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="large") as caught:
            save(path, state())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]
    assert load(path) == {"step": 1}


# One process imports torch, then forks writers that save without pause until they are killed.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from supernet.checkpoint import load, save
torch.set_num_threads(1)
path, chance = Path(sys.argv[1]), random.Random(0)
weights, inside, last = torch.ones(1_000_000), 0, 0
save(path, {"step": 0, "weights": weights * 0})
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        step = last
        while True:
            step += 1
            save(path, {"step": step, "weights": weights * step})
    time.sleep(chance.uniform(0.02, 0.15))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    inside += len(list(path.parent.glob(".*.tmp")))
    found = load(path)
    assert found["step"] >= last and bool((found["weights"] == found["step"]).all()), found["step"]
    last = found["step"]
save(path, {"step": -1})
assert [file.name for file in path.parent.iterdir()] == [path.name], "leftovers of dead writers"
print(inside, last)
"""


def test_killed_writers_always_leave_a_whole_file(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path / "c.pt")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    inside, steps = map(int, done.stdout.split())
    assert inside > 0, "no kill fell inside a write: the test proves nothing"
    assert steps > 0


# Configurations inside files ---------------------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that nothing may touch."""
    path = tmp_path / "victim.json"
    path.write_text("precious")
    return path


def with_attack(config: dict[str, Any], victim: Path) -> list[dict[str, Any]]:
    """`config` with a call that overwrites `victim`: in its place, and at several depths inside it."""
    attack = {"_target_": "supernet.runs.write_json", "path": str(victim), "obj": "gone"}
    deep = {**config, "extra": [{"x": [attack]}]}
    return [attack, {**config, "name": attack}, {**config, "extra": attack}, deep]


def test_a_checkpoint_s_space_cannot_call_anything_else(tmp_path: Path, victim: Path) -> None:
    net = Supernet(tiny_space())
    good = {"space": net.space.config, "model": net.state_dict(), "config": {}, "step": 1}
    save(tmp_path / "c.pt", good)
    assert load_supernet(tmp_path / "c.pt").space.size() == net.space.size()
    stages = list(net.space.config["stages"])
    nested = {**net.space.config, "stages": [*stages[:-1], with_attack(dict(stages[-1]), victim)[1]]}
    for space in [*with_attack(net.space.config, victim), nested]:
        save(tmp_path / "c.pt", {**good, "space": plain(space)})
        with pytest.raises(UserError, match=r"space.*not allowed"):
            load_supernet(tmp_path / "c.pt")
    assert victim.read_text() == "precious"


def test_an_export_s_space_cannot_call_anything_else(tmp_path: Path, victim: Path) -> None:
    from safetensors.torch import save_file

    net = Supernet(tiny_space())
    arch = net.space.smallest()
    config = {"format": "supernet-subnet", "version": 1, "space": net.space.config, "arch": arch.to_json()}
    weights = net.extract(arch)
    track_statistics(weights)
    save_file(weights.state_dict(), tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", config)
    load_subnet(tmp_path)
    for space in with_attack(net.space.config, victim):
        write_json(tmp_path / "config.json", {**config, "space": space})
        with pytest.raises(UserError, match=r"space.*not allowed"):
            load_subnet(tmp_path)
    assert victim.read_text() == "precious"


def test_a_checkpoint_s_data_cannot_call_anything_else(tmp_path: Path, victim: Path) -> None:
    """The section from which a search makes the data that a supernet was trained on."""
    net = Supernet(tiny_space())
    shares = {"split_seed": 0, "val_fraction": 0.1, "search_fraction": 0.1}
    sizes = {"batch_size": 8, "eval_batch_size": 8, "resolution": [8]}
    data = {"_target_": "supernet.data.digits.load", "seed": 0, **shares, **sizes}
    for section in (data, *with_attack(data, victim), {**data, "augment": with_attack({}, victim)[0]}):
        config = {"data": plain(section)}
        save(
            tmp_path / "c.pt",
            {"space": plain(net.space.config), "model": net.state_dict(), "config": config, "step": 1},
        )
        stored = open_run(tmp_path / "c.pt", torch.device("cpu")).config
        if section is data:
            assert make_data(stored, torch.device("cpu")).info.num_classes == 10
            continue
        with pytest.raises(UserError, match=r"data.*not allowed"):
            make_data(stored, torch.device("cpu"))
    with pytest.raises(UserError, match=r"data.*not allowed"):
        make_data({"data": data}, torch.device("cpu"), {"augment": with_attack({}, victim)[0]})
    assert victim.read_text() == "precious"


def test_a_file_that_the_disk_cannot_read_gives_way_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        checkpoint.save(path, {"step": step}, keep=2)
    original = zipfile.ZipFile.open

    def unreadable(self: zipfile.ZipFile, *given: Any, **how: Any) -> Any:
        if str(self.filename) == str(path):
            raise OSError(errno.EIO, "Input/output error")
        return original(self, *given, **how)

    monkeypatch.setattr(zipfile.ZipFile, "open", unreadable)
    assert checkpoint.newest_whole(path).name == "checkpoint-1.pt"
