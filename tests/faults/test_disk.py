"""Full, read-only and quota-bound disks, real ones: small tmpfs mounts (skipped where mounting is not permitted)."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import embedded_photo, status
from safetensors.torch import load_file
from test_training import TINY, error, run, weights

from gan_mask.data import prepare as module
from gan_mask.data.prepare import PrepareConfig, main, prepare

Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    mounted = []

    def mount_one(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
            pytest.skip(f"mounting a tmpfs with {options} is not permitted here")
        mounted.append(folder)
        return folder

    yield mount_one
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def whole(out: Path) -> list[str]:
    """The checkpoints, each of which must load."""
    for folder in (out / "checkpoints").glob("step-*"):
        load_file(folder / "state.safetensors")
    return sorted(p.name for p in (out / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("options", ["size=1500k", "size=9m,nr_inodes=30"])
def test_training_on_a_full_disk_resumes_when_there_is_room(options, mount, fakes, prepared, tmp_path, capsys):
    out, given = mount(options) / "run", ("--steps", "12", "--keep", "9")
    complaint = error(capsys, "--data", str(prepared), "--out", str(out), *TINY, *given)
    assert "No space left" in complaint and "run the same command again" in complaint and "Traceback" not in complaint
    assert whole(out)
    remount(out.parent, "size=60m,nr_inodes=9999")
    run(prepared, out, *given)
    assert "resuming" in capsys.readouterr().out
    run(prepared, tmp_path / "reference", *given)
    a, b = weights(out), weights(tmp_path / "reference")
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def test_training_on_a_disk_that_becomes_read_only(mount, fakes, prepared, tmp_path, capsys):
    out = mount("size=60m") / "run"
    run(prepared, out, "--steps", "2")
    remount(out.parent, "ro")
    complaint = error(capsys, "--data", str(prepared), "--out", str(out), *TINY, "--steps", "4")
    assert "Read-only file system" in complaint and "Traceback" not in complaint
    assert whole(out) == ["step-0000002"]
    remount(out.parent, "rw")
    run(prepared, out, "--steps", "4")
    assert whole(out) == ["step-0000002", "step-0000004"]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    for person in range(1, 7):
        (folder / f"{person}").mkdir()
        (folder / f"{person}" / "1.webp").write_bytes(embedded_photo(f"id_{person:04d}/view_1"))
    return folder


def test_preparing_on_a_full_and_on_a_read_only_disk(mount, people, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    dst = mount("size=100k") / "set"
    assert status(main, [str(people), str(dst), "--size", "160", "--workers", "1"]) == 2
    complaint = capsys.readouterr().err
    assert "No space left" in complaint and "make room" in complaint and not (dst / "meta.json").exists()
    remount(dst.parent, "ro,size=10m")
    assert status(main, [str(people), str(dst), "--size", "160", "--workers", "1"]) == 2
    assert "Read-only file system" in capsys.readouterr().err
    remount(dst.parent, "rw")
    prepare(PrepareConfig(src=str(people), dst=str(dst), size=160))
    prepare(PrepareConfig(src=str(people), dst=str(tmp_path / "reference"), size=160))
    for path in (tmp_path / "reference").iterdir():
        assert (dst / path.name).read_bytes() == path.read_bytes()


def test_a_quota_is_like_a_full_disk(mount, people, fakes, prepared, capsys):
    """A quota of the file system itself (Linux 6.6: tmpfs has them), for a user who is not root."""
    folder = mount("size=60m,usrquota,usrquota_block_hardlimit=60k")
    folder.chmod(0o777)
    code = "import os\nos.setuid(65534)\n"
    code += f"try: open({str(folder / 'a')!r}, 'wb').write(bytes(10**6))\nexcept OSError as e: os._exit(e.errno)"
    done = subprocess.run(["python3", "-c", code])
    if done.returncode != errno.EDQUOT:
        pytest.skip("this kernel's tmpfs has no quotas")
    if (pid := os.fork()) == 0:
        os.setuid(65534)
        os._exit(status(main, [str(people), str(folder / "set"), "--size", "160", "--workers", "1"]))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert not (folder / "set" / "meta.json").exists()
