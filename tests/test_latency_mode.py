"""The whole of mode=latency, and tables measured elsewhere."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from search.latency.formats import block_keys, read_block_tables, read_csv
from search.latency.measure import Measurement
from search.latency.mode import main
from search.latency.model import LatencyModel
from supernet.build import build
from supernet.cost import macs_of
from supernet.errors import UserError
from supernet.space import Space

STAGES = [
    {"width": [8], "depth": [1], "kernel": [3], "expand": [1], "stride": 1, "act": "relu", "fixed": True},
    {"width": [16], "depth": [1, 2], "kernel": [3, 5], "expand": [2, 3], "stride": 2, "act": "hswish", "se": True},
]
SMALL = {
    "_target_": "supernet.models.mbconv.space",
    "name": "small",
    "choose": "block",
    "resolution": [16, 20, 24],
    "stem": {"width": [8], "kernel": 3, "stride": 2, "act": "hswish"},
    "stages": STAGES,
    "head": {"width": [24], "expand": 2, "act": "hswish"},
}


@pytest.fixture
def named(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return str(path)


def settings(tmp_path: Path, space: Any, **rest: Any) -> dict[str, Any]:
    common = {"mode": "latency", "space": space, "runs_dir": str(tmp_path), "device": "cpu", "threads": 1}
    return {**common, "evaluations": 5, **rest}


def only_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "latency").iterdir()
    return folder


def test_a_space_is_measured_modelled_and_reported(tmp_path: Path, named: str, capsys: Any) -> None:
    space = build(named).space
    mape = main(settings(tmp_path, named, subnets=16, held_out=8))
    folder = only_folder(tmp_path)
    assert folder.name.endswith("-small-cpu")
    results = json.loads((folder / "results.json").read_text())
    assert results["held_out"]["mape"] == pytest.approx(mape)
    assert results["held_out"]["n"] == 8
    assert results["conditions"]["threads"] == 1
    assert {"device_name", "torch", "batch", "dtype", "memory_format"} <= set(results["conditions"])
    assert {"table", "layers", "genes"} <= {row["kind"] for row in results["candidates"]}
    errors = [row["cross_validation_mape"] for row in results["candidates"]]
    assert results["cross_validation_mape"] == min(errors)
    model = LatencyModel.load(folder, space)
    with (folder / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    for row in rows:
        arch = space.from_json(json.loads(row["arch"]))
        assert model.predict(arch) == pytest.approx(float(row["predicted_ms"]), abs=1e-5)
    assert (folder / "latency.png").stat().st_size > 5000
    shown = capsys.readouterr().out
    assert "Kendall" in shown
    assert "constraint.latency_ms=" in shown
    assert model.predict(space.largest()) > model.predict(space.smallest())


def test_an_interrupted_measurement_goes_on(tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Measurement._append

    def interrupt(self: Measurement, rows: Any) -> None:
        plain(self, rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(Measurement, "_append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(settings(tmp_path, named, subnets=14, held_out=7))
    monkeypatch.setattr(Measurement, "_append", plain)
    folder = only_folder(tmp_path)
    first = (folder / "measurements.jsonl").read_text()
    for number, line in (
        (1, "[1]"),
        (2, "{"),
        (2, "{}"),
        (3, "7"),
        (3, '{"arch": {}, "raw": [1.0], "reference": 1.0}'),
    ):
        lines = first.splitlines()
        lines[number - 1] = line
        (folder / "measurements.jsonl").write_text("\n".join(lines) + "\n")
        with pytest.raises(UserError, match=rf"measurements\.jsonl, line {number}: damaged"):
            main(settings(tmp_path, named, subnets=14, held_out=7, resume="auto"))
    (folder / "measurements.jsonl").write_text(first)
    main(settings(tmp_path, named, subnets=14, held_out=7, resume="auto"))
    assert only_folder(tmp_path) == folder
    assert (folder / "measurements.jsonl").read_text().startswith(first)
    assert len((folder / "measurements.csv").read_text().splitlines()) == 22


def test_too_short_a_time_says_how_to_go_on(tmp_path: Path, named: str) -> None:
    with pytest.raises(UserError, match=r"minutes=1e-06: too short.*resume="):
        main(settings(tmp_path, named, subnets=14, held_out=7, minutes=1e-6))


def test_dry_run_writes_nothing(tmp_path: Path, named: str, capsys: Any) -> None:
    main(settings(tmp_path, named, dry_run=True))
    assert not (tmp_path / "latency").exists()
    assert "at most 5 minutes" in capsys.readouterr().out


def test_wrong_settings_are_named(tmp_path: Path, named: str) -> None:
    for key, value in (("minutes", 0), ("dtype", "half"), ("resume", "nowhere"), ("source", "nowhere.csv")):
        with pytest.raises(UserError, match=key):
            main(settings(tmp_path, named, **{key: value}))
    with pytest.raises(UserError, match="unknown space"):
        main(settings(tmp_path, "alfanet"))


# Tables measured elsewhere -------------------------------------------------------------------------------------


def write_tables(folder: Path, space: Space, sides: tuple[int, ...]) -> dict[int, dict[str, float]]:
    """Tables of random means, other ones for each resolution."""
    rng = np.random.default_rng(0)
    tables: dict[int, dict[str, float]] = {}
    for side in sides:
        part = build_space(resolution=[side])
        keys = {
            key
            for i, unit in enumerate(part.units)
            for _, spec in part.specs(i)
            if spec is not None
            for key in block_keys(unit.name, spec)
        }
        tables[side] = {key: float(rng.uniform(0.1, 1)) for key in sorted(keys)}
        entries = {key: {"count": 9, "mean": ms, "std": 0.0} for key, ms in tables[side].items()}
        (folder / f"{side}_lookup_table.yaml").write_text(yaml.safe_dump(entries))
    return tables


def build_space(**overrides: Any) -> Space:
    from supernet.space import load_space

    return load_space({**SMALL, **overrides}, num_classes=10, in_channels=3)


def test_the_names_of_layers_are_those_of_the_published_tables() -> None:
    plan = build("ofa_mbv3_w12", resolution=[176, 224]).space
    small = plan.plan(plan.from_json({**plan.smallest().to_json(), "resolution": 224}))
    keys = {name: block_keys(name, spec) for name, spec in small.layers}
    assert keys["stem"] == ["Conv-input:224x224x3-output:112x112x24"]
    first = "expanded_conv-input:112x112x24-output:112x112x24-expand:24-kernel:3-stride:1-idskip:1-se:0-hs:0"
    assert keys["stages.0.0"] == [first]
    wider = "expanded_conv-input:14x14x96-output:14x14x136-expand:288-kernel:3-stride:1-idskip:0-se:1-hs:1"
    assert keys["stages.4.0"] == [wider]
    assert keys["head"] == [
        "Conv_1-input:7x7x192-output:7x7x1152",
        "AvgPool2D-input:7x7x1152-output:1x1x1152",
        "Conv_2-input:1x1x1152-output:1x1x1536",
        "Logits-input:1x1x1536-output:1000",
    ]
    odd = plan.plan(plan.from_json({**plan.smallest().to_json(), "resolution": 176}))
    assert block_keys("stages.5.0", odd["stages.5.0"])[0].startswith("expanded_conv-input:11x11x136-output:6x6x192-")


def test_block_tables_add_up_to_the_hand_sum(tmp_path: Path) -> None:
    space = build_space()
    tables = write_tables(tmp_path, space, (16, 24))
    restricted, additive = read_block_tables(tmp_path, space)
    assert next(gene.options for gene in restricted.genes if gene.key == "resolution") == (16, 24)
    model = LatencyModel(restricted, additive)
    for arch in restricted.sample(np.random.default_rng(0), n=50):
        table = tables[int(arch["resolution"])]
        layers = restricted.plan(arch).layers
        assert model.predict(arch) == pytest.approx(sum(table[k] for n, s in layers for k in block_keys(n, s)))


def test_an_entry_that_the_table_lacks_is_named(tmp_path: Path) -> None:
    space = build_space()
    tables = write_tables(tmp_path, space, (16,))
    gone = next(key for key in tables[16] if "kernel:5" in key)
    del tables[16][gone]
    (tmp_path / "16_lookup_table.yaml").write_text(yaml.safe_dump({k: {"mean": v} for k, v in tables[16].items()}))
    with pytest.raises(UserError, match=gone):
        read_block_tables(tmp_path, space)
    with pytest.raises(UserError, match="no table of a resolution"):
        read_block_tables(tmp_path, build_space(resolution=[32]))
    (tmp_path / "16_lookup_table.yaml").write_text("- a\n- b\n")
    with pytest.raises(UserError, match="not a latency table"):
        read_block_tables(tmp_path, space)


def test_other_families_have_no_block_tables() -> None:
    space = build("autoformer_tiny").space
    with pytest.raises(UserError, match="MobileNetV3"):
        block_keys(*space.plan(space.smallest()).layers[1])


def test_a_csv_of_subnets_becomes_a_model(tmp_path: Path, named: str) -> None:
    space = build(named).space
    archs = list(dict.fromkeys(space.sample(np.random.default_rng(0), n=100)))
    lines = [(json.dumps(arch.to_json()), 1 + space.plan(arch).macs / 1e6) for arch in archs]
    with (tmp_path / "phone.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("arch", "ms"), *lines])
    mape = main(settings(tmp_path, named, source=str(tmp_path / "phone.csv")))
    assert mape < 1e-3
    model = LatencyModel.load(only_folder(tmp_path), space)
    assert model.predict(archs[0]) == pytest.approx(1 + space.plan(archs[0]).macs / 1e6, rel=1e-5)


def test_a_folder_of_tables_becomes_a_model(tmp_path: Path, named: str) -> None:
    (tmp_path / "phone").mkdir()
    space = build(named, num_classes=10).space
    tables = write_tables(tmp_path / "phone", space, (16, 20, 24))
    for side in tables:  # the command takes the space by name, which has 1000 classes
        path = tmp_path / "phone" / f"{side}_lookup_table.yaml"
        path.write_text(path.read_text().replace("output:10:", "output:1000:"))
    main(settings(tmp_path, named, source=str(tmp_path / "phone")))
    model = LatencyModel.load(only_folder(tmp_path), build(named).space)
    assert model.info["source"] == "phone"
    assert 0 < model.predict(model.space.smallest()) < model.predict(model.space.largest())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('"{""resolution"": 99}",1.0', "line 2"),
        ("not json,1.0", "line 2"),
        ('"{}",fast', "line 2"),
        pytest.param(f'"{"x" * 200_000}",1.0', "field limit", id="long field"),
        pytest.param(f'"{"[" * 100_000}",1.0', "line 2: .*recursion", id="deep field"),
    ],
)
def test_csv_lines_that_cannot_be_read_are_named(tmp_path: Path, named: str, line: str, reason: str) -> None:
    path = tmp_path / "phone.csv"
    path.write_text(f"arch,ms\n{line}\n")
    with pytest.raises(UserError, match=reason):
        read_csv(path, build(named).space)
    path.write_text("name,time\nx,1,2\n")
    with pytest.raises(UserError, match="columns arch and ms"):
        read_csv(path, build(named).space)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 5000, ".nan", ".inf", "-1", "true", "fast", "[" * 3000])
def test_means_that_are_no_times_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(f"Conv-input:16x16x3-output:8x8x8:\n  mean: {text}\n")
    with pytest.raises(UserError, match=r"has no mean from 0 to|cannot be read"):
        read_block_tables(path, build_space())


@pytest.mark.parametrize("part", ["offset_ms", "factors", "probes"])
def test_a_model_with_a_number_beyond_all_bounds_is_refused(tmp_path: Path, part: str) -> None:
    space = build_space()
    LatencyModel(space, macs_of(space)).save(tmp_path / "latency.json")
    content = json.loads((tmp_path / "latency.json").read_text())
    first = {"offset_ms": None, "factors": {"ms": [10**400]}, "probes": {"macs": 10**400}}[part]
    content[part] = [{**content[part][0], **first}] if first else 10**400
    (tmp_path / "latency.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged"):
        LatencyModel.load(tmp_path / "latency.json", space)


def test_named_pipes_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("this would wait for somebody who writes")

    space = build_space()
    for name, read in (
        ("phone.csv", lambda path: read_csv(path, space)),
        ("table.yaml", lambda path: read_block_tables(path, space)),
        ("table.yaml", lambda path: read_block_tables(path.parent, space)),  # one of a folder
        ("latency.json", lambda path: LatencyModel.load(path, space)),
        ("latency.json", lambda path: LatencyModel.load(path.parent, space)),
    ):
        if not (tmp_path / name).exists():
            os.mkfifo(tmp_path / name)
        with monkeypatch.context() as patched:
            patched.setattr("io.open", opened)
            with pytest.raises(UserError, match="is not a file"):
                read(tmp_path / name)
