"""What people type: TOML files read into frozen types, with errors that name file, key and value.

Every configuration type of the toolkit is a `Settings`. An unknown key is an error, because a
misspelt permission must never be read as an absent one; paths are relative to the file they stand in.

    class Site(Settings):
        root: LocalPath

    Site.load(Path("configs/sites/north.toml"))
"""

import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

from models.errors import ConfigError

_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kMGT]?B)\s*")
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Settings(BaseModel):
    """A frozen record read from TOML; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False, defer_build=True)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a TOML file.

        Args:
            path: The file; relative paths inside it are resolved against its folder.

        Raises:
            ConfigError: The file is missing, is no TOML, or has a wrong key or value.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise ConfigError(f"{path}: {reason}", "give the path of a TOML file that can be read") from error
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: is no valid TOML: {error}", "correct the line named above") from error
        return cls.parse(content, source=str(path), folder=path.parent)

    @classmethod
    def parse(cls, content: Mapping[str, Any], source: str, folder: Path | None = None) -> Self:
        """Validate what was read.

        Args:
            content: Keys and values as TOML or JSON gave them.
            source: Where they came from, for the error.
            folder: What relative paths are relative to; the working directory by default.

        Raises:
            ConfigError: A wrong key or value; every one is named.
        """
        try:
            return cls.model_validate(content, context={"folder": (folder or Path()).absolute()})
        except ValidationError as error:
            items = error.errors(include_url=False)
            lines = [f"{source}: {_explain(item, cls.model_fields)}" for item in items if not _follows(item, items)]
            raise ConfigError("\n".join(lines), "correct the keys named above") from error


def every_key(settings: BaseModel) -> dict[str, Any]:
    """All keys with their values as JSON has them, those too that are left out of it where they have their default."""
    told = settings.model_dump(mode="json")
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    return {
        name: every_key(value) if isinstance(value, BaseModel) else told.get(name, value)
        for name, value in values.items()
    }


def flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """A table's keys with a dot between those of nested tables, and their values; an empty table is a value.

    Args:
        table: As TOML or JSON gives it.
        before: Stands before every key.
    """
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _follows(item: Any, items: Iterable[Any]) -> bool:
    """Whether a list is only too short because others of these errors are of its values, which pydantic left out."""
    loc = item["loc"]
    return item["type"] == "too_short" and any(other["loc"][:-1] == loc for other in items if other["loc"])


def _explain(item: Any, fields: Collection[str]) -> str:
    """One pydantic error as `key: what is wrong (got value)`, where the whole may have fields of these names."""
    key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
    kind, given, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "missing":
        return f"{key}: is required but missing"
    if kind == "extra_forbidden":
        return f"{key}: is not a known key (got {given!r})"
    bounds = {
        "greater_than_equal": ("must be at least", "ge"),
        "greater_than": ("must be more than", "gt"),
        "less_than_equal": ("must be at most", "le"),
        "less_than": ("must be less than", "lt"),
    }
    if kind in bounds:
        words, bound = bounds[kind]
        what = f"{words} {context[bound]:g}"
    else:
        what = str(context.get("error") or item["msg"])
        if not item["loc"] and re.split(r"[.:]", what)[0] in fields:
            return what  # it names its key itself
    return f"{key}: {what}" if isinstance(given, dict) else f"{key}: {what} (got {given!r})"


def _resolve(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder", Path())
    try:
        return Path(folder, path.expanduser())
    except RuntimeError:  # pathlib's word for it
        raise ValueError(f"there is no home folder of {path.parts[0]!r}") from None


def _size(value: Any) -> Any:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if not match:
            raise ValueError('must be a size such as "200 MB"')
        return int(float(match[1]) * _UNITS[match[2]])
    return value


LocalPath = Annotated[Path, AfterValidator(_resolve)]
"""A path on this machine, absolute after loading."""

ByteSize = Annotated[int, BeforeValidator(_size)]
"""A number of bytes, typed as `"200 MB"` (decimal units)."""
