"""The playground in a real browser shows what the engine says: by keyboard, on a phone, with nothing from elsewhere."""

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
from tests.factories.servers import opened, served
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from limbert import Client, ElasticModel, Engine, ExitRule, Policy, Space
from limbert.data.tasks import GLUE, Task, custom_task
from limbert.inference.load import load_checkpoint
from limbert.inference.policy import OperatingPoint
from limbert.model.width_gates import WidthGates
from limbert.serve.playground.answers import compare_with_full, prediction_json
from limbert.serve.playground.router import PUBLIC_PATHS
from limbert.serve.service import RequestOutput, RequestTiming, TextOutput

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [needs_encoder, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

HOSTILE = "<img src=x onerror=document.title='broken'>"
LABELS = ("calm", "größer", HOSTILE)
TEXTS = ("It rained.", f"{HOSTILE} & more", "word " * 40, "🥊", "A fine day, all in all.", "No.", "Why was it late?")
WIDTHS, DEPTHS = (0.25, 0.5, 1.0), (0.5, 0.75, 1.0)
SIZES = [f"{width:g}x{depth:g}" for width in WIDTHS for depth in DEPTHS]


def make_run(folder: Path, task: Task) -> Path:
    """A random BERT of four layers with gates whose choices differ, and a point at which some texts leave."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert",
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        num_hidden_layers=4,
        vocab_size=30522,
        max_position_embeddings=64,
        num_labels=max(1, len(task.labels)),
    )
    network = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
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
    """What the engine says to one text alone."""

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
    """An open page, and what it complained about or asked of others."""

    page: Any
    wrong: list[str]

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def ask(self, text: str) -> None:
        self.page.locator("#text").fill(text)
        with self.page.expect_response("**/playground/answer"):
            self.page.locator("#text").press("Enter")
        self.page.locator("#result:not(.waiting)").wait_for()

    def shows(self, truth: Truth, text: str, size: str) -> None:
        label, score = truth.label(text, size)
        assert self.text("#size") == size
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
    """An open page; afterwards it must have complained of nothing and asked nobody else."""
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


def test_type_and_press_enter(browser: Any, url: str, truth: Truth) -> None:
    with page_at(browser, url) as shown:
        for text in TEXTS:
            shown.ask(text)
            shown.shows(truth, text, "1x1")
        assert shown.page.title() == "tiny: Limbert playground"
        assert shown.page.locator("img").count() == 0
        assert sorted(shown.page.locator("#scores li span:first-child").all_inner_texts()) == sorted(LABELS)
        assert shown.page.locator("#said").inner_text().startswith(truth.label(TEXTS[-1], "1x1")[0])
        shown.ask(TEXTS[2])
        assert shown.text("#tokens") == "32"
        assert "cut" in shown.text("#tokens-more")


def test_sliders_and_points_by_keyboard(browser: Any, url: str, truth: Truth) -> None:
    """From the text by Tab: button, kind of size, sliders; arrows move them to trained sizes and ask again."""
    with page_at(browser, url) as shown:
        page, text = shown.page, TEXTS[4]
        shown.ask(text)
        assert page.evaluate("document.activeElement.id") == "text"
        page.keyboard.press("Tab")  # the second text of a pair, which own data may have
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Answer"
        page.keyboard.press("Tab")
        with page.expect_response("**/playground/answer"):
            page.keyboard.press("ArrowRight")
        page.locator("#size", has_text="balanced").wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "width"
        with page.expect_response("**/playground/answer"):
            page.keyboard.press("ArrowLeft")
        assert page.locator("#width").get_attribute("aria-valuetext") == "0.5 of each layer"
        page.keyboard.press("Tab")
        with page.expect_response("**/playground/answer"):
            page.keyboard.press("Home")
        page.locator("#size", has_text="0.5x0.5").wait_for()
        shown.shows(truth, text, "0.5x0.5")
        assert page.locator("#choices input:checked").get_attribute("value") == "own"
        widths = [row.split("\n")[-1] for row in page.locator("#layers li").all_inner_texts()]
        assert widths == ["not run", "not run", "0.5", "0.5"]  # the last layer stands at the top
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


def test_a_dynamic_policy_shows_the_widths_and_the_exit_of_the_trace(browser: Any, url: str, truth: Truth) -> None:
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


def test_all_sizes_at_once(browser: Any, url: str, truth: Truth) -> None:
    text = TEXTS[1]
    with page_at(browser, url) as shown:
        shown.page.locator("#text").fill(text)
        shown.page.locator("#all").click()
        shown.page.locator("#all:not([disabled])").wait_for()
        rows = [row.split("\t") for row in shown.page.locator("#table tbody tr").all_inner_texts()]
        assert sorted(row[0].split("\n")[0] for row in rows) == sorted([*SIZES, "balanced"])
        full = truth.label(text, "1x1")[0]
        assert rows[0][0] == "1x1"
        for name, label, score, _, flops, likeness in ([cell.strip() for cell in row] for row in rows):
            name = name.split("\n")[0]
            expected, percent = truth.label(text, name)
            assert label == expected
            assert float(score.removesuffix(" %")) == pytest.approx(percent, abs=0.06)
            assert likeness == ("same" if expected == full else "other")
            share = truth(text, name)[1].flops[0] / truth(text, "1x1")[1].flops[0]
            assert f"{100 * share:.1f} %" in flops
        shown.page.locator("#text").press("x")  # another text: these answers are not its
        assert shown.page.locator("#table").is_hidden()


def test_the_live_panel_moves_under_load(browser: Any, url: str) -> None:
    with page_at(browser, url) as shown:
        shown.page.locator("#live").wait_for()
        answered = ("document.getElementById('live-note').textContent",)
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


def test_a_phone_has_nothing_beside_its_screen(browser: Any, url: str, truth: Truth) -> None:
    """Not even with a label that has no place to break."""
    tried = (f"{text} {'looong' * 12}" for text in (*TEXTS, *map(str, range(50))))
    text = next(text for text in tried if truth.label(text, "1x1")[0] == HOSTILE)
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    for scheme in ("light", "dark"):
        with page_at(browser, url, color_scheme=scheme, **phone) as shown:
            shown.ask(text)
            assert shown.text("#label") == HOSTILE
            shown.page.locator("#all").click()
            shown.page.locator("#all:not([disabled])").wait_for()
            shown.page.locator("#live").wait_for()
            assert shown.page.evaluate("document.documentElement.scrollWidth") == 360
            for target in shown.page.locator("button:visible, .switch label:visible, input:visible").all():
                assert target.bounding_box()["height"] >= 40


def test_a_key_is_asked_for_and_never_in_an_address(browser: Any, run: Path) -> None:
    key = "schlüssel 1"
    with opened(run, api_key=key) as service, served(service) as url, page_at(browser, url) as shown:
        addresses: list[str] = []
        shown.page.on("request", lambda request: addresses.append(request.url))
        shown.page.locator("#key").wait_for()
        assert shown.page.locator("#work").is_hidden()
        shown.page.locator("#key").fill("wrong")
        shown.page.locator("#key").press("Enter")
        shown.page.get_by_text("not one that it knows").wait_for()
        shown.page.locator("#key").fill(key)
        shown.page.locator("#key").press("Enter")
        shown.ask("It rained.")
        assert shown.text("#size") == "1x1"
        assert not [address for address in addresses if "schl" in address]
        assert httpx.get(f"{url}/playground/menu").status_code == 401
        assert all(httpx.get(url + path).status_code == 200 for path in PUBLIC_PATHS)
        shown.wrong[:] = [one for one in shown.wrong if "401" not in one]  # the browser notes refused requests itself


def test_refusals_are_shown_in_plain_words(browser: Any, url: str) -> None:
    answers = {
        429: ({"Retry-After": "2"}, "too busy to answer this in time. Try again in 2 seconds."),
        413: ({}, "too long"),
        422: ({}, "cannot do this"),
        503: ({}, "does not answer now"),
    }
    with page_at(browser, url) as shown:
        shown.page.locator("#text").fill("It rained.")
        for status, (headers, words) in answers.items():
            reply = {
                "status": status,
                "headers": headers | {"Content-Type": "application/json"},
                "body": f'{{"error": "because {HOSTILE}", "error_type": "x"}}',
            }
            shown.page.unroute("**/playground/answer")
            shown.page.route("**/playground/answer", lambda route: route.fulfill(**reply))  # noqa: B023
            shown.page.locator("#text").press("Enter")
            shown.page.locator("#answer-problem", has_text=words).wait_for()
            assert f"because {HOSTILE}" in shown.text("#answer-problem")
        shown.page.unroute("**/playground/answer")
        shown.page.locator("#budget").fill("0.000001")
        shown.page.locator("#budget").press("Enter")
        shown.page.locator("#answer-problem", has_text="too busy").wait_for()
        shown.wrong[:] = [one for one in shown.wrong if "Failed to load resource" not in one]


def test_pairs_and_values(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "score", GLUE["stsb"].task)
    truth = Truth(run)
    with opened(run) as service, served(service) as url, page_at(browser, url) as shown:
        shown.page.locator("#pair").fill("Rain fell.")
        shown.ask("It rained.")
        assert shown.text("#label") == f"{float(truth('It rained.', '1x1', 'Rain fell.')[0][0]):.3f}"
        shown.page.locator("#all").click()
        shown.page.locator("#all:not([disabled])").wait_for()
        values = {
            row.split("\t")[0].split("\n")[0]: row.split("\t")[1].strip()
            for row in shown.page.locator("#table tbody tr").all_inner_texts()
        }
        assert values == {name: f"{float(truth('It rained.', name, 'Rain fell.')[0][0]):.3f}" for name in SIZES}


def test_labels_of_a_multi_label_task_are_those_over_one_half() -> None:
    task = Task(None, "multi-label", ("a", "b", "c"), ("micro_f1",))
    row = TextOutput((0.1, -2.0, 3.0), "1x1", tokens=3, truncated=False, flops=9, layers=1, widths=(1.0,))
    full = prediction_json(task, RequestOutput((row,), RequestTiming(0.001, 0.002, 0.003)))
    assert full["labels"] == ["c", "a"]
    assert [label for label, _ in full["scores"]] == ["c", "a", "b"]
    assert full["milliseconds"] == {"tokenisation": 1.0, "queue": 2.0, "inference": 3.0}
    small = prediction_json(
        task, RequestOutput((replace(row, logits=(-0.1, -2.0, 3.0), flops=3),), RequestTiming(0, 0, 0))
    )
    assert compare_with_full(small, full) == {"agrees": False, "difference": None, "flops_share": 1 / 3}


def test_the_page_may_load_only_its_own_parts(url: str) -> None:
    policy = httpx.get(f"{url}/playground").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in PUBLIC_PATHS:
        text = httpx.get(url + path).raise_for_status().text
        assert "innerHTML" not in text
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert httpx.get(f"{url}/playground/assets/page.html").status_code == 404
    assert httpx.get(f"{url}/playground/assets/..%2frouter.py").status_code == 404
