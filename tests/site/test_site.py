"""The site is built without a warning, and works in a browser."""

import functools
import html.parser
import http.server
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# Chromium otherwise asks servers of its own as it starts.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--no-first-run")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "tools.site", "--out", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


# --- Links


class Page(html.parser.HTMLParser):
    """Collects what a page links to, and the places one can link to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        for name in ("href", "src"):
            link = attributes.get(name)
            if link and not urllib.parse.urlparse(link).scheme:
                self.links.append(link)


def test_no_link_is_dead(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 30
    dead = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the root
            continue
        for link in page.links:
            file, _, anchor = urllib.parse.unquote(link).partition("#")
            target = (path.parent / file.partition("?")[0]).resolve()
            target = target if file else path
            if target.is_dir():
                target = target / "index.html"
            known = pages[target].anchors if target in pages else {anchor}
            if not target.is_file() or (anchor and anchor not in known):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert not dead, "\n".join(dead)


def test_links_of_the_package_s_page_on_pypi(site):
    """The wheel's description is README.md with links to the site."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    hooks = project["tool"]["hatch"]["metadata"]["hooks"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for change in hooks["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    links = re.findall(r"\]\((\S+?)\)", text)
    assert len(links) > 20
    for link in links:
        address = urllib.parse.urlparse(link)
        assert address.scheme == "https", f"{link} is dead on PyPI"
        if address.netloc.endswith(".example"):
            file = site / address.path.lstrip("/")
            assert file.is_file(), f"the site has no {link}"
            known = Page(file).anchors if address.fragment else set()
            assert not address.fragment or address.fragment in known, link


# --- In a browser


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Handler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs the extra `docs`"
    )
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=list(FLAGS)
        )
        yield browser
        browser.close()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request, browser, address):
    """A tab that fails the test if the page has an error."""
    page = browser.new_page(viewport=request.param, base_url=address)
    faults = []

    def failed(asked):  # cancelled: the next page was opened meanwhile
        if asked.failure != "net::ERR_ABORTED":
            faults.append(f"{asked.url}: {asked.failure}")

    def answered(answer):
        if answer.status >= 400 or not answer.url.startswith(address):
            faults.append(f"{answer.url}: {answer.status}")

    def said(message):
        if message.type in ("error", "warning"):
            faults.append(message.text)

    page.on("console", said)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", failed)
    page.on("response", answered)
    yield page
    page.close()
    assert not faults, "\n".join(faults)


PAGES = ("index", "how_it_works", "mechanisms", "benchmarks", "api/layers")


def test_pages_fit_the_screen(page):
    for name in PAGES:
        page.goto(f"/{name}.html")
        wide, broken = page.evaluate(
            """async () => {
                const images = [...document.images];
                for (const x of images) x.loading = "eager";
                await Promise.allSettled(images.map(x => x.decode()));
                return [
                    document.documentElement.scrollWidth > innerWidth,
                    images.filter(x => !x.naturalWidth).map(x => x.src),
                ];
            }"""
        )
        assert not wide, f"{name} is wider than the screen"
        assert not broken, f"{name}: {broken}"


def test_search_finds_a_guide(page):
    page.goto("/index.html", wait_until="networkidle")
    if page.viewport_size == PHONE:
        page.click("label[for=__search].md-header__button")
    # Key by key: the search listens to the keys.
    page.locator("input.md-search__input").press_sequentially("packed")
    result = page.locator(".md-search-result__link[href*='packing.html']").first
    result.wait_for()
    result.click()
    page.wait_for_url("**/packing.html*")
    assert page.locator("h1").inner_text().startswith("Packed documents")


def test_navigation_leads_to_a_guide(page):
    page.goto("/index.html", wait_until="networkidle")
    if page.viewport_size == PHONE:
        page.click("label[for=__drawer].md-header__button")
        page.locator(".md-nav__item--nested > label", has_text="Guides").click()
    else:
        page.click(".md-tabs__link:has-text('Guides')")
        page.wait_for_url("**/install.html")
    page.click("nav .md-nav__link:has-text('How it works'):visible")
    page.wait_for_url("**/how_it_works.html")
    assert page.locator("h1").inner_text().startswith("How it works")


def test_model_runs_in_the_browser(page, site):
    if not (site / "browser" / "ort").is_dir():
        pytest.skip("needs docs/browser/model.onnx and npm")
    page.goto("/browser.html")
    page.wait_for_function(
        "document.getElementById('demo-answer').textContent.includes('bytes')"
    )
    assert page.locator("#demo-answer").inner_text().startswith("crude oil: ")
    page.fill("#demo-text", "net profit rose to 5 mln dlrs, or 12 cts a share")
    page.click("#demo-run")
    page.wait_for_function(
        "document.getElementById('demo-answer').textContent.includes(' 42 b')"
    )
    assert page.locator("#demo-answer").inner_text().startswith("earnings: ")
    shown = page.locator("#demo-parts span")
    assert shown.count() == 11  # four bytes each
    assert "net profit rose" in page.locator("#demo-parts").inner_text()
