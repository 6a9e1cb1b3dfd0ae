# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: what a person sees, on a screen, on a phone, in the dark, on paper, by ear."""

import shutil
from itertools import pairwise

import pytest
from chromium import CONTRAST
from reported import finding, keep, membership

from privguard.records import Outcome, Verdict
from privguard.report import compare, guarantee, render
from privguard.report.assemble import Sources, assemble

WIDTHS = (320, 360, 768, 1280)


@pytest.fixture(scope="module")
def full(trained, tmp_path_factory):
    """A report with something in every section, a contradiction among it."""
    folder = shutil.copytree(trained / "run", tmp_path_factory.mktemp("page") / "run")
    keep(folder, finding(50.0, outcome=Outcome.REFUTED, cap=60.0, method="loud " + "x" * 80), "loud.json")
    keep(folder, membership(), "membership.json")
    mark = Verdict(scheme="triggers", null_model="labels at random", log10_p=-31.25, trials=64, matches=60)
    keep(folder, mark, "mark.json")
    (folder / "checkpoints" / "weights.bin").write_bytes(b"in clear")
    return assemble(folder, sources=Sources(data_name="Letters of patients <b>", journal=trained / "journal"))


@pytest.fixture(scope="module")
def page(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render.to_html(full), encoding="utf-8")
    return path


def test_a_person_sees_what_was_spent_on_whose_data_and_what_contradicts_it(browser, page, full):
    browser.open(page)
    seen = browser.run("document.body.innerText")
    for wanted in (
        f"ε = {guarantee.upward(full.claim.epsilon)} at δ = 0.001",
        "Whose data: Letters of patients <b>, in the words of who made this report. Records: 100 (treated as",
        "What is protected is a single training example.",
        "tries to find out whether a single training example was used: their odds are bounded",
        "What it does not protect against: 6 things are listed below",
        "is right at most",
        "turns even odds into at most",
        "No signature was made with this page, so nobody vouches for it.",
        "The cap of an audit is the highest ε that it could have shown at all",
        "at least one audit contradicts the claim",
        "an attack showed ε ≥ 50.000 at δ = 0.001",
        "anybody: it is not sealed",
        "alice@lab",
        "60 of 64",
        "No report can say that an organisation complies",
    ):
        assert wanted in seen, wanted
    assert seen.index("An attack contradicts the claim") < seen.index("ε = ")


def test_the_sections_are_in_the_order_of_nist_sp_800_226(browser, page):
    browser.open(page)
    seen = browser.run("[...document.querySelectorAll('main > section[id] > h2')].map(e => e.innerText)")
    assert seen == [
        "1. The guarantee and its unit",
        "2. What could undermine it",
        "3. What it rests on",
        "4. Marks",
        "5. Duties that this supports",
        "6. How to check this report",
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_at_any_width(browser, page, width):
    browser.open(page, width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    beyond = "e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, .skip')"
    assert browser.run(f"[...document.querySelectorAll('body *')].filter({beyond}).map(e => e.outerHTML)") == []
    assert browser.run("Math.min(...[...document.querySelectorAll('p, li, td')].map(e => e.clientWidth))") > 0


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_contrast_in_light_and_dark(browser, page, dark):
    """WCAG 2.2, success criterion 1.4.3: at least 4.5 to 1; the check itself sees a grey that has less."""
    browser.open(page, dark=dark)
    assert (browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") is not dark
    worst = browser.run(CONTRAST)
    assert worst[0] >= 4.5, worst
    grey = "rgb(90, 90, 90)" if dark else "rgb(150, 150, 150)"
    browser.run(f"document.querySelector('.soft').style.color = '{grey}'")
    assert browser.run(CONTRAST)[0] < 4.5
    assert browser.run(f"getComputedStyle(document.querySelector('{LINE}')).stroke") == browser.run(ACCENT)


def test_the_page_fetches_nothing_and_runs_nothing(browser, page):
    browser.open(page)
    assert browser.requests() == []
    assert browser.complaints() == []
    assert browser.run("document.scripts.length") == 0


def test_what_would_fetch_or_run_is_stopped_by_the_page_itself(browser, page, tmp_path):
    """The page's own policy, tried: an injected picture and script come to nothing."""
    bad = tmp_path / "bad.html"
    injected = '<body><img src="https://example.com/x.png"><script>document.title = "ran"</script>'
    bad.write_text(page.read_text(encoding="utf-8").replace("<body>", injected, 1), encoding="utf-8")
    browser.open(bad)
    assert browser.run("document.title") != "ran"
    assert len(browser.complaints()) == 2


def test_a_screen_reader_is_told_headings_tables_and_figures(browser, page):
    browser.open(page)
    tree = browser.tree()
    roles = [role for role, _ in tree]
    assert roles.count("alert") == 1
    assert [name for role, name in tree if role == "navigation"] == ["Contents"]
    assert all(name for role, name in tree if role in {"heading", "table", "region", "image", "link"})
    images = [name for role, name in tree if role == "image"]
    assert [name.split(" ")[0] for name in images] == ["ε", "No"]
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert browser.run("[...document.querySelectorAll('th:not([scope])')].length") == 0
    assert browser.run("[...document.querySelectorAll('table')].every(e => e.caption && e.caption.innerText)")
    assert browser.run("[...document.querySelectorAll('figure')].every(e => e.querySelector('figcaption'))")
    assert browser.run(
        "(ids => new Set(ids).size === ids.length)([...document.querySelectorAll('[id]')].map(e => e.id))"
    )


def test_the_keyboard_reaches_the_links_and_every_table_that_scrolls(browser, page):
    browser.open(page, width=360)
    assert browser.run("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0 && e.ariaLabel)")
    for kind in ("rawKeyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert browser.run("document.activeElement.innerText") == "Skip to the guarantee"
    assert browser.run("document.activeElement.getBoundingClientRect().left") >= 0
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    targets = browser.run("[...document.querySelectorAll('a')].map(e => e.getAttribute('href'))")
    assert all(browser.run(f"document.querySelector('{target}') !== null") for target in targets)


def test_it_prints_in_black_on_white_with_everything_on_the_paper(browser, page):
    browser.open(page, dark=True)
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run(
        "[...document.querySelectorAll('.scroll')].every(e => getComputedStyle(e).overflowX === 'visible')"
    )
    assert browser.pdf().startswith(b"%PDF")


def test_two_reports_side_by_side_fit_a_phone_and_say_what_differs(browser, report, full, tmp_path):
    changed = compare.compare(report, full)
    path = tmp_path / "compare.html"
    path.write_text(compare.to_html(changed), encoding="utf-8")
    browser.open(path, width=360)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert "may be compared" in browser.run("document.body.innerText")
    differing = browser.run("[...document.querySelectorAll('tr.changed th')].map(e => e.innerText)")
    assert differing == ["≠ Contradicted by an attack", "≠ Audits", "≠ Data"]


LINE = "figure path[style*=accent]"
ACCENT = """(() => { const e = document.createElement('i'); e.style.color = 'var(--accent)';
document.body.append(e); return getComputedStyle(e).color; })()"""
