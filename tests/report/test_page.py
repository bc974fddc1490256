"""report.html as a page: structure, escaping, nothing from outside, contrast."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from dynkern.report import (
    Answer,
    Column,
    Figure,
    Histogram,
    Lines,
    Pair,
    Pairs,
    Point,
    Report,
    Sample,
    Section,
    Series,
    Shares,
    Table,
    command_line,
    conditions,
    given,
    write_report,
)
from dynkern.report.drawing import MARKERS, colour, dashes, marker
from dynkern.report.page import render
from dynkern.report.scales import Scale, interval, number, percent, short
from support.pages import Element, browse, chromium, parse

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>\x00\x1b[31m \ud800 <!-- ]]>"
STYLE = (Path(render.__code__.co_filename).parent / "style.css").read_text()


def made(text: str = "plain", many: int = 9) -> Report:
    """A report with one of everything, `text` wherever data goes."""
    points = [Point(i, 0.1 * i, 0.1 * i - 0.05, 0.1 * i + 0.04, label=text) for i in (1, 2, 3)]
    series = [Series(f"{text} {n}", points, n, band=n == 2) for n in range(many)]
    figures = [
        Figure(text, Lines(text, text, series, (text, 0.3, 0.2, 0.4)), text),
        Figure(text, Pairs(text, ("possible", "measured"), [Pair(text, 50.0, 60.0, 55, 70, text)])),
        Figure(text, Histogram(text, [Shares(text, {2: 0.4, 6: 0.6}, 1, 4.4)], 6)),
    ]
    table = Table(text, [Column(text, text, False), Column(text)], [[text, text]], is_long=True)
    short_table = Table(text, [Column(text, is_number=False), Column("b")], [[text * 9, "2"]])
    sample = Sample(text, text, [text] * 5, [Answer(text, text, [text]), Answer("b", " ", [])])
    return Report(
        title=text,
        command=text,
        asked=text,
        settings={text: text, "flag": True, "nothing": None, "share": 0.25},
        found=[text, text, text],
        sections=[Section(text, [*figures, table, short_table, sample], [text])],
        conditions=conditions({text: text}),
        rerun=[text],
        notes=[text],
        rerun_note=text,
        files={text: text},
    )


@pytest.fixture(scope="module")
def page() -> Element:
    return parse(render(made()))


def test_landmarks_and_headings(page):
    [html] = page.all("html")
    assert html.attributes["lang"] == "en"
    for name in ("h1", "main", "header", "footer", "nav"):
        assert len(page.all(name)) == 1, name
    assert page.all("head")[0].all("title")[0].words == "plain · dynkern plain"
    ids = [e.attributes["id"] for e in every(page) if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    links = [a.attributes["href"] for a in page.all("a")]
    assert links and all(link[0] == "#" and link[1:] in ids for link in links)
    for section in page.all("section"):
        assert section.attributes["aria-labelledby"] in ids
        assert [child.name for child in section.children][0] == "h2"


def every(element: Element) -> list[Element]:
    return [element, *(e for child in element.children for e in every(child))]


def test_tables_have_captions_scopes_and_their_own_scroll_container(page):
    tables = page.all("table")
    assert len(tables) == 2
    for table in tables:
        [caption] = table.all("caption")
        assert caption.words
        assert all(th.attributes["scope"] in ("col", "row") for th in table.all("th"))
        for row in table.all("tbody")[0].all("tr"):
            assert row.children[0].name == "th"
    regions = [e for e in page.all("div") if e.attributes.get("role") == "region"]
    assert len(regions) == 2 and all(r.attributes["tabindex"] == "0" for r in regions)
    assert [len(r.all("table")) for r in regions] == [1, 1]
    assert all(d.children[0].name == "summary" for d in page.all("details"))


def test_figures_say_what_they_show(page):
    figures = page.all("figure")
    assert len(figures) == 3
    ids = {e.attributes["id"]: e for e in every(page) if "id" in e.attributes}
    for figure in figures:
        [svg] = [e for e in figure.all("svg") if e.attributes.get("role") == "img"]
        assert ids[svg.attributes["aria-labelledby"]].name == "title"
        described = ids[svg.attributes["aria-describedby"]]
        assert described.name == "desc" and re.search(r"\d", described.words)
        assert svg.all("text")
        others = [e for e in figure.all("svg") if e is not svg]
        assert all(e.attributes["aria-hidden"] == "true" for e in others)


def test_nothing_comes_from_outside_and_nothing_runs(page):
    html = render(made())
    assert not page.all("script") and not page.all("link") and not page.all("img")
    for element in every(page):
        for name, value in element.attributes.items():
            assert name not in ("src", "srcset", "action") and not name.startswith("on")
            assert "://" not in (value or "")
    assert not re.search(r"https?:|url\(|@import", html)


def test_data_are_text_and_never_markup():
    html = render(made(EVIL))
    page = parse(html)
    names = {e.name for e in every(page)}
    assert not names & {"script", "img"}
    assert not any(name.startswith("on") for e in every(page) for name in e.attributes)
    assert "<!-- ]]>" not in html and "\x00" not in html and "\x1b" not in html
    assert html.encode("utf-8")
    [h1] = page.all("h1")
    assert h1.words.startswith("<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>")
    assert len([p for p in page.all("p") if p.attributes.get("dir") == "auto"]) == 1 + 3 + 2


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_report(tmp_path, made("one"))
    assert path == tmp_path / "report.html" and path.read_text().startswith("<!doctype html>")
    before = path.read_bytes()

    def full(self, content, encoding):
        self.write_bytes(content[:100].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, made("two"))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_table_with_a_cell_too_few_is_refused():
    with pytest.raises(ValueError, match="got 1 cells in row 0, expected 2"):
        Table("t", [Column("a"), Column("b")], [["1"]])


# -- colours -------------------------------------------------------------------------------------


def palettes() -> list[dict[str, str]]:
    light, dark = re.findall(r":root \{([^}]*)\}", STYLE)
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in (light, dark)]
    assert found[0].keys() == found[1].keys() and len(found[0]) > 15
    return found


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("place", [0, 1], ids=["light", "dark"])
def test_contrast(place):
    colours = palettes()[place]
    texts = ["ink", "quiet", "accent", *(f"s{n}" for n in range(MARKERS + 1))]
    for name in texts:
        for ground in ("ground", "raised"):
            ratio = contrast(colours[name], colours[ground])
            assert ratio >= 4.5, (name, ground, ratio)
    assert contrast(colours["warn"], colours["warn-ground"]) >= 4.5
    assert contrast(colours["ink"], colours["warn-ground"]) >= 4.5


def test_dark_is_not_light_and_focus_is_seen():
    light, dark = palettes()
    assert luminance(light["ground"]) > 0.9 and luminance(dark["ground"]) < 0.05
    assert (
        "@media (prefers-color-scheme: dark)" in STYLE and ":focus-visible { outline: 3px" in STYLE
    )
    assert "outline: none" not in STYLE.replace("main:focus { outline: none; }", "")


def test_series_differ_without_colour():
    styles = range(1, MARKERS + 1)
    assert len({colour(n) for n in styles}) == MARKERS
    assert len({dashes(n) for n in styles}) == MARKERS
    assert len({str(marker(n, 0, 0)) for n in styles}) == MARKERS
    # a second round of colours comes with other dashes
    assert colour(1) == colour(MARKERS + 1) and dashes(1) != dashes(MARKERS + 1)


# -- small parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [[0.165, 0.35], [0, 12], [3, 3], [], [0], [1e-9, 2e-9], [-5, 1e6], [None, 2.0]]
)
def test_scales_hold_their_values_between_round_ticks(values):
    scale = Scale.over(values, 0, 100)
    known = [v for v in values if v is not None]
    assert all(scale.low <= v <= scale.high for v in known) and 2 <= len(scale.ticks) <= 12
    assert scale(scale.low) == 0 and scale(scale.high) == pytest.approx(100)
    labels = [scale.label(t) for t in scale.ticks]
    assert len(set(labels)) == len(labels)


def test_numbers_in_words():
    assert number(-0.5, 2) == "\N{MINUS SIGN}0.50" and number(None, 1) == "n/a"
    assert number(float("nan"), 1) == "n/a" and percent(0.985, 1) == "98.5\N{NO-BREAK SPACE}%"
    assert interval((0.1, 0.25), 2) == "0.10 to 0.25" and interval((None, 1), 2) == ""
    assert short("predictor:abcdefgh", 9) == "pred…efgh" and short("abc", 3) == "abc"


def test_the_command_line_can_be_typed_again(monkeypatch):
    words = ["eval", "--data", "my file.jsonl", "--policy", "a'b; rm -rf $HOME"]
    monkeypatch.setenv("DYNKERN_BACKEND", "cpu two")
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    with given(words):
        line = command_line()
    assert "DYNKERN_BACKEND='cpu two'" in line
    typed = shlex.split(line)
    assert typed[typed.index("dynkern") + 1 :] == words
    assert command_line("Config(1)").startswith("# called from Python")


# -- in a browser --------------------------------------------------------------------------------

PROBE = """<script>
const wide = [];
for (const open of document.querySelectorAll("details")) open.open = true;
for (const e of document.querySelectorAll("body *")) {
  if (e.closest(".scroll, svg") && !e.matches(".scroll, svg")) continue;
  const right = e.getBoundingClientRect().right;
  if (right > innerWidth + 1 && !e.matches(".skip")) wide.push(e.tagName + "." + e.className);
}
let overlaps = 0;
for (const svg of document.querySelectorAll("svg.chart")) {
  const boxes = [...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect());
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
    const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (w > 1 && h > 3) overlaps++;
  }));
}
const probe = document.createElement("output");
probe.textContent = JSON.stringify({
  width: innerWidth, page: document.documentElement.scrollWidth, wide, overlaps,
  ground: getComputedStyle(document.body).backgroundColor,
});
document.body.append(probe);
</script>"""


@pytest.mark.skipif(chromium() is None, reason="needs Chromium to render (Debian: chromium)")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("dark", 400)])
def test_rendered(tmp_path, scheme, width):
    """Nothing sticks out, no text lies on another, the ground follows the reader's scheme."""
    report = made("uniform:12", many=4)
    path = write_report(tmp_path, report)
    # a window has a least width, a frame has not
    inner = path.read_text().replace("</body>", PROBE + "</body>")
    (tmp_path / "inner.html").write_text(inner)
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<!doctype html><iframe src="inner.html" width="{width}" height="900" '
        'style="border:0"></iframe><script>onload = () => document.body.append('
        'document.querySelector("iframe").contentDocument.querySelector("output"))</script>'
    )
    flag = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    dom = browse(
        outer, "--dump-dom", "--allow-file-access-from-files", "--window-size=1300,1000", flag
    )
    found = json.loads(parse(dom).all("output")[0].text)
    assert found["width"] == width and found["page"] <= width and found["wide"] == []
    assert found["overlaps"] == 0
    ground = palettes()[scheme == "dark"]["ground"]
    assert (
        found["ground"] == f"rgb({', '.join(str(int(ground[i : i + 2], 16)) for i in (1, 3, 5))})"
    )


@pytest.mark.skipif(chromium() is None, reason="needs Chromium to render (Debian: chromium)")
def test_a_screenshot_shows_a_drawing(tmp_path):
    path, shot = write_report(tmp_path, made("uniform:12", many=4)), tmp_path / "shot.png"
    browse(path, f"--screenshot={shot}", "--window-size=1200,2400")
    from matplotlib.image import imread

    pixels = imread(shot)[..., :3]
    assert pixels.shape[:2] == (2400, 1200)
    for name in ("s1", "s2", "s3", "ink", "accent"):
        code = palettes()[0][name]
        wanted = [int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        assert (abs(pixels - wanted).max(axis=-1) < 0.02).sum() > 50, name
