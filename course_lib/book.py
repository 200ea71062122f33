"""The course as a static book with navigation and search, made of the committed lessons and texts: it opens from disk
and needs no network.

Made by Sphinx with MyST-NB. Jupyter Book 2 would be the other choice; it needs Node.js beside Python, and downloads its
theme while it builds.
"""

import shutil
from pathlib import Path

from course_lib import javascript
from course_lib.errors import CourseError
from course_lib.paths import NOTEBOOKS, ROOT

import nbformat

FOLDER = ROOT / "build" / "site"
# Texts beside the lessons; the first one is the front page.
TEXTS = ("README.md", "SYLLABUS.md", "INSTRUCTOR.md", "CLASSROOM.md", "data/README.md")
LINKED = ("LICENSE", "CITATION.cff")
SETTINGS = {
    "project": "Fine-Tuning, Measured",
    "html_title": "Fine-Tuning, Measured",
    "extensions": ["myst_nb"],
    "root_doc": "index",
    "html_theme": "furo",
    "html_copy_source": False,
    "html_show_copyright": False,
    # A page opened from disk may not read other pages, which summaries of what was found would need.
    "html_show_search_summary": False,
    "html_static_path": ["static"],
    "html_css_files": ["book.css"],
    "mathjax_path": javascript.MATHJAX,
    "mathjax_options": {"defer": "defer"},
    "suppress_warnings": ["myst.mathjax"],
    "myst_enable_extensions": ["dollarmath"],
    "myst_heading_anchors": 3,
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "nb_render_markdown_format": "myst",
    "nb_code_prompt_show": "Show the code",
    "nb_code_prompt_hide": "Hide the code",
}
# Lines of code have up to 120 letters: where the window has room for them, so has the page.
STYLE = "body { --code-font-size: 75%; } @media (min-width: 100em) { .content { width: 60em; } }"
CONTENTS = """

```{{toctree}}
:hidden:
:caption: {caption}

{pages}
```
"""


def build(folder: Path = FOLDER) -> Path:
    """Make the site in a folder, which is emptied first; returns its front page.

    Raises CourseError where Sphinx has something to warn of, such as a link that leads nowhere.
    """
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source"
    gather(source)
    (source / "static").mkdir()
    (source / "static" / "book.css").write_text(STYLE)
    javascript.unpack(source / "static", "sphinx-mathjax-offline")
    places = source, None, folder / "html", folder / "read"
    # As Sphinx's own command does: else a second site of the same process would find traces of the first.
    with docutils_namespace():
        app = Sphinx(*places, "html", SETTINGS, status=None, warningiserror=True)
        app.build()
    if app.statuscode:
        raise CourseError("The site was built, but see the warnings above.")
    return folder / "html" / "index.html"


def gather(source: Path) -> None:
    """Copy what the site is made of into a folder, at the places that its links name."""
    lessons = sorted(NOTEBOOKS.glob("*.ipynb"))
    (source / "notebooks").mkdir(parents=True)
    for file in lessons:
        nbformat.write(page(nbformat.read(file, as_version=4)), source / "notebooks" / file.name)
    texts = [*TEXTS, *(str(file.relative_to(ROOT)) for file in sorted((ROOT / "data").glob("**/README.md"))[1:])]
    for name in (*texts, *LINKED):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "data" / "figures", source / "data" / "figures")
    front = (source / TEXTS[0]).rename(source / "index.md")
    parts = {"Lessons": [f"notebooks/{file.stem}" for file in lessons], "For teachers, and data": texts[1:]}
    contents = (CONTENTS.format(caption=name, pages="\n".join(pages)) for name, pages in parts.items())
    front.write_text(front.read_text(encoding="utf-8") + "".join(contents), encoding="utf-8")


def page(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with folded what is folded in Jupyter, and a sentence of text for each picture."""
    for cell in notebook.cells:
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        cell.metadata = nbformat.from_dict({"tags": ["hide-input"] if folded else []})
        pictures = [one.data for one in cell.get("outputs", []) if "image/png" in one.get("data", {})]
        if pictures:
            # MyST-NB knows one text for all pictures of a cell.
            said = " ".join(data["text/plain"] for data in pictures)
            cell.metadata["mystnb"] = {"image": {"alt": said}}
    return notebook
