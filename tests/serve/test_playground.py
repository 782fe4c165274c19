"""The playground in a browser shows the engine's outputs: by keyboard, on a phone, without other servers."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.factories.runs import ENCODER, needs_encoder
from tests.factories.servers import opened, random_bert, served
from transformers import AutoTokenizer

from limbert import Client, ElasticModel, Engine, ExitRule, Policy, Space
from limbert.data.tasks import GLUE, Task, custom_task
from limbert.inference.load import load_checkpoint
from limbert.inference.policy import OperatingPoint
from limbert.model.width_gates import WidthGates
from limbert.serve.playground.router import PUBLIC_PATHS, compare_with_full, prediction_json
from limbert.serve.runner import RequestOutput, RequestTiming, TextOutput

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [needs_encoder, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

HOSTILE = "<img src=x onerror=document.title='broken'>"
LABELS = ("calm", "größer", HOSTILE)
TEXTS = ("It rained.", f"{HOSTILE} & more", "word " * 40, "🥊", "A fine day, all in all.", "No.", "Why was it late?")
WIDTHS, DEPTHS = (0.25, 0.5, 1.0), (0.5, 0.75, 1.0)
SUBNETS = [f"{width:g}x{depth:g}" for width in WIDTHS for depth in DEPTHS]


def make_run(folder: Path, task: Task) -> Path:
    """A random BERT of four layers with gates whose choices differ, and a policy under which some texts exit early."""
    network = random_bert(4, task)
    record: dict[str, Any] = {"task": task.to_dict(), "settings": {"data": {"max_length": 32}}}
    model = ElasticModel(network, space=Space(WIDTHS, DEPTHS, "first"), record=record)
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    inputs = dict(tokenizer(list(TEXTS), return_tensors="pt", padding=True, truncation=True, max_length=32))
    if task.task_type == "classification":
        model.gates = gates = WidthGates(num_gates=2, hidden_size=32, widths=WIDTHS).requires_grad_(False).eval()
        with torch.no_grad(), model.recorded_states() as states:
            network(**inputs)
        for gate, state in zip(gates.gate, (states[0], states[2]), strict=True):
            gate.dense_out.bias.sub_(gate(state[:, 0]).mean(dim=0))  # else a random gate prefers one choice for all
        answers, _ = Engine(
            model, Policy(gates=True, exits=ExitRule("entropy", 0.5)), task_type=task.task_type
        ).run_all_exits(inputs)
        entropy = torch.special.entr(answers[0].softmax(dim=-1)).sum(dim=-1).sort().values
        policy = Policy(gates=True, exits=ExitRule("entropy", float(entropy[2:4].mean())))
        record["operating_points"] = {"balanced": OperatingPoint(policy, "accuracy", 0.9, 0.5).to_dict()}
    model.save_pretrained(folder, tokenizer=tokenizer)
    return folder


class Truth:
    """The engine's outputs for one text alone."""

    def __init__(self, run: Path) -> None:
        self.opened = load_checkpoint(run)
        self.points = self.opened.model.record.get("operating_points", {})

    def __call__(self, text: str, size: str, pair: str | None = None) -> tuple[torch.Tensor, Any]:
        policy = Policy.from_dict(self.points[size]) if size in self.points else Policy(subnet=size)
        cut = {"truncation": True, "max_length": self.opened.max_length, "return_tensors": "pt"}
        engine = Engine(self.opened.model, policy, task_type=self.opened.task.task_type)
        answer = engine.run(dict(self.opened.tokenizer(text, pair, **cut)))
        return answer.logits[0], answer.trace

    def label(self, text: str, size: str) -> tuple[str, float]:
        scores = self(text, size)[0].softmax(-1)
        return LABELS[int(scores.argmax())], 100 * float(scores.max())


@dataclass
class Shown:
    """An open page, with its console messages and its requests to other servers."""

    page: Any
    wrong: list[str]

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text()).replace("\u00a0", " ")

    def ask(self, text: str) -> None:
        self.page.locator("#text").fill(text)
        with self.page.expect_response("**/playground/predict"):
            self.page.locator("#text").press("Enter")
        self.page.locator("#result:not(.waiting)").wait_for()

    def shows(self, truth: Truth, text: str, size: str) -> None:
        label, score = truth.label(text, size)
        assert self.text("#variant") == size
        assert self.text("#label") == label
        assert float(self.text("#score").removesuffix(" %")) == pytest.approx(score, abs=0.06)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as tool:
        running = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("playground") / "tiny", custom_task("classification", LABELS))


