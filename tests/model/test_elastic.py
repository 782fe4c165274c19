"""In every family, every sub-network equals a reference that slices nothing."""

import copy
import threading

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tests.factories.networks import CONFIGS, HEADS, LAYERS, NEURONS, make_inputs, make_network, zeroed_copy
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from limbert import ElasticModel, Space, Subnet
from limbert.errors import CheckpointError, SubnetError, UnsupportedModelError
from limbert.model.families import FAMILIES, layer_parts, stack_of

CASES = list(CONFIGS)
UNEVEN = Subnet(layers=(0, 1, 3), heads=(5, 1, 3), neurons=(7, NEURONS, 31))


def subnets_of(model: ElasticModel) -> dict[str, Subnet]:
    """Both depth rules and uneven widths."""
    subnets = {"uneven": UNEVEN}
    for rule in ("spread", "first"):
        for item in Space(layers=rule).named_subnets(model.shape):
            subnets[f"{item.name} {rule}"] = item.subnet
    return subnets


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


def test_every_family_is_tested() -> None:
    assert {case.partition(":")[0] for case in CASES} == {*FAMILIES}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_full_equals_stock_bit_for_bit(case: str) -> None:
    stock = make_network(case)
    inputs = make_inputs()
    expected = stock(**inputs).logits
    model = ElasticModel(copy.deepcopy(stock))
    assert torch.equal(model.network(**inputs).logits, expected)
    with model.at(model.full) as network:
        assert torch.equal(network(**inputs).logits, expected)
    assert torch.equal(model.view(model.full)(**inputs).logits, expected)
    assert model.network.state_dict().keys() == stock.state_dict().keys()


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_subnetwork_equals_its_zeroed_copy(case: str) -> None:
    stock = make_network(case)
    model = ElasticModel(copy.deepcopy(stock))
    inputs = make_inputs()
    full = stock(**inputs).logits
    for name, subnet in subnets_of(model).items():
        expected = zeroed_copy(stock, subnet)(**inputs).logits
        assert subnet == model.full or not torch.allclose(expected, full, atol=1e-3), f"{name} tests nothing"
        with model.at(subnet) as network:
            close(network(**inputs).logits, expected)
        close(model.view(subnet)(**inputs).logits, expected)
        close(model.extract(subnet)(**inputs).logits, expected)
    assert torch.equal(model.network(**inputs).logits, full)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_zeroed_copy(case: str) -> None:
    stock = make_network(case)
    inputs = make_inputs() | {"labels": torch.tensor([0, 1, 2])}
    reference = zeroed_copy(stock, UNEVEN)
    reference(**inputs).loss.backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}

    model = ElasticModel(copy.deepcopy(stock))
    with model.at(UNEVEN) as network:
        network(**inputs).loss.backward()
        actual = {name: parameter.grad for name, parameter in network.named_parameters()}

    assert actual.keys() == expected.keys()
    head_size = stock.config.hidden_size // HEADS
    layers = zip(stack_of(reference, model.family), [model.layers()[index] for index in UNEVEN.layers], strict=True)
    for (heads, neurons), (old, new) in zip(UNEVEN.layer_widths().values(), layers, strict=True):
        # the zeroed copy also has gradients for its zeroed columns
        old_parts, new_parts = layer_parts(old, model.family), layer_parts(new, model.family)
        for old_linear, new_linear, kept in (
            (old_parts.attention_out, new_parts.attention_out, heads * head_size),
            (old_parts.mlp_out, new_parts.mlp_out, neurons),
        ):
            assert not new_linear.weight.grad[:, kept:].any()
            close(new_linear.weight.grad[:, :kept], old_linear.weight.grad[:, :kept])
            old_linear.weight.grad[:, kept:] = new_linear.weight.grad[:, kept:]
    for name, gradient in expected.items():
        if gradient is None:
            assert actual[name] is None or not actual[name].any(), name
        else:
            close(actual[name], gradient)


