"""Text Embeddings Inference: ``POST /predict``, where ``["a", "b"]`` is one pair."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Discriminator, Field, Tag
from starlette.responses import Response

from limbert.serve.errors import ApiError
from limbert.serve.protocols.hf_inference import LabelScore
from limbert.serve.responses import json_response, ranked_scores
from limbert.serve.schemas import RequestModel, prediction_responses
from limbert.serve.selection import RequestOptions
from limbert.serve.service import Service
from limbert.serve.tokenizer import TextInput

_NOT_EMPTY: dict[str, Any] = {"contains": {"type": "string", "minLength": 1}}  # one text of a pair may be empty


def _input_type(value: Any) -> str:
    if isinstance(value, list):
        return "#pair" if value and isinstance(value[0], str) else "#batch"
    return f"#{type(value).__name__}"


_Pair = Annotated[list[str], Field(min_length=1, max_length=2, json_schema_extra=_NOT_EMPTY)]
_Inputs = Annotated[
    Annotated[str, Field(json_schema_extra={"minLength": 1}), Tag("#str")]
    | Annotated[_Pair, Tag("#pair")]
    | Annotated[list[_Pair], Field(min_length=1), Tag("#batch")],
    Discriminator(
        _input_type,
        custom_error_type="refused",
        custom_error_message='must be a string, a pair ["a", "b"], or a batch [["a"], ["b", "c"]]',
    ),
]


class PredictRequest(RequestModel):
    """A text, a pair, or a batch of texts and pairs; ``parameters`` is an extension of this server."""

    inputs: _Inputs
    truncate: bool | None = None
    truncation_direction: Annotated[Literal["Right", "right"] | None, Field(description="texts lose their end")] = None
    raw_scores: Annotated[bool | None, Field(description="logits instead of scores")] = None
    parameters: RequestOptions | None = None

    @property
    def is_batch(self) -> bool:
        """Whether scores are nested."""
        return isinstance(self.inputs, list) and isinstance(self.inputs[0], list)

    @property
    def texts(self) -> list[TextInput]:
        """The texts with their pairs; an empty text is an `ApiError`."""
        pairs: Any = self.inputs if self.is_batch else [[self.inputs] if isinstance(self.inputs, str) else self.inputs]
        for index, pair in enumerate(pairs):
            if not any(pair):
                name = f"inputs[{index}]" if self.is_batch else "inputs"
                raise ApiError(400, f"{name} is empty; it must have text", error_type="Empty")
        return [(pair[0], pair[1] if len(pair) == 2 else None) for pair in pairs]


def create_router(service: Service) -> APIRouter:
    """``POST /predict``."""
    routes = APIRouter(tags=["Text Embeddings Inference"])

    scores = prediction_responses(list[LabelScore] | list[list[LabelScore]])

    @routes.post("/predict", responses=scores, response_class=Response)
    async def predict(body: PredictRequest) -> Response:
        """Scores of a text or a pair, highest first; of a batch a list of these."""
        options = body.parameters or RequestOptions()
        output = await service.predict(body.texts, options=options, truncate=bool(body.truncate))
        name, abstain_below = "none" if body.raw_scores else None, options.abstain_below
        scores = ranked_scores(output, service.task, function_name=name, abstain_below=abstain_below)
        return json_response(scores if body.is_batch else scores[0], output)

    return routes
