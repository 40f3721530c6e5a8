"""The documentation site: it builds without a warning, is complete in itself, and shows what the docstrings say."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from hawaii.tests.documents import ROOT, links, read


API_NAMES = {
    name: page.stem
    for page in sorted((ROOT / "docs" / "api").glob("*.md"))
    for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
}
# Elements that load what they name, and the attribute that names it.
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}


@dataclass
class Page(HTMLParser):
    """The identifiers, links and loaded files of a page, and the links of its navigation."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    navigation: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
            if "md-nav__link" in attributes.get("class", "").split():
                self.navigation.append(attributes["href"])
        if tag in LOADING and LOADING[tag] in attributes:
            self.loaded.append(attributes[LOADING[tag]])


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """The site's folder and what building it printed. No address of a network can be reached."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, result.stdout + result.stderr


@pytest.fixture(scope="module")
def pages(build):
    folder, _ = build
    # Only a server shows 404.html, at any address, so its links begin at the server's root.
    paths = [path for path in sorted(folder.rglob("*.html")) if path.name != "404.html"]
    return {path.relative_to(folder).as_posix(): Page(path) for path in paths}


def test_building_reports_nothing(build):
    lines = [
        line for line in build[1].splitlines() if not re.match(r"INFO +-  (Cleaning|Building|Documentation)", line)
    ]
    assert lines == []


def test_every_document_is_in_the_navigation(pages):
    documents = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(documents) > 25
    assert {path.with_suffix(".html").as_posix() for path in documents} <= set(pages["index.html"].navigation)


def test_every_link_and_anchor_leads_somewhere(build, pages):
    dead, num_links = [], 0
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert re.fullmatch(r"https://[\w.-]+(/[^\s]*)?", link), (name, link)
                continue
            num_links += 1
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            found = pages.get(target.relative_to(build[0].resolve()).as_posix())
            if not target.is_file() or (anchor and found and anchor not in found.anchors):
                dead.append((name, link))
    assert dead == [] and num_links > 1000


def test_nothing_is_loaded_from_elsewhere(build, pages):
    for name, page in pages.items():
        assert [address for address in page.loaded if re.match(r"(\w+:)?//", address)] == [], name
        assert all((page.path.parent / unquote(urlsplit(link).path)).is_file() for link in page.loaded), name
        # The theme loads Mermaid from a server where a page has one of its diagrams.
        assert 'class="mermaid"' not in page.path.read_text(encoding="utf-8"), name
    for style in build[0].rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_the_search_needs_no_server(build, pages):
    """From a disk, browsers load neither JSON nor workers: the index is a script, and a script replaces the worker."""
    index = (build[0] / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = {") and "quick_start.html" in index and "repository/files" not in index
    assert all(any(link.endswith("assets/iframe-worker.js") for link in page.loaded) for page in pages.values())


def test_a_source_file_that_a_document_links_to_is_a_page(build):
    found = [link for path in (ROOT / "docs").glob("*.md") for link in links(path.read_text(encoding="utf-8"))]
    outside = {link.removeprefix("../") for link in found if link.startswith("../")}
    assert {"README.md", "files/run_contents.py", "training/recipes/easy_vqa.yaml"} <= outside
    for path in outside - {"README.md"}:
        assert (build[0] / "repository" / f"{path}.html").is_file(), path
    assert "Files that `hawaii train` writes" in (build[0] / "repository/files/run_contents.py.html").read_text()


def test_equations_are_drawn_by_the_browser(build):
    html = (build[0] / "concepts.html").read_text(encoding="utf-8")
    blocks = read("docs/concepts.md").count("\n$$\n") // 2
    assert blocks == 6 and html.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == blocks
    assert "$$" not in html and "arithmatex" not in html


@pytest.mark.parametrize("name", API_NAMES)
def test_the_reference_has_the_object_and_its_parameters(name, build, pages):
    page = f"api/{API_NAMES[name]}.html"
    assert name in pages[page].anchors
    module, _, attribute = name.rpartition(".")
    try:
        documented = getattr(importlib.import_module(module), attribute)
    except AttributeError:
        documented = importlib.import_module(name)
    if inspect.ismodule(documented) or "Args:" not in (documented.__doc__ or ""):
        return
    shown = parameters_of(build[0] / page, name)
    declared = inspect.signature(documented).parameters
    assert shown and ("kwargs" in declared or shown.keys() <= declared.keys()), shown.keys() - declared.keys()


def parameters_of(page: Path, name: str) -> dict[str, tuple[str, str]]:
    """Type and default by parameter, from the first table of an object."""
    html = page.read_text(encoding="utf-8").partition(f'id="{name}"')[2]
    table = html.partition("Parameters:")[2].partition("</table>")[0]
    rows = re.findall(r'<tr class="doc-section-item">(.*?)</tr>', table, flags=re.DOTALL)
    cells = [
        [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", row, re.S)] for row in rows
    ]
    return {cell[0]: (cell[1], cell[3]) for cell in cells}


def test_types_and_defaults_are_those_of_the_docstring(build):
    config = parameters_of(
        build[0] / "api/configuration.html", "hawaii.configuration.configuration_hawaii.HawaiiVisionConfig"
    )
    assert config["lora_rank"] == ("int", "16") and config["lora_bias"] == ("bool", "False")
    losses = build[0] / "api" / "losses.html"
    loss = parameters_of(losses, "hawaii.training.objectives.hawaii_losses.fine_grained_loss")
    assert list(loss) == ["student", "projected", "importance"] and loss["student"] == ("FloatTensor", "required")
    assert "Shape <code>(num_images, num_teachers, num_tokens, hidden_size)</code>." in losses.read_text()


def test_names_in_docstrings_are_links(build):
    options = (build[0] / "api" / "recipe_options.html").read_text(encoding="utf-8")
    target = "configuration.html#hawaii.configuration.configuration_hawaii.HawaiiVisionConfig"
    assert re.search(rf'href="{re.escape(target)}"><code>HawaiiVisionConfig</code>', options)
    assert not re.search(r"\[<code>[\w.]+</code>\]", options)