@pytest.mark.parametrize("case", CASES)
def test_gradient_checkpointing_changes_nothing(case: str) -> None:
    stock = make_network(case)
    inputs = make_inputs() | {"labels": torch.tensor([0, 1, 2])}
    gradients = []
    for checkpointing in (False, True):
        model = ElasticModel(copy.deepcopy(stock))
        model.network.train()
        if checkpointing:
            model.network.gradient_checkpointing_enable()
        with model.at(UNEVEN) as network:
            network(**inputs).loss.backward()
        gradients.append([p.grad for p in model.network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for plain, checkpointed in zip(*gradients, strict=True):
        close(checkpointed, plain)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_bf16_autocast_stays_close(case: str) -> None:
    stock = make_network(case)
    model = ElasticModel(copy.deepcopy(stock))
    inputs = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        expected = zeroed_copy(stock, UNEVEN)(**inputs).logits
        with model.at(UNEVEN) as network:
            actual = network(**inputs).logits
        from_view = model.view(UNEVEN)(**inputs).logits
    scale = expected.abs().max()
    assert (actual - expected).abs().max() < 0.1 * scale
    assert (from_view - expected).abs().max() < 0.1 * scale


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_hidden_states_are_one_more_than_layers(case: str) -> None:
    stock = make_network(case)
    model = ElasticModel(copy.deepcopy(stock))
    inputs = make_inputs() | {"output_hidden_states": True}
    expected = zeroed_copy(stock, UNEVEN)(**inputs).hidden_states
    assert len(model.network(**inputs).hidden_states) == LAYERS + 1
    with model.at(UNEVEN) as network, model.recorded_states() as recorded:
        states = network(**inputs).hidden_states
    from_view = model.view(UNEVEN)(**inputs).hidden_states
    assert len(states) == len(from_view) == len(expected) == len(recorded) == len(UNEVEN.layers) + 1
    for actual, viewed, reference in zip(states, from_view, expected, strict=True):
        close(actual, reference)
        close(viewed, reference)
    for actual, reference in zip(recorded[:-1], expected[:-1], strict=True):
        close(actual, reference)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_apply_head_equals_the_shallower_network(case: str) -> None:
    model = ElasticModel(make_network(case))
    inputs = make_inputs()
    with model.at(Subnet.uniform(model.shape, width=0.5)) as network:
        with model.recorded_states() as states:
            network(**inputs)
        logits = [model.apply_head(state, **inputs).logits for state in states[1:]]
    for depth, after_layer in enumerate(logits, start=1):
        cut = Subnet.uniform(model.shape, width=0.5, depth=depth / LAYERS, layers="first")
        with model.at(cut) as network:
            close(after_layer, network(**inputs).logits)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_save_and_load(case: str, tmp_path) -> None:
    model = ElasticModel(make_network(case), space=Space(widths=(0.5, 1.0), depths=(0.5, 1.0), layers="first"))
    inputs = make_inputs()
    with model.at(UNEVEN):
        model.save_pretrained(tmp_path / "model")  # saves the full model
    loaded = ElasticModel.from_pretrained(tmp_path / "model")
    assert loaded.space == model.space
    assert torch.equal(loaded.network.eval()(**inputs).logits, model.network(**inputs).logits)
    for subnet in loaded.subnets().values():
        close(loaded.view(subnet)(**inputs).logits, model.view(subnet)(**inputs).logits)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(plain(**inputs).logits, model.network(**inputs).logits)
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_shallow_extract_is_a_stock_checkpoint(case: str, tmp_path) -> None:
    model = ElasticModel(make_network(case))
    shallow = model.extract(Subnet.uniform(model.shape, depth=0.75))
    shallow.save_pretrained(tmp_path)
    inputs = make_inputs()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    close(plain(**inputs).logits, shallow(**inputs).logits)


HEADS_OF_FAMILY = [
    (AutoModel, {}),
    (AutoModelForMaskedLM, {}),
    (AutoModelForTokenClassification, {}),
    (AutoModelForQuestionAnswering, {"num_labels": 2}),
    (AutoModelForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}),
]


@pytest.mark.parametrize(("auto_class", "changes"), HEADS_OF_FAMILY, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_task_head(case: str, auto_class: type, changes: dict) -> None:
    stock = make_network(case, auto_class, **changes)
    model = ElasticModel(copy.deepcopy(stock))
    inputs = make_inputs()
    expected = zeroed_copy(stock, UNEVEN)(**inputs)[0]
    with model.at(UNEVEN) as network:
        close(network(**inputs)[0], expected)
    close(model.view(UNEVEN)(**inputs)[0], expected)
    tied = model.extract(UNEVEN)
    close(tied(**inputs)[0], expected)
    if auto_class is AutoModelForMaskedLM:
        assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def test_at_restores_the_network_after_exceptions() -> None:
    model = ElasticModel(make_network("deberta-v2"))
    inputs = make_inputs()
    with torch.no_grad():
        before = model.network(**inputs).logits
        narrow = Subnet.uniform(model.shape, width=0.5, depth=0.5)
        with model.at(UNEVEN) as network:
            uneven = network(**inputs).logits
            with pytest.raises(ZeroDivisionError), model.at(narrow):
                1 / 0  # noqa: B018
            assert torch.equal(network(**inputs).logits, uneven)
        assert torch.equal(model.network(**inputs).logits, before)


def test_extract_owns_its_weights_and_trains() -> None:
    model = ElasticModel(make_network("bert"))
    inputs = make_inputs() | {"labels": torch.tensor([0, 1, 2])}
    extracted = model.extract(UNEVEN)
    owned = {parameter.data_ptr() for parameter in extracted.parameters()}
    assert owned.isdisjoint(parameter.data_ptr() for parameter in model.network.parameters())
    extracted(**inputs).loss.backward()
    assert all(parameter.grad is not None for parameter in extracted.parameters())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.network.parameters())


@pytest.mark.parametrize("case", ["bert", "modernbert"])
@torch.no_grad()
def test_views_follow_later_training(case: str) -> None:
    model = ElasticModel(make_network(case))
    inputs = make_inputs()
    model.view(UNEVEN)
    for parameter in model.network.parameters():
        parameter.mul_(0.9)
    with model.at(UNEVEN) as network:
        close(model.view(UNEVEN)(**inputs).logits, network(**inputs).logits)
    model.network.to(torch.float64)
    assert model.view(UNEVEN)(**inputs).logits.dtype == torch.float64
    view = model.view(UNEVEN)
    with model.at(Subnet.uniform(model.shape, depth=0.5)):
        assert model.view(UNEVEN) is view


@torch.no_grad()
@pytest.mark.parametrize("calls", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_threads_with_mixed_subnetworks_compute_correctly(calls: int) -> None:
    model = ElasticModel(make_network("bert"))
    inputs = make_inputs(batch=2, tokens=6)
    subnets = list(subnets_of(model).values())
    expected = {subnet: model.view(subnet)(**inputs).logits for subnet in subnets}
    model._views.clear()  # so that threads also build views at the same time
    wrong: list[Subnet] = []

    def work(seed: int) -> None:
        for call in range(calls):
            subnet = subnets[(seed * 7 + call * (seed + 1)) % len(subnets)]
            if not torch.equal(model.view(subnet)(**inputs).logits, expected[subnet]):
                wrong.append(subnet)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_unsupported_families_are_refused_by_name(tmp_path) -> None:
    config = AutoConfig.for_model("mpnet", hidden_size=12, num_attention_heads=2, intermediate_size=12, vocab_size=20)
    network = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UnsupportedModelError, match="supported: bert"):
        ElasticModel(network)
    network.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'mpnet'"):
        ElasticModel.from_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="conv_kernel_size=3"):
        ElasticModel(make_network("deberta-v2", conv_kernel_size=3))
    with pytest.raises(UnsupportedModelError, match="decoder"):
        ElasticModel(make_network("bert", is_decoder=True))


