"""Command-line options generated from the config dataclasses: name, help, default and bounds stand there alone."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from limbert.core.units import QuantityType, format_quantity, parse_quantity
from limbert.errors import ConfigError


@dataclass(frozen=True)
class ConfigOptions:
    """The options of one config dataclass.

    Attributes:
        config: the dataclass; a field is an option if its metadata has a ``help``.
        panel: heading of the options in ``--help``.
        only: the fields to offer; all of them if empty.
        exclude: fields that are not offered and keep their default.
        defaults: defaults that differ from the dataclass's, by field.
        as_overrides: a verb receives a dict of the given values alone, instead of an instance of ``config``.
    """

    config: type
    panel: str
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    defaults: Mapping[str, Any] | None = None
    as_overrides: bool = False

    def offered(self) -> list[Field[Any]]:
        """The fields that are options, in the dataclass's order."""
        names = set(self.only or (field.name for field in fields(self.config) if "help" in field.metadata))
        return [field for field in fields(self.config) if field.name in names - set(self.exclude)]

    def parameters(self) -> list[inspect.Parameter]:
        """Keyword parameters that Typer turns into options."""
        return [self._parameter(field) for field in self.offered()]

    def build(self, values: dict[str, Any]) -> Any:
        """Take this config's options out of ``values``.

        Returns:
            An instance of ``config``; with ``as_overrides`` a dict of the options that were given.

        Raises:
            ConfigError: for a value that cannot be parsed or is out of bounds.
        """
        hints = get_type_hints(self.config)
        given = {field: values.pop(_option_name(field)) for field in self.offered()}
        if self.as_overrides:
            given = {field: value for field, value in given.items() if value is not None}
        parsed = {field.name: _parse(value, hints[field.name], field) for field, value in given.items()}
        return parsed if self.as_overrides else self.config(**parsed)

    def _parameter(self, field: Field[Any]) -> inspect.Parameter:
        base, is_list = _base_type(get_type_hints(self.config)[field.name])
        default = (self.defaults or {}).get(field.name, field.default)
        if self.as_overrides or default is MISSING:
            default = None
        repeats, quantity = field.metadata.get("repeats", False), field.metadata.get("quantity")
        if repeats:
            annotation: Any = list[str] | None
            default = list(default) if default else None
        elif is_list:
            annotation, default = str | None, ",".join(map(str, default)) if default else None
        elif quantity:
            annotation = str | None
            default = None if default is None else _plain_quantity(default, quantity)
        else:
            annotation = base if base is bool and not self.as_overrides else base | None
        if field.metadata.get("required") and not default:
            default = inspect.Parameter.empty
        option = typer.Option(
            "--" + _option_name(field).replace("_", "-"),
            *field.metadata.get("aliases", ()),
            help=field.metadata["help"],
            rich_help_panel=self.panel,
            show_default=default not in (None, False, inspect.Parameter.empty),
            envvar=field.metadata.get("envvar"),
        )
        return inspect.Parameter(
            _option_name(field),
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[annotation, option],
        )


def config_options(**groups: ConfigOptions) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb the options of config dataclasses.

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

        @wraps(verb)
        def wrapper(**values: Any) -> Any:
            built = {name: group.build(values) for name, group in groups.items()}
            return verb(**values, **built)

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def _option_name(field: Field[Any]) -> str:
    return str(field.metadata.get("option", field.name))


def _base_type(hint: Any) -> tuple[Any, bool]:
    """The type of one value (str, int, float, bool), and whether the field holds several."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple:
        return _base_type(get_args(hint)[0])[0], True
    if get_origin(hint) is Literal:
        return str, False
    return hint, False


def _parse(value: Any, hint: Any, field: Field[Any]) -> Any:
    if value is None:
        return () if get_origin(hint) is tuple else None
    base, is_list = _base_type(hint)
    option = "--" + _option_name(field).replace("_", "-")
    if quantity := field.metadata.get("quantity"):
        number = parse_quantity(value, quantity_type=quantity, option=option)
        return int(number) if base is int else number
    if field.metadata.get("repeats"):
        return tuple(value)
    if not is_list:
        return value
    try:
        return tuple(base(part.strip()) for part in value.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"{option} {value!r} is not a list of numbers such as 0.25,0.5,1.0") from None


def _plain_quantity(value: float, quantity: QuantityType) -> str:
    """A default as an option is written: ``50ms``, ``2MB``."""
    text = format_quantity(value, quantity_type=quantity).replace(" ", "")
    return text.replace(".00", "").replace(".0", "")
