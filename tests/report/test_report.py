"""The report of a run: its numbers are the files', its page needs nothing else, whatever the files say is harmless."""

import html
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.factories.reports import POINTS, Page, make_run, profile_rows, result_rows, write_lines
from typer.testing import CliRunner

from limbert.cli import train as train_verb
from limbert.cli.main import app
from limbert.errors import ConfigError, LimbertError
from limbert.report.axes import line_obstacles, nice_ticks, place_labels
from limbert.report.commands import train_command
from limbert.report.drawing import Polyline, Text, text_width
from limbert.report.page import make_report, save_report
from limbert.report.read import read_run
from limbert.report.scatter import ScatterPoint, pareto_front_points
from limbert.train.run_folder import run_settings
from limbert.train.recipes import load_recipe, override_recipe

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def page_of(run: Path) -> str:
    page = run / "report.html"
    save_report(make_report(read_run(str(run))), page)
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("report") / "my run")
    page_of(run)
    return run


def test_the_page_is_whole_and_needs_no_network(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert [*page.attributes("src"), *page.attributes("href")] == ["data:,"]
    policy = next(
        attributes for _, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy["content"].startswith("default-src 'none'")
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "iframe", "object", "base"})
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    used, defined = {*re.findall(r"var\(--([\w-]+)\)", text)}, {*re.findall(r"--([\w-]+):#", text)}
    assert used <= defined


