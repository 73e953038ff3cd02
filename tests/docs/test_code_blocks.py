"""Python blocks of README and docs run; blocks that cannot run here say why, in the page."""

import pytest

from pages import PAGES, ROOT, blocks

WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of one page share a namespace, in order, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != "python":
            continue
        # Blank lines above it make a traceback name the page's own line.
        code = compile("\n" * block.line + block.text, str(page.relative_to(ROOT)), "exec")
        if block.reason is None:
            exec(code, namespace)


def test_pages_with_code_are_found():
    assert ROOT / "README.md" in WITH_PYTHON
    assert len(WITH_PYTHON) >= 4


def test_what_is_not_run_is_known():
    """A block that is skipped needs a reason in the page and an entry here, so that none slips in unseen."""
    skipped = [(page.name, block.reason) for page in PAGES for block in blocks(page) if block.reason]
    assert skipped == [
        ("checkpoints.md", "needs the Hub and a GPU"),
        ("checkpoints.md", "needs the Hub and an account"),
        ("doors.md", "exporting takes half a minute; tests/pipeline/test_onnx.py does it"),
    ]


def test_every_fence_names_its_language():
    """A fence without a language would be neither run nor read as commands."""
    unknown = [
        f"{page.name}:{block.line}"
        for page in PAGES
        for block in blocks(page)
        if block.language not in ("python", "sh", "text")
    ]
    assert not unknown


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
