"""Hugging Face inference: what ``InferenceClient.text_classification`` posts; responses equal its pipeline's."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, Field, Tag
from starlette.responses import Response

from limbert.serve.responses import json_response, ranked_scores
from limbert.serve.schemas import RequestModel, by_json_type, model_path, prediction_responses
from limbert.serve.selection import RequestOptions
from limbert.serve.service import Service
from limbert.serve.tokenizer import TextInput

_INPUT = 'must be a string or {"text", "text_pair"}'


class TextPair(RequestModel):
    """A text with an optional second text."""

    text: str
    text_pair: str | None = None


_Text = Annotated[str, Tag("#str")]
_Pair = Annotated[TextPair, Tag("#dict")]
_Batch = Annotated[list[Annotated[_Text | _Pair, by_json_type(_INPUT)]], Field(min_length=1), Tag("#list")]
_Truncation = Annotated[
    Annotated[bool, Tag("#bool")] | Annotated[Literal["longest_first", "do_not_truncate"], Tag("#str")],
    by_json_type("must be true, false, longest_first or do_not_truncate"),
]


class Parameters(RequestOptions):
    """Parameters of the pipeline, and the request options."""

    top_k: Annotated[
        int | None,
        Field(ge=1, description="best scores to return; null: all"),
        BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value),
    ] = None
    function_to_apply: Annotated[
        Literal["softmax", "sigmoid", "none"] | None, Field(description="null: by task type")
    ] = None
    truncation: _Truncation | None = None


class ClassifyRequest(RequestModel):
    """A text, a pair, or a batch of these; ``options`` of the former inference API are ignored."""

    inputs: Annotated[_Text | _Pair | _Batch, by_json_type(f"{_INPUT}, or a list of these")]
    parameters: Parameters | None = None
    options: dict[str, Any] | None = None

    @property
    def texts(self) -> list[TextInput]:
        """The texts with their pairs."""
        inputs = self.inputs if isinstance(self.inputs, list) else [self.inputs]
        return [(item, None) if isinstance(item, str) else (item.text, item.text_pair) for item in inputs]


class LabelScore(BaseModel):
    """A label and its score."""

    label: str | None  # null: it abstains
    score: float


def create_router(service: Service) -> APIRouter:
    """``POST /`` and ``POST /models/{model_id}``."""
    routes = APIRouter(tags=["Hugging Face inference"])
    described: Any = {"responses": prediction_responses(list[list[LabelScore]]), "response_class": Response}

    @routes.post("/", **described)
    async def classify(body: ClassifyRequest) -> Response:
        """Classify a text, a pair, or a batch of these; for each all scores, highest first."""
        parameters = body.parameters or Parameters()
        truncate = parameters.truncation not in (False, "do_not_truncate")
        output = await service.predict(body.texts, options=parameters, truncate=truncate)
        scores = ranked_scores(
            output,
            service.task,
            function_name=parameters.function_to_apply,
            top_k=parameters.top_k,
            abstain_below=parameters.abstain_below,
        )
        return json_response(scores, output)

    @routes.post("/models/{model_id:path}", **described)
    async def classify_by_name(
        body: ClassifyRequest,
        model_id: model_path(service.model_name),  # type: ignore[valid-type]
    ) -> Response:
        """The same under the model's name."""
        service.check_name(model_id)
        return await classify(body)

    return routes