@pytest.fixture(scope="module")
def truth(run: Path) -> Truth:
    return Truth(run)


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    with opened(run) as service, served(service) as address:
        yield address


@contextmanager
def page_at(browser: Any, url: str, **options: Any) -> Iterator[Shown]:
    """An open page; it must leave the console empty and request nothing from other servers."""
    context = browser.new_context(**{"viewport": {"width": 1180, "height": 900}, **options})
    page, wrong = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(url) else wrong.append(request.url))
    page.goto(f"{url}/playground")
    try:
        yield Shown(page, wrong)
        assert not [one for one in wrong if not one.startswith("data:")]
    finally:
        context.close()


def test_enter_classifies_the_text(browser: Any, url: str, truth: Truth) -> None:
    with page_at(browser, url) as shown:
        for text in TEXTS:
            shown.ask(text)
            shown.shows(truth, text, "1x1")
        assert shown.page.title() == "tiny: Limbert playground"
        assert shown.page.locator("img").count() == 0
        assert sorted(shown.page.locator("#scores li span:first-child").all_inner_texts()) == sorted(LABELS)
        assert shown.page.locator("#spoken").inner_text().startswith(truth.label(TEXTS[-1], "1x1")[0])
        shown.ask(TEXTS[2])
        assert shown.text("#tokens") == "32"
        assert "truncated" in shown.text("#tokens-more")


def test_variants_are_chosen_by_keyboard(browser: Any, url: str, truth: Truth) -> None:
    """Tab leads from the text over button and choices to the sliders; arrows move them and classify again."""
    with page_at(browser, url) as shown:
        page, text = shown.page, TEXTS[4]
        shown.ask(text)
        assert page.evaluate("document.activeElement.id") == "text"
        page.keyboard.press("Tab")  # the second text of a pair, which own data may have
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Classify"
        page.keyboard.press("Tab")
        with page.expect_response("**/playground/predict"):
            page.keyboard.press("ArrowRight")
        page.locator("#variant", has_text="balanced").wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "width"
        with page.expect_response("**/playground/predict"):
            page.keyboard.press("ArrowLeft")
        assert page.locator("#width").get_attribute("aria-valuetext") == "0.5 of each layer"
        page.keyboard.press("Tab")
        with page.expect_response("**/playground/predict"):
            page.keyboard.press("Home")
        page.locator("#variant", has_text="0.5x0.5").wait_for()
        shown.shows(truth, text, "0.5x0.5")
        assert page.locator("#choices input:checked").get_attribute("value") == "grid"
        widths = [row.split("\n")[-1] for row in page.locator("#layers li").all_inner_texts()]
        assert widths == ["not run", "not run", "0.5", "0.5"]  # the last layer is at the top
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


def test_unsure_text_is_shown_as_abstained(browser: Any, url: str) -> None:
    with page_at(browser, url) as shown:
        for name in ("server's choice", "balanced"):
            shown.page.locator("#choices label", has_text=name).click()
            for threshold, abstains in (("1", True), ("0", False)):
                shown.page.locator("#abstain").fill(threshold)
                shown.ask(TEXTS[4])
                assert (shown.text("#label") == "abstained") == abstains
                assert shown.page.locator("#scores li.chosen").count() == (0 if abstains else 1)


def test_sliders_follow_the_variant_that_ran(browser: Any, url: str) -> None:
    with page_at(browser, url) as shown:
        shown.page.locator("#choices label", has_text="width and depth").click()
        shown.page.locator("#width").press("Home")
        assert shown.text("#width-value") == "0.25"
        shown.page.locator("#choices label", has_text="server's choice").click()
        with shown.page.expect_response("**/playground/predict"):
            shown.page.locator("#examples button").first.click()
        shown.page.locator("#variant", has_text="1x1").wait_for()
        shown.page.locator("#width-value", has_text="1").wait_for()
        assert len(shown.page.locator("#text").input_value()) > 10


