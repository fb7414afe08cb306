"""Report and summary in a real browser: Debian's headless Chromium, started once for screens and once for paper.

Screens are frames inside a harness page, for a window cannot be as narrow as a phone. The harness reports what it finds
in its title's place, and sends out one request and one console message of its own: a check that sees neither is blind.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paper import check_paper

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 1040)  # a phone, a desk
# Chromium's own: time, updates, accounts. That a page names no address at all is checked by reading it (test_html.py).
OWN = re.compile(
    r"[ /](clients\d*|update|accounts|www|optimizationguide-pa|redirector)\.(google|googleapis|gvt1)\.com[:/]"
)
HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
{frames}
<img src="http://control.invalid/seen.png" alt="">
<script>
function unnamed(page) {{
  const pictures = [...page.querySelectorAll("svg, img, canvas, video")];
  return pictures.filter(picture => {{
    if (picture.tagName === "IMG") return !picture.alt.trim();
    const words = (picture.getAttribute("aria-labelledby") || "").split(" ").map(id => page.getElementById(id));
    return picture.getAttribute("role") !== "img" || words.length < 2 ||
      words.some(word => !word || word.textContent.length < 5);
  }}).map(picture => picture.outerHTML.slice(0, 80));
}}
function outside(page, width) {{  // what sticks out of the page, but for what scrolls by itself
  return [...page.body.querySelectorAll("*")].filter(e => !e.closest(".scroll > *") && !e.matches(".skip")
    && e.getBoundingClientRect().right > width + 0.5).map(e => e.outerHTML.slice(0, 80));
}}
window.onload = () => {{
  console.error("harness");
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, ink = getComputedStyle(page.body);
    const pictures = [...page.querySelectorAll("figure svg, img")];
    return {{
      width: page.documentElement.clientWidth, scroll: page.documentElement.scrollWidth,
      outside: outside(page, page.documentElement.clientWidth), unnamed: unnamed(page),
      pictures: pictures.length, drawn: pictures.filter(p => p.getBoundingClientRect().height > 20).length,
      dark: matchMedia("(prefers-color-scheme: dark)").matches, ground: ink.backgroundColor, ink: ink.color,
      smallest: Math.min(...[...page.querySelectorAll("p, td, th, li, dd, dt, span")]
        .map(e => parseFloat(getComputedStyle(e).fontSize))),
    }};
  }});
  document.body.innerHTML = "<pre id=found></pre>";
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script>"""


class Refusing(socketserver.ThreadingTCPServer):
    """A proxy that answers nothing and remembers what the page asked it for."""

    daemon_threads = allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Refuse)
        self.asked: list[str] = []


class _Refuse(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        request = self.rfile.readline().decode("latin-1").strip()
        if not OWN.search(request):
            self.server.asked.append(request)  # type: ignore[attr-defined]
        self.wfile.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")


@contextmanager
def refusing_proxy() -> Iterator[Refusing]:
    with Refusing() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def chromium(folder: Path, proxy: Refusing, *arguments: str) -> tuple[str, list[str]]:
    """Standard output and console messages of one start."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-default-apps"]
    options += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", "--disable-extensions"]
    options += ["--hide-scrollbars"]
    options += [f"--proxy-server=127.0.0.1:{proxy.server_address[1]}", "--blink-settings=preferredColorScheme=0"]
    done = subprocess.run(
        [CHROMIUM, *options, *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        env=os.environ | {"HOME": str(folder)},
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def screens(full_page, summary_page, tmp_path_factory):
    """What the harness found of each page at each width, console messages, and requests that reached the proxy."""
    folder = tmp_path_factory.mktemp("browser")
    frame = '<iframe style="width:{}px;height:2000px;border:0" srcdoc="{}"></iframe>'
    shown = [(width, page) for page in (full_page, summary_page) for width in WIDTHS]
    frames = "\n".join(frame.format(width, html.escape(page)) for width, page in shown)
    (folder / "harness.html").write_text(HARNESS.format(frames=frames), encoding="utf-8")
    with refusing_proxy() as proxy:
        out, console = chromium(folder, proxy, "--dump-dom", (folder / "harness.html").as_uri())
        found = re.search(r'<pre id="found">(.*?)</pre>', out, re.DOTALL)
        assert found, out[:500]
        return json.loads(html.unescape(found[1])), console, list(proxy.asked)


def test_no_console_message_and_no_request_leaves_the_file(screens):
    _, console, asked = screens
    assert [line for line in console if '"harness"' not in line] == []
    assert len(console) == 1  # the harness's own: console messages are seen
    assert asked == ["GET http://control.invalid/seen.png HTTP/1.1"]  # and so are requests


def test_nothing_sticks_out_at_the_width_of_a_phone_or_a_desk(screens):
    found, _, _ = screens
    assert [frame["width"] for frame in found] == [*WIDTHS, *WIDTHS]
    for frame in found:
        assert frame["scroll"] <= frame["width"]
        assert frame["outside"] == []
        assert frame["smallest"] >= 11


def test_every_picture_is_drawn_and_has_a_text_alternative(screens):
    found, _, _ = screens
    for frame, pictures in zip(found, (18, 18, 2, 2), strict=True):
        assert frame["pictures"] == frame["drawn"] == pictures
        assert frame["unnamed"] == []


def test_a_reader_who_prefers_dark_pages_gets_dark_ink_on_white(screens):
    found, _, _ = screens
    for frame in found:
        assert frame["dark"]
        assert frame["ground"] == "rgb(255, 255, 255)"
        assert max(map(int, re.findall(r"\d+", frame["ink"]))) < 80


def test_paper_holds_every_word_within_its_margins(full_page, tmp_path):
    (tmp_path / "report.html").write_text(full_page, encoding="utf-8")
    pdf = tmp_path / "report.pdf"
    with refusing_proxy() as proxy:
        arguments = ("--no-pdf-header-footer", f"--print-to-pdf={pdf}", (tmp_path / "report.html").as_uri())
        _, console = chromium(tmp_path, proxy, *arguments)
        assert (console, proxy.asked) == ([], [])
    check_paper(pdf, full_page)
