"""The list of methods by name. A method enters it by its name in ``_MODULES`` and ``METHOD`` in its own file."""

from __future__ import annotations

from importlib import import_module
from typing import Any

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
    cls = method_class(name)
    if preset not in cls.presets:
        raise InputError(
            "PRESET_UNKNOWN", f"{name} has no preset {preset!r}", f"choose one of {', '.join(sorted(cls.presets))}"
        )
    chosen = cls.presets[preset].config
    if config is None:
        return cls(chosen)
    try:
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
        return cls(type(chosen)(**values))
    except (TypeError, ValueError) as error:
        raise InputError("CONFIG_INVALID", f"{name} cannot be built from this configuration ({error})", "") from error