def test_dynamic_policy_shows_widths_and_exits(browser: Any, url: str, truth: Truth) -> None:
    seen = set()
    with page_at(browser, url) as shown:
        shown.page.locator("#choices label", has_text="balanced").click()
        for text in TEXTS:
            shown.ask(text)
            _, trace = truth(text, "balanced")
            expected = trace.widths[0].tolist()
            rows = shown.page.locator("#layers li").all_inner_texts()[::-1]
            assert [row.split("\n")[-1] for row in rows] == [f"{width:g}" if width else "not run" for width in expected]
            hollow = shown.page.locator("#layers li.out").count()
            assert hollow == 4 - int(trace.layers_run[0])
            seen.add(tuple(expected))
            shown.shows(truth, text, "balanced")
    assert len(seen) > 2
    assert len({widths.count(0.0) for widths in seen}) > 1


def test_comparison_of_all_variants(browser: Any, url: str, truth: Truth) -> None:
    text = TEXTS[1]
    with page_at(browser, url) as shown:
        shown.page.locator("#text").fill(text)
        shown.page.locator("#compare").click()
        shown.page.locator("#compare:not([disabled])").wait_for()
        rows = [row.split("\t") for row in shown.page.locator("#table tbody tr").all_inner_texts()]
        assert sorted(row[0].split("\n")[0] for row in rows) == sorted([*SUBNETS, "balanced"])
        full = truth.label(text, "1x1")[0]
        assert rows[0][0] == "1x1"
        for name, label, score, _, flops, likeness in ([cell.strip() for cell in row] for row in rows):
            name = name.split("\n")[0]
            expected, percent = truth.label(text, name)
            assert label == expected
            assert float(score.replace("\u00a0", " ").removesuffix(" %")) == pytest.approx(percent, abs=0.06)
            assert likeness == ("same" if expected == full else "different")
            share = truth(text, name)[1].flops[0] / truth(text, "1x1")[1].flops[0]
            assert f"{100 * share:.1f} %" in flops.replace("\u00a0", " ")
        shown.page.locator("#text").press("x")  # another text: the table is out of date
        assert shown.page.locator("#table").is_hidden()


def test_status_follows_the_load(browser: Any, url: str) -> None:
    with page_at(browser, url) as shown:
        shown.page.locator("#status").wait_for()
        answered = ("document.getElementById('status-note').textContent",)
        before = shown.page.evaluate(*answered)
        done = threading.Event()

        def load() -> None:
            with Client(url) as client:
                while not done.is_set():
                    client.predict(["Load."] * 8, subnet="0.25x0.5")

        thread = threading.Thread(target=load)
        thread.start()
        try:
            for moved in (
                lambda: shown.page.evaluate(*answered) != before,
                lambda: float(shown.text("#meters .tile:first-child b").replace(",", "")) > 1,
                lambda: shown.page.locator("#meters polyline").first.get_attribute("points").count(",") >= 3,
                lambda: "0.25x0.5" in shown.text("#served"),
            ):
                end = time.monotonic() + 120
                while not moved():
                    assert time.monotonic() < end
                    shown.page.wait_for_timeout(100)
        finally:
            done.set()
            thread.join()


def test_page_fits_a_phone(browser: Any, url: str, truth: Truth) -> None:
    """Even with a label that cannot be wrapped."""
    tried = (f"{text} {'looong' * 12}" for text in (*TEXTS, *map(str, range(50))))
    text = next(text for text in tried if truth.label(text, "1x1")[0] == HOSTILE)
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    for scheme in ("light", "dark"):
        with page_at(browser, url, color_scheme=scheme, **phone) as shown:
            shown.ask(text)
            assert shown.text("#label") == HOSTILE
            shown.page.locator("#compare").click()
            shown.page.locator("#compare:not([disabled])").wait_for()
            shown.page.locator("#status").wait_for()
            assert shown.page.evaluate("document.documentElement.scrollWidth") == 360
            for target in shown.page.locator("button:visible, .switch label:visible, input:visible").all():
                assert target.bounding_box()["height"] >= 40


