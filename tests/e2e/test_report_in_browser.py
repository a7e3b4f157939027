"""The report in a real browser: headless Chromium reads it, and something is to be seen at every width."""

import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from skipwise.report import write_report

SAMPLE = Path(__file__).parents[1] / "unit" / "report" / "report_sample.py"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason=f"no browser on this machine: none of {', '.join(BROWSERS)}"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    sample = runpy.run_path(str(SAMPLE))
    found = sample["document"](sample["everything"]())
    return write_report(sample["write_run"](tmp_path_factory.mktemp("run"), found))


@pytest.fixture
def browse(page, tmp_path):
    def run(*flags: str) -> str:
        command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    return run


def test_the_browser_reads_every_heading_and_figure(browse):
    dom = browse("--dump-dom")
    for heading in (
        *("Summary", "Passkey retrieval", "Needle in a haystack", "RULER", "Perplexity", "LongPPL"),
        *("Benchmarks", "Coverage", "Training", "Recipe", "Data", "Models", "Evaluations", "Notes"),
    ):
        assert f"<h2>{heading}</h2>" in dom
    assert dom.count("<figure") == 15
    assert dom.count("<svg") == 10 + 5 * 4


@pytest.mark.parametrize(
    ("width", "dark"), [(1200, False), (1200, True), (500, False)], ids=["desktop", "dark", "phone"]
)
def test_the_page_is_not_blank(browse, tmp_path, width, dark):
    picture = tmp_path / "page.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browse(f"--screenshot={picture}", f"--window-size={width},2400", scheme)
    pixels = imread(picture)[..., :3]
    assert pixels.shape[:2] == (2400, width)
    background = np.median(pixels.reshape(-1, 3), axis=0)
    assert (background.mean() < 0.3) == dark
    drawn = np.abs(pixels - background).max(axis=2) > 0.2
    for part in np.array_split(drawn, 8):
        assert 0.005 < part.mean() < 0.9
    assert not drawn[:, : 8 if width < 600 else 20].any(), "something sticks out of the margin"
    assert not drawn[:, -8:].any(), "something sticks out of the margin"
