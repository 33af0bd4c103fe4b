"""Settings of a training run that have nothing to act on: allowed, because they do no harm, but worth a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def notes(config: Mapping[str, Any]) -> list[str]:
    """One line for each setting that does nothing in this configuration."""
    part = {group: str(config[group]["_target_"]) for group in ("sampler", "path_sampler", "phases", "distill")}
    random_only = part["sampler"].endswith(".uniform.Uniform")
    none_random = part["sampler"].endswith(".Largest") or config["sampler"].get("num_random") == 0
    single = part["phases"].endswith(".Single")
    labels = part["distill"].endswith(".HardLabels")
    found = []
    if random_only and single and not config["teacher"] and not labels:
        found.append("no step has a largest subnet, and there is no teacher=<run>: subnets learn from the labels alone")
    if config["teacher"] and labels:
        found.append("teacher has no effect: distill=none learns from the labels")
    if none_random and not part["path_sampler"].endswith(".uniform.Uniform"):
        found.append("path_sampler has no effect: no random subnets are trained")
    if part["sampler"].endswith(".Largest") and part["phases"].endswith(".DelayedShrinking"):
        found.append("phases=deps has no effect: sampler=largest trains nothing else")
    if config["sharing"].get("archs"):
        found.append("sharing.archs says which subnets share weights; path_sampler=listed would train those alone")
    return found
