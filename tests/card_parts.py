"""Taking a card apart: its header, its figures, its tables."""

from __future__ import annotations

import yaml


def header(text):
    return yaml.safe_load(text.split("---\n")[1])


def figures(text):
    """The model-index as {(configuration, metric name): value}."""
    (model,) = header(text)["model-index"]
    return {
        (result["dataset"]["config"], metric["name"]): metric["value"]
        for result in model["results"]
        for metric in result["metrics"]
    }


def table(text, heading):
    """The first Markdown table under a heading, as rows of cells without the ruler."""
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return [row for row in rows if not set("".join(row)) <= set(":- ")]
