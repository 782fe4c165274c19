"""Recipes are data: a TOML file with the space and the settings of each phase; this reads and overrides them."""

import logging
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_type_hints

from limbert.core.config import AnyPhaseConfig, GatesConfig, TrainConfig
from limbert.core.space import Space
from limbert.errors import ConfigError
from limbert.inference.base_model import trained_space
from limbert.model.checkpoint import check_checkpoint_path
from limbert.train.phases import PHASES, ConfiguredPhase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Which sub-networks are trained, and how, phase by phase in order."""

    space: Space
    phases: dict[str, AnyPhaseConfig]

    def with_world_size(self, world_size: int) -> "Recipe":
        """The recipe with the batch sizes of all processes together; runs with equal ones are the same run."""
        phases = {name: replace(part, batch_size=world_size * part.batch_size) for name, part in self.phases.items()}
        return replace(self, phases=phases)

    def configured_phases(self) -> list[ConfiguredPhase]:
        """The phases with their settings."""
        return [(PHASES[name], config) for name, config in self.phases.items()]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint's record."""
        return {"space": self.space.to_dict(), "phases": {name: asdict(part) for name, part in self.phases.items()}}


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with Limbert."""
    names = (entry.name for entry in files("limbert.train").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_recipe(name_or_path: str) -> Recipe:
    """A bundled recipe by name, or any TOML file of the same form.

    Raises:
        ConfigError: for an unknown name, a file that is not TOML, or an unknown or impossible setting.
    """
    source: Any = Path(name_or_path)
    if name_or_path in bundled_recipes():
        source = files("limbert.train") / f"{name_or_path}.toml"
    if not source.is_file():
        raise ConfigError(f"no recipe {name_or_path!r}; bundled: {', '.join(bundled_recipes())}; or give a TOML file")
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {name_or_path}: {error}") from error
    if not {*values} <= {"space", "phases"} or not values.get("phases"):
        raise ConfigError(f"recipe {name_or_path} needs [space] and [phases.NAME] tables, got {', '.join(values)}")
    space = Space.from_dict(Space().to_dict() | values.get("space", {}))
    return Recipe(space, {name: _phase_config(name, settings) for name, settings in values["phases"].items()})


def recipe_for(config: TrainConfig, *, space: Mapping[str, Any] | None = None, **overrides: Any) -> Recipe:
    """The recipe that a run's settings name, overridden; with the space of its base model if none is given.

    Args:
        config: names recipe, phases and base model.
        space, overrides: as of `override_recipe`.

    Raises:
        ConfigError: if the recipe or an override is wrong.
        CheckpointError: if the model's folder is missing.
    """
    recipe = override_recipe(load_recipe(config.recipe), space=space, **{"phases": config.phases} | overrides)
    return recipe if space else with_trained_space(recipe, config.model)


def with_trained_space(recipe: Recipe, model: str) -> Recipe:
    """The recipe with the space that a base model was trained for, if any; CheckpointError if its folder is missing."""
    check_checkpoint_path(model)
    space = trained_space(model)
    if space in (None, recipe.space):
        return recipe
    shown = f"widths {space.widths}, depths {space.depths}, layers {space.layers!r}"
    logger.info("training the sub-networks that %s was trained for: %s", model, shown)
    return replace(recipe, space=space)


def override_recipe(
    recipe: Recipe,
    *,
    space: Mapping[str, Any] | None = None,
    every_phase: Mapping[str, Any] | None = None,
    gates: Mapping[str, Any] | None = None,
    one_phase: Iterable[str] = (),
    phases: Iterable[str] | None = None,
) -> Recipe:
    """The recipe with settings replaced; values that are None change nothing.

    Args:
        recipe: what is changed.
        space: ``widths``, ``depths``, ``layers``.
        every_phase: settings of all phases that train the encoder, by their name in PhaseConfig.
        gates: settings of the phases that train gates, by their name in GatesConfig.
        one_phase: ``"PHASE.SETTING=VALUE"``, as a person writes them.
        phases: which phases run, in this order; one that the recipe lacks runs with its defaults.

    Raises:
        ConfigError: naming what is unknown or impossible.
    """
    names = list(recipe.phases if phases is None else phases)
    configs = {name: recipe.phases.get(name) or _phase_config(name, {}) for name in names}
    shared, of_gates, of_space = (
        {name: value for name, value in (given or {}).items() if value is not None}
        for given in (every_phase, gates, space)
    )
    if of_gates and not any(isinstance(config, GatesConfig) for config in configs.values()):
        raise ConfigError(
            f"gate settings ({', '.join(of_gates)}) need a phase that trains gates; phases: {', '.join(names)}"
        )
    for name, config in configs.items():
        configs[name] = _phase_config(name, of_gates if isinstance(config, GatesConfig) else shared, config)
    for text in one_phase:
        path, _, word = text.partition("=")
        phase, _, setting = path.strip().partition(".")
        if phase not in configs or not word:
            allowed = f"PHASE.SETTING=VALUE with a phase of this run: {', '.join(names)}"
            raise ConfigError(f"cannot read setting {text!r}; write {allowed}")
        try:
            value = tomllib.loads(f"value = {word.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = word.strip()
        configs[phase] = _phase_config(phase, {setting: value}, configs[phase])
    return Recipe(Space.from_dict(recipe.space.to_dict() | of_space), configs)


def _phase_config(phase: str, settings: Mapping[str, Any], base: AnyPhaseConfig | None = None) -> AnyPhaseConfig:
    """A phase's settings over those of ``base``, or its defaults; whole numbers serve where a fraction is expected."""
    if phase not in PHASES:
        raise ConfigError(f"unknown phase {phase!r}; allowed: {', '.join(PHASES)}")
    config_class = PHASES[phase].config_class
    values, hints = dict(PHASES[phase].defaults) if base is None else asdict(base), get_type_hints(config_class)
    for name, value in settings.items():
        if name not in hints:
            known = sorted(field.name for field in fields(config_class))
            raise ConfigError(f"unknown setting {phase}.{name}; allowed: {', '.join(known)}")
        wanted = (get_args(hints[name]) or (hints[name],))[0]
        wanted = str if isinstance(wanted, str) else wanted  # a Literal's options are its words
        values[name] = float(value) if wanted is float and type(value) is int else value
        if type(values[name]) is not wanted:
            raise ConfigError(f"{name} is {value!r}; it must be a {wanted.__name__}")
    return config_class(**values)
