"""The report shows what the run's files say, needs nothing but its page, and treats every text in them as text."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import binomtest
from tests.factories.reports import POINTS, Page, make_run, profile_rows, result_rows, write_lines
from typer.testing import CliRunner

from limbert.cli.main import app
from limbert.errors import ConfigError, LimbertError
from limbert.report.noise import is_within_noise, metric_interval
from limbert.report.page import Report
from limbert.report.read import read_run

MINUS = "\u2212"


def write_report(run: Path) -> str:
    page = run / "report.html"
    Report(read_run(str(run))).save(page)
    return page.read_text(encoding="utf-8")


def page_text(run: Path) -> str:
    """The visible text of the page, without the many pictures of the profile."""
    (run / "profile.jsonl").unlink(missing_ok=True)
    return Page(Report(read_run(str(run))).html(pictures_folder="pictures")).all_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("report") / "my run")
    write_report(run)
    return run


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_page_is_self_contained_and_accessible(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert {value for value in [*page.attributes("src"), *page.attributes("href")] if value[0] != "#"} == {"data:,"}
    policy = next(attrs for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "iframe", "object", "base"})
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    identifiers = page.attributes("id")
    assert len(identifiers) == len({*identifiers})
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert "var(--" in svg  # colours of the theme alone
        assert not re.findall(r"(?:fill|stroke): ?#\w+", svg)
    used, defined = {*re.findall(r"var\(--([\w-]+)\)", text)}, {*re.findall(r"--([\w-]+):#", text)}
    assert used <= defined


def test_numbers_are_those_of_the_files(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    page, rows = Page(text), result_rows()
    for row in rows:
        tooltips = [one for one in page.text if one.startswith(f"{row['subnet']}: accuracy ")]
        assert len(tooltips) >= 13  # in both sizes of six charts, and in the heat map
        assert all(f"accuracy {100 * row['metrics']['accuracy']:.1f}, " in tooltip for tooltip in tooltips)
    exact = [float(value) for value in page.attributes("data-value") if value != "None"]
    for row, times in zip(rows, profile_rows(rows), strict=False):  # the table shows the first setting
        assert exact[:8] == [
            *row["metrics"].values(), row["params"], row["flops"],
            times["file_bytes"], times["latency_p50_ms"], times["latency_p95_ms"], times["throughput"],
        ]  # fmt: skip
        exact = exact[8:]
    assert not exact
    saved = json.loads(text.partition('id="exact">')[2].partition("</script>")[0])
    assert saved["results"] == rows
    assert [*saved["operating_points"]] == [*POINTS]


def test_choice_gives_loss_and_noise(copy: Path) -> None:
    values = {"1x1": 0.9, "0.5x1": 0.895, "0.25x1": 0.8}
    rows = [row | {"metrics": {"accuracy": values[row["subnet"]]}, "examples": 1000, "baseline": {"accuracy": 0.8}}
            for row in result_rows() if row["subnet"] in values]  # fmt: skip
    write_lines(copy / "results.jsonl", rows)
    report = Report(read_run(str(copy)))
    for choices in report.choices.values():
        table = [(row["name"], row["change"], row["noise"]) for row in choices[0].rows]
        assert table == [
            ("0.25x1", MINUS + "10.0", "beyond noise"),
            ("0.5x1", MINUS + "0.5", "within noise"),
            ("1x1", "0.0", ""),
        ]
    text = page_text(copy)
    assert "[88.0, 91.7]" in text  # Wilson interval of 900 of 1000
    assert "Majority-class baseline 80.0" in text
    assert text.count("not above baseline") == 1


def test_points_are_compared_with_static_subnetworks(copy: Path) -> None:
    metrics = {"1x1": 0.9, "0.75x1": 0.85, "0.25x1": 0.7}
    rows = [
        row | {"metrics": {"accuracy": metrics[row["subnet"]]}} for row in result_rows() if row["subnet"] in metrics
    ]
    write_lines(copy / "results.jsonl", rows)
    fast = Report(read_run(str(copy))).points[0]  # accuracy 0.8 at 40 % of the FLOPs
    assert fast.same_flops is not None
    assert fast.same_metric is not None
    assert (fast.same_flops["subnet"], fast.same_metric["subnet"]) == ("0.25x1", "0.75x1")


def test_pictures_replace_those_of_an_earlier_report(copy: Path) -> None:
    assert {"search.png", "cost-latency-4.png"} <= {path.name for path in (copy / "report-pictures").iterdir()}
    (copy / "tune.jsonl").unlink()
    profile = (copy / "profile.jsonl").read_text().splitlines(keepends=True)
    (copy / "profile.jsonl").write_text("".join(profile[:12]))
    names = {path.name for path in Report(read_run(str(copy))).save(copy / "report.html")}
    assert {path.name for path in (copy / "report-pictures").iterdir()} == names
    assert {"search.png", "cost-latency-4.png"}.isdisjoint(names)
    for path in (copy / "report-pictures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    expected = {"cost-latency-1.png", "cost-flops.png", "cost-size.png", "heatmap.png",
                "widths-balanced.png", "exits-fast.png", "training-width.png", "training-gates.png"}  # fmt: skip
    assert expected <= names
    assert "widths-accurate.png" not in names  # a static policy


def test_folder_with_other_files_is_unchanged(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine-pictures").mkdir()
    (tmp_path / "mine-pictures" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"letter.txt"):
        Report(read_run(str(run))).save(tmp_path / "mine.html")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine-pictures", "letter.txt"]


def test_page_names_commands_for_missing_measurements(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", full=False)
    text = Page(write_report(run)).all_text()
    for command in ("profile", "tune"):
        assert f"limbert {command} {run}" in text
    assert "no log" in text
    assert " ms" not in text
    assert {path.stem for path in (run / "report-pictures").iterdir()} == {"cost-flops", "cost-parameters", "heatmap"}


def test_page_shows_the_training_command(copy: Path) -> None:
    record = json.loads((copy / "limbert.json").read_text())
    (copy / "limbert.json").write_text(json.dumps(record | {"command": "limbert train --data 'a <b'"}))
    assert "limbert train --data 'a <b'" in page_text(copy)


def test_results_of_changed_operating_points_are_ignored(copy: Path) -> None:
    record = json.loads((copy / "limbert.json").read_text())
    record["operating_points"]["fast"]["exits"]["threshold"] = 0.7
    (copy / "limbert.json").write_text(json.dumps(record))
    assert {*Report(read_run(str(copy))).usages} == {"balanced"}
    assert f"limbert evaluate {copy} --policy fast" in page_text(copy)


def test_missing_figures_are_called_so(copy: Path) -> None:
    rows = [json.loads(line) | {"data": "validation"} for line in (copy / "policies.jsonl").read_text().splitlines()]
    write_lines(copy / "policies.jsonl", rows)
    assert page_text(copy).count("validation split (not yet evaluated on the development set)") == 2
    (copy / "policies.jsonl").unlink()
    text = page_text(copy)
    assert "number of development examples was not recorded" in text
    assert "within noise" not in text


def test_searched_subnetworks_are_shown(copy: Path) -> None:
    found = result_rows()[0] | {"subnet": "found-1a2b3", "width": None, "depth": None, "flops": 1e8}
    calibration = {"error": 0.0123, "raw_error": 0.0456, "temperature": 1.5}
    write_lines(copy / "results.jsonl", [row | {"calibration": calibration} for row in result_rows()] + [found])
    text = page_text(copy)
    assert text.count("found-1a2b3") >= 3
    assert "uncalibrated" in text
    assert min(text.count(error) for error in ("1.2", "4.6")) >= len(result_rows())
    assert "None" not in text
    flops = Report(read_run(str(copy))).choices["FLOPs"][0]
    assert flops.rows[-1]["name"] == "found-1a2b3"  # as good as the full model at a tenth of its FLOPs


def test_markup_in_files_is_escaped(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)<"
    run = make_run(tmp_path / evil)
    for name in ("limbert.json", "policies.jsonl", "profile.jsonl", "log.jsonl", "results.jsonl"):
        text = (run / name).read_text()
        for word in ("fast", "A CPU", "runs/start", "0.25x0.5", '"phase": "depth', "torch"):
            text = text.replace(word, word + "</script></svg>\\\"'/../$x$ \\u0000<img src=x onerror=alert(3)>")
        (run / name).write_text(text)
    page = Page(write_report(run))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert evil in page.all_text()
    assert "</script></svg>" in page.all_text()
    assert {path.name for path in run.parent.iterdir()} == {run.name}
    assert any(path.name.startswith("training-depth-script-svg") for path in (run / "report-pictures").iterdir())


@pytest.mark.parametrize("name", ["results", "profile", "policies", "log", "tune"])
def test_broken_line_is_named(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    record = json.loads((run / "limbert.json").read_text())
    for point in ([], {"policy": "depth"}, {"policy": "width", "widths": "x", "flops_share": 1}):
        (run / "limbert.json").write_text(json.dumps(record | {"operating_points": {"fast": point}}))
        with pytest.raises(LimbertError, match=r"limbert.json"):
            read_run(str(run))
    (run / "limbert.json").write_text(json.dumps(record))
    with (run / f"{name}.jsonl").open("a") as file:
        file.write('{"half": ')
    with pytest.raises(LimbertError) as raised:
        read_run(str(run))
    assert f"{name}.jsonl" in str(raised.value)
    assert f"line {len((run / f'{name}.jsonl').read_text().splitlines())}" in str(raised.value)


def test_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", full=False)
    (tmp_path / "empty").mkdir()
    cases = {
        ("nowhere",): "nowhere",
        (str(tmp_path / "empty"),): "limbert.json",
        (str(run), "--output", str(tmp_path / "page.pdf")): ".html",
        (str(run), "--output", str(tmp_path / "no" / "page.html")): "folder does not exist",
    }
    for arguments, words in cases.items():
        error = CliRunner().invoke(app, ["report", *arguments]).exception
        assert isinstance(error, LimbertError)
        assert words in str(error)
    (run / "results.jsonl").write_text(json.dumps(result_rows()[0] | {"metrics": {"f1": 1.0}}) + "\n")
    with pytest.raises(LimbertError, match=r"no accuracy"):
        read_run(str(run))
    (run / "results.jsonl").unlink()
    with pytest.raises(LimbertError, match=r"results.jsonl"):
        read_run(str(run))
    assert not (run / "report.html").exists()
    assert not (run / "report-pictures").exists()


def test_report_imports_neither_torch_nor_trainer(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", full=False)
    program = (
        "import sys; from pathlib import Path; from limbert.report.page import Report; "
        "from limbert.report.read import read_run; "
        "Report(read_run(sys.argv[1])).html(pictures_folder='p'); "
        "print([name for name in sys.modules if name in ('torch', 'transformers', 'limbert.train.trainer')])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("correct", "count"), [(0, 50), (45, 50), (765, 872), (872, 872)])
def test_wilson_interval_is_that_of_scipy(correct: int, count: int) -> None:
    expected = binomtest(correct, count).proportion_ci(method="wilson")
    found = metric_interval("accuracy", correct / count, count)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_equal_models_are_beyond_noise_rarely() -> None:
    rng = random.Random(1)
    count, trials = 400, 500
    values = [[sum(rng.random() < 0.85 for _ in range(count)) / count for _ in range(2)] for _ in range(trials)]
    beyond = sum(not is_within_noise("accuracy", first, second, count) for first, second in values)
    assert 0.02 < beyond / trials < 0.08


def test_correlation_interval_contains_the_value() -> None:
    for value in (-0.17, 0.0, 0.8, 1.0):
        low, high = metric_interval("pearson", value, 1500) or (0, 0)
        assert -1 <= low <= value <= high + 1e-9 <= 1 + 1e-9
    assert is_within_noise("pearson", 0.80, 0.81, 1500)
    assert is_within_noise("f1", 0.5, 0.6, 100) is metric_interval("accuracy", 0.5, None) is None  # unknown
    assert not is_within_noise("pearson", 0.70, 0.81, 1500)
