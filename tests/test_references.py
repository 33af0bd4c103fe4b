"""Published subnets by name: the files are complete, and the networks are the published ones."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import supernet
from supernet import UserError
from supernet.references import Reference, lookup, names
from supernet.space import Space
from supernet.specs import Plan

OFA = ("ofa_mbv3", "ofa_mbv3_w12", "ofa_proxyless")
# The layers of each specialised network, as published: see `layers_of`.
LAYERS = json.loads((Path(__file__).parent / "data" / "ofa_specialized.json").read_text())
KEYS = {
    "alphanet": {"resolution": 0, "width": 9, "depth": 7, "kernel": 7, "expand": 7},
    "ofa_mbv3": {"resolution": 0, "depth": 5, "kernel": 20, "expand": 20},
    "ofa_mbv3_w12": {"resolution": 0, "depth": 5, "kernel": 20, "expand": 20},
    "ofa_proxyless": {"resolution": 0, "depth": 6, "kernel": 21, "expand": 21},
}


def resolved(name: str) -> Reference:
    """At 224 px where the side was not published."""
    try:
        return lookup(name)
    except UserError:
        return lookup(f"{name}@224")


REFERENCES = {name: resolved(name) for name in names()}
SPECIALISED = [name for name, reference in REFERENCES.items() if reference.space in OFA]
every_reference = pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES.keys())
every_specialised = pytest.mark.parametrize("name", SPECIALISED)


@cache
def space_of(name: str, sides: tuple[int, ...] | None = None) -> Space:
    overrides: dict[str, Any] = {} if sides is None else {"resolution": list(sides)}
    with torch.device("meta"):
        return supernet.build(name, **overrides).space


def plan_of(reference: Reference) -> Plan:
    """Two specialised networks have a larger side than their supernet was trained at."""
    space = space_of(reference.space, tuple(range(128, 244, 4)) if reference.space in OFA else None)
    return space.plan(space.from_json(reference.arch))


# The files ----------------------------------------------------------------------------------------------------


def test_what_is_there() -> None:
    assert Counter(reference.space for reference in REFERENCES.values()) == {
        "alphanet": 15,
        "autoformer_tiny": 1,
        "autoformer_small": 1,
        "autoformer_base": 1,
        "ofa_mbv3": 12,
        "ofa_mbv3_w12": 5,
        "ofa_proxyless": 9,
    }


@every_reference
def test_entries_are_complete(reference: Reference) -> None:
    assert reference.facts["source"]
    assert 65 < reference.facts["top1"] < 85
    lengths = {key: len(value) if isinstance(value, list) else 0 for key, value in reference.arch.items()}
    if reference.space.startswith("autoformer"):
        layers = reference.arch["layer_num"]
        assert lengths == {"layer_num": 0, "embed_dim": layers, "num_heads": layers, "mlp_ratio": layers}
        assert len(set(reference.arch["embed_dim"])) == 1
        assert reference.facts["mparams"] > 5
    else:
        assert lengths == KEYS[reference.space]


@every_specialised
def test_slots_of_skipped_blocks_hold_the_smallest_option(name: str) -> None:
    arch = REFERENCES[name].arch
    for stage, depth in enumerate(arch["depth"]):
        slots = slice(4 * stage + depth, 4 * stage + 4)
        assert not {*arch["kernel"][slots], *arch["expand"][slots]} - {3}


def test_shared_networks_have_their_own_accuracy() -> None:
    alphanet, attentive = lookup("alphanet_a4"), lookup("attentive_nas_a4")
    assert alphanet.arch == attentive.arch
    assert alphanet.facts["mmacs"] == attentive.facts["mmacs"] == 444
    assert (alphanet.facts["top1"], attentive.facts["top1"]) == (80.01, 79.8)
    assert "AlphaNet" in alphanet.facts["source"]
    assert "AttentiveNAS" in attentive.facts["source"]


def test_changing_what_was_looked_up_changes_nothing_else() -> None:
    lookup("alphanet_a4").arch["depth"][0] = 9
    assert lookup("alphanet_a4").arch["depth"][0] == 1


# Names --------------------------------------------------------------------------------------------------------


def test_another_resolution() -> None:
    published, other = lookup("alphanet_a4"), lookup("alphanet_a4@224")
    assert published.arch["resolution"] == 256
    assert other.arch == {**published.arch, "resolution": 224}
    assert other.name == "alphanet_a4"


def test_a_side_that_was_not_published_must_be_given() -> None:
    with pytest.raises(UserError, match=r"^ofa_lg_g8_8ms: its input side was not published; .*ofa_lg_g8_8ms@224"):
        lookup("ofa_lg_g8_8ms")
    assert lookup("ofa_lg_g8_8ms@160").arch["resolution"] == 160


@pytest.mark.parametrize("side", ["", "0", "-224", "224.0", "large", "²"])
def test_impossible_sides(side: str) -> None:
    with pytest.raises(UserError, match=r"whole number of pixels, as in alphanet_a4@224"):
        lookup(f"alphanet_a4@{side}")


def test_a_side_where_there_is_no_choice() -> None:
    with pytest.raises(UserError, match="autoformer_t@224: the space autoformer_tiny has no choice of resolution"):
        lookup("autoformer_t@224")


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"no published subnet 'alphanet_4': did you mean .*alphanet_a4"):
        lookup("alphanet_4")
    with pytest.raises(UserError, match=r"choose one of attentive_nas_a0, .*ofa_v100_11ms"):
        lookup("qqq")


@pytest.mark.parametrize(
    ("archs", "message"),
    [
        (None, "must have the entries space, source and archs"),
        ({"a": {"same_as": "b"}}, "a needs an arch"),
        ({"a": {"top1": 1.0}}, "a needs an arch"),
    ],
)
def test_damaged_files(tmp_path: Path, archs: Any, message: str) -> None:
    data = {"space": "s", "source": "x", "archs": archs}
    (tmp_path / "own.json").write_text(json.dumps(data if archs else {"space": "s"}))
    with pytest.raises(UserError, match=message):
        names(tmp_path)


def test_a_name_in_two_files(tmp_path: Path) -> None:
    for file in ("one", "two"):
        data: dict[str, Any] = {"space": file, "source": "x", "archs": {"a": {"arch": {}}}}
        (tmp_path / f"{file}.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"two\.json names a again"):
        lookup("a", tmp_path)


# The networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, r in REFERENCES.items() if r.space == "alphanet"])
def test_published_macs_of_alphanet(name: str) -> None:
    reference = REFERENCES[name]
    macs = plan_of(reference).macs
    if name == "alphanet_a5_base":  # 596 is printed, but the published configuration is this one
        assert (macs, reference.facts["mmacs"]) == (594_786_000, 596)
    else:
        assert round(macs / 1e6) == reference.facts["mmacs"]


@pytest.mark.parametrize("name", [name for name in SPECIALISED if "mmacs" in REFERENCES[name].facts])
def test_published_macs_of_once_for_all(name: str) -> None:
    """The printed figures of all ten follow once additions of biases and of the final pooling are counted as well.

    Without these two of the ten are below the next half by less than 0.04 million.
    """
    reference = REFERENCES[name]
    plan = plan_of(reference)
    gates = [spec.se for _, spec in plan.layers if getattr(spec, "se", None)]
    biases = sum(gate.reduce.out_channels + gate.expand.out_channels for gate in gates) + 1000
    pooling = plan["head"].conv.out_channels * plan["head"].conv.size ** 2
    assert round((plan.macs + biases + pooling) / 1e6) == reference.facts["mmacs"]
    extra = name in ("ofa_note10_16ms", "ofa_pixel1_79ms")
    assert round(plan.macs / 1e6) == reference.facts["mmacs"] - extra


def layers_of(plan: Plan) -> dict[str, Any]:
    """Stem and head widths; of each block: widths in, middle and out, kernel, stride, act, has SE, has shortcut."""
    blocks = []
    for _, spec in plan.layers:
        if not hasattr(spec, "project"):
            continue
        first, middle = spec.expand or spec.depthwise, spec.depthwise
        facts = (middle.kernel, middle.stride, middle.act, spec.se is not None, spec.shortcut is not None)
        assert spec.expand is None or spec.expand.act == middle.act
        blocks.append([first.in_channels, middle.out_channels, spec.project.out_channels, *facts])
    stem, head = plan["stem"], plan["head"]
    widths = [conv.out_channels for conv in (head.conv, head.mix) if conv]
    return {"stem": [stem.out_channels, stem.act], "blocks": blocks, "head": widths}


@every_specialised
def test_every_layer_is_the_published_one(name: str) -> None:
    reference = REFERENCES[name]
    assert layers_of(plan_of(reference)) == LAYERS[reference.facts["published_as"]]


@pytest.mark.parametrize("name", [name for name in SPECIALISED if REFERENCES[name].arch["resolution"] <= 224])
def test_the_supernet_itself_has_the_network(name: str) -> None:
    """At the resolutions that the supernet is trained at."""
    space = space_of(REFERENCES[name].space)
    assert space.from_json(REFERENCES[name].arch).to_json() == REFERENCES[name].arch
