"""A run on disk with data that its full network labels correctly."""

import csv
from pathlib import Path

import torch
from tests.factories.batch_jobs import make_texts
from tests.factories.servers import LABELS, make_run

from limbert.data.readers import Examples
from limbert.inference.load import load_checkpoint
from limbert.inference.predict import predict_subnet_logits


def make_labelled_run(folder: Path, *, count: int = 60) -> Path:
    """A random BERT of two layers; train and dev have the labels that it predicts, each about as often."""
    run, data = make_run(folder / "run"), folder / "data"
    checkpoint = load_checkpoint(run)
    model, texts = checkpoint.model, make_texts(count)
    tokens = checkpoint.tokenize(Examples(tuple(texts), None, None))
    logits = predict_subnet_logits(model, tokens, subnets={"": model.full}, batch_size=32)[""]
    center = logits.mean(axis=0)
    with torch.no_grad():
        model.network.classifier.bias.sub_(torch.from_numpy(center))
    model.record["settings"]["data"] |= {"data": str(data), "label_names": LABELS}
    results = (run / "results.jsonl").read_bytes()
    model.save_pretrained(run, tokenizer=checkpoint.tokenizer)  # replaces the folder
    (run / "results.jsonl").write_bytes(results)
    labels = [LABELS[index] for index in (logits - center).argmax(axis=1)]
    assert len({*labels}) > 1
    data.mkdir()
    for name in ("train.csv", "dev.csv"):
        with (data / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return run
