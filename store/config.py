"""Settings: where they come from, and those of the store.

A setting's value is the first found of: the environment (`PERUSE_NAME`), the data folder's `settings.json` (written by
`peruse config set`), the default. Each package has one frozen class, made once in the command and passed down.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from store.errors import SettingError
from store.objects.allowed import check_allowed
from store.objects.s3_names import from_s3_names

__all__ = ["Settings", "StoreSettings", "read_saved", "save"]

PREFIX = "PERUSE_"
_FILE = "settings.json"


class Settings(BaseSettings):
    """Base of the settings of a package."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)
    _saved: ClassVar[dict[str, Any]] = {}

    @classmethod
    def load(cls, data: Path | None = None, **given: Any) -> Self:
        """The settings of this process, with what was saved in the folder `data`. What is `given` comes before both.

        Raises:
            SettingError: names the setting, its value's fault, and where it came from.
        """
        saved = {} if data is None else read_saved(data)
        known = {name: value for name, value in saved.items() if name in cls.model_fields}

        class Loaded(cls):  # type: ignore[misc, valid-type]
            _saved = known

        try:
            loaded = Loaded(**given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            name = str(first["loc"][0])
            source = f"{data}/{_FILE}" if name in known and PREFIX + name.upper() not in os.environ else "environment"
            raise SettingError(f"{PREFIX}{name.upper()}: {first['msg']} (from {source})") from None
        loaded.check_together()
        return loaded

    def check_together(self) -> None:
        """Refuse values of which each is good and the whole is not; a single one may be saved before the others.

        Raises:
            SettingError: names the settings.
        """

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
        return init_settings, env_settings, _Saved(settings_cls), _S3Names(settings_cls)


class _Saved(PydanticBaseSettingsSource):
    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # pydantic asks __call__ only

    def __call__(self) -> dict[str, Any]:
        return dict(self.settings_cls._saved)  # type: ignore[attr-defined]


class _S3Names(PydanticBaseSettingsSource):
    """The names that S3's and R2's own tools use; ours come first."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # pydantic asks __call__ only

    def __call__(self) -> dict[str, Any]:
        found = from_s3_names(os.environ, self.current_state)
        return {name: value for name, value in found.items() if name in self.settings_cls.model_fields}


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
    objects: Literal["local", "s3"] = Field(
        "local", description="where image bytes are kept: a folder of the data folder, or an S3 or R2 bucket"
    )
    s3_endpoint_url: str = Field(
        "", description="URL of an S3-compatible service; empty: R2_ACCOUNT_ID's, else that of AWS in s3_region",
        pattern=r"^(https?://[^\s?#@]+)?$",
    )  # fmt: skip
    s3_bucket: str = Field(
        "", description="bucket of the objects, not versioned; else R2_BUCKET_NAME or AWS_S3_BUCKET",
        pattern=r"^([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?$",
    )  # fmt: skip
    s3_region: str = Field(
        "", description="region of the bucket; empty: `auto` with an endpoint, else AWS_REGION", pattern=r"^[a-z0-9-]*$"
    )
    s3_access_key_id: str = Field("", description="else R2_ACCESS_KEY_ID, AWS_ACCESS_KEY_ID, or the machine's AWS role")
    s3_secret_access_key: SecretStr = Field(
        SecretStr(""), description="secret of s3_access_key_id; else R2_SECRET_ACCESS_KEY or AWS_SECRET_ACCESS_KEY"
    )
    s3_session_token: SecretStr = Field(SecretStr(""), description="of a temporary access key; else AWS_SESSION_TOKEN")
    s3_encryption: Literal["auto", "off", "AES256", "aws:kms"] = Field(
        "auto", description="encryption that the service is asked for; auto: AES256 at AWS, off with an endpoint"
    )
    s3_threads: int = Field(16, ge=1, le=200, description="requests to the bucket at once per process")
    s3_timeout_s: float = Field(
        60.0, ge=1.0, le=3600.0, description="seconds after which an upload or read, with its retries, is given up"
    )
    s3_public_url: str = Field(
        "", description="URL before the key where anybody may read the bucket; else R2_PUBLIC_URL; empty: nobody may",
        pattern=r"^(https?://[^\s?#@]+)?$",
    )  # fmt: skip
    cloudfront_domain: str = Field(
        "", description="domain of a CloudFront distribution of the bucket; else AWS_CLOUDFRONT_DOMAIN",
        pattern=r"^([A-Za-z0-9-]+\.)*[A-Za-z0-9-]*$",
    )  # fmt: skip
    cloudfront_key_pair_id: str = Field(
        "",
        description="id of the public key that it trusts; else AWS_CLOUDFRONT_KEY_PAIR_ID",
        pattern=r"^[A-Za-z0-9]*$",
    )
    cloudfront_private_key: SecretStr = Field(
        SecretStr(""), description="RSA key in PEM that signs its URLs; else AWS_CLOUDFRONT_PRIVATE_KEY"
    )
    trash_days: float = Field(
        30.0, gt=0, le=3650, description="days that an image stays in the trash, from where it can be restored"
    )
    storage_free_bytes: int = Field(10**9, ge=0, le=2**60, description="most bytes of pictures that a free plan keeps")
    storage_pro_bytes: int = Field(100 * 10**9, ge=0, le=2**60, description="the same for the plan pro")
    storage_enterprise_bytes: int = Field(500 * 10**9, ge=0, le=2**60, description="the same for the plan enterprise")
    fetch_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="hosts, separated by commas, of providers' results: cdn.example.org, *.example.org (https, "
        "public addresses), or an origin such as http://10.0.0.5:8188 that is trusted wherever it is",
    )  # fmt: skip
    fetch_max_bytes: int = Field(32 * 2**20, ge=1, le=2**30, description="most bytes that are fetched from a URL")
    fetch_timeout_s: float = Field(
        60.0, ge=0.1, le=600.0, description="seconds after which a fetch, with its redirects, is given up"
    )
    webhook_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins, separated by commas, that webhooks may lead to wherever they are: "
        "http://127.0.0.1:9000; others must be public, and https",
    )  # fmt: skip

    @field_validator("fetch_allow", "webhook_allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(v.strip() for v in value.split(",") if v.strip()) if isinstance(value, str) else value

    @field_validator("fetch_allow")
    @classmethod
    def _known_form(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            check_allowed(entry)
        return value

    @field_validator("webhook_allow")
    @classmethod
    def _only_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            check_allowed(entry)
            if "://" not in entry:
                raise ValueError(f"{entry!r} is not an origin with its port, like http://127.0.0.1:9000")
        return value

    def check_together(self) -> None:
        """Objects in a bucket need to know which, where, and as whom."""
        if self.objects == "s3":
            _check_s3(self)


def _check_s3(settings: StoreSettings) -> None:
    def need(name: str, value: str, because: str, others: str) -> None:
        if not value:
            raise SettingError(f"PERUSE_{name} is missing: {because} ({others} would do as well)")

    secret = settings.s3_secret_access_key.get_secret_value()
    need("S3_BUCKET", settings.s3_bucket, "PERUSE_OBJECTS=s3 needs a bucket", "R2_BUCKET_NAME or AWS_S3_BUCKET")
    if settings.s3_access_key_id or secret:
        because = "an access key needs both its id and its secret"
        need("S3_ACCESS_KEY_ID", settings.s3_access_key_id, because, "R2_ACCESS_KEY_ID or AWS_ACCESS_KEY_ID")
        need("S3_SECRET_ACCESS_KEY", secret, because, "R2_SECRET_ACCESS_KEY or AWS_SECRET_ACCESS_KEY")
    if settings.s3_endpoint_url:
        because = "PERUSE_S3_ENDPOINT_URL needs an access key"
        need("S3_ACCESS_KEY_ID", settings.s3_access_key_id, because, "R2_ACCESS_KEY_ID or AWS_ACCESS_KEY_ID")
    else:
        because = "a bucket at AWS has a region, and no endpoint is set"
        need("S3_REGION", settings.s3_region, because, "AWS_REGION, or PERUSE_S3_ENDPOINT_URL or R2_ACCOUNT_ID")
    signing = {
        "CLOUDFRONT_DOMAIN": settings.cloudfront_domain,
        "CLOUDFRONT_KEY_PAIR_ID": settings.cloudfront_key_pair_id,
        "CLOUDFRONT_PRIVATE_KEY": settings.cloudfront_private_key.get_secret_value(),
    }
    if settings.cloudfront_key_pair_id or signing["CLOUDFRONT_PRIVATE_KEY"]:
        for name, value in signing.items():
            need(name, value, "signed URLs of CloudFront need domain, key pair id and private key", f"AWS_{name}")


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
