"""Recipes are data that can be overridden down to one setting of one phase."""

from pathlib import Path

import pytest

from limbert.errors import ConfigError
from limbert.train.recipes import bundled_recipes, load_recipe, override_recipe


def test_bundled_recipes_are_the_papers() -> None:
    recipe, flexible = load_recipe("dynabert"), load_recipe("flexible-bert")
    assert (recipe.space.layers, flexible.space.layers) == ("spread", "first")
    assert [*flexible.phases] == [*recipe.phases, "gates"] == ["finetune", "width", "depth", "gates"]
    width, depth = recipe.phases["width"], recipe.phases["depth"]
    assert (width.logit_weight, width.hidden_weight) == (1.0, 0.1)
    assert (depth.logit_weight, depth.hidden_weight, depth.teacher_width) == (1.0, 1.0, "matched")
    for phase in recipe.phases.values():
        assert (phase.batch_size, phase.learning_rate, phase.warmup, phase.weight_decay) == (32, 2e-5, 0.0, 0.0)
        assert (phase.epochs, phase.max_grad_norm, phase.sampled, phase.adam_epsilon) == (3.0, 1.0, 0, 1e-8)
    width, gates = flexible.phases["width"], flexible.phases["gates"]
    assert (width.grafts, width.graft_rate, width.graft_share) == (3, 0.1, 0.5)
    assert flexible.phases["depth"].grafts == 0
    assert (gates.epochs, gates.learning_rate, gates.batch_size, gates.target) == (8.0, 2e-4, 32, "label")
    assert (gates.start_temperature, gates.end_temperature, gates.cost) == (1.0, 0.5, None)


def test_overrides() -> None:
    recipe = override_recipe(
        load_recipe("dynabert"),
        space={"widths": (0.5, 1.0), "depths": None, "layers": "first"},
        every_phase={"max_steps": 7, "epochs": None},
        one_phase=["width.learning_rate=1e-3", "depth.teacher_width=full", "depth.epochs=1"],
        phases=["width", "depth", "final"],
    )
    assert recipe.space.widths == (0.5, 1.0)
    assert recipe.space.depths == (0.5, 0.75, 1.0)
    assert recipe.space.layers == "first"
    assert {phase.max_steps for phase in recipe.phases.values()} == {7}
    assert recipe.phases["width"].learning_rate == 1e-3
    assert recipe.phases["depth"].teacher_width == "full"
    assert recipe.phases["depth"].epochs == 1.0
    assert recipe.phases["final"].label_weight == 1.0


def test_own_recipe_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[phases.final]\nepochs = 2\n")
    recipe = load_recipe(str(path))
    assert recipe.phases["final"].epochs == 2
    assert recipe.phases["final"].label_weight == 1.0
    for text, message in [
        ("[phases.final]\nepoch = 2\n", "unknown setting final.epoch"),
        ("[phases.final]\nepochs = 'many'\n", "epochs is 'many'; it must be a float"),
        ("[phases.polish]\nepochs = 2\n", "unknown phase 'polish'; allowed: finetune, width, depth, joint, final"),
        ("[phase.final]\n", r"needs \[space\] and \[phases.NAME\] tables, got phase"),
        ("epochs: 2", "mine.toml"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_recipe(str(path))
    assert all(load_recipe(name).phases for name in bundled_recipes())


def test_gate_settings_change_only_the_gates_phase() -> None:
    recipe = override_recipe(
        load_recipe("flexible-bert"),
        every_phase={"learning_rate": 1e-3, "epochs": 1.0},
        gates={"count": 2, "target": "agreement", "cost": None},
        one_phase=["gates.cost=1", "gates.epochs=2", "width.grafts=0"],
    )
    gates = recipe.phases["gates"]
    assert (gates.count, gates.target, gates.cost, gates.epochs) == (2, "agreement", 1.0, 2.0)
    assert gates.learning_rate == 2e-4
    assert recipe.phases["width"].learning_rate == 1e-3
    assert recipe.phases["width"].grafts == 0
    with pytest.raises(ConfigError, match="need a phase that trains gates; phases: finetune, width, depth"):
        override_recipe(load_recipe("dynabert"), gates={"count": 2})
    with pytest.raises(ConfigError, match=r"count is 1\.5; it must be a int"):
        override_recipe(load_recipe("flexible-bert"), one_phase=["gates.count=1.5"])
