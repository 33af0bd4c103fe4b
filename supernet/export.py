"""Exported subnets: a folder that holds all that is needed to run one, checked before it is handed over."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from supernet.calibrate import track_statistics
from supernet.errors import UserError
from supernet.evaluate import calibrated_subnet
from supernet.net import Supernet, memory_format
from supernet.space import Arch, Space, load_space

if TYPE_CHECKING:
    from supernet.data import Data, DataInfo

FORMAT, VERSION = "supernet-subnet", 1
FORMATS = ("onnx", "pt2")


def export(
    subnet: nn.Module,
    arch: Arch,
    net: Supernet,
    folder: Path,
    data: DataInfo,
    images: Tensor,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    formats: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a calibrated subnet, read it back, and compare it on real `images` [B, C, S, S].

    Only a folder that passed appears under the name `folder`, in place of one that was there.

    Always written: `arch.json`, `config.json`, `model.safetensors`. On request: `model.pt2` (torch.export) and
    `model.onnx`. Returns the largest absolute logit differences, by what was compared.

    Raises:
        UserError: on an unknown format, or where a reloaded file computes something else than the subnet inside
            the supernet; prints the largest difference.
    """
    from safetensors.torch import save_file

    from supernet.data.base import resize

    check_formats(formats)
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise UserError(f"{folder} exists and is no exported subnet: remove it, or choose another folder")
    space, plan = net.space, net.space.plan(arch)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "space": space.config,
        "arch": arch.to_json(),
        "classes": list(data.class_names),
        "num_classes": data.num_classes,
        "input": {"channels": data.channels, "resolution": plan.resolution, "mean": data.mean, "std": data.std},
        "macs": plan.macs,
        "params": plan.params,
        "metrics": dict(metrics),
        "provenance": dict(provenance),
    }
    images = resize(images, plan.resolution)
    partial = folder.with_name(f".{folder.name}.partial")  # becomes `folder` once everything has been checked
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in subnet.state_dict().items()}
    save_file(weights, partial / "model.safetensors")
    (partial / "arch.json").write_text(json.dumps(arch.to_json(), indent=2) + "\n")
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    # On the CPU, where equal weights give equal numbers bit for bit.
    subnet, inside, images = copy.deepcopy(subnet).cpu().eval(), copy.deepcopy(net).cpu(), images.cpu()
    reloaded = load_subnet(partial).to(memory_format=memory_format(net))
    differences = _verify(reloaded, subnet, arch, inside, images)
    for name in formats:
        differences[name] = _WRITERS[name](subnet, partial / f"model.{name}", images)
    _replace(folder, partial)
    return differences


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that do not exist or whose packages are missing, before any work is done.

    Raises:
        UserError: naming them.
    """
    from importlib.util import find_spec

    unknown = set(formats) - set(FORMATS)
    if unknown:
        raise UserError(f"formats={sorted(unknown)}: choose from {list(FORMATS)}")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if "onnx" in formats and not find_spec(name)]
    if missing:
        raise UserError(f"formats=[onnx] needs {', '.join(missing)}: pip install -e '.[onnx]'")


def export_alone(net: Supernet, data: Data, folder: Path, results: Mapping[str, Any]) -> Path:
    """Export the one subnet of a run that trained it alone, to `<folder>/subnet`; returns that path."""
    arch = net.space.largest()
    subnet = calibrated_subnet(net, arch, data, int(results["calibration_images"]))
    images, _ = data.evaluation("val", net.space.resolution(arch))[0]
    metrics = results["subnets"]["largest"]["top1"]
    export(subnet, arch, net, folder / "subnet", data.info, images, metrics, {"run": folder.name})
    return folder / "subnet"


def load_subnet(folder: str | Path) -> nn.Module:
    """The network of an exported folder, on the CPU, in eval mode. Needs torch and safetensors only.

    Raises:
        UserError: if a file is missing or damaged, or the folder is not an exported subnet.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not an exported subnet: {name} is missing")
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged export ({error}); export the subnet again") from None
    space, arch = _described(config, folder)
    subnet = space.module(space.plan(arch))
    track_statistics(subnet)
    try:
        subnet.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{folder}: weights do not fit the arch ({str(error).splitlines()[-1].strip()})") from None
    return subnet.eval()


def _described(config: Any, folder: Path) -> tuple[Space, Arch]:
    """The space and the arch that an exported `config.json` describes; `UserError` where it does not."""
    foreign = UserError(f"{folder}/config.json does not describe an exported subnet")
    if not isinstance(config, dict) or config.get("format") != FORMAT or type(config.get("version")) is not int:
        raise foreign
    if config["version"] > VERSION:
        raise UserError(f"{folder} was written by a newer version of this project: upgrade to read it")
    if not isinstance(config.get("space"), dict) or not isinstance(config.get("arch"), dict):
        raise foreign
    space = load_space(config["space"])
    try:
        return space, space.from_json(config["arch"])
    except ValueError as error:
        raise UserError(f"{folder}/config.json: {error}") from None


@torch.no_grad()
def _verify(reloaded: nn.Module, subnet: nn.Module, arch: Arch, net: Supernet, images: Tensor) -> dict[str, float]:
    """Reloaded against calibrated in eval mode, and against the subnet inside the supernet on batch statistics."""
    differences = {"calibrated": _largest_difference(subnet(images), reloaded(images), "the calibrated subnet")}
    inside = net.train()(images, arch)
    outside = copy.deepcopy(reloaded).train()(images)
    differences["supernet"] = _largest_difference(inside, outside, "the supernet's subnet")
    return differences


def _replace(folder: Path, partial: Path) -> None:
    """Put the finished export in place of an older one, which is kept until then."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _largest_difference(expected: Tensor, actual: Tensor, what: str, tolerance: float = 0.0) -> float:
    """The largest absolute difference of logits; more than `tolerance` times the largest logit is an error."""
    difference = float((expected - actual).abs().max())
    limit = tolerance * float(expected.abs().max())
    if not difference <= limit:  # also catches NaN
        raise UserError(
            f"the exported file differs from {what} by up to {difference:.3g} (allowed: {limit:.3g}): do not use it"
        )
    return difference


def _write_pt2(subnet: nn.Module, path: Path, images: Tensor) -> float:
    program = torch.export.export(subnet, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    reloaded = torch.export.load(path).module()
    with torch.no_grad():
        return _largest_difference(subnet(images), reloaded(images), "the calibrated subnet", tolerance=1e-4)


def _write_onnx(subnet: nn.Module, path: Path, images: Tensor) -> float:
    import onnxruntime

    torch.onnx.export(
        subnet,
        (images,),
        path,
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
        external_data=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    actual = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.no_grad():
        return _largest_difference(subnet(images), actual, "the calibrated subnet", tolerance=1e-4)


_WRITERS: dict[str, Callable[[nn.Module, Path, Tensor], float]] = {"pt2": _write_pt2, "onnx": _write_onnx}
