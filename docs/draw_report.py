"""Draw a report as a wide light and a narrow dark page: ``draw_report.py RUN PICTURE.png`` (needs Chromium)."""

import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from limbert.report.page import Report
from limbert.report.read import read_run

FRAMES = """<!DOCTYPE html><body style="margin:0;background:#cfd6dd">
<div style="display:flex;gap:40px;padding:40px">{}{}</div>
<script>onload = () => document.querySelector("#narrow").contentDocument.getElementById("theme").click();</script>"""


def main(run: str, picture: Path) -> None:
    page = html.escape(Report(read_run(run)).html(pictures_folder="report-pictures"))
    frames = [
        f'<iframe id="{name}" scrolling="no" style="border:0;border-radius:16px;width:{width}px;height:1270px" '
        f'srcdoc="{page}"></iframe>'
        for name, width in (("wide", 1240), ("narrow", 390))
    ]
    chromium = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "frames.html").write_text(FRAMES.format(*frames), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1750,1350"]
        options += ["--blink-settings=preferredColorScheme=1", f"--user-data-dir={folder}/profile"]
        options += [f"--screenshot={picture.absolute()}", f"file://{folder}/frames.html"]
        subprocess.run([chromium, *options], check=True, capture_output=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: draw_report.py RUN PICTURE.png")
    main(sys.argv[1], Path(sys.argv[2]))
