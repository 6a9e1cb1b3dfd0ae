# SPDX-License-Identifier: Apache-2.0
"""Every code block of the documentation runs, in order, page by page, in an empty folder.

Python blocks of a page share one namespace; ``console`` blocks go through the command line. What a page shows beneath a
command, or after ``# →`` behind a ``print``, has to come out of it (``…`` stands for anything). ``<!-- setup`` comments
hold what a page takes for granted, such as a data set. A block that cannot run says ``skip="why"`` in its info string,
and is counted here.
"""

import ast
import io
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from privguard import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SKIPPED = 7  # blocks that say why they do not run; a new one is a decision, made here
LANGUAGES = {"python", "console", "sh", "diff", "json", "toml", "sql", "text", "mermaid"}
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```|^<!-- setup\n(?P<setup>.*?)^-->",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    skip: str | None
    body: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page):
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        if found["setup"] is not None:
            yield Block(page, line, "python", None, found["setup"])
            continue
        language, _, rest = found["info"].strip().partition(" ")
        skip = re.search(r'skip="([^"]*)"', rest)
        yield Block(page, line, language, skip and skip[1], textwrap.dedent(found["body"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"__name__": "__page__"}
    for block in blocks(page):
        if block.skip is None:
            try:
                run(block, names)
            except Exception as error:
                raise AssertionError(f"{block}: {error!r}") from error


def run(block, names):
    if block.language == "python":
        code = compile("\n" * (block.line - 1) + block.body, str(block), "exec")
        said = io.StringIO()
        with redirect_stdout(said):
            exec(code, names)  # the project's own page
        for promised in re.findall(r"^print\(.*\)  # → (.*)$", block.body, re.MULTILINE):
            assert like(promised).search(said.getvalue()), f"{said.getvalue()!r} does not say {promised!r}"
    elif block.language == "console":
        console(block.body)
    elif block.language == "sh":
        shell(block.body)
    elif block.language == "diff":
        new = [line[1:] for line in block.body.splitlines() if not line.startswith("-")]
        whole = re.sub(r"^( *)…", r"\1...", textwrap.dedent("\n".join(new)), flags=re.MULTILINE)
        ast.parse(whole.replace("…", ""))  # a body, or arguments, left out
    elif block.language in {"json", "toml"}:
        {"json": json.loads, "toml": tomllib.loads}[block.language](block.body)
    else:
        assert block.language in {"text", "mermaid", "sql"}, "commands that run are console blocks"


def console(body):
    """Each ``$ privguard …`` in turn, with the lines that are shown beneath it."""
    for part in re.split(r"^\$ ", body.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        wanted = re.search(r"# exit (\d+)(?: or (\d+))?", command)
        codes = {int(each) for each in wanted.groups() if each} if wanted else {0}
        program, *words = shlex.split(command, comments=True)
        assert program == "privguard", command
        code, said = privguard(words)
        assert code in codes, f"{command}: exit {code}\n{said}"
        for line in shown:
            assert like(line).search(said), f"{command}: expected {line!r} in\n{said}"


def shell(body):
    """Shell lines as printed, with this interpreter's programs in front of all others."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["bash", "-e", "-c", body], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def privguard(words):
    said, before = io.StringIO(), sys.argv
    sys.argv = ["privguard", *words]
    try:
        with redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as left:
            cli.main()
    finally:
        sys.argv = before
    return int(left.value.code or 0), said.getvalue()


def like(line):
    return re.compile(r".*".join(re.escape(part.strip()) for part in line.split("…")))


def test_blocks_have_a_known_language_and_a_reason_where_they_do_not_run():
    found = [block for page in PAGES for block in blocks(page)]
    assert {block.language for block in found} <= LANGUAGES, [str(b) for b in found if b.language not in LANGUAGES]
    reasons = {str(block): block.skip for block in found if block.skip is not None}
    assert all(len(reason.split()) > 2 for reason in reasons.values()), reasons
    assert len(reasons) == SKIPPED, reasons


def test_a_block_that_is_wrong_fails():
    page = ROOT / "README.md"
    for language, body in [
        ("python", "assert 1 == 2\n"),
        ("python", "print(1)  # → 2\n"),
        ("console", "$ privguard plan\n"),
        ("console", "$ privguard --version\nprivguard 99\n"),
        ("diff", "-a\n+ b c\n"),
        ("json", "{\n"),
    ]:
        with pytest.raises((AssertionError, SyntaxError, ValueError)):
            run(Block(page, 1, language, None, body), {})
    run(Block(page, 1, "console", None, "$ privguard --version\nprivguard …\n"), {})


def test_the_diffs_of_the_recipes_are_the_recipes():
    """Kept and new lines stand in the recipe that is named before them, in this order."""
    parts = re.split(r"^`(recipes/\w+\.py)`", (ROOT / "docs" / "how-to.md").read_text(), flags=re.MULTILINE)
    held = 0
    for name, said in zip(parts[1::2], parts[2::2], strict=True):
        recipe = bare((ROOT / name).read_text())
        for block in (found for found in BLOCK.finditer(said) if (found["info"] or "").strip() == "diff"):
            for line in (line[1:] for line in block["body"].splitlines() if not line.startswith("-")):
                assert bare(line) in recipe, f"{name}: {line}"
                recipe = recipe[recipe.index(bare(line)) :]
                held += 1
    assert held > 20


def bare(code):
    """Code without spaces, line ends, and the marks at changed lines."""
    return re.sub(r"\s+", "", re.sub(r"#\s*$", "", code, flags=re.MULTILINE))


def test_the_page_of_commands_lists_all_of_them_as_their_help_does():
    said = (ROOT / "docs" / "reference" / "commands.md").read_text()
    listed = re.findall(r"^\| `privguard (.+?)` \| (.+) \|$", said, re.MULTILINE)
    assert listed == [
        (" ".join(path), one.help.splitlines()[0]) for path, one in leaves(typer.main.get_command(cli.app))
    ]


def leaves(command, path=()):
    children = getattr(command, "commands", None)
    if children is None:
        return [(path, command)]
    return [leaf for word, child in children.items() for leaf in leaves(child, (*path, word))]


def test_the_architecture_page_names_every_file():
    """All but the book-keeping's, which has a page of its own."""
    parts = re.split(r"^### `(\w+)/`", (ROOT / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)
    named = set()
    for part, said in zip(parts[1::2], parts[2::2], strict=True):
        cells = re.findall(r"^\| (`.+?`) \|", said, re.MULTILINE)
        inside = "" if part == "demo" else f"{part}/"  # the last table names whole paths
        named |= {inside + name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    files = (path.relative_to(ROOT / "privguard") for path in (ROOT / "privguard").rglob("*.py"))
    modules = {file.with_suffix("").as_posix() for file in files if not file.name.startswith("__")}
    engine = "training/bookkeeping/"
    assert named - {engine} == {module for module in modules if not module.startswith(engine)}


def test_the_comparison_holds_measured_figures_only():
    parts = re.split(r"^Source: `(.+?)`$", (ROOT / "docs" / "comparison.md").read_text(), flags=re.MULTILINE)
    for source, said in zip(parts[1::2], parts[2::2], strict=True):
        table = re.search(r"(?:^\|.*\n)+", said, re.MULTILINE)[0].splitlines()[2:]
        kept = (ROOT / source).read_text()
        if source.endswith(".md"):
            assert set(table) <= set(kept.splitlines()), source
            continue
        measured = [float(number) for number in re.findall(r"\d+\.\d+", kept)]
        for figure in (cell.strip() for row in table for cell in row.split("|")[2:-1]):
            digits = len(figure.partition(".")[2])
            assert float(figure) in {round(number, digits) for number in measured}, f"{source}: {figure}"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_the_readme_names_the_commands_that_ci_runs():
    said = (ROOT / "README.md").read_text()
    assert all(f"make {target}" in said for target in ("demo", "test", "check", "bench"))
    assert "make check" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
