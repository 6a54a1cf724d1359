"""Classes of every kind whose objects steps may return, for tests of values."""

from __future__ import annotations

import abc
import collections
import dataclasses
import datetime
import enum
import functools
import ipaddress
import pathlib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, PrivateAttr, SecretBytes, SecretStr

if TYPE_CHECKING:
    from nowhere import Elsewhere  # type: ignore[import-not-found]

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "r"
    BOTH = (1, 2)
    ALSO_RED = "r"


class Level(enum.StrEnum):
    LOW = "low"


class Size(enum.IntEnum):
    BIG = 3


class Perm(enum.IntFlag):
    R = 4
    W = 2


class Bits(enum.Flag):
    A = 1
    B = 2


class Odd(enum.Enum):
    NOTHING = None
    ONE = 1
    TRUE = "True"


class Name(str):
    pass


class Noted(str):
    note: str


class Count(int):
    pass


class Ratio(float):
    pass


class Blob(bytes):
    pass


class Bag(list[Any]):
    pass


class Lookup(dict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        raise AssertionError("nothing of the class is run")


class Tags(set[str]):
    pass


class Pair(tuple[Any, ...]):
    pass


class Point(NamedTuple):
    x: int
    y: Colour


Old = collections.namedtuple("Old", "a b")


@dataclass
class Plain:
    id: str
    note: str = None  # type: ignore[assignment]
    tags: list[str] = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Frozen:
    id: int
    when: datetime.date


@dataclass(slots=True)
class Slotted:
    id: int
    more: dict[str, Colour] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strict:
    id: int


@dataclass
class Late:
    id: int
    total: int = field(init=False, repr=False)
    start: InitVar[int] = 5
    hidden: str = field(default="h", repr=False, compare=False)

    def __post_init__(self, start: int) -> None:
        self.total = self.id + start
        self.cache = [self.id]


@dataclass
class Judging:
    id: int

    def __post_init__(self) -> None:
        if self.id > 100:
            raise ValueError("too large")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("nobody asks")

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Tree:
    name: str
    left: Tree | None = None
    rest: list[Tree] = field(default_factory=list)


@dataclass
class Unresolved:
    cents: int
    other: Elsewhere | None = None


@dataclass
class Box(Generic[T]):
    item: T


@dataclass
class Anything:
    what: Any
    pairs: Mapping[Colour, Sequence[Plain]] = field(default_factory=dict)


class Animal(abc.ABC):
    @abc.abstractmethod
    def sound(self) -> str: ...


@dataclass
class Cat(Animal):
    name: str

    def sound(self) -> str:
        return "miau"


@dataclass
class Dog(Animal):
    name: str

    def sound(self) -> str:
        return "wau"


@dataclass
class Puppy(Dog):
    weeks: int = 0


@dataclass
class Lazy:
    n: int

    @functools.cached_property
    def double(self) -> int:
        return 2 * self.n


class Outer:
    @dataclass
    class Inner:
        n: int


class Card(BaseModel):
    ref: str


class Bank(BaseModel):
    ref: str


class Aliased(BaseModel):
    sku: str = Field(alias="SKU")
    price: Decimal = Field(validation_alias="cost", serialization_alias="preis")


class Shy(BaseModel):
    shown: int
    hidden: str = Field(exclude=True)
    _secret: list[int] = PrivateAttr(default_factory=list)


class Doubling(BaseModel):
    n: int

    @pydantic.field_validator("n")
    @classmethod
    def double(cls, value: int) -> int:
        return 2 * value

    @pydantic.field_serializer("n")
    def text(self, value: int) -> str:
        return f"<{value}>"

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def label(self) -> str:
        return "x"


class Whole(BaseModel):
    a: int

    @pydantic.model_serializer
    def as_list(self) -> list[int]:
        return [self.a]

    @pydantic.model_validator(mode="before")
    @classmethod
    def refuse(cls, value: Any) -> Any:
        if "b" not in value:
            raise ValueError("b is missing")
        return value


class StrictModel(BaseModel):
    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", arbitrary_types_allowed=True
    )
    phase: Colour
    raw: bytearray
    pair: tuple[int, Colour]
    names: set[Level] = set()


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = 1
    b: int | None = None


class Wide(BaseModel):
    url: HttpUrl
    path: pathlib.Path
    ip: ipaddress.IPv4Address | ipaddress.IPv6Network
    word: SecretStr
    key: SecretBytes
    when: datetime.datetime
    dsn: pydantic.PostgresDsn
    size: pydantic.ByteSize
    queue: collections.deque[int]
    kind: Literal[Colour.RED]
    whatever: Any = None


class Ids(pydantic.RootModel[list[Colour]]):
    pass


class Node(BaseModel):
    name: str
    children: list[Node] = []
    parent: typing.Optional[Node] = None  # noqa: UP045


class Generically(BaseModel, Generic[T]):
    item: T


class Tagged(BaseModel):
    pet: Annotated[Card | Bank, Field(union_mode="smart")]
    many: list[Cat | Dog]


@pydantic.dataclasses.dataclass
class Checked:
    n: int = pydantic.Field(gt=0)
    when: datetime.date = datetime.date(2026, 1, 1)


@attrs.define
class Attrs:
    a: int
    b: list[Colour] = attrs.field(factory=list)
    _private: str = "p"
    c: int = attrs.field(init=False, default=3)


@attrs.frozen(cache_hash=True)
class AttrsFrozen:
    a: int = attrs.field(converter=int)


@attrs.define(slots=False)
class AttrsDict:
    a: Attrs


class Struct(msgspec.Struct):
    a: int
    b: Colour = Colour.RED


class StructFrozen(msgspec.Struct, frozen=True, tag="f", kw_only=True, array_like=True):
    a: int
    b: list[Struct] = []


class Info(TypedDict):
    colour: Colour
    orders: list[Plain]


class Recursive(TypedDict, total=False):
    next: Recursive
    colour: Colour


Money = typing.NewType("Money", Decimal)
Many: typing.TypeAlias = "Iterable[Plain]"


@dataclasses.dataclass
class Locked:
    lock: Any


def noted() -> Noted:
    text = Noted("x")
    text.note = "remember"
    return text


def shy() -> Shy:
    made = Shy(shown=1, hidden="h")
    made._secret.append(5)
    return made


def late() -> Late:
    made = Late(1)
    made.total = 99
    return made


def judging() -> Judging:
    made = Judging(1)
    made.id = 1000
    return made


def unset() -> Late:
    made = Late(1)
    del made.total
    return made


def lazy() -> Lazy:
    made = Lazy(2)
    assert made.double == 4
    return made


def wide() -> Wide:
    return Wide.model_validate(
        {
            "url": "https://example.com/a?b=1", "path": "/srv/x", "ip": "10.0.0.1",
            "word": "s3cret", "key": b"k", "when": "2026-01-01T00:00:00+02:00",
            "dsn": "postgres://u:p@h:5/db", "size": "3 MB", "queue": [1, 2], "kind": Colour.RED,
        }
    )  # fmt: skip
