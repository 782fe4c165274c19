"""A saved sub-network predicts the same bit for bit when loaded, stock or with a modelling file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tests.factories.networks import make_config, make_inputs, make_network, most_different
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from limbert import ElasticModel, Subnet
from limbert.errors import UnsupportedModelError
from limbert.model.checkpoint import TASK_HEADS
from limbert.model.standalone import is_stock, load_standalone, make_standalone

UNEVEN = Subnet((0, 2, 3), (2, 3, 6), (17, 60, 30))
NARROW = Subnet((0, 3), (3, 3), (30, 30))
FEWER_NEURONS = Subnet((0, 2), (6, 6), (30, 30))
UNEVEN_NEURONS = Subnet((0, 3), (6, 6), (30, 20))

# A user without Limbert: importing it fails in this process.
USER_CODE = """
import json, sys
sys.modules["limbert"] = None
import torch
from transformers import AutoModelForSequenceClassification, AutoConfig
folder, kept, trust = sys.argv[1], sys.argv[2], sys.argv[3] == "trust"
inputs = {name: torch.tensor(value) for name, value in json.load(sys.stdin).items()}
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=trust).eval()
with torch.no_grad():
    first = model(**inputs).logits
model.train()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
optimizer.step()
with torch.no_grad():
    trained = model.eval()(**inputs).logits
model.save_pretrained(kept)
again = AutoModelForSequenceClassification.from_pretrained(kept, trust_remote_code=trust).eval()
with torch.no_grad():
    last = again(**inputs).logits
fresh = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder), trust_remote_code=trust)
assert sum(p.numel() for p in fresh.parameters()) == sum(p.numel() for p in model.parameters())
print(json.dumps([first.tolist(), trained.tolist(), last.tolist()]))
"""


def small(case: str, subnet: Subnet, head: str = "sequence-classification") -> PreTrainedModel:
    labels = 2 if head == "question-answering" else 3
    network = make_network(case, getattr(transformers, TASK_HEADS[head]), num_labels=labels)
    return ElasticModel(network).extract(subnet).eval()


@pytest.mark.parametrize("case", most_different())
@pytest.mark.parametrize("subnet", [UNEVEN, NARROW, FEWER_NEURONS, UNEVEN_NEURONS], ids=str)
def test_every_family_predicts_bit_for_bit(case: str, subnet: Subnet, tmp_path: Path) -> None:
    network = small(case, subnet)
    network.save_pretrained(tmp_path)
    assert is_stock(network) == (subnet is FEWER_NEURONS) == (not (tmp_path / "modeling_limbert.py").exists())
    with torch.no_grad():
        expected, found = (one(**make_inputs()).logits for one in (network, load_standalone(tmp_path)))
    assert torch.equal(expected, found)
    if subnet is FEWER_NEURONS:
        with torch.no_grad():
            stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()(**make_inputs()).logits
        assert torch.equal(expected, stock)
    else:  # without the code it is refused, not loaded wrongly
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=False)


@pytest.mark.parametrize("head", TASK_HEADS)
@pytest.mark.parametrize("case", most_different(("bert", "modernbert", "deberta-v2"), quick=("bert",)))
def test_every_head_predicts_bit_for_bit(case: str, head: str, tmp_path: Path) -> None:
    network = small(case, UNEVEN, head)
    network.save_pretrained(tmp_path)
    inputs = make_inputs(batch=4)
    with torch.no_grad():
        expected, found = network(**inputs), load_standalone(tmp_path)(**inputs)
    tensors = [name for name, value in expected.items() if isinstance(value, torch.Tensor)]
    assert tensors
    assert all(torch.equal(expected[name], found[name]) for name in tensors)


@pytest.mark.parametrize(
    ("case", "subnet", "trust"),
    [("bert", UNEVEN, "trust"), ("modernbert", FEWER_NEURONS, "no")],
    ids=["narrow", "stock"],
)
def test_export_loads_and_trains_without_limbert(
    case: str, subnet: Subnet, trust: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small(case, subnet)
    network.save_pretrained(tmp_path / "export")
    inputs = make_inputs()
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    done = subprocess.run(
        [sys.executable, "-c", USER_CODE, "export", "kept", trust],
        input=json.dumps({name: tensor.tolist() for name, tensor in inputs.items()}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, trained, last = (torch.tensor(value) for value in json.loads(done.stdout))
    with torch.no_grad():
        expected = network(**inputs).logits
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(first, trained, atol=1e-3)
    assert torch.equal(trained, last)


def test_heads_without_auto_class_are_refused(tmp_path: Path) -> None:
    network = make_standalone(transformers.BertForPreTraining(make_config("bert")))
    with pytest.raises(UnsupportedModelError, match="BertForPreTraining"):
        network.save_pretrained(tmp_path)
    assert not [*tmp_path.iterdir()]
