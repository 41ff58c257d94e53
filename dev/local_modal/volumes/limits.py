"""How big a volume may become, as Modal's guide on volumes documents it (sections "Volume performance" and
"Volumes v2 has a few limits in place").

In a container Modal refuses to create what is too much (ENOSPC); here it is the commit that fails, and so
does an upload. Which status the cloud answers an upload with isn't documented; RESOURCE_EXHAUSTED is assumed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from local_modal.volumes.manifest import DIRECTORY, Changes, Manifest, parent


class LimitExceeded(Exception):
    """The volume would become bigger than it may."""


@dataclass(frozen=True)
class Limits:
    """What one version of the file system allows; None for no limit."""

    inodes: int | None = None
    """Files, directories and symbolic links altogether."""
    files_per_directory: int | None = None
    file_bytes: int | None = None
    """Every file must be smaller."""

    def check(self, effect: Changes, manifest: Manifest) -> None:
        """Whether `effect` may lead to `manifest`.

        Raises:
            LimitExceeded: it may not. What makes a volume smaller is always allowed.
        """
        if not effect.puts:
            return
        if self.inodes is not None and len(manifest) > self.inodes:
            raise LimitExceeded(
                f"No space left on device: {len(manifest)} files and directories, but a volume of version 1 "
                f"can't have more than {self.inodes}."
            )
        for path, entry in effect.puts.items():
            if self.file_bytes is not None and entry.size >= self.file_bytes:
                raise LimitExceeded(
                    f"'{path}' has {entry.size} bytes; less than {self.file_bytes} are possible."
                )
        if self.files_per_directory is not None and len(manifest) > self.files_per_directory:
            files = Counter(parent(path) for path, entry in manifest.items() if entry.kind != DIRECTORY)
            directory, most = files.most_common(1)[0] if files else ("", 0)
            if most > self.files_per_directory:
                raise LimitExceeded(
                    f"'/{directory}' would have {most} files, but a directory can't have more than "
                    f"{self.files_per_directory}."
                )


VERSION_1 = Limits(inodes=500_000)
VERSION_2 = Limits(files_per_directory=262_144, file_bytes=1 << 40)
