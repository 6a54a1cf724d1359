"""Config file: the settings of a platform as TOML or JSON, in the tables of their groups or not."""

from __future__ import annotations

import json
import stat
import tomllib
from pathlib import Path

from pydantic import ValidationError

from dynamic_workflows.eventlog.errors import InvalidError

from .platform_config import PlatformConfig


def read_config(path: Path) -> PlatformConfig:
    """Read the settings of a platform from a file: JSON where it ends in `.json`, else TOML.

    Raises InvalidError that names the file and each setting that is wrong, or that says that others
    on this machine may read the keys that it holds.
    """
    try:
        text = path.read_text(encoding="utf-8")
        given = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        config = PlatformConfig.model_validate(given)
    except OSError as error:
        raise InvalidError(f"the settings cannot be read: {error}") from None
    except InvalidError as error:  # of a key
        raise InvalidError(f"{path}: {error}") from None
    except ValidationError as error:
        raise InvalidError(f"{path}: {_in_words(error)}") from None
    except (ValueError, RecursionError) as error:  # of JSON, TOML or UTF-8
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise InvalidError(f"{path} is no {kind}: {error}") from None
    if config.code_keys and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        raise InvalidError(f"others on this machine may read {path}: `chmod 600 {path}`")
    return config


def _in_words(error: ValidationError) -> str:
    """What is wrong, without the values: keys of stored code may be among them."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    places = [
        (".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in found
    ]
    return "; ".join(f"{place}: {text}" if place else text for place, text in places)
