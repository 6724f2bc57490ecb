"""Pages are complete and well formed, and every public name is described. (The code of the pages runs in
tests/pages.)"""

import ast
import importlib
import importlib.util
import re
import runpy
import sys
import tomllib
import types
from pathlib import Path

import pytest

import kernel_eft_jax as keft

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
spec = importlib.util.spec_from_file_location("docs_run", DOCS / "run.py")
assert spec is not None
assert spec.loader is not None
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
WITH_CODE = [page for page in (ROOT / "README.md", *run.pages()) if "```python" in page.read_text()]


def test_every_code_block_is_seen():
    """The runner reads every code block of a page, whatever its fence."""
    for page in WITH_CODE:
        text = page.read_text()
        assert len(run.FENCE.findall(text)) == text.count("```python"), page
        assert text.count("```text") == sum(bool(shown) for _, shown in run.FENCE.findall(text)), page


def test_a_wrong_output_is_caught(tmp_path):
    """The check can fail: a number that is off by its last digit, output that is not shown, and code that raises."""
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 2\n```\n\n```python\nprint(x / 3)\n```\n\n```text\n0.67\n```\n")
    assert [block.line for block in run.wrong(run.run_page(page))] == [6]
    page.write_text("```python\nprint(round(2 / 3, 2))\n```\n\n```text\n0.67\n```\n")
    assert run.wrong(run.run_page(page)) == []
    page.write_text("```python\nprint(1)\n```\n\nNothing shown.\n")
    blocks = run.run_page(page)
    assert len(run.wrong(blocks)) == 1
    page.write_text(run.rewrite(page.read_text(), blocks))
    assert run.wrong(run.run_page(page)) == []
    assert page.read_text().endswith("```text\n1\n```\n\nNothing shown.\n")
    page.write_text("```python\nraise KeyError\n```\n")
    with pytest.raises(KeyError):
        run.run_page(page)


def test_sampled_numbers_are_held_to_their_errors():
    """A tenth of the error and one unit of the last digit may be rounding; more, or other text, is another number."""
    shown = "K1 0.263 ± 0.012, V4 15.2 ± 0.1\n"
    assert run.same("K1 0.265 ± 0.012, V4 15.3 ± 0.1\n", shown)
    for other in (
        "K1 0.266 ± 0.012, V4 15.2 ± 0.1\n",
        "K1 0.263 ± 0.015, V4 15.2 ± 0.1\n",
        "K0 0.263 ± 0.012, V4 15.2 ± 0.1\n",
    ):
        assert not run.same(other, shown)


def test_numbers_of_the_size_of_rounding_are_held_to_a_factor_of_ten():
    """`≈ 3e-13` may be anything from 3e-14 to 3e-12 elsewhere, and nothing else."""
    shown = "error ≈ 3e-13 of E[s s]\n"
    for near in ("error ≈ 3e-13 of E[s s]\n", "error ≈ 1e-12 of E[s s]\n", "error ≈ 4e-14 of E[s s]\n"):
        assert run.same(near, shown)
    for far in ("error ≈ 4e-12 of E[s s]\n", "error ≈ 2e-14 of E[s s]\n", "error ≈ 3e-13 of E[s]\n"):
        assert not run.same(far, shown)


def test_a_picture_of_the_gallery_is_drawn_by_the_page(tmp_path):
    """A page that shows gallery/x.png and does not save x.png raises, and names it."""
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n![x](gallery/missing.png)\n")
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        run.run_page(page)


@pytest.mark.parametrize("page", run.pages(), ids=lambda page: str(page.relative_to(DOCS)))
def test_every_page_ends_with_a_next_step(page):
    """The last paragraph begins with `Next:` and has a link to another page that is there."""
    last = page.read_text().rstrip().split("\n\n")[-1]
    assert last.startswith("Next: ")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", last)
    assert links
    for link in links:
        assert (page.parent / link).is_file(), link


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_output_says_only_true(page):
    """An output shows numbers or sentences, which the reader can judge, and not the verdict of a comparison."""
    for _, shown in run.FENCE.findall(page.read_text()):
        assert not re.search(r"(^|: )(True|False)\b", shown), shown


def test_displays_stand_apart():
    """Between two displays there is a blank line: without it they are read as one formula, which stops the build of the
    site."""
    for path in (*run.pages(), *(ROOT / "kernel_eft_jax").rglob("*.py")):
        assert not re.search(r"\S\$\$\n[ \t]*\$\$\S", path.read_text()), path


def test_numbers_and_options_stay_in_one_line():
    """A number keeps its name, error, unit and exponent, and an option its dashes; tags, formulas and blocks of code,
    which people copy, stay as they are."""
    keep_whole = runpy.run_path(str(DOCS / "whole.py"))["keep_whole"]
    for text in ("t = 2", "± 0.02", "5e-13", "12 %", "5.3 s", "--out-of"):
        assert keep_whole(f"<td>{text}</td>") == f'<td><span class="whole">{text}</span></td>'
    for text in ("<pre><code>x --json 5e-13</code></pre>", "<math><mn>5e-13</mn></math>", '<a href="t = 2">s</a>'):
        assert keep_whole(text) == text
    for text in ("test_2 and v1.2e-3x", "a - 2", "2604.15742", "well-known", "10 seconds"):
        assert keep_whole(text) == text


def test_no_asterisk_of_a_docstring_is_read_as_emphasis():
    """The site reads docstrings as Markdown: "up to t*, or from n* on" would lose its asterisks and be slanted."""
    for path in (ROOT / "kernel_eft_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = re.sub(r"`[^`]*`|\$\$.*?\$\$|\$[^$]*\$", "", ast.get_docstring(node) or "", flags=re.DOTALL)
                assert not re.search(r"\w\*(?!\w)", text), f"{path}: {text}"


def test_citations_name_the_version():
    """The page, CITATION.cff and the package say the same version."""
    for path, pattern in (
        (DOCS / "citation.md", r"version = \{(.*)\}"),
        (ROOT / "CITATION.cff", r"^version: (.*)$"),
        (ROOT / "pyproject.toml", r"^version = \"(.*)\"$"),
    ):
        assert re.findall(pattern, path.read_text(), re.MULTILINE) == [keft.__version__], path


def test_every_page_is_in_the_navigation():
    site = tomllib.loads((ROOT / "zensical.toml").read_text())

    def files(nav):
        for entry in nav:
            for target in entry.values():
                yield from files(target) if isinstance(target, list) else [target]

    listed = list(files(site["project"]["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in run.pages())


def test_every_public_name_is_in_the_reference():
    """A name of the package has its entry in docs/reference, under its own path where a module has the same name."""
    text = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    described = re.findall(r"^::: kernel_eft_jax\.([\w.]+)$", text, re.MULTILINE)
    names = [path.split(".")[-1] for path in described]
    assert len(names) == len(set(names))
    assert set(keft.__all__) <= set(names), set(keft.__all__) - set(names)
    for path in described:
        module, _, name = path.rpartition(".")
        owner = importlib.import_module(f"kernel_eft_jax.{module}".rstrip("."))
        assert getattr(owner, name).__doc__, path


def test_the_readme_of_a_package_index_has_no_dead_link(monkeypatch):
    """An index serves the README alone: every link there is absolute, no picture is left, and what is cut is named."""
    interface = types.ModuleType("hatchling.metadata.plugin.interface")
    monkeypatch.setattr(interface, "MetadataHookInterface", object, raising=False)
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    text = runpy.run_path(str(ROOT / "hatch_build.py"))["for_index"]((ROOT / "README.md").read_text())
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert "![" not in text
    for name in re.findall(r"\(`((?:docs|notebooks|CITATION)[^`]*)`\)", text):
        assert (ROOT / name).exists()
    assert "tutorial (`docs/tutorial.md`)" in text


def test_captions_do_not_say_where_a_panel_stands():
    """A caption names panels by what they show, not by their place, since a phone stacks them."""
    for page in run.pages():
        for caption in re.findall(r"^\*[^*].*?\*$", page.read_text(), re.MULTILINE | re.DOTALL):
            assert not re.search(r"\b(Left|left|right|Right)\b[,:]|\((left|right|top|bottom)\)", caption), (
                page,
                caption,
            )
