"""The list of methods by name. A method enters it by its name in ``_MODULES`` and ``METHOD`` in its own file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Any, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from UADBenchLib.errors import InputError
from UADBenchLib.methods.base import Method

_MODULES = (
    "andi",
    "context_vae",
    "denoising_autoencoder",
    "disyre",
    "fae",
    "intensity_norm",
    "itermask2",
    "patchcore",
    "reverse_distillation",
    "riad",
    "ssl_backbone",
    "uniad",
)


def list_methods() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(_MODULES)


def method_class(name: str) -> type[Method]:
    """Return the class of a method.

    Raises
    ------
    InputError
        ``METHOD_UNKNOWN``.
    """
    if name not in _MODULES:
        raise InputError("METHOD_UNKNOWN", f"there is no method {name!r}", f"choose one of {', '.join(list_methods())}")
    module = import_module(f"UADBenchLib.methods.{name}")
    return module.METHOD


def create_method(name: str, preset: str = "compact", config: dict[str, Any] | None = None) -> Method:
    """Build an untrained method, from a preset or from the plain values that ``Method.configuration`` returned.

    Raises
    ------
    InputError
        ``METHOD_UNKNOWN``, ``PRESET_UNKNOWN`` or ``CONFIG_INVALID``.
    """
    cls, chosen = method_class(name), _preset_config(name, preset)
    if config is None:
        return cls(chosen)
    try:
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
        return cls(type(chosen)(**values))
    except (TypeError, ValueError) as error:
        raise InputError("CONFIG_INVALID", f"{name} cannot be built from this configuration ({error})", "") from error


def changed_configuration(name: str, preset: str, changes: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a preset with options changed by name, as plain values for ``create_method``.

    Parameters
    ----------
    changes : sequence of str
        ``OPTION=VALUE`` each; the entries of a tuple are separated by commas.

    Raises
    ------
    InputError
        ``METHOD_UNKNOWN``, ``PRESET_UNKNOWN``, or ``CONFIG_INVALID`` for an option that the method does not have or a
        value that is none of its type.
    """
    config = _preset_config(name, preset)
    values, kinds = asdict(config), get_type_hints(type(config))
    for change in changes:
        option, equals, text = change.partition("=")
        if not equals or option not in values:
            raise InputError(
                "CONFIG_INVALID",
                f"{name} cannot set {change!r}",
                f"give OPTION=VALUE with one of the options {', '.join(values)}",
            )
        kind = kinds[option]
        parts = (text.split(",") if text else []) if get_origin(kind) is tuple else text
        try:
            values[option] = TypeAdapter(kind).validate_python(parts)
        except ValidationError as error:
            wanted = kind if get_origin(kind) else kind.__name__
            raise InputError(
                "CONFIG_INVALID", f"option {option!r} of {name} cannot be {text!r}", f"give a value of type {wanted}"
            ) from error
    return values


def configuration_changes(name: str, preset: str, config: Mapping[str, Any]) -> list[str]:
    """Return what makes a configuration of a preset, as ``changed_configuration`` reads it; empty for the preset's."""
    usual = asdict(_preset_config(name, preset))
    told = {option: (_text(config[option]), _text(value)) for option, value in usual.items() if option in config}
    return [f"{option}={value}" for option, (value, preset_value) in told.items() if value != preset_value]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _preset_config(name: str, preset: str) -> Any:
    presets = method_class(name).presets
    if preset not in presets:
        raise InputError(
            "PRESET_UNKNOWN", f"{name} has no preset {preset!r}", f"choose one of {', '.join(sorted(presets))}"
        )
    return presets[preset].config
