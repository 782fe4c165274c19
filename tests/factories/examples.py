"""Five tokenised texts in three classes, and their task."""

from tests.factories.runs import ENCODER
from transformers import AutoTokenizer

from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, tokenize_texts

TASK = Task("own", "classification", ("a", "b", "c"), ("accuracy",))
TEXTS = ("one", "two words", "a somewhat longer text than these", "x " * 20, "where is my card")


def make_examples() -> TokenizedExamples:
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    return tokenize_texts(Examples(TEXTS, None, (0, 1, 2, 0, 1)), tokenizer, max_length=32, use_cache=False)
