"""
Links from the documents to files of the repository, as pages of the site.

A document links to a source file by its relative path, as a code host expects. The site has no repository next to it,
so every linked file outside of the documents becomes a page: README.md as it is, any other file as its text.
"""

import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File


ROOT = Path(__file__).parents[2]
FOLDER = "repository"  # of these pages on the site
FRONT_PAGE = "README.md"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}
FENCED = re.compile(r"^(```|~~~).*?^\1", flags=re.MULTILINE | re.DOTALL)
# The target of an inline link and its anchor.
LINK = re.compile(r"(?<=\]\()(?!\w+:|/|#)([^)#\s]+)(?=[)#])")


def find_links(text: str) -> list[str]:
    """The relative link targets in a document, without anchors."""
    return LINK.findall(FENCED.sub("", text))


def resolve(document: str, link: str) -> str:
    """The path in the repository that a link in a document leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), link))


def page_of(path: str, files) -> str | None:
    """The page, or the file, of the site for a path in the repository; `None` if there is none."""
    document = path.removeprefix("docs/") if path.startswith("docs/") else None
    page = f"{FOLDER}/{path}" if path == FRONT_PAGE else f"{FOLDER}/{path}.md"
    for uri in filter(None, (document, page)):
        file = files.get_file_from_path(uri)
        if file is not None and file.inclusion.is_included():
            return uri
    return None


def show_file(path: str) -> str:
    """A page with the text of a file."""
    language = LANGUAGES.get(PurePosixPath(path).suffix, "text")
    text = (ROOT / path).read_text(encoding="utf-8")
    fence = "~" * 8  # longer than any in the file
    return f'---\nsearch:\n  exclude: true\n---\n# `{path}`\n\n{fence} {{.{language} linenums="1"}}\n{text}\n{fence}\n'


def on_files(files, config):
    """Adds README.md and every file that it or a document links to."""
    readme = (ROOT / FRONT_PAGE).read_text(encoding="utf-8")
    files.append(File.generated(config, f"{FOLDER}/{FRONT_PAGE}", content=readme))
    documents = {FRONT_PAGE: readme}
    documents |= {
        f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages() if not file.generated_by
    }
    linked = {resolve(document, link) for document, text in documents.items() for link in find_links(text)}
    for path in sorted(linked):
        if page_of(path, files) is None and not path.startswith("../") and (ROOT / path).is_file():
            files.append(File.generated(config, f"{FOLDER}/{path}.md", content=show_file(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points the links of a document to the pages; a link to nothing stays, and MkDocs reports it."""
    uri = page.file.src_uri
    if uri.startswith(f"{FOLDER}/") and uri != f"{FOLDER}/{FRONT_PAGE}":
        return markdown
    document = FRONT_PAGE if uri == f"{FOLDER}/{FRONT_PAGE}" else f"docs/{uri}"

    def replace(match):
        target = page_of(resolve(document, match[1]), files)
        return match[1] if target is None else posixpath.relpath(target, posixpath.dirname(uri) or ".")

    parts, end = [], 0
    for fenced in FENCED.finditer(markdown):
        parts += [LINK.sub(replace, markdown[end : fenced.start()]), fenced[0]]
        end = fenced.end()
    return "".join([*parts, LINK.sub(replace, markdown[end:])])
