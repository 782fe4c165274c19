"""Real clients of each protocol get what the engine returns."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from tests.factories.runs import needs_encoder
from tests.factories.servers import LABELS, Reference, make_run, opened, served
from transformers import pipeline
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from limbert.core.config import TaskType
from limbert.errors import UnsupportedModelError
from limbert.inference.policy import OperatingPoint, Policy, save_operating_points
from limbert.serve.app import create_app

pytestmark = needs_encoder
TEXTS = ("It rained.", "Zwölf Boxkämpfer jagen Viktor 🥊", "", "word " * 100)
KEY = "s3cret-ключ"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("clients") / "tiny")


@pytest.fixture(scope="module")
def reference(run: Path) -> Reference:
    return Reference(run)


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    with opened(run) as service, served(service) as address:
        yield address


def agree(given: list[dict[str, object]], expected: dict[str, float]) -> None:
    """The same scores by label, highest first."""
    assert [one["label"] for one in given] == sorted(expected, key=lambda label: -expected[label])
    assert [one["score"] for one in given] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-5)


@pytest.mark.parametrize("path", ["", "/models/tiny"])
def test_inference_client(url: str, reference: Reference, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)  # it only calls this machine
    client = InferenceClient()
    for text in TEXTS:
        answer = client.text_classification(text, model=url + path)
        agree([{"label": one.label, "score": one.score} for one in answer], reference.scores(text))
    best = client.text_classification(TEXTS[0], model=url + path, top_k=1, function_to_apply="none")
    logits = reference.logits(TEXTS[0])
    assert [(one.label, one.score) for one in best] == [
        (LABELS[int(logits.argmax())], pytest.approx(float(logits.max()), abs=1e-4))
    ]


@pytest.mark.parametrize("task_type", ["classification", "multi-label", "regression"])
def test_outputs_equal_the_transformers_pipeline(tmp_path: Path, task_type: TaskType) -> None:
    run = make_run(tmp_path / "run", task_type=task_type)
    stock = pipeline("text-classification", model=str(run), device="cpu")
    inputs = ["It rained.", {"text": "It rained.", "text_pair": "Rain fell."}, {"text": "Sun."}]
    with opened(run) as service, served(service) as url:
        for function in (None, "softmax", "sigmoid", "none"):
            body = {"inputs": inputs, "parameters": {"top_k": 2, "function_to_apply": function}}
            answer = httpx.post(url, json=body).raise_for_status().json()
            for given, text in zip(answer, inputs, strict=True):
                expected = stock(text, top_k=2, **({} if function is None else {"function_to_apply": function}))
                assert [one["label"] for one in given] == [one["label"] for one in expected]
                assert [one["score"] for one in given] == pytest.approx([one["score"] for one in expected], abs=1e-5)
        tensors = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1], "data": ["Sun."]}]}
        answered = httpx.post(f"{url}/v2/models/run/infer", json=tensors).raise_for_status().json()
        offered = httpx.get(f"{url}/v2/models/run").json()["outputs"]
    assert [one["name"] for one in answered["outputs"]] == [one["name"] for one in offered]
    assert ("LABEL" in {one["name"] for one in offered}) == (task_type == "classification")


def test_token_classification_is_refused(run: Path) -> None:
    with opened(run) as service:
        service.task = replace(service.task, task_type="token-classification")
        with pytest.raises(UnsupportedModelError, match="token-classification"):
            create_app(service)


def test_tei_nests_scores_of_batches(url: str, reference: Reference) -> None:
    def predict(inputs: object, **options: object) -> list[dict[str, object]]:
        return httpx.post(f"{url}/predict", json={"inputs": inputs, **options}).raise_for_status().json()

    agree(predict("It rained."), reference.scores("It rained."))
    agree(predict(["It rained."]), reference.scores("It rained."))
    agree(predict(["It rained.", "Rain fell."]), reference.scores("It rained.", "Rain fell."))
    batch = predict([["It rained."], ["It rained.", "Rain fell."]])
    for given, pair in zip(batch, (None, "Rain fell."), strict=True):
        agree(given, reference.scores("It rained.", pair))  # type: ignore[arg-type]
    raw = {one["label"]: one["score"] for one in predict("It rained.", raw_scores=True)}
    assert [raw[label] for label in LABELS] == pytest.approx(reference.logits("It rained.").tolist(), abs=1e-4)
    refused = httpx.post(f"{url}/predict", json={"inputs": TEXTS[3]})
    assert (refused.status_code, refused.json()["error_type"]) == (413, "Validation")
    agree(predict(TEXTS[3], truncate=True), reference.scores(TEXTS[3]))


def test_unsure_predictions_have_no_label(url: str, reference: Reference) -> None:
    scores = {text: max(reference.scores(text).values()) for text in ("It rained.", "Rain fell.")}
    limit = sum(scores.values()) / 2
    parameters = {"abstain_below": limit}
    texts = [*scores]
    for path, inputs in (("", texts), ("/predict", [[text] for text in texts])):
        given = httpx.post(url + path, json={"inputs": inputs, "parameters": parameters}).raise_for_status().json()
        for text, ranked in zip(texts, given, strict=True):
            abstains = scores[text] < limit
            assert (len(ranked) == 1, ranked[0]["label"] is None) == (abstains, abstains)
            assert ranked[0]["score"] == pytest.approx(scores[text], abs=1e-5)
    client = InferenceServerClient(url.removeprefix("http://"))
    answer = client.infer("tiny", [tensor("TEXT", tuple(texts), binary=False)], parameters=parameters)
    assert [not label for label in answer.as_numpy("LABEL").ravel()] == [scores[text] < limit for text in texts]
    assert httpx.post(url, json={"inputs": texts, "parameters": {"abstain_below": 2}}).status_code == 422


def tensor(name: str, texts: tuple[str, ...], *, binary: bool, column: bool = False) -> InferInput:
    values = np.array([text.encode() for text in texts], dtype=object).reshape((-1, 1) if column else (-1,))
    given = InferInput(name, list(values.shape), "BYTES")
    return given.set_data_from_numpy(values, binary_data=binary)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("binary", [True, False])
def test_triton_client(url: str, reference: Reference, binary: bool, column: bool, compression: str | None) -> None:
    client = InferenceServerClient(url.removeprefix("http://"))
    pairs = tuple(reversed(TEXTS))
    inputs = [tensor("TEXT_PAIR", pairs, binary=binary), tensor("TEXT", TEXTS, binary=binary, column=column)]
    outputs = [InferRequestedOutput(name, binary_data=binary) for name in ("SCORES", "LABEL", "LOGITS")]
    answer = client.infer(
        "tiny", inputs, outputs=outputs, request_id="42", parameters={"subnet": "0.5x1"},
        request_compression_algorithm=compression,
    )  # fmt: skip
    logits = np.stack([reference.logits(*texts, subnet="0.5x1") for texts in zip(TEXTS, pairs, strict=True)])
    np.testing.assert_allclose(answer.as_numpy("LOGITS"), logits, atol=1e-4)
    np.testing.assert_allclose(answer.as_numpy("SCORES").sum(-1), 1, atol=1e-5)
    labels = [item.decode() if isinstance(item, bytes) else item for item in answer.as_numpy("LABEL").ravel()]
    assert labels == [LABELS[index] for index in logits.argmax(-1)]
    said = answer.get_response()
    assert (said["id"], said["model_name"], said["parameters"]["size"]) == ("42", "tiny", "0.5x1")


def test_triton_client_defaults_and_classification(url: str, reference: Reference) -> None:
    client = InferenceServerClient(url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "limbert"
    metadata = client.get_model_metadata("tiny")
    assert [one["name"] for one in metadata["outputs"]] == ["LABEL", "SCORES", "LOGITS"]
    text = [tensor("TEXT", ("It rained.",), binary=True)]
    scores = reference.scores("It rained.")
    assert client.infer("tiny", text).as_numpy("SCORES")[0] == pytest.approx([*scores.values()], abs=1e-5)
    best = client.infer("tiny", text, outputs=[InferRequestedOutput("SCORES", class_count=2)]).as_numpy("SCORES")
    top = sorted(scores, key=lambda label: -scores[label])[:2]
    assert [item.decode().split(":")[1:] for item in best[0]] == [[str(LABELS.index(one)), one] for one in top]
    with pytest.raises(InferenceServerException, match="this server has 'tiny'"):
        client.infer("other", text)
    with pytest.raises(InferenceServerException, match="LABEL"):
        client.infer("tiny", text, outputs=[InferRequestedOutput("EMBEDDING")])


def test_operating_point_of_one_sub_network(run: Path, tmp_path: Path, reference: Reference) -> None:
    """As `limbert tune` writes for a model without gates and exits."""
    shutil.copytree(run, tmp_path / "run")
    point = OperatingPoint(Policy(subnet="0.5x1"), "accuracy", 0.9, 0.5)
    save_operating_points(tmp_path / "run", {"early": point})
    with opened(tmp_path / "run") as service, served(service) as url:
        sizes = httpx.get(f"{url}/info").raise_for_status().json()["sizes"]
        asked = {"inputs": "It rained.", "parameters": {"policy": "early", "function_to_apply": "none"}}
        answer = httpx.post(url, json=asked).raise_for_status()
    assert answer.headers["x-limbert-size"] == "early"
    scores = {one["label"]: one["score"] for one in answer.json()[0]}
    assert [scores[label] for label in LABELS] == pytest.approx(
        reference.logits("It rained.", subnet="0.5x1"), abs=1e-5
    )
    said = {size["name"]: (size["kind"], size["quality"], size["metric"], size["data"]) for size in sizes}
    assert said.pop("early") == ("policy", 0.9, "accuracy", "validation")
    assert {*said.values()} == {("subnet", 0.8, "accuracy", "development")}


def test_curl(url: str, reference: Reference) -> None:
    body = '{"inputs": "It rained.", "parameters": {"subnet": "0.5x0.5"}}'
    arguments = ["curl", "-sS", "-i", f"{url}/", "-H", "content-type: application/json", "-d", body]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    head, _, answer = said.partition("\n\n")
    assert "x-limbert-size: 0.5x0.5" in head
    agree(httpx.Response(200, text=answer).json()[0], reference.scores("It rained.", subnet="0.5x0.5"))


def test_api_key_is_required(run: Path) -> None:
    with opened(run, api_key=KEY) as service, served(service) as url:
        assert httpx.post(url, json={"inputs": "a"}, headers={b"x-api-key": KEY.encode()}).status_code == 200
        bearer = {b"authorization": b"Bearer " + KEY.encode()}
        assert httpx.post(f"{url}/predict", json={"inputs": "a"}, headers=bearer).status_code == 200
        assert httpx.get(f"{url}/metrics", headers=bearer).status_code == 200
        for wrong in ({}, {"X-API-Key": "s3cret"}, {"Authorization": "Basic s3cret"}, {"X-API-Key": "ä".encode()}):
            for path in ("/", "/predict", "/v2/models/tiny/infer", "/metrics", "/info", "/openapi.json", "/nothing"):
                refused = httpx.post(url + path, json={"inputs": "a"}, headers=wrong)
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        for path in ("/health", "/v2/health/live", "/v2/health/ready"):
            assert httpx.get(url + path).status_code == 200
            assert httpx.head(url + path).status_code == 200
