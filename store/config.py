"""Settings: where they come from, and those of the store.

A setting's value is the first found of: the environment (`PERUSE_NAME`), the data folder's `settings.json` (written by
`peruse config set`), the default. Each package has one frozen class, made once in the command and passed down.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from store.errors import SettingError

__all__ = ["Settings", "StoreSettings", "read_saved", "save"]

PREFIX = "PERUSE_"
_FILE = "settings.json"


class Settings(BaseSettings):
    """Base of the settings of a package."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)
    _saved: ClassVar[dict[str, Any]] = {}

    @classmethod
    def load(cls, data: Path | None = None) -> Self:
        """The settings of this process, with what was saved in the folder `data`.

        Raises:
            SettingError: names the setting, its value's fault, and where it came from.
        """
        saved = {} if data is None else read_saved(data)
        known = {name: value for name, value in saved.items() if name in cls.model_fields}

        class Loaded(cls):  # type: ignore[misc, valid-type]
            _saved = known

        try:
            return Loaded()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            name = str(first["loc"][0])
            source = f"{data}/{_FILE}" if name in known and PREFIX + name.upper() not in os.environ else "environment"
            raise SettingError(f"{PREFIX}{name.upper()}: {first['msg']} (from {source})") from None

    @classmethod
    def check(cls, saved: dict[str, Any], name: str) -> None:
        """Refuse a value that could not be loaded.

        Raises:
            SettingError: names the setting.
        """

        class Checked(cls):  # type: ignore[misc, valid-type]
            @classmethod
            def settings_customise_sources(
                cls, settings_cls: Any, init_settings: Any, *_: Any, **__: Any
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return (init_settings,)

        try:
            Checked(**{name: saved[name]})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            raise SettingError(f"{PREFIX}{name.upper()}: {first['msg']}") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _Saved(settings_cls)


class _Saved(PydanticBaseSettingsSource):
    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # pydantic asks __call__ only

    def __call__(self) -> dict[str, Any]:
        return dict(self.settings_cls._saved)  # type: ignore[attr-defined]


class StoreSettings(Settings):
    """`PERUSE_*` of the primary and of objects."""

    primary_url: SecretStr = Field(
        SecretStr(""), description="postgresql://… of the primary; empty: an embedded Postgres in the data folder"
    )
    pg_bin: str = Field("", description="folder of postgres and initdb; empty: those installed with Peruse")
    files_base: str = Field(
        "", description="absolute URL that stands before /files/… in documents; empty: the gateway itself",
        pattern=r"^(https?://[^\s?#]+)?$",
    )  # fmt: skip
    gateway_connections: int = Field(8, ge=1, le=200, description="connections to the primary per gateway, for writes")
    gateway_read_connections: int = Field(
        4, ge=1, le=200, description="connections to the primary per gateway, for reads that no replica can answer"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")


def read_saved(data: Path) -> dict[str, Any]:
    """What `peruse config set` keeps in `data`.

    Raises:
        SettingError: the file cannot be read.
    """
    path = data / _FILE
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SettingError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise SettingError(f"{path} must hold one JSON object")
    return found


def save(data: Path, values: dict[str, Any]) -> None:
    """Replace what is kept in `data`; readable by the owner only, for some settings are secrets."""
    path = data / _FILE
    temporary = path.with_suffix(".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(values, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
