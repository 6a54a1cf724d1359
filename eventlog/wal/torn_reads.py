"""Torn reads: decides when a place in a file that may be growing is corrupt.

One read of a growing file is not one moment: its pages are copied one after the other, so an early
page may be from before a block was written, and a later one show a block that was written after it
(which vouches for the first, by its `synced`). So what one read shows is a suspicion:

- With a voucher, the place was whole before the voucher was written. Corruption is believed when a
  read that began after the voucher was seen fails at the same place.
- Without one, the end mark of the block decides: a writer copies a block from its beginning to its
  end. So it was all there when its mark was seen, and a read that began later sees it whole.
  Corruption is believed when several such reads, some milliseconds apart, see the same bytes.

docs/decisions/0004-torn-tails.md has the argument.
"""

from __future__ import annotations

from .format import FileParser, Suspicion, corrupt

PAUSES_S = (0.001, 0.01)
"""Between the reads of bytes that no later block vouches for (seconds)."""


class Doubt:
    """What the reads of one file have shown of the place where the last one stopped."""

    def __init__(self) -> None:
        self._offset = -1
        self._vouched: Suspicion | None = None
        self._region = b""
        self._same = 0
        self.is_certain = False
        """Whether damage was believed, so that no further look is needed."""

    def check_read(self, parser: FileParser, *, whole_upto: int | None = None) -> float | None:
        """Return None if the read is consistent, else the pause before the next read (seconds).

        `whole_upto`: a block that was seen before the read says that the file was whole up to here.
        Raises Corrupt for damage that is believed.
        """
        if whole_upto is not None and parser.offset == whole_upto:
            return None
        if parser.offset != self._offset:
            self._offset, self._vouched, self._region, self._same = parser.offset, None, b"", 0
        if self._vouched is not None:
            self._believe(parser, self._vouched)
        suspicion = parser.suspicion()
        if whole_upto is not None:
            what = f"it is not whole up to byte {whole_upto}"
            suspicion = Suspicion(what, is_vouched=True, region=b"")
        if suspicion is None:
            return None
        if suspicion.is_vouched:
            self._vouched = suspicion
            return 0.0
        self._same = self._same + 1 if suspicion.region == self._region else 0
        self._region = suspicion.region
        if self._same >= len(PAUSES_S):
            self._believe(parser, suspicion)
        return PAUSES_S[self._same]

    def _believe(self, parser: FileParser, suspicion: Suspicion) -> None:
        self.is_certain = True
        raise corrupt(parser.key, parser.offset, suspicion.what)