def test_key_is_requested_and_never_in_urls(browser: Any, run: Path) -> None:
    key = "schlüssel 1"
    with opened(run, api_key=key) as service, served(service) as url, page_at(browser, url) as shown:
        addresses: list[str] = []
        shown.page.on("request", lambda request: addresses.append(request.url))
        shown.page.locator("#key").wait_for()
        assert shown.page.locator("#work").is_hidden()
        shown.page.locator("#key").fill("wrong")
        shown.page.locator("#key").press("Enter")
        shown.page.get_by_text("missing or wrong").wait_for()
        shown.page.locator("#key").fill(key)
        shown.page.locator("#key").press("Enter")
        shown.ask("It rained.")
        assert shown.text("#variant") == "1x1"
        assert not [address for address in addresses if "schl" in address]
        assert httpx.get(f"{url}/playground/model").status_code == 401
        assert all(httpx.get(url + path).status_code == 200 for path in PUBLIC_PATHS)
        shown.wrong[:] = [one for one in shown.wrong if "401" not in one]  # the browser logs refused requests


def test_errors_are_explained(browser: Any, url: str) -> None:
    answers = {
        429: ({"Retry-After": "2"}, "too busy to meet the deadline. Try again in 2 seconds."),
        413: ({}, "too long"),
        422: ({}, "is invalid"),
        503: ({}, "not available"),
    }
    with page_at(browser, url) as shown:
        shown.page.locator("#text").fill("It rained.")
        for status, (headers, words) in answers.items():
            reply = {
                "status": status,
                "headers": headers | {"Content-Type": "application/json"},
                "body": f'{{"error": "because {HOSTILE}", "error_type": "x"}}',
            }
            shown.page.unroute("**/playground/predict")
            shown.page.route("**/playground/predict", lambda route: route.fulfill(**reply))  # noqa: B023
            shown.page.locator("#text").press("Enter")
            shown.page.locator("#prediction-problem", has_text=words).wait_for()
            assert f"because {HOSTILE}" in shown.text("#prediction-problem")
        shown.page.unroute("**/playground/predict")
        shown.page.locator("#budget").fill("0.000001")
        shown.page.locator("#budget").press("Enter")
        shown.page.locator("#prediction-problem", has_text="too busy").wait_for()
        shown.wrong[:] = [one for one in shown.wrong if "Failed to load resource" not in one]


def test_pairs_of_a_regression(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "score", GLUE["stsb"].task)
    truth = Truth(run)
    with opened(run) as service, served(service) as url, page_at(browser, url) as shown:
        shown.page.locator("#pair").fill("Rain fell.")
        shown.ask("It rained.")
        assert shown.text("#label") == f"{float(truth('It rained.', '1x1', 'Rain fell.')[0][0]):.3f}"
        shown.page.locator("#compare").click()
        shown.page.locator("#compare:not([disabled])").wait_for()
        values = {
            row.split("\t")[0].split("\n")[0]: row.split("\t")[1].strip()
            for row in shown.page.locator("#table tbody tr").all_inner_texts()
        }
        assert values == {name: f"{float(truth('It rained.', name, 'Rain fell.')[0][0]):.3f}" for name in SUBNETS}


def test_multi_label_threshold_is_one_half() -> None:
    task = Task(None, "multi-label", ("a", "b", "c"), ("micro_f1",))
    row = TextOutput((0.1, -2.0, 3.0), "1x1", tokens=3, truncated=False, flops=9, layers=1, widths=(1.0,))
    full = prediction_json(task, RequestOutput((row,), RequestTiming(0.001, 0.002, 0.003)))
    assert full["labels"] == ["c", "a"]
    assert [label for label, _ in full["scores"]] == ["c", "a", "b"]
    assert full["milliseconds"] == {"tokenization": 1.0, "queue": 2.0, "inference": 3.0}
    small = prediction_json(
        task, RequestOutput((replace(row, logits=(-0.1, -2.0, 3.0), flops=3),), RequestTiming(0, 0, 0))
    )
    assert compare_with_full(small, full) == {"agrees": False, "difference": None, "flops_fraction": 1 / 3}


def test_page_loads_only_its_own_files(url: str) -> None:
    policy = httpx.get(f"{url}/playground").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in PUBLIC_PATHS:
        text = httpx.get(url + path).raise_for_status().text
        assert "innerHTML" not in text
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert httpx.get(f"{url}/playground/assets/page.html").status_code == 404
    assert httpx.get(f"{url}/playground/assets/..%2frouter.py").status_code == 404
