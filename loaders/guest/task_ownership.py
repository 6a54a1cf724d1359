"""Belongings: whose work it is when tenant code starts tasks, threads and asynchronous generators.

All of it belongs to the lifetime, or the call from outside, whose code started it: so it ends with
that, and nothing of it is left unseen. What modules start when they are loaded belongs to nobody:
it lives as long as the isolate, keeps no isolate alive, and has nothing to call.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

from .attempt import ATTEMPT
from .deterministic_asyncio import RunFuture, RunTask, of_run
from .quiescence import CURRENT

_MARK = "_dynamic_workflows_tasks"


def adopt_work(loop: Any) -> None:
    """Let what tenant code starts belong to its lifetime; once per loop."""
    previous: Any = loop.get_task_factory()
    if getattr(previous, _MARK, False):
        return

    def make(
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, Any],
        *,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Future[Any]:
        scope = CURRENT.get()
        if context is not None:
            scope = _owner(scope, context)
        attempt = ATTEMPT.get() if context is None else context.get(ATTEMPT)
        if scope is not None and scope.timers is not None and attempt is None:
            number = scope.next_number()
            run_task = RunTask(work, number=number, loop=loop, context=context, **options)
            scope.adopt(run_task)
            scope.note_task(run_task)
            return run_task
        build_task: Any = asyncio.Task if previous is None else functools.partial(previous, loop)
        if previous is None:
            options["loop"] = loop
        task: asyncio.Task[Any] = build_task(work, context=context, **options)
        if scope is not None:
            scope.adopt(task, attempt)
        return task

    setattr(make, _MARK, True)
    loop.set_task_factory(make)
    _adopt_threads(loop)
    _adopt_generators(loop)
    _adopt_timers(loop)


def _owner(scope: Any, context: Context) -> Any:
    """Whose a task in a context of its own is: nobody gets rid of a task by a blank context."""
    given = context.get(CURRENT)
    if given is None and scope is not None:
        context.run(CURRENT.set, scope)
        context.run(ATTEMPT.set, ATTEMPT.get())
        return scope
    return given


# --- timers and futures --------------------------------------------------------------------------


def _adopt_timers(loop: Any) -> None:
    """Let the timers and futures that `run` makes be its lifetime's."""
    call_at, create_future = loop.call_at, loop.create_future

    def adopted_call_at(
        when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        scope = CURRENT.get() if context is None else context.get(CURRENT)
        if scope is not None and scope.timers is not None:
            attempt = ATTEMPT.get() if context is None else context.get(ATTEMPT)
            if attempt is None:
                timer: asyncio.TimerHandle = scope.timers.arm(
                    call_at, when, callback, args, context or copy_context()
                )
                return timer
        plain: asyncio.TimerHandle = call_at(when, callback, *args, context=context)
        return plain

    def adopted_create_future() -> asyncio.Future[Any]:
        life = of_run()
        if life is None:
            plain: asyncio.Future[Any] = create_future()
            return plain
        return RunFuture(number=life.next_number(), loop=loop)

    loop.call_at = adopted_call_at
    loop.create_future = adopted_create_future


# --- threads -------------------------------------------------------------------------------------


class ThreadWork:
    """A function in a worker thread, which nobody can cancel; like a task for whoever counts."""

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[..., Any]) -> None:
        self._loop = loop
        self._function = function
        self._has_begun = False
        self._is_done = False
        self._callbacks: list[tuple[Callable[[Any], Any], Context]] = []

    def __call__(self, *args: Any) -> Any:
        """Run it, in the thread."""
        self._has_begun = True
        if self._is_done:
            return None  # It was given up before it began.
        try:
            return self._function(*args)
        finally:
            try:
                self._loop.call_soon_threadsafe(self._finish, context=Context())
            except RuntimeError:
                # The loop is closed: nobody counts any more.
                pass

    def give_up(self, future: asyncio.Future[Any]) -> None:
        """Whoever awaited it does not: what has not begun never will."""
        if future.cancelled() and not self._has_begun:
            self._finish()

    def done(self) -> bool:
        """Whether it has ended."""
        return self._is_done

    def cancel(self) -> None:
        """A thread cannot be asked."""

    def add_done_callback(self, function: Callable[[Any], Any], *, context: Context) -> None:
        """Call a function, with this, when it has ended."""
        self._callbacks.append((function, context))

    def _finish(self) -> None:
        self._is_done = True
        callbacks, self._callbacks = self._callbacks, []
        for function, context in callbacks:
            self._loop.call_soon(function, self, context=context)


def _adopt_threads(loop: Any) -> None:
    in_executor = loop.run_in_executor

    def run_in_executor(executor: Any, function: Any, *args: Any) -> asyncio.Future[Any]:
        scope = CURRENT.get()
        if scope is None:
            plain: asyncio.Future[Any] = in_executor(executor, function, *args)
            return plain
        work = ThreadWork(loop, function)
        future: asyncio.Future[Any] = in_executor(executor, work, *args)
        scope.adopt(work, ATTEMPT.get())
        scope.leave()
        future.add_done_callback(scope.come_back)
        future.add_done_callback(work.give_up, context=Context())
        return future

    loop.run_in_executor = run_in_executor


# --- asynchronous generators ---------------------------------------------------------------------


class _Generators:
    """Remembers in whose context each unfinished asynchronous generator began.

    One that is not closed is closed by the loop when Python lets go of it, which may be anywhere:
    by a collection of garbage in somebody else's turn. What its closing does is its owner's all the
    same.
    """

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._began = loop._asyncgen_firstiter_hook
        self._owners: dict[int, tuple[Any, Context]] = {}
        self._dying: dict[int, Context] = {}

    def begin(self, generator: AsyncGenerator[Any, Any]) -> None:
        """It is iterated for the first time."""
        self._began(generator)
        if CURRENT.get() is not None:
            number = id(generator)
            letting_go = functools.partial(self._let_go, number)
            self._owners[number] = weakref.ref(generator, letting_go), copy_context()
            self._dying.clear()

    def _let_go(self, number: int, _: Any) -> None:
        # Python clears weak references just before it calls `finalize`, if it calls it at all.
        self._dying[number] = self._owners.pop(number)[1]

    def finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Nobody holds it any more, and it is not finished: close it."""
        context = self._dying.pop(id(generator), None)
        self._loop._asyncgens.discard(generator)
        if not self._loop.is_closed():
            if context is None:
                self._loop.call_soon_threadsafe(self._close, generator)
            else:
                self._loop.call_soon_threadsafe(self._close, generator, context=context)

    def _close(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._loop.create_task(generator.aclose())


def _adopt_generators(loop: Any) -> None:
    generators = _Generators(loop)
    loop._asyncgen_firstiter_hook = generators.begin
    loop._asyncgen_finalizer_hook = generators.finalize
    if loop.is_running():
        sys.set_asyncgen_hooks(firstiter=generators.begin, finalizer=generators.finalize)
