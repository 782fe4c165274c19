"""Command-line options generated from the fields of config dataclasses: name, help, default and bounds."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from limbert.core.units import QuantityType, format_quantity, parse_quantity
from limbert.errors import ConfigError


@dataclass(frozen=True)
class ConfigOptions:
    """The options of one config dataclass: its fields with a ``help`` that are not ``hidden``."""

    config: type
    panel: str = "Options"  # heading of the options in ``--help``
    only: tuple[str, ...] = ()  # the fields to offer; all of them if empty
    defaults: Mapping[str, Any] = field(default_factory=dict)  # that differ from the dataclass's, by field
    helps: Mapping[str, str] = field(default_factory=dict)  # that differ from the dataclass's, by field
    as_overrides: bool = False  # a verb receives a dict of the given values alone, instead of an instance

    def offered(self) -> list[Field[Any]]:
        """The fields that are options, in the dataclass's order."""
        visible = [item for item in fields(self.config) if "help" in item.metadata and not item.metadata.get("hidden")]
        return [item for item in visible if not self.only or item.name in self.only]

    def build(self, values: dict[str, Any]) -> Any:
        """Take this config's options out of ``values``.

        Returns:
            An instance of ``config``; with ``as_overrides`` a dict of the options that were given.

        Raises:
            ConfigError: for a value that cannot be parsed or is out of bounds.
        """
        hints = get_type_hints(self.config)
        given = [(item, values.pop(_option_name(item))) for item in self.offered()]
        if self.as_overrides:
            given = [(item, value) for item, value in given if value is not None]
        parsed = {item.name: _parse(value, hints[item.name], item) for item, value in given}
        return parsed if self.as_overrides else self.config(**parsed)

    def parameters(self) -> list[inspect.Parameter]:
        """Keyword parameters that Typer turns into options."""
        return [self._parameter(item) for item in self.offered()]

    def _parameter(self, item: Field[Any]) -> inspect.Parameter:
        base, is_list = _base_type(get_type_hints(self.config)[item.name])
        name, metadata = _option_name(item), item.metadata
        default = None if self.as_overrides else self.defaults.get(item.name, item.default)
        annotation: Any = base if base is bool and not self.as_overrides else base | None
        metavar = {int: "N", float: "X", str: "TEXT"}.get(base)
        if metadata.get("repeats"):
            annotation, default = list[str] | None, list(default) if default else None
        elif is_list:
            annotation, default, metavar = str | None, ",".join(map(str, default)) if default else None, f"{metavar},.."
        elif quantity := metadata.get("quantity"):
            annotation, default = str | None, None if default is None else _plain_quantity(default, quantity)
            metavar = {"latency": "TIME", "size": "SIZE"}.get(quantity, "N")
        if metadata.get("required") and not default:
            default = inspect.Parameter.empty
        option = typer.Option(
            "--" + name.replace("_", "-"),
            help=self.helps.get(item.name, metadata["help"]),
            metavar=metavar,
            min=metadata.get("minimum"),
            rich_help_panel=metadata.get("panel", self.panel),
            show_default=default not in (None, False, inspect.Parameter.empty),
            envvar=metadata.get("envvar"),
        )
        annotated = Annotated[annotation, option]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)


def config_options(**groups: ConfigOptions) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb the options of config dataclasses; the panel ``Output`` comes last in its help.

    Args:
        groups: by the parameter of the verb that receives the instance (or, ``as_overrides``, the dict).
    """

    def decorate(verb: Callable[..., Any]) -> Callable[..., Any]:
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(verb, eval_str=True).parameters.items():
            if name in groups:
                parameters += groups[name].parameters()
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        parameters.sort(key=lambda parameter: _panel(parameter) == "Output")

        @wraps(verb)
        def wrapper(**values: Any) -> Any:
            built = {name: group.build(values) for name, group in groups.items()}
            return verb(**values, **built)

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def _panel(parameter: inspect.Parameter) -> str | None:
    """The heading of an option that is annotated with ``typer.Option``."""
    infos = getattr(parameter.annotation, "__metadata__", ())
    return next((info.rich_help_panel for info in infos if isinstance(info, OptionInfo)), None)


def _option_name(item: Field[Any]) -> str:
    return str(item.metadata.get("option", item.name))


def _base_type(hint: Any) -> tuple[Any, bool]:
    """The type of one value (str, int, float, bool), and whether the field holds several."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple:
        return _base_type(get_args(hint)[0])[0], True
    return (str if get_origin(hint) is Literal else hint), False


def _parse(value: Any, hint: Any, item: Field[Any]) -> Any:
    base, is_list = _base_type(hint)
    option = "--" + _option_name(item).replace("_", "-")
    if value is None:
        return () if get_origin(hint) is tuple else None
    if quantity := item.metadata.get("quantity"):
        number = parse_quantity(value, quantity_type=quantity, option=option)
        return int(number) if base is int else number
    if not is_list or item.metadata.get("repeats"):
        return tuple(value) if is_list else value
    try:
        return tuple(base(part.strip()) for part in value.split(",") if part.strip())
    except ValueError:
        example = "whole numbers such as 1,32" if base is int else "numbers such as 0.25,0.5,1.0"
        raise ConfigError(f"{option} {value!r} is not a list of {example}") from None


def _plain_quantity(value: float, quantity: QuantityType) -> str:
    """A default as an option is written: ``50ms``, ``2MB``."""
    text = format_quantity(value, quantity_type=quantity).replace(" ", "")
    return text.replace(".00", "").replace(".0", "")
