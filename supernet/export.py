"""Exported subnets: a folder that holds all that is needed to run one, checked before it is handed over."""

from __future__ import annotations

import copy
import hashlib
import json
import os
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
from supernet.runs import write_atomic
from supernet.space import Arch, Space, load_space

if TYPE_CHECKING:
    from supernet.data import Data, DataInfo

FORMAT, VERSION = "supernet-subnet", 1
FORMATS = ("onnx", "pt2")
WEIGHTS = "model.safetensors"


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

    Only a folder that passed appears under the name `folder`, in place of one that was there; nothing else is left.

    Always written: `arch.json`, `config.json` (with checksums), `model.safetensors`. On request: `model.pt2`
    (torch.export) and `model.onnx`. Returns the largest absolute logit differences, by what was compared.

    Raises:
        UserError: on an unknown format, or where a reloaded file computes something else than the subnet inside
            the supernet (prints the largest difference), or cannot be written in a format.
        OSError: on a full disk and the like.
    """
    from supernet.data.base import resize

    check_formats(formats)
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise UserError(f"{folder} exists and is no exported subnet: remove it, or choose another folder")
    config = _config(arch, net, data, metrics, provenance)
    images = resize(images, net.space.plan(arch).resolution)
    partial = folder.with_name(f".{folder.name}.partial")  # becomes `folder` once everything has been checked
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(partial, config, subnet)
        # On the CPU, where equal weights give equal numbers bit for bit.
        subnet, inside, images = copy.deepcopy(subnet).cpu().eval(), copy.deepcopy(net).cpu(), images.cpu()
        reloaded = load_subnet(partial).to(memory_format=memory_format(net))
        differences = _verify(reloaded, subnet, arch, inside, images)
        for name in formats:
            differences[name] = _write_format(name, subnet, partial, images)
        _replace(folder, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return differences


def _config(
    arch: Arch, net: Supernet, data: DataInfo, metrics: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `config.json`, but for the checksums."""
    plan = net.space.plan(arch)
    return {
        "format": FORMAT,
        "version": VERSION,
        "space": net.space.config,
        "arch": arch.to_json(),
        "classes": list(data.class_names),
        "num_classes": data.num_classes,
        "input": {"channels": data.channels, "resolution": plan.resolution, "mean": data.mean, "std": data.std},
        "macs": plan.macs,
        "params": plan.params,
        "metrics": dict(metrics),
        "provenance": dict(provenance),
    }


def _write(folder: Path, config: Mapping[str, Any], subnet: nn.Module) -> None:
    """The files that every export has; they are on the disk when this returns."""
    from safetensors.torch import save

    weights = save({key: value.detach().cpu().contiguous() for key, value in subnet.state_dict().items()})
    config = json.loads(json.dumps(config))  # as it will be read: tuples are lists
    sums = {WEIGHTS: hashlib.sha256(weights).hexdigest(), "network": _network_sum(config)}
    write_atomic(folder / WEIGHTS, lambda file: file.write(weights))
    for name, content in (("arch.json", config["arch"]), ("config.json", {**config, "sha256": sums})):
        text = json.dumps(content, indent=2) + "\n"
        write_atomic(folder / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]


def _network_sum(config: Mapping[str, Any]) -> str:
    """Checksum of the entries of `config.json` that decide what is computed; the others may be edited."""
    described = {key: config.get(key) for key in ("space", "arch", "input")}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


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
    from safetensors.torch import load

    folder = Path(folder)
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not an exported subnet: {name} is missing")
    content = (folder / WEIGHTS).read_bytes()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load(content)
    except (ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged export ({error}); export the subnet again") from None
    space, arch = _described(config, folder)
    with torch.device("meta"):  # shapes alone: a file gets memory only for what it holds
        outline = space.module(space.plan(arch))
        track_statistics(outline)
    needed = outline.state_dict()
    if odd := sorted(key for key in needed.keys() | weights.keys() if _shape(needed, key) != _shape(weights, key)):
        raise UserError(f"{folder}: weights do not fit the arch ({', '.join(odd[:3])}); export the subnet again")
    sums = config.get("sha256")  # files of older versions have none
    now = {WEIGHTS: hashlib.sha256(content).hexdigest(), "network": _network_sum(config)}
    if sums is not None and sums != now:
        raise UserError(f"{folder}: damaged export (its checksums are wrong); export the subnet again")
    subnet = space.module(space.plan(arch))
    track_statistics(subnet)
    subnet.load_state_dict(weights)
    return subnet.eval()


def _shape(tensors: Mapping[str, Tensor], key: str) -> torch.Size | None:
    return tensors[key].shape if key in tensors else None


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
    try:
        partial.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_format(name: str, subnet: nn.Module, folder: Path, images: Tensor) -> float:
    """`model.<name>`, on the disk; returns the largest difference of its logits."""
    path = folder / f"model.{name}"
    try:
        difference = _WRITERS[name](subnet, path, images)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # the converters raise anything, on any operation that they do not know
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"formats=[{name}]: this subnet cannot be written so ({reason}); drop that format") from error
    return difference


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
