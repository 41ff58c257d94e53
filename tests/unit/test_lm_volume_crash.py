"""A volume whose server is killed in the middle of commits: nothing that was answered is lost, and what is
there is whole."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

from local_modal.volumes.manifest import blobs_of
from local_modal.volumes.store import FULL_EVERY, VolumeStore

VOLUME = "vo-1"
COMMITTER = """
import sys
from pathlib import Path
from local_modal.volumes.manifest import Changes, file
from local_modal.volumes.store import VolumeStore

store = VolumeStore(Path(sys.argv[1]))
store.create("vo-1")
number = int(sys.argv[2])
while True:
    number += 1
    content = (f"{number} " * 300_000).encode()  # more than one write
    entry = file(store.blobs.put_bytes(content), len(content), 0o644, number)
    small = file(store.blobs.put_bytes(str(number).encode()), len(str(number)), 0o644, number)
    changes = Changes({"large": entry, "small": small, f"d/{number % 7}": small}, [f"d/{(number + 1) % 7}"])
    store.commit("vo-1", changes)
    print(number, flush=True)
"""


def test_kill_nine_in_a_loop_of_commits(tmp_path: Path) -> None:
    chance = random.Random(7)
    answered = 0
    for _ in range(8):
        committer = subprocess.Popen(
            [sys.executable, "-c", COMMITTER, str(tmp_path), str(answered)], stdout=subprocess.PIPE, text=True
        )
        assert committer.stdout is not None
        for _ in range(chance.randrange(1, 30)):
            answered = int(committer.stdout.readline())
        committer.send_signal(signal.SIGKILL)
        answered = max([answered, *(int(line) for line in committer.stdout)])
        committer.wait()
        committer.stdout.close()

        store = VolumeStore(tmp_path)
        manifest = store.head(VOLUME).manifest
        small = manifest["small"]
        number = int(store.blobs.read(small.sha256, 0, small.size))
        assert answered <= number <= answered + 1
        large = manifest["large"]
        assert store.blobs.read(large.sha256, 0, large.size).decode() == f"{number} " * 300_000
        assert f"d/{(number + 1) % 7}" not in manifest and manifest[f"d/{number % 7}"] == small

        store.collect_garbage(grace=0)
        blobs = tmp_path / "blobs"
        found = {path.parent.name + path.name for path in blobs.glob("??/*")}
        assert found == blobs_of(manifest.values())
        assert list((blobs / "tmp").iterdir()) == []
        versions = {path.name for path in (tmp_path / "manifests" / VOLUME).iterdir()}
        assert len(versions) <= FULL_EVERY + 1 and not [name for name in versions if name.endswith(".new")]
        answered = number
