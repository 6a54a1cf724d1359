"""Idempotency: a POST that is repeated with its `Idempotency-Key` is answered, not done, again.

Answers are kept in this process, so many and so long. A create goes further: its key becomes the
token of the row, by which the tenant's log knows the create again, after any restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable

from starlette.responses import Response

from ..eventlog.bounded_dict import BoundedDict
from .errors import HttpError

KEY_CHARACTERS_MAX = 200
ANSWERS_MAX = 10_000
ANSWER_BYTES_MAX = 65_536
"""A larger answer is not kept: the request is carried out again."""


class Responses:
    """The answers to POSTs that named a key."""

    def __init__(self) -> None:
        self._answers: BoundedDict[str, tuple[bytes, asyncio.Future[Response]]] = BoundedDict(
            ANSWERS_MAX
        )

    async def once(
        self, scope: str, key: str | None, body: bytes, work: Callable[[], Awaitable[Response]]
    ) -> Response:
        """What `work` answers; the first answer, where `key` was given before in this scope.

        Raises `idempotency.mismatch` where the key came with another body, and what `work` raises:
        then nothing is kept, and the key may be used again.
        """
        if key is None:
            return await work()
        if not key or len(key) > KEY_CHARACTERS_MAX:
            raise HttpError(f"an Idempotency-Key has 1 to {KEY_CHARACTERS_MAX} characters")
        name, digest = f"{scope}\n{key}", hashlib.sha256(body).digest()
        kept = self._answers.get(name)
        if kept is not None:
            if kept[0] != digest:
                raise HttpError(
                    "this Idempotency-Key came with another body before",
                    code="idempotency.mismatch",
                )
            answer = await asyncio.shield(kept[1])
            return _copy(answer)
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._answers[name] = digest, future
        try:
            answer = await work()
        except BaseException as error:
            self._answers.pop(name, None)
            if isinstance(error, Exception):
                future.set_exception(error)
                future.exception()
            else:
                future.cancel()
            raise
        future.set_result(answer)
        if len(answer.body) > ANSWER_BYTES_MAX:
            self._answers.pop(name, None)
        return answer


def _copy(answer: Response) -> Response:
    headers = {name: text for name, text in answer.headers.items() if name != "content-length"}
    return Response(bytes(answer.body), answer.status_code, headers)


class TokenOf:
    """Names for a create: its token follows from an Idempotency-Key and what it is for."""

    def __init__(self, scope: str, key: str) -> None:
        self._digest = hashlib.sha256(f"{scope}\n{key}".encode()).hexdigest()

    def token(self) -> str:
        """32 hex digits, the same for the same key."""
        return self._digest[:32]

    def uuid(self) -> str:
        """A UUID, the same for the same key."""
        return str(uuid.UUID(self._digest[32:]))
