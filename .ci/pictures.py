"""The picture of a report in the README: `python .ci/pictures.py outputs/stable` (needs playwright and a Chromium; CHROMIUM names it)."""

import io
import os
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

TOP = Path(__file__).resolve().parent.parent


def top_of(page: Path, width: int, height: int) -> bytes:  # PNG
    "The beginning of a page as a browser shows it, in 64 colours."
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(
            executable_path=os.environ.get('CHROMIUM', '/usr/bin/chromium'), args=['--no-sandbox']
        )
        view = browser.new_page(viewport={'width': width, 'height': height}, color_scheme='light')
        view.goto(page.resolve().as_uri())
        shot = view.screenshot()
        browser.close()
    small = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert('RGB').quantize(64).save(small, 'PNG', optimize=True)
    return small.getvalue()


if __name__ == '__main__':
    [run] = sys.argv[1:]
    (TOP / 'nbs/images/report.png').write_bytes(top_of(Path(run) / 'reports/03_eval.html', 940, 1490))
