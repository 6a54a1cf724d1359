"""Declared: steps in the decorator form, which depend on others by the names of their parameters.

Declaring runs nothing. Called, a step resolves its dependencies first, then runs; a dependency that
has succeeded is not run again, one in flight is shared, one that failed is run anew. Dependencies
are found when the step is declared: a name declared again counts for what is declared after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import CodeType
from typing import Any, NamedTuple, Protocol

from ..sdk.entrypoints import WorkflowFatalError
from ..values.typed_values import TypedCodec
from .signature import shape_of


class Options(NamedTuple):
    """What `step.do` was told beside the name."""

    config: Any
    concurrent: bool
    rollback: Any
    rollback_config: Any


class StepStarter(Protocol):
    """The `step` object, as declared steps see it."""

    def declare(self, name: str, declared: DeclaredStep) -> None:
        """A later step may name this one as a dependency."""
        ...

    def declared(self, name: str) -> DeclaredStep | None:
        """The step declared last under a name."""
        ...

    def begin(
        self,
        name: object,
        callback: object,
        config: object,
        rollback: object,
        rollback_config: object,
        declared: DeclaredStep | None = None,
    ) -> Coroutine[Any, Any, object]:
        """Take an occurrence of a `do` step; the coroutine answers it."""
        ...


class StepDecorator:
    """The decorator that `step.do(name)` returns."""

    def __init__(self, step: StepStarter, name: object, options: Options) -> None:
        self._step = step
        self._name = None if callable(name) else name
        self._options = options

    def __call__(self, function: Callable[..., object]) -> DeclaredStep:
        """Declare the function as a step."""
        name = getattr(function, "__name__", None) if self._name is None else self._name
        declared = DeclaredStep(self._step, name, function, self._options)
        if isinstance(name, str):
            self._step.declare(name, declared)
        return declared

    def __await__(self) -> Generator[Any, Any, object]:
        raise WorkflowFatalError(
            f"step {self._name!r:.80} needs a callback: pass a function as the second argument, or"
            " decorate one"
        )


class DeclaredStep:
    """A declared step: call it without arguments, and await it."""

    def __init__(self, step: StepStarter, name: object, function: object, options: Options) -> None:
        self._step = step
        self._name = name
        self._function = function
        self._options = options
        self._shape = shape_of(function) if callable(function) else None
        self._needs = {parameter: step.declared(parameter) for parameter in self._parameters()}
        self._flights: list[asyncio.Future[None]] = []
        self._memo: tuple[bytes | None, TypedCodec] | None = None
        self.__name__ = str(name)
        self.__doc__ = getattr(function, "__doc__", None)
        self.__wrapped__ = function

    @property
    def code(self) -> CodeType | None:
        """The function's code, which knows where it was declared."""
        return getattr(self._function, "__code__", None)

    def _parameters(self) -> list[str]:
        if self._shape is None:
            return []
        names = (*self._shape.required, *self._shape.optional)
        return [name for name in names if name != "ctx"]

    def __call__(self) -> Coroutine[Any, Any, object]:
        """Run one occurrence of the step, after what it depends on."""
        return self._fly(self._begin())

    def _begin(self) -> Coroutine[Any, Any, object]:
        self._check_needs()
        options = self._options
        return self._step.begin(
            self._name,
            self._function,
            options.config,
            options.rollback,
            options.rollback_config,
            self,
        )

    def _check_needs(self) -> None:
        required = self._shape.required if self._shape else ()
        for parameter, declared in self._needs.items():
            if declared is None and parameter in required:
                raise TypeError(
                    f"parameter {parameter!r} of step {self._name!r:.80} names no step that was"
                    " declared before, and is not ctx"
                )

    async def _fly(self, inner: Coroutine[Any, Any, object], is_dependency: bool = False) -> object:
        """Run one occurrence; dependents that come meanwhile share it."""
        # Not the loop's `create_future`, whose futures count as made by `run`: the code never sees
        # this one, and a lifetime that only awaits its steps stays plain.
        flight: asyncio.Future[None] = asyncio.Future(loop=asyncio.get_running_loop())
        self._flights.append(flight)
        try:
            if is_dependency:
                # Dependents that start together share it even when history answers at once.
                await asyncio.sleep(0)
            value = await inner
        except asyncio.CancelledError:
            flight.cancel()
            raise
        except BaseException as error:
            flight.set_exception(_Failure(error))
            flight.exception()  # Seen, even if nobody shares it.
            raise
        finally:
            self._flights.remove(flight)
        flight.set_result(None)
        return value

    def remember(self, text: bytes | None, reviver: TypedCodec) -> None:
        """An occurrence has succeeded: the first one's value is what dependents get."""
        if self._memo is None:
            self._memo = (text, reviver)

    async def resolve(self) -> dict[str, object]:
        """The values of the dependencies, by parameter."""
        needs = {name: declared for name, declared in self._needs.items() if declared is not None}
        if self._options.concurrent and len(needs) > 1:
            values = await asyncio.gather(*(declared._share() for declared in needs.values()))
            return dict(zip(needs, values, strict=True))
        return {name: await declared._share() for name, declared in needs.items()}

    async def _share(self) -> object:
        """The value for a dependent: remembered, in flight, or made now."""
        while self._memo is None and self._flights:
            flight = self._flights[0]
            try:
                # One dependent's cancellation is not another's.
                await asyncio.shield(flight)
            except _Failure as failure:
                raise failure.error from None
            except asyncio.CancelledError:
                if not flight.cancelled():
                    raise
        if self._memo is None:
            return await self._fly(self._begin(), is_dependency=True)
        text, reviver = self._memo
        return None if text is None else reviver.decode(text)


class _Failure(Exception):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
