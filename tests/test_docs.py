"""The documentation builds without a warning by its one command, is complete, and its snippets run as they stand."""

import inspect
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import fastdiff
from fastdiff.compiler.passes import PASSES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("kernels/*.md"))]
BEFORE = ROOT / "tests" / "before_snippets"  # what a page leaves to its reader, by the page's name
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="belongs to the docs extra")
    folder = tmp_path_factory.mktemp("site")
    # Not as a module, which would put the sources first: they are not compiled.
    mkdocs = str(Path(sys.executable).parent / "mkdocs")
    command = [mkdocs, "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    result = subprocess.run(
        [*command, "--site-dir", str(folder)], capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def page(site, name):
    return (site / name).read_text(encoding="utf-8")


def snippets(path):
    """The Python blocks of a page, but for included examples, and what each should print, or None."""
    blocks = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [
        (code, blocks[i + 1][1] if i + 1 < len(blocks) and blocks[i + 1][0] == "text" else None)
        for i, (language, code) in enumerate(blocks)
        if language == "python" and "--8<--" not in code
    ]


def test_the_generated_tables_are_whole(site):
    for names in (fastdiff.solvers.SOLVERS, fastdiff.grids.GRIDS, fastdiff.schedules.SCHEDULES):
        assert all(f"<code>{name}</code>" in page(site, "solvers.html") for name in names)
    assert all(f"<code>{name}</code>" in page(site, "optimize.html") for name in PASSES)
    assert all("generated:" not in path.read_text(encoding="utf-8") for path in site.glob("*.html"))


def test_examples_and_docstrings_are_on_their_pages(site):
    assert "my_midpoint" in page(site, "write-a-solver.html")
    assert "picture k of a seed" in page(site, "quick-start.html")
    assert "<strong>x_init_or_shape</strong>" in page(site, "api.html")  # an item of the list of parameters
    assert "emoji-features" in page(site, "models.html")
    assert len(list((site / "notes").glob("*.html"))) == len(list((DOCS / "notes").glob("*.md")))


def test_the_pictures_of_the_bundled_models_are_there(site):
    shown = re.findall(r'src="(models/[\w-]+\.png)"', page(site, "models.html") + page(site, "index.html"))
    assert "models/emoji-unet-32.png" in shown
    assert all((site / path).is_file() for path in shown)


def test_the_site_holds_the_figures_the_changes_and_how_to_contribute(site):
    home = page(site, "index.html")
    speed = re.search(r"start:speed\] -->\n(.*?)<!--", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    for row in speed.strip().splitlines()[2:]:
        assert all(f"<td>{cell.strip()}</td>" in home for cell in row.strip("|").split("|"))
    assert "--8&lt;--" not in home
    assert 'href="changes.html"' in home
    assert "Unreleased" in page(site, "changes.html")
    assert "Set-up" in page(site, "contributing.html")


def test_search_works_from_a_folder(site):
    """Pages that were opened from a disk may not fetch the index: the offline plugin has it as a script."""
    assert (site / "search" / "search_index.js").is_file()
    assert (
        "https://"
        not in re.sub(r'<a [^>]*href="https://[^>]*>', "", page(site, "quick-start.html")).split("<script")[0]
    )


@pytest.mark.parametrize("name", ["index", "benchmarks", "models", "write-an-op", "kernels/group-norm", "optimize"])
def test_tables_have_headers(site, name):
    heads = re.findall(r"<thead>(.*?)</thead>", page(site, f"{name}.html"), re.S)
    assert all(cell.strip() for head in heads for cell in re.findall(r"<th[^>]*>(.*?)</th>", head, re.S))


def test_every_public_name_is_on_the_api_page(site):
    shown = set(re.findall(r'id="([\w.]+)"', page(site, "api.html")))
    for name in fastdiff.__all__:
        if isinstance(getattr(fastdiff, name), types.ModuleType):
            assert any(each.startswith(f"fastdiff.{name}.") for each in shown), name
        else:
            assert f"fastdiff.{name}" in shown
    for name in fastdiff.ops.__all__:
        if callable(getattr(fastdiff.ops, name)):
            assert f"fastdiff.ops.{name}" in shown
        else:
            assert f"fastdiff.ops.{name}" in page(site, "api.html")
    more = ("program.Call", "prediction.get_prediction", "pictures.save_png", "engine.run")
    for name in more:
        assert f"fastdiff.{name}" in shown


def test_every_setting_is_documented():
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    read = set()
    for folder in ("fastdiff", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            read |= set(re.findall(r"\bFASTDIFF_[A-Z_]+\b", path.read_text(encoding="utf-8")))
    for path in (ROOT / "csrc").rglob("*.*"):
        read |= set(re.findall(r'getenv\("(\w+)"\)', path.read_text(encoding="utf-8")))
    build = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    read |= set(re.findall(r"option\((FASTDIFF_\w+)", build)) | set(re.findall(r"set\((FASTDIFF_\w+) .*CACHE", build))
    assert {"FASTDIFF_ISA", "FASTDIFF_BACKEND", "FASTDIFF_CUDA"} <= read
    assert read == set(re.findall(r"\bFASTDIFF_[A-Z_]+\b", text))


@pytest.mark.parametrize("path", list(filter(snippets, PAGES)), ids=lambda path: path.stem)
def test_snippets(path, tmp_path):
    """Those of a page run in their order, in one process, and print what the page says."""
    found = snippets(path)
    code = "".join(f"{code}\nprint('<end of a snippet>')\n" for code, _ in found)
    before = BEFORE / f"{path.stem}.py"
    if before.is_file():
        code = f"from runpy import run_path\nglobals().update(run_path({str(before)!r}))\n{code}"
    if "diffusers" in code:
        pytest.importorskip("diffusers", reason="belongs to the diffusers extra")
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for (code, expected), printed in zip(found, result.stdout.split("<end of a snippet>\n")):
        assert expected is None or printed == expected, code


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_compiles_once(path):
    """Each install from the checkout compiles the C++ again: one says which extras the whole page needs, and others
    stand apart from it, for tests and for this site."""
    found = re.findall(r'pip install "?\.(?:\[([\w,]+)\])?"?', path.read_text(encoding="utf-8"))
    assert len([extras for extras in found if extras not in ("test", "docs")]) <= 1


def test_the_minutes_of_a_profile_are_those_of_its_default():
    minutes = inspect.signature(fastdiff.profile).parameters["minutes"].default
    text = (DOCS / "profile.md").read_text(encoding="utf-8")
    assert f"as long as `--minutes` says, {minutes:g} if not given" in text
    others = [
        page.name for page in PAGES if re.search(r"profile[^.]*(?:takes|about) \w+ minutes", page.read_text("utf-8"))
    ]
    assert others == []


def test_operators_name_the_shapes_of_all_their_tensors():
    for name, op in fastdiff.ops.OPS.items():
        text = inspect.getdoc(type(op).__call__)
        if name == "add_group_norm_silu":  # says that the others are those of the norm
            text += inspect.getdoc(type(fastdiff.ops.group_norm_silu).__call__)
        for argument, parameter in inspect.signature(op).parameters.items():
            if "Tensor" in str(parameter.annotation):
                assert re.search(rf"\b{argument}\b[^.]*?(?:\(|shape)", text), (name, argument)


def test_nothing_waits_for_a_page_that_is_gone():
    assert {path.stem for path in BEFORE.glob("*.py")} <= {path.stem for path in PAGES if snippets(path)}


def test_files_and_folders_that_the_documentation_names_are_there():
    written = re.compile(r"`((?:csrc|docs|examples|fastdiff|benchmarks|kernels|tests)/[a-z0-9_./-]*)`")
    for path in (*PAGES, ROOT / "CONTRIBUTING.md", *DOCS.glob("notes/*.md")):
        for named in written.findall(path.read_text(encoding="utf-8")):
            assert (ROOT / named).exists(), f"{path.name} names {named}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_files_outside_the_site(name):
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