def test_too_large_subnetworks_are_refused() -> None:
    model = ElasticModel(make_network("modernbert"))
    with pytest.raises(SubnetError, match="number of heads 7"):
        model.view(Subnet((0,), (7,), (1,)))
    with pytest.raises(SubnetError, match="layer index 4"), model.at(Subnet((4,), (1,), (1,))):
        pass
    with pytest.raises(SubnetError, match="needs its layer 0"):
        model.extract(Subnet((1, 2), (1, 1), (1, 1)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 64), "cannot load"),
        (lambda folder: (folder / "limbert.json").write_text("[1"), "limbert.json cannot be read"),
    ],
)
def test_broken_checkpoints_are_refused_in_one_line(tmp_path, damage, message: str) -> None:
    folder = tmp_path / "model"
    ElasticModel(make_network("bert")).save_pretrained(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        ElasticModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no checkpoint folder at"):
        ElasticModel.from_pretrained(tmp_path / "absent")


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_longest_input_runs(case: str) -> None:
    model = ElasticModel(make_network(case))
    ids = torch.full((1, model.max_input_length), 7)
    model.network(input_ids=ids, attention_mask=torch.ones_like(ids))
    if case in ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"):
        longer = torch.full((1, model.max_input_length + 1), 7)
        with pytest.raises((RuntimeError, IndexError)):
            model.network(input_ids=longer, attention_mask=torch.ones_like(longer))


@torch.no_grad()
def test_views_of_an_accelerate_model_run_the_subnetwork() -> None:
    model = ElasticModel(make_network("bert"))
    expected = model.view(UNEVEN)(**make_inputs()).logits
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps its first precision
    prepared = ElasticModel(Accelerator(mixed_precision="bf16", cpu=True).prepare(make_network("bert")))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert "forward" in vars(prepared.network)
    close(prepared.view(UNEVEN)(**make_inputs()).logits, expected)
