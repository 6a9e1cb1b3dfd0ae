# SPDX-License-Identifier: Apache-2.0
"""How many local names are pronouns or participles, which do not say what a value is.

``python tests/names.py`` prints the share for each package, ``python tests/names.py attest`` every such name of one.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "privguard"
VAGUE = set(
    """found one ones said held asked given whole rest other others another each every all this that it its these those
    what which who whose any some none both either same such made done kept taken left seen heard read wanted known
    named meant used shown told put sent drawn built begun gone come got here there now then so more most least much
    many few several something anything nothing everything everyone mine ours theirs own""".split()  # noqa: SIM905 — a list of words reads as one
)


def local_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Arguments, and what a function assigns, without what functions and classes inside it do.

    Args:
        function: the function's syntax tree.
    """
    names, nodes = (
        {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)},
        [*function.body],
    )
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        names |= {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
        names |= {node.arg} if isinstance(node, ast.arg) else set()
        nodes += ast.iter_child_nodes(node)
    return names


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line of the function and local name, for each local name of a source file.

    Args:
        path: the source file.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from ((node.lineno, name) for name in sorted(local_names(node)))


def vague(package: str) -> tuple[list[str], int]:
    """The vague local names of a package, with their places, and how many local names it has.

    Args:
        package: a folder of the source tree; the empty name stands for all of it.
    """
    places, count = [], 0
    for path in sorted((PACKAGE / package).rglob("*.py")):
        for line, name in names_of(path):
            count += 1
            places += [f"{path.relative_to(PACKAGE)}:{line} {name}"] if name in VAGUE else []
    return places, count


if __name__ == "__main__":
    if sys.argv[1:]:
        print(*vague(sys.argv[1])[0], sep="\n")
    else:
        for package in ["", *sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))]:
            places, count = vague(package)
            print(f"{package or 'all':14} {len(places):5} of {count:6} = {len(places) / max(1, count):.1%}")
