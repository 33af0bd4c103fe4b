"""The GPU benchmark runs on a CPU at its smallest, reports errors as checks, and keeps to its time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import gpu, gpu_numerics, gpu_speed
from benchmarks.gpu_report import Check, Clock, Report, Setting, read_checks, relative
from supernet.net import Supernet

CPU = torch.device("cpu")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(CPU, quick=True, folder=tmp_path)


def test_a_space_agrees_with_fp64_in_every_check(setting: Setting) -> None:
    report = Report("numerics", setting.folder / "numerics.json")
    case = gpu_numerics.make_case("mbv3_tiny", 16, CPU)
    gpu_numerics.check_family(case, report, Clock(100.0), num_random=1)
    assert [check.passed for check in report.checks] == [True] * 5
    assert read_checks(report.file) == report.checks


def test_a_wrong_weight_on_the_device_is_found(setting: Setting) -> None:
    case = gpu_numerics.make_case("mbv3_tiny", 16, CPU)
    with torch.no_grad():
        list(case.there.parameters())[-1][0] += 0.01  # the classifier's bias
    report = Report("numerics", setting.folder / "numerics.json")
    gpu_numerics.check_family(case, report, Clock(0.0), num_random=0)
    assert report.checks[0].passed is False


def test_gradients_that_are_wrong_alone_are_found() -> None:
    case = gpu_numerics.make_case("mbv3_tiny", 16, CPU)
    next(case.there.parameters()).register_hook(lambda gradient: gradient * 1.5)

    def run(net: Supernet, images: Tensor, targets: Tensor) -> Tensor:
        logits = net(images)
        logits.square().mean().backward()
        return logits

    errors = case.errors(run)
    assert errors["logits"] < gpu_numerics.LOGITS
    assert errors["gradients"] > gpu_numerics.GRADIENTS


def test_an_error_in_a_section_is_a_check_that_failed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setting: Setting, report: Report, clock: Clock) -> None:
        report.add("before", "1", "", True)
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(gpu_speed, "memory", broken)
    gpu.run_section("memory", setting, 10.0)
    found = read_checks(setting.folder / "memory.json")
    assert [(check.name, check.passed) for check in found] == [("before", True), ("memory", False)]
    assert found[1].value == "RuntimeError: out of luck"


def test_sections_without_time_are_left_out(setting: Setting) -> None:
    found = gpu.run_all(["numerics", "speed"], setting, 0.1, Console(quiet=True))
    assert [(check.section, check.value) for check in found] == [
        ("numerics", "left out: no time"),
        ("speed", "left out: no time"),
    ]


def test_a_section_that_hangs_is_ended(setting: Setting) -> None:
    (check,) = gpu.run_apart("latency", setting, 60.0, 0.2)
    assert check.passed is False
    assert check.value.startswith("ended after")


def test_the_command_runs_a_section_and_writes_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own: elastic steps of a small space."""
    file = tmp_path / "gpu.json"
    argv = ["benchmarks.gpu", "--device", "cpu", "--quick", "--only", "elastic", "--minutes", "3", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.chdir(Path(__file__).parents[1])
    assert gpu.main() == 0
    found = json.loads(file.read_text())
    (row,) = found["checks"]
    assert row["name"] == "elastic / extracted"
    assert row["passed"] is None
    assert len(found["facts"]["elastic"]["all"]) == 3
    assert "elastic / extracted" in capsys.readouterr().out


def test_failed_checks_give_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = [Check("speed", "ratio", "2", ">= 3", False), Check("speed", "other", "4", ">= 3", True)]
    monkeypatch.setattr(gpu, "run_all", lambda *given: failed)
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--device", "cpu", "--only", "speed"])
    assert gpu.main() == 1
    failed[0] = Check("speed", "ratio", "2", ">= 3", None)
    assert gpu.main() == 0


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0.0), ([(0, 2), (1, 3)], 3.0), ([(5, 6), (0, 1)], 2.0), ([(0, 10), (2, 3)], 10.0)],
)
def test_overlapping_kernels_count_once(spans: list[tuple[float, float]], length: float) -> None:
    assert gpu_speed.covered(spans) == length


def test_relative_errors_are_those_of_norms() -> None:
    assert relative(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(4 / 3)
