"""The site: built without a warning, whole, and read from disk on a phone."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote

from course_lib import book
from course_lib.errors import CourseError
from course_lib.notebooks import WIDGET_VIEW

import nbformat
import pytest
from chromium import Complaints, needs_chromium
from nbformat.v4 import new_code_cell, new_notebook, new_output

# Of MyST's parser, about Sphinx's next version but one.
pytestmark = pytest.mark.filterwarnings("ignore:.*MystReferenceResolver.app")
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return book.build(tmp_path_factory.mktemp("site")).parent


def test_what_is_folded_stays_folded_and_pictures_have_words():
    pictures = [new_output("display_data", {"image/png": PNG, "text/plain": text}) for text in ("A dot.", "Two.")]
    cells = [
        new_code_cell("1", metadata={"tags": ["solution"], "jupyter": {"source_hidden": True}}),
        new_code_cell("2", outputs=pictures),
    ]
    solution, shown = book.page(nbformat.from_dict(new_notebook(cells=cells))).cells
    assert solution.metadata == {"tags": ["hide-input"]}
    assert shown.metadata["mystnb"]["image"]["alt"] == "A dot. Two." and WIDGET_VIEW not in str(shown)


def test_a_link_that_leads_nowhere_is_an_error(tmp_path, monkeypatch, capsys):
    def gather(source):
        source.mkdir(parents=True)
        (source / "index.md").write_text("# Front\n\n[nowhere](there/is/none.md)\n")

    monkeypatch.setattr(book, "gather", gather)
    with pytest.raises(CourseError, match="warnings above"):
        book.build(tmp_path / "site")
    assert "there/is/none.md" in capsys.readouterr().err


class Links(HTMLParser):
    """What a page links to, the pictures without words, and the places in it that can be linked to."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.silent, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        self.places |= {found["id"]} if "id" in found else set()
        if tag == "img" and not found.get("alt", "").strip():
            self.silent.append(found.get("src"))


def test_every_link_leads_somewhere_and_every_picture_has_words(site):
    pages = {file.resolve(): Links(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}
    assert len(pages) > 15
    for file, page in pages.items():
        assert page.silent == [], file.name
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, place = unquote(link.split("?")[0]).partition("#")
            target = (file.parent / path).resolve() if path else file
            assert target.is_file(), f"{file.name}: {link}"
            assert not place or target not in pages or place in pages[target].places, f"{file.name}: {link}"


WRONG = """() => {
    const wrong = [...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src);
    if (document.documentElement.scrollWidth > innerWidth) wrong.push('wider than the screen');
    const text = [...document.querySelectorAll('article p, article li, article td')].map(node => node.innerText);
    return wrong.concat(text.filter(said => /\\\\[a-z]{2}/i.test(said)));
}"""


class TestInABrowser:
    pytestmark = needs_chromium

    def test_pages_are_whole_on_a_phone_and_need_no_network(self, browser, site):
        complaints, asked = Complaints(), []
        page = browser.new_page(viewport={"width": 390, "height": 840})
        complaints.listen(page)
        page.on("request", lambda request: asked.append(request.url))
        for file in sorted(site.rglob("*.html")):
            page.goto(file.as_uri())
            page.wait_for_function("() => !window.MathJax?.startup || MathJax.startup.promise.then(() => true)")
            assert page.evaluate(WRONG) == [], file.name
        page.close()
        assert complaints.said == []
        assert {url.split(":")[0] for url in asked} <= {"file", "data"}

    def test_search_finds_from_disk(self, browser, site):
        page = browser.new_page()
        page.goto(f"{(site / 'search.html').as_uri()}?q=checkpointing")
        page.wait_for_selector("#search-results li a")
        found = page.locator("#search-results li a").all_inner_texts()
        page.close()
        assert any(title.startswith("04") for title in found)

    def test_solutions_open(self, browser, site):
        page = browser.new_page()
        page.goto(next((site / "notebooks").glob("03*.html")).as_uri())
        code = page.locator("details.hide pre").first
        assert not code.is_visible()
        page.locator("details.hide summary").first.click()
        assert code.is_visible()
        page.close()
