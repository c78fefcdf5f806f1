"""The page in a real browser, and the tables in real LaTeX: `make test-slow` brings both."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from report_bench import Bench, write_watch, written

from harness import track
from harness.store import Store
from reports.build import Choice, gather, write

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
AXE = ROOT / ".venv" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SERIOUS = ("serious", "critical")

SWEEP = """
report:
  table: tiny
  title: "A tiny kitchen & its heads, 100 % real_runs, Δ ≥ 0 中"
  metrics: [verb_top1, noun_top1, action_top1]
  reference: fused
claims:
  fusing: {says: Fusing helps, row: fused, than: video}
base:
  data: {name: simkitchen, options: {train_size: 128, select_size: 32, test_size: 128}}
  encoders:
    video: {name: video_transformer, options: {width: 16, depth: 1}}
    text: {name: word_transformer, options: {width: 16, depth: 1}}
  width: 16
  train: {epochs: 2, batch_size: 16, optimiser: adamw, warmup_epochs: 1}
runs:
  video: {label: "[Video] only", fusion: {name: single}, encoders.text: null}
  fused: {label: Mamba (shared A), fusion: {name: mamba_shared, options: {d_state: 4}}}
seeds: [0, 1, 2]
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A report of real runs, and of the made-up ones of a real store."""
    from typer.testing import CliRunner

    from harness.cli import app

    folder = tmp_path_factory.mktemp("browser")
    (folder / "tiny.yaml").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        done = CliRunner().invoke(app, ["sweep", "tiny.yaml", "--launcher", "inline"])
        assert done.exit_code == 0, done.stderr
    made = Bench(Store(folder / "runs"))
    write_watch(made)
    track.collect(made.store)
    write(gather(made.store, made.uri, Choice()), folder / "out", page=True)
    return folder / "out"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium here; tests/slow_tools.sh installs it on Debian")
    playwright = pytest.importorskip("playwright.sync_api", reason="tests/slow_tools.sh gets it")
    with playwright.sync_playwright() as known:
        opened = known.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, out):
    """The page, opened; at the end it has asked for nothing and said nothing."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    opened = context.new_page()
    asked, said = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda line: said.append(line.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    file = (out / "index.html").as_uri()
    opened.goto(file)
    yield opened
    context.close()
    assert {url.partition("#")[0] for url in asked if not url.startswith("data:")} == {file}
    assert said == []


def column(page, name):
    table = page.locator("#tiny-plain table")
    heads = table.locator("thead th").all_inner_texts()
    place = [head.strip() for head in heads].index(name) + 1
    return table.locator(f"tbody tr > :nth-child({place})").all_inner_texts()


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it(page):
    head = page.locator("#tiny-plain thead th", has_text="GFLOPs")
    before = column(page, "GFLOPs")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    down = [float(text) for text in column(page, "GFLOPs")]
    assert down == sorted(down, reverse=True)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert sorted(before) == sorted(column(page, "GFLOPs"))
    assert [float(text) for text in column(page, "GFLOPs")] == sorted(down)


def test_a_number_opens_its_runs_with_spec_curves_and_predictions(page, out):
    page.locator("#tiny-plain tbody tr", has_text="Mamba").locator("button.number").first.click()
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    assert "Mamba (shared A)" in page.locator("#details-title").inner_text()
    assert dialog.locator("h3", has_text="The 3 runs").count() == 1
    dialog.locator("summary", has_text="seed 0").click()
    dialog.locator("summary", has_text="Spec").first.click()
    spec = json.loads(dialog.locator("pre", has_text='"fusion"').first.inner_text())
    assert spec["fusion"]["name"] == "mamba_shared"
    dialog.locator("summary", has_text="Learning curves").first.click()
    assert dialog.locator("svg.plot polyline").count() >= 3
    dialog.locator("summary", has_text="Predictions").click()
    assert dialog.locator(".strip img").evaluate("image => image.naturalWidth") == 8 * 32
    assert dialog.locator(".strip .box").count() > 0
    first = dialog.locator("blockquote").inner_text()
    assert "?" in first
    dialog.locator("button", has_text="Next").click()
    assert dialog.locator(".browse span").inner_text().startswith("2 of ")
    dialog.locator("select").first.select_option("wrong")
    assert dialog.locator(".strip").count() == 1
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    run = json.loads((out / "report.json").read_text())["runs"]
    page.evaluate(f"location.hash = 'run={next(iter(run))}'")
    dialog.wait_for(state="visible")


def test_everything_is_reached_by_the_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("button.number").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    inside = "document.querySelector('dialog').contains(document.activeElement)"
    assert page.evaluate(inside)
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "number"
    page.locator("button.sort").first.focus()
    page.keyboard.press("Space")
    assert page.locator("th[aria-sort=descending]").count() == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser, out, theme):
    if not AXE.exists():
        pytest.skip("no axe-core here; tests/slow_tools.sh gets it")
    context = browser.new_context(color_scheme=theme, viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.goto((out / "index.html").as_uri())
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    ask = f"() => {{ {AXE.read_text()}; return axe.run(document) }}"
    # the page's own policy forbids what is not in it; the checker is brought in past it
    for part in ("document", "dialog"):
        if part == "dialog":
            page.locator("#tiny-plain button.number").first.click()
            for summary in page.locator("dialog > div > details > summary").all():
                summary.click()
            page.locator("dialog summary", has_text="Spec").first.click()
        found = page.evaluate(ask)
        faults = [
            (one["id"], one["impact"], [node["html"][:160] for node in one["nodes"]][:3])
            for one in found["violations"]
            if one["impact"] in SERIOUS
        ]
        assert faults == [], part
        assert len(found["passes"]) > 15
    context.close()


def test_latex_compiles_each_table_alone_and_all_of_them_in_a_paper(out, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here; tests/slow_tools.sh installs it on Debian")
    tables = sorted(out.glob("*.tex"))
    assert len(tables) >= 3
    for table in tables:
        assert compiled(table, tmp_path / table.stem).startswith(b"%PDF")
    inputs = "\n".join(rf"\input{{{table}}}" for table in tables)
    paper = tmp_path / "paper.tex"
    paper.write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}Text."
        f"\n{inputs}\n" + r"\end{document}"
    )
    assert compiled(paper, tmp_path / "paper").startswith(b"%PDF")


def compiled(file, folder):
    folder.mkdir()
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", f"-output-directory={folder}",
         str(file)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in done.stdout
    return next(folder.glob("*.pdf")).read_bytes()


def test_tables_with_every_kind_of_row_compile(tmp_path):
    """Rows of the paper, failed, stale, quoted ones, and marks."""
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here; tests/slow_tools.sh installs it on Debian")
    made = written(tmp_path / "store")
    write(gather(made.store, made.uri, Choice()), tmp_path / "out")
    table = tmp_path / "out" / "table3-demo.tex"
    assert r"\midrule" in table.read_text().split("Broken")[1]
    assert compiled(table, tmp_path / "pdf").startswith(b"%PDF")
