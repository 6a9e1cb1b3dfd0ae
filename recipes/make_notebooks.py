# SPDX-License-Identifier: Apache-2.0
"""Write the notebooks beside this file from the recipes they retell, so that the two cannot drift apart.

python recipes/make_notebooks.py

A notebook is its recipe unrolled: the docstring becomes the introduction, each function a cell under its own
sentence, and the one function that tells the story is taken apart at its blank lines, its comments as text.
"""

import ast
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Story(NamedTuple):
    """Which function of a recipe is taken apart, and the values of its arguments."""

    function: str
    arguments: str


STORIES = {
    "plain_loop": Story("train", 'run, epochs, quiet = Path("runs/digits"), 40, False'),
    "audit_in_one_run": Story("audited", 'run, canaries, epochs, epsilon = Path("runs/audited"), 1_000, 40, 8.0'),
    "mark_a_model": Story("main", "tiny = False"),
}


def notebook(recipe: str) -> dict[str, Any]:
    """The notebook of a recipe, in Jupyter's format 4.5, without outputs."""
    cells = list(_cells((HERE / f"{recipe}.py").read_text(encoding="utf-8"), STORIES[recipe]))
    for number, cell in enumerate(cells):
        cell["id"] = f"{recipe.replace('_', '-')}-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def text(made: dict[str, Any]) -> str:
    """A notebook as it stands in its file."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _cells(source: str, story: Story) -> Iterator[dict[str, Any]]:
    lines, tree = source.splitlines(), ast.parse(source)
    introduction, *body = tree.body
    title, _, rest = (ast.get_docstring(tree) or "").partition("\n")
    paragraphs = [part for part in rest.split("\n\n") if not part.strip().startswith("python ")]
    yield _text(f"# {title}\n" + "\n\n".join(paragraphs).rstrip())
    first = next(i for i, node in enumerate(body) if isinstance(node, ast.FunctionDef | ast.ClassDef))
    opening = lines[introduction.end_lineno or 0 : body[first].lineno - 1]
    yield _code("\n".join(line for line in opening if line != "import argparse"))
    functions = [node for node in body[first:] if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for node in functions:
        if node.name not in {story.function, "main"}:
            yield _code("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    told = next(node for node in functions if node.name == story.function)
    sentence = ast.get_docstring(told)
    if sentence:
        yield _text(sentence)
    yield _code(story.arguments, tags=["parameters"])
    start = told.body[1 if sentence else 0].lineno - 1
    while lines[start - 1].strip().startswith("#"):
        start -= 1
    inside = textwrap.dedent("\n".join(lines[start : told.end_lineno]))
    for part in inside.split("\n\n"):
        yield from _part(part)


def _part(part: str) -> Iterator[dict[str, Any]]:
    """A passage between blank lines: the comments that open it as text, the rest as code."""
    lines = part.splitlines()
    said = [line for line in lines if line.startswith("#")]
    if said and lines[: len(said)] == said:
        yield _text("\n".join(line.removeprefix("#").strip() for line in said))
        lines = lines[len(said) :]
    yield _code("\n".join(line.removeprefix("return ") for line in lines))


def _text(content: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": content.strip().splitlines(keepends=True)}


def _code(content: str, *, tags: list[str] | None = None) -> dict[str, Any]:
    source = content.strip("\n").splitlines(keepends=True)
    metadata = {"tags": tags} if tags else {}
    return {"cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": [], "source": source}


if __name__ == "__main__":
    for recipe in STORIES:
        (HERE / f"{recipe}.ipynb").write_text(text(notebook(recipe)), encoding="utf-8")
