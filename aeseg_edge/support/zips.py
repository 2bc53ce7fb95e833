"""Zips: a member is read within the size that it states."""

from __future__ import annotations

import zipfile

READ = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read one member, and no more of it than ``info.file_size``, which the caller has looked at.

    ``ZipFile.read`` unpacks first and looks at the stated size afterwards: a kilobyte can become
    gigabytes. A read of a stated length is bounded for what is stored or deflated only; others
    raise NotImplementedError, as ``zipfile`` does, and content unlike what it states BadZipFile.
    """
    if info.compress_type not in READ:
        raise NotImplementedError(
            f"{info.filename} is packed by method {info.compress_type}: only stored and deflated "
            "members are read"
        )
    with archive.open(info) as member:
        data = member.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise zipfile.BadZipFile(
            f"{info.filename} has {len(data)} bytes and states {info.file_size}"
        )
    return data
