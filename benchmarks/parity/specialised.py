"""Once-for-All's specialised networks, published layer by layer: the same layers by name here, and their MACs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.parity.report import Report
from supernet.build import build
from supernet.errors import UserError
from supernet.references import Reference, lookup, names
from supernet.specs import Plan

ACTIVATIONS = {"relu": "relu", "relu6": "relu6", "h_swish": "hswish"}
TITLE = "Once-for-All's specialised networks"
HEADER = ("network", "space", "px", "MMACs", "with biases and pooling", "published")


def compare(published: Mapping[str, Any], report: Report) -> None:
    """Compare all networks of `published`, by the name that they were published under.

    Two kinds of MACs are held against a printed figure: ours, and ours with the additions of biases (squeeze-excite,
    classifier) and of the final pooling. That the printed figures count these is inferred from them: nothing published
    says so. Nor were sides published; where MACs were, the side is the one that reproduces them, so what is tested is
    that there is one. Networks of neither are listed at 224 px.
    """
    ours = {r.facts["published_as"]: (r, known) for r, known in map(_resolved, names()) if "published_as" in r.facts}
    sides = list(range(128, 244, 4))  # two networks are larger than their supernet's images
    with torch.device("meta"):
        spaces = {name: build(name, resolution=sides).space for name in {r.space for r, _ in ours.values()}}
    layers: dict[str, tuple[Any, Any]] = dict.fromkeys(published, ("no such name", ""))
    counted, plain, lines = {}, {}, []
    for name, (reference, known) in sorted(ours.items()):
        plan = spaces[reference.space].plan(spaces[reference.space].from_json(reference.arch))
        layers[name] = (_layers(plan), _published(published[name]))
        millions, more = plan.macs / 1e6, (plan.macs + _additions(plan)) / 1e6
        printed = reference.facts.get("mmacs")
        if printed is not None:
            counted[name], plain[name] = (round(more), printed), abs(round(millions) - printed)
        side = f"{plan.resolution}{'' if known else ' (assumed)'}"
        figures = [f"{millions:.2f}", f"{more:.2f}", "-" if printed is None else str(printed)]
        lines.append([reference.name, reference.space, side, *figures])
    report.equal(f"{TITLE}: every layer", layers)
    report.equal(f"{TITLE}: printed MMACs, additions counted", counted)
    below = sum(difference > 0 for difference in plain.values())
    report.add(f"{TITLE}: printed MMACs, plain ({below} of {len(plain)} differ)", plain, 1.0, "absolute")
    report.tables[TITLE] = [HEADER, *lines]


def _resolved(name: str) -> tuple[Reference, bool]:
    """A network by name, and whether its side is known; 224 px where it is not."""
    try:
        return lookup(name), True
    except UserError:
        return lookup(f"{name}@224"), False


def _additions(plan: Plan) -> int:
    """Biases of gates and classifier, and the sums of the final pooling."""
    gates = [spec.se for _, spec in plan.layers if getattr(spec, "se", None)]
    biases = sum(gate.reduce.out_channels + gate.expand.out_channels for gate in gates)
    last = plan["head"].conv
    return biases + plan["head"].classifier.out_features + last.out_channels * last.size**2


def _layers(plan: Plan) -> list[tuple[Any, ...]]:
    """Stem, blocks and head: widths, kernel, stride, activation, has a gate, has a shortcut."""
    stem, head = plan["stem"], plan["head"]
    rows: list[tuple[Any, ...]] = [(stem.out_channels, stem.kernel, stem.stride, stem.act)]
    for name, spec in plan.layers:
        if name.startswith("stages."):
            middle, first = spec.depthwise, spec.expand or spec.depthwise
            widths = (first.in_channels, middle.out_channels, spec.project.out_channels)
            rest = (middle.kernel, middle.stride, middle.act, spec.se is not None, spec.shortcut is not None)
            rows.append((*widths, *rest))
    ends = [conv for conv in (head.conv, head.mix) if conv]
    return [*rows, *((conv.out_channels, conv.act) for conv in ends), (head.classifier.in_features,)]


def _published(network: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The same of a network in Once-for-All's own description."""
    stem = network["first_conv"]
    rows: list[tuple[Any, ...]] = [
        (stem["out_channels"], stem["kernel_size"], stem["stride"], ACTIVATIONS[stem["act_func"]])
    ]
    for block in network["blocks"]:
        conv = block["mobile_inverted_conv"]
        middle = conv["mid_channels"] or round(conv["in_channels"] * conv["expand_ratio"])
        widths = (conv["in_channels"], middle, conv["out_channels"])
        rest = (ACTIVATIONS[conv["act_func"]], conv["use_se"], block["shortcut"] is not None)
        rows.append((*widths, conv["kernel_size"], conv["stride"], *rest))
    ends = [network[key] for key in ("final_expand_layer", "feature_mix_layer") if key in network]
    classifier = (network["classifier"]["in_features"],)
    return [*rows, *((end["out_channels"], ACTIVATIONS[end["act_func"]]) for end in ends), classifier]
