"""Arrow filesystem: sealed segments in an object store, as an Arrow data set that DuckDB scans.

Filters and columns are pushed down to the Parquet reader, which asks the store for the byte ranges
that it needs and no more.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from ..segments import segment
from ..store.base import NotFound, Store


def dataset(
    store: Store, sizes: Mapping[str, int], on_missing: Callable[[str], None]
) -> ds.Dataset:
    """Return the rows of these segments (key and size in bytes), with the columns of
    segment.SCHEMA.

    `on_missing` is told which one is not there: DuckDB keeps no more of an error than its text.
    """
    return ds.FileSystemDataset.from_paths(
        list(sizes),
        schema=segment.SCHEMA,
        format=ds.ParquetFileFormat(
            default_fragment_scan_options=ds.ParquetFragmentScanOptions(
                page_checksum_verification=True
            )
        ),
        filesystem=fs.PyFileSystem(_Handler(store, dict(sizes), on_missing)),
    )


class _Object(io.RawIOBase):
    """One object, read by byte ranges."""

    def __init__(
        self, store: Store, key: str, size: int, on_missing: Callable[[str], None]
    ) -> None:
        self._store = store
        self._key = key
        self._size = size
        self._on_missing = on_missing
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        wanted = self._size - self._position
        if 0 <= size < wanted:
            wanted = size
        if wanted <= 0:
            return b""
        try:
            data = self._store.get_range_blocking(self._key, self._position, wanted)
        except NotFound:
            self._on_missing(self._key)
            raise
        if len(data) < wanted:
            self._on_missing(self._key)
        self._position += len(data)
        return data


class _Handler(fs.FileSystemHandler):  # type: ignore[misc]
    """The part of a file system that reading named files needs."""

    def __init__(
        self, store: Store, sizes: dict[str, int], on_missing: Callable[[str], None]
    ) -> None:
        self._store = store
        self._sizes = sizes
        self._on_missing = on_missing

    def get_type_name(self) -> str:
        return "dynamic-workflows"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[fs.FileInfo]:
        return [fs.FileInfo(path, type=fs.FileType.File, size=self._sizes[path]) for path in paths]

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(
            _Object(self._store, path, self._sizes[path], self._on_missing), mode="r"
        )

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def _refuse(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("segments are only read")

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_file = _refuse
    delete_root_dir_contents = get_file_info_selector = move = _refuse
    open_append_stream = open_output_stream = _refuse
