# SPDX-License-Identifier: Apache-2.0
"""The reference pages say of every function what it takes, and show no markup of another tool."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [path.stem for path in (ROOT / "docs" / "reference").glob("*.md")]


def modules(page):
    for name in re.findall(r"^::: (\S+)", (ROOT / "docs" / "reference" / f"{page}.md").read_text(), re.MULTILINE):
        path = ROOT / name.replace(".", "/")
        yield name, ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def functions(tree, inside=""):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node, f"{node.name}.")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield inside + node.name, node


def arguments(function):
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [one.arg for one in every if one.arg not in {"self", "cls"}]


def described(function):
    """Names under ``Args:``, which ends where the next section or the docstring does.

    A method that only says "See ``Clipper.begin``" keeps a protocol's promise, and has its arguments there.
    """
    text = ast.get_docstring(function) or ""
    if text.startswith("See ``"):
        return arguments(function) if re.match(r"See ``(\w+\.)*(\w+\.\w+)``", text)[2] in everything() else []
    section = re.search(r"^Args:\n((?:^(?:    .*)?\n?)+)", text, re.MULTILINE)
    return re.findall(r"^    \*{0,2}(\w+): \S", section[1], re.MULTILINE) if section else []


@functools.cache
def everything():
    """Names of the methods of protocols on any page that are described themselves."""
    trees = [tree for page in PAGES for _, tree in modules(page)]
    every = [(name, node) for tree in trees for name, node in functions(tree)]
    return {name for name, node in every if "Args:" in (ast.get_docstring(node) or "")}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_function_of_a_reference_page_says_what_it_takes(page):
    lacking = [
        f"{name}.{function}: {sorted(missing)}"
        for name, tree in modules(page)
        for function, node in functions(tree)
        if (missing := set(arguments(node)) - set(described(node)))
    ]
    assert not lacking, "\n".join(lacking)


def test_a_function_without_args_is_noticed():
    tree = ast.parse(
        'def f(a, *, b):\n    """Do.\n\n    Args:\n        a: a number.\n\n    Raises:\n        b: no.\n    """'
    )
    ((_, function),) = functions(tree)
    assert (arguments(function), described(function)) == (["a", "b"], ["a"])


def test_docstrings_show_no_raw_roles():
    roles = re.compile(r":(func|class|meth|mod|attr|data|exc|obj):`")
    assert not [str(path) for path in (ROOT / "privguard").rglob("*.py") if roles.search(path.read_text())]