def test_every_number_is_that_of_the_files(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    page, rows = Page(text), result_rows()
    for row in rows:
        assert row["subnet"] in page.text
        titles = [one for one in page.text if one.startswith(f"{row['subnet']}: accuracy ")]
        assert len(titles) >= 13  # in both sizes of six charts, and in the heat map
        assert all(f"accuracy {100 * row['metrics']['accuracy']:.1f}, " in title for title in titles)
    exact = [float(value) for value in page.attributes("data-value") if value != "None"]
    for row, times in zip(rows, profile_rows(rows), strict=False):  # the first setting is what the table shows
        assert exact[:8] == [
            *row["metrics"].values(), row["params"], row["flops"],
            times["file_bytes"], times["latency_p50_ms"], times["latency_p95_ms"], times["throughput"],
        ]  # fmt: skip
        exact = exact[8:]
    assert not exact
    kept = json.loads(text.partition('id="exact">')[2].partition("</script>")[0])
    assert kept["results"] == rows
    assert [*kept["operating_points"]] == [*POINTS]


def test_pictures_are_saved_and_earlier_ones_go(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "tune.jsonl").unlink()
    names = {path.name for path in save_report(make_report(read_run(str(copy))), copy / "report.html")}
    assert {path.name for path in (copy / "report-pictures").iterdir()} == names
    assert "search.png" not in names
    assert "search.png" in {path.name for path in (run / "report-pictures").iterdir()}
    for path in (copy / "report-pictures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    expected = {"cost-latency-1.png", "cost-latency-4.png", "cost-flops.png", "cost-size.png", "heatmap.png",
                "widths-balanced.png", "exits-fast.png", "training-width.png", "training-gates.png"}  # fmt: skip
    assert expected <= names
    assert "widths-accurate.png" not in names  # one size for all: nothing is chosen


def test_a_folder_with_other_files_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine-pictures").mkdir()
    (tmp_path / "mine-pictures" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"letter.txt; choose another --output"):
        save_report(make_report(read_run(str(run))), tmp_path / "mine.html")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine-pictures", "letter.txt"]


def test_what_was_not_measured_is_left_out_and_the_page_says_how_to_get_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", full=False)
    text = Page(page_of(run)).all_text()
    for what, command in (("Latency, file size and memory", "profile"), ("Operating points", "tune")):
        assert f"{what}: not there yet; limbert {command} {run} makes the data." in text
    assert "the run has no log" in text
    assert " ms" not in text
    assert "0.25x0.5" in text
    assert {path.stem for path in (run / "report-pictures").iterdir()} == {"cost-flops", "cost-parameters", "heatmap"}


def test_choices_of_points_that_have_changed_are_not_shown(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    record = json.loads((copy / "limbert.json").read_text())
    record["operating_points"]["fast"]["exits"]["threshold"] = 0.7
    (copy / "limbert.json").write_text(json.dumps(record))
    assert {one.name for one in make_report(read_run(str(copy))).layer_usages} == {"balanced"}
    assert f"limbert evaluate {copy} --policy fast" in Page(page_of(copy)).all_text()


def test_subnetworks_found_by_a_search_are_shown_off_the_grid(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    found = result_rows()[0] | {"subnet": "found-1a2b3", "width": None, "depth": None, "flops": 1e8}
    write_lines(copy / "results.jsonl", [*result_rows(), found])
    text = Page(page_of(copy)).all_text()
    assert "found by search" in text
    assert text.count("found-1a2b3") >= 3
    report = make_report(read_run(str(copy)))
    flops = next(panel for panel in report.panels if panel.tab == "FLOPs")
    assert flops.fronts[0][-1]["name"] == "found-1a2b3"  # as good as the full model for less


def test_names_from_files_are_harmless(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)<"
    run = make_run(tmp_path / evil)
    for name in ("limbert.json", "policies.jsonl", "profile.jsonl", "log.jsonl", "results.jsonl"):
        text = (run / name).read_text()
        for word in ("fast", "A CPU", "runs/start", "0.25x0.5", '"phase": "depth', "torch"):
            text = text.replace(word, word + "</script></svg>\\\"'/../><img src=x onerror=alert(3)>")
        (run / name).write_text(text)
    page = Page(page_of(run))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert evil in page.all_text()
    assert "</script></svg>" in page.all_text()
    assert {path.name for path in run.parent.iterdir()} == {run.name}
    assert any(path.name.startswith("training-depth-script-svg") for path in (run / "report-pictures").iterdir())


@pytest.mark.parametrize("name", ["results", "profile", "policies", "log", "tune"])
def test_a_broken_line_is_named_by_file_and_line(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    with (run / f"{name}.jsonl").open("a") as file:
        file.write('{"half": ')
    lines = len((run / f"{name}.jsonl").read_text().splitlines())
    message = rf"{name}.jsonl, line {lines}: not JSON|line {lines} of .*/{name}.jsonl is no row of a profile"
    with pytest.raises(LimbertError, match=message):
        read_run(str(run))


def test_bad_input_gets_one_clear_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", full=False)
    (tmp_path / "empty").mkdir()
    cases = {
        ("nowhere",): "no model folder at nowhere",
        (str(tmp_path / "empty"),): "has no limbert.json",
        (str(run), "--output", str(tmp_path / "page.pdf")): "must end in .html",
        (str(run), "--output", str(tmp_path / "no" / "page.html")): "its folder is not there",
    }
    for arguments, message in cases.items():
        error = CliRunner().invoke(app, ["report", *arguments]).exception
        assert isinstance(error, LimbertError)
        assert message in str(error)
    (run / "results.jsonl").write_text(json.dumps(result_rows()[0] | {"metrics": {"f1": 1.0}}) + "\n")
    with pytest.raises(LimbertError, match=r"results of 1x1 in .* have no accuracy"):
        read_run(str(run))
    (run / "results.jsonl").unlink()
    with pytest.raises(LimbertError, match=r"no results.jsonl, which limbert train writes"):
        read_run(str(run))
    assert not (run / "report.html").exists()
    assert not (run / "report-pictures").exists()


def test_the_command_writes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run), "--output", str(tmp_path / "one.html"), "--json"])
    assert done.exit_code == 0
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert told["page"] == str(tmp_path / "one.html")
    assert all(Path(path).parent == tmp_path / "one-pictures" and Path(path).is_file() for path in told["pictures"])


TRAININGS = [
    ["--task", "mrpc", "--data", "glue/MRPC", "--model", "bert"],
    ["--data", "a b", "--label-column", "la'bel", "--model", "bert", "--recipe", "flexible-bert", "--seed", "7"],
    ["--data", "d", "--model", "m", "--phases", "width,gates", "--gates", "2", "--gate-cost", "0.1",
     "--widths", "0.5,1"],
    ["--data", "d", "--model", "m", "--layers", "first", "--set", "width.hidden_weight=0.5", "--max-steps", "3"],
    ["--train", "t.csv", "--dev", "d.csv", "--model", "m", "--label-names", "x,y", "--skip-bad-rows", "--max-length",
     "64", "--precision", "bf16", "--validation", "0.2", "--set", "depth.teacher_width=matched"],
]  # fmt: skip


@pytest.mark.parametrize("words", TRAININGS, ids=lambda words: words[-1])
def test_the_training_command_means_the_settings_that_were_kept(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shlex

    caught: list[dict[str, object]] = []

    def catch(config, data_config, overrides, **_):  # type: ignore[no-untyped-def]
        caught.append(
            run_settings(config, override_recipe(load_recipe(config.recipe), **overrides).to_dict(), data_config)
        )

    monkeypatch.setattr(train_verb, "_train", catch)
    assert CliRunner().invoke(app, ["train", *words, "--output", "first"]).exception is None
    run = make_run(tmp_path / "run")
    record = json.loads((run / "limbert.json").read_text())
    (run / "limbert.json").write_text(json.dumps(record | {"settings": caught[0]}))
    command = train_command(read_run(str(run)))
    assert command is not None
    _, verb, *rest = shlex.split(command)
    assert CliRunner().invoke(app, [verb, *rest]).exception is None
    assert caught[0] == caught[1]
    assert str(run) in rest


def test_the_front_is_what_nothing_beats() -> None:
    rng = random.Random(3)
    points = [ScatterPoint(rng.randint(1, 9), rng.randint(1, 9), "", "", "circle", "ink") for _ in range(60)]
    best = pareto_front_points(points)
    for point in points:
        beaten = any(
            other.cost <= point.cost
            and other.value >= point.value
            and (other.cost, other.value) != (point.cost, point.value)
            for other in points
        )
        assert beaten == ((point.cost, point.value) not in {(one.cost, one.value) for one in best})


@pytest.mark.parametrize("span", [(0, 1), (0.683, 0.787), (3.1, 3.2), (0, 1200), (67, 79), (-1.2, -1.1), (0, 1e-4)])
@pytest.mark.parametrize("count", [3, 6])
def test_ticks_are_round_and_inside(span: tuple[float, float], count: int) -> None:
    found = nice_ticks(*span, count=count)
    assert count <= len(found) <= 3 * count
    assert span[0] <= found[0] < found[-1] <= span[1]


def test_labels_cover_neither_each_other_nor_what_is_there() -> None:
    rng = random.Random(5)
    wanted = [(rng.uniform(0, 300), rng.uniform(0, 300), f"point {number}", "ink") for number in range(40)]
    line = Polyline(((0, 150), (150, 150), (150, 300)), "accent")
    marks = place_labels(wanted, obstacles=line_obstacles(line), area=(0, 0, 300, 300))
    boxes = [(150.0, 150.0, 151.0, 300.0), (0.0, 150.0, 150.0, 151.0)]
    for mark in marks:
        assert isinstance(mark, Text)
        width = text_width(mark.text, mark.size)
        left = mark.x - {"start": 0, "middle": width / 2, "end": width}[mark.anchor]
        boxes.append((left, mark.y - 9, left + width, mark.y))
    assert 10 < len(marks) < 40
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            apart = one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
            assert apart or {place, boxes.index(other)} == {0, 1}


PROBE = """<script>
addEventListener("load", () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    const shown = () => [...page.querySelectorAll("[data-panel]")].filter((one) => one.offsetHeight > 0)
      .map((one) => one.dataset.panel);
    const one = { over: root.scrollWidth - root.clientWidth, before: shown() };
    page.querySelector("input[value=flops]").click();
    one.after = shown();
    const ink = () => frame.contentWindow.getComputedStyle(page.body).color;
    one.inks = [ink()];
    page.getElementById("theme").click(); one.inks.push(ink());
    page.getElementById("theme").click(); one.inks.push(ink());
    page.querySelector("input[value=latency]").click();
    const select = page.querySelector("select");
    select.value = "2";
    select.dispatchEvent(new Event("change"));
    one.settings = [...page.querySelectorAll("[data-setting]")].filter((one) => one.offsetHeight > 0)
      .map((one) => one.dataset.setting);
    one.over = Math.max(one.over, root.scrollWidth - root.clientWidth);
    found.push(one);
  }
  document.getElementById("answer").textContent = JSON.stringify(found);
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_it_without_errors_or_sideways_scrolling(run: Path, tmp_path: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    frames = "".join(
        f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page)}"></iframe>'
        for width in (1280, 1140, 1000, 720, 390)
    )
    (tmp_path / "frames.html").write_text(f"<!DOCTYPE html>{frames}<pre id=answer></pre>{PROBE}", encoding="utf-8")
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--enable-logging=stderr", "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}",
         f"file://{tmp_path / 'frames.html'}"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert answer, done.stderr
    found = json.loads(html.unescape(answer[1]))
    assert len(found) == 5
    for one in found:
        assert one["over"] <= 0
        assert one["before"] == ["latency"]
        assert one["after"] == ["flops"]
        assert one["settings"] == ["2", "0", "0"][: len(one["settings"])]
        assert len({*one["inks"]}) == 2  # as the system, dark, light
