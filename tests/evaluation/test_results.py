"""Rows in JSON lines files: new rows replace their like, others stay; runs that cannot be written are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.factories.networks import make_network
from tests.factories.profiles import ROW, SETUP

import limbert
from limbert import ElasticModel
from limbert.errors import CheckpointError, StorageError
from limbert.evaluation.results import PROFILE_NAME, profile_row_key, read_profile, replace_json_lines


def test_profile_replaces_only_the_same_setup(tmp_path: Path) -> None:
    others = [
        replace(ROW, subnet="0.5x0.5"),
        replace(ROW, setup=replace(SETUP, batch=1)),
        replace(ROW, setup=replace(SETUP, backend="openvino")),
        replace(ROW, hardware={"cpu": "b"}),
    ]
    path = tmp_path / PROFILE_NAME
    replace_json_lines(path, [row.to_dict() for row in (ROW, *others)], key=profile_row_key)
    newer = replace(ROW, latency_p50_ms=9.0, measured="2026-01-02T00:00:00", versions={"torch": "3"})
    replace_json_lines(path, [newer.to_dict()], key=profile_row_key)
    assert read_profile(path) == [newer, *others]
    assert newer.to_dict()["tokens"] == 16
    path.write_text('{"subnet": "1x1"}\n')
    for read in (
        lambda: read_profile(path),
        lambda: replace_json_lines(path, [newer.to_dict()], key=profile_row_key),
        lambda: read_profile(tmp_path / "absent.jsonl"),
    ):
        with pytest.raises(CheckpointError, match=r"\.jsonl"):
            read()


def test_unwritable_runs_are_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ElasticModel(make_network("bert")).save_pretrained(tmp_path / "run")
    with pytest.raises(CheckpointError, match="nowhere"):
        limbert.tune(tmp_path / "nowhere")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for verb in (limbert.tune, limbert.search, limbert.benchmark):
        with pytest.raises(StorageError, match="run"):
            verb(tmp_path / "run")
