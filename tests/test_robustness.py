"""What a training survives: kills, signals, a closed terminal, a full disk, a second training in its folder.

Each run is a process of its own (see processes.py), started as by `python -m lessons training`.
"""
import ctypes
import fcntl
import io
import os
import pty
import random
import resource
import select
import shutil
import signal
import termios
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lessons import run_folder, training_job
from lessons.__main__ import run as command_line
from lessons.errors import InputError
from lessons.l17_weights import load_model, load_state
from lessons.training_run import run
from tests.processes import end_all, fork, lessons, needs_fork, over, stops_after, wait

pytestmark = needs_fork
KILLS, SEED = 50, 4
TEXT = (Path(__file__).parents[1] / "data" / "grimm.txt").read_text("utf-8")[:5000]
TINY = ["--tokenizer", "char", "--layers", "1", "--heads", "2", "--embd", "16",
        "--block", "16", "--batch", "4"]
CLOCK = ("tokens_per_second", "seconds")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A text, and a short run of it in this process: from then on all is loaded and compiled."""
    place = tmp_path_factory.mktemp("robust")
    (place / "tale.txt").write_text(TEXT, "utf-8")
    run([*TINY, "--data", str(place / "tale.txt"), "--steps", "2", "--out", str(place / "earlier")])
    return place


@pytest.fixture(autouse=True)
def no_child_stays():
    yield
    end_all()


def options(place, steps, every):
    return ["training", "--data", place / "tale.txt", *TINY, "--steps", steps, "--eval-every", every,
            "--save-every", every]


def bits(out):
    """All of a run's folder that must not depend on what interrupted it."""
    arrays, saved = load_state(out / "training.safetensors")
    rows = [line.split(",")[:-len(CLOCK)] for line in (out / "log.csv").read_text().splitlines()]
    names = "model.safetensors", "config.json", "tokenizer.json"
    files = {name: (out / name).read_bytes() for name in names}
    return {"arrays": {name: array.tobytes() for name, array in arrays.items()}, "log": rows,
            "settings": saved["settings"], "step": saved["progress"]["step"], **files,
            "picture": (out / "loss.png").exists()}


def assert_same_bits(out, whole):
    got, want = bits(out), bits(whole)
    differ = [name for name in want if got[name] != want[name]]
    assert not differ, f"other than in a run that nothing interrupted: {differ}"


def until(condition, pid, terminal=None, seconds=60):
    """Wait; read what the process shows on a terminal, or it would wait for us."""
    end, shown = time.monotonic() + seconds, b""
    while not condition():
        while terminal and select.select([terminal], [], [], 0)[0] and not over(pid):
            shown += os.read(terminal, 10_000)
        assert not over(pid), f"the run is over already: {shown.decode()}"
        assert time.monotonic() < end, f"it takes too long: {shown.decode()}"
        time.sleep(0.005)


def rows(out):  # -> a condition: there are three in the log
    return lambda: (out / "log.csv").exists() and (out / "log.csv").read_text().count("\n") > 3


def checkpoint(out):  # -> a condition: there is one
    return (out / "training.safetensors").exists


# ---- kills

def test_50_kills_at_random_moments_lose_nothing(place, tmp_path, monkeypatch):
    """Each moment is drawn from the time that a whole run takes; every third kill then waits for a file that
    is half written. A run that comes to its end between two kills is compared, and the next one begins."""
    whole, out, rng = tmp_path / "whole", tmp_path / "out", random.Random(SEED)
    steps = options(place, 24, 4)
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **how: path.write_bytes(b"quick"))
    begin = time.perf_counter()
    code, errors = lessons(*steps, "--out", whole, output=tmp_path / "whole")
    life = time.perf_counter() - begin
    assert code == 0, errors
    kills = runs = halves = 0
    while kills < KILLS or out.exists():
        what = ["training", "--resume"] if checkpoint(out)() else steps
        pid = fork(*what, "--out", out, output=tmp_path / "child")
        if kills < KILLS:
            time.sleep(rng.random() * life)
            while kills % 3 == 0 and not any(out.glob("*.tmp")) and not over(pid):
                pass
            os.kill(pid, signal.SIGKILL)
        code = wait(pid)
        errors = (tmp_path / "child.err").read_text()
        assert code in (0, -signal.SIGKILL) and not errors, f"after {kills} kills of seed {SEED}: {errors}"
        if code:
            kills += 1
            halves += any(out.glob("*.tmp"))
        else:
            assert_same_bits(out, whole)
            runs += 1
            shutil.rmtree(out)
    assert halves > 5, f"{halves} kills came while a file was being written: this proves little"
    print(f"{kills} kills, {halves} of them while a file was being written; {runs} runs came to their end")


# ---- signals

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_saves_and_says_how_to_go_on(number, place, tmp_path):
    out = tmp_path / "out"
    pid = fork(*options(place, 100_000, 100_000), "--eval-every", 1, "--out", out, output=tmp_path / "child")
    until(rows(out), pid)
    os.kill(pid, number)
    assert wait(pid) == 128 + number, "the exit code is 128 and the signal's number, as a shell has it"
    errors = (tmp_path / "child.err").read_text()
    assert errors.count("\n") == 1 and f"--resume --out {out}" in errors, errors
    arrays, saved = load_state(out / "training.safetensors")
    step = saved["progress"]["step"]
    assert step >= 3 and f"the checkpoint of step {step} is in {out}" in errors
    assert (load_model(out)[0].flat == arrays["parameters"]).all(), "the model is of another step"


def test_a_second_sigterm_stops_at_once(place, tmp_path, monkeypatch):
    def hang(*_):
        (tmp_path / "hangs").touch()
        time.sleep(60)
        time.sleep(60)

    monkeypatch.setattr(training_job, "evaluate", hang)
    pid = fork(*options(place, 4, 2), "--out", tmp_path / "out", output=tmp_path / "child")
    until((tmp_path / "hangs").exists, pid)
    os.kill(pid, signal.SIGTERM)
    until(lambda: "Finishing this step" in (tmp_path / "child.out").read_text(), pid)
    os.kill(pid, signal.SIGTERM)
    assert wait(pid, 20) == -signal.SIGTERM


def test_nohup_is_respected(place, tmp_path):
    out = tmp_path / "out"
    pid = fork(*options(place, 100_000, 2), "--out", out, output=tmp_path / "child",
               before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    until(checkpoint(out), pid)
    os.kill(pid, signal.SIGHUP)
    (out / "training.safetensors").unlink()
    until(checkpoint(out), pid)  # it goes on
    os.kill(pid, signal.SIGTERM)
    assert wait(pid) == 128 + signal.SIGTERM


def test_a_run_whose_terminal_is_closed_saves(place, tmp_path):
    out, (ours, its) = tmp_path / "out", pty.openpty()

    def in_a_terminal():
        os.close(ours)
        os.setsid()
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)
        for descriptor in 0, 1, 2:
            os.dup2(its, descriptor)

    pid = fork(*options(place, 100_000, 100_000), "--eval-every", 1, "--out", out, output=tmp_path / "child",
               before=in_a_terminal)
    os.close(its)
    until(rows(out), pid, ours)
    os.close(ours)  # the window is gone
    assert wait(pid) == 128 + signal.SIGHUP
    assert load_state(out / "training.safetensors")[1]["progress"]["step"] >= 3


def test_a_signal_in_the_middle_of_a_print_is_noted_and_breaks_nothing(monkeypatch):
    class Screen(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            if not came:
                os.kill(os.getpid(), signal.SIGTERM)
            return len(data)

    with training_job.stop_signals() as came:
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BufferedWriter(Screen())))
        print("step 1", flush=True)
    assert came == [signal.SIGTERM]


# ---- two trainings, one folder

def test_a_second_training_in_a_folder_is_refused_and_a_killed_one_leaves_it_free(place, tmp_path):
    out = tmp_path / "out"
    first = fork(*options(place, 100_000, 2), "--out", out, output=tmp_path / "first")
    until(checkpoint(out), first)
    for second in options(place, 4, 2), ["training", "--resume"]:
        code, errors = lessons(*second, "--out", out, output=tmp_path / "second")
        assert code == 2 and errors.count("\n") == 1 and "another training" in errors, errors
    os.kill(first, signal.SIGKILL)
    wait(first)
    assert not (tmp_path / "out.1").exists()
    before = (out / "training.safetensors").read_bytes()
    third = fork("training", "--resume", "--out", out, output=tmp_path / "third")
    until(lambda: (out / "training.safetensors").read_bytes() != before, third)
    os.kill(third, signal.SIGTERM)
    assert wait(third) == 128 + signal.SIGTERM, (tmp_path / "third.err").read_text()


def test_of_four_trainings_started_at_once_one_goes_on_and_the_earlier_run_is_kept(place, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(place / "earlier", out)
    pids = {fork(*options(place, 100_000, 10), "--out", out, output=tmp_path / f"{n}"): n for n in range(4)}
    while len(pids) > 1:
        for pid in filter(over, [*pids]):
            code, errors = wait(pid), (tmp_path / f"{pids.pop(pid)}.err").read_text()
            assert code == 2 and errors.count("\n") == 1, errors
        time.sleep(0.002)
    [last] = pids
    until(checkpoint(out), last)
    os.kill(last, signal.SIGTERM)
    assert wait(last) == 128 + signal.SIGTERM
    kept = [path for path in tmp_path.glob("out.*") if (path / "loss.png").exists()]
    assert len(kept) == 1 and bits(kept[0]) == bits(place / "earlier")


def test_a_folder_that_was_set_aside_before_it_was_locked_is_not_held(tmp_path, monkeypatch):
    """Between open and flock another training sets the folder aside and makes a new one of that name."""
    def flock_late(*arguments):
        out.rename(tmp_path / "out.1")
        out.mkdir()
        return flock(*arguments)

    out, flock = tmp_path / "out", fcntl.flock
    out.mkdir()
    monkeypatch.setattr(run_folder.fcntl, "flock", flock_late)
    with pytest.raises(InputError, match="another training"), run_folder.held(out):
        pass


# ---- files that do not belong together

@pytest.mark.parametrize("name", ["tokenizer.json", "training.safetensors"])
@pytest.mark.parametrize("letters", ["as many letters", "fewer letters"])
def test_resume_refuses_the_file_of_another_run(letters, name, place, tmp_path):
    text = TEXT.replace("e", "ε") if letters == "as many letters" else TEXT.replace("e", "a")
    (tmp_path / "other.txt").write_text(text, "utf-8")
    run([*TINY, "--data", str(tmp_path / "other.txt"), "--steps", "2", "--out", str(tmp_path / "other")])
    shutil.copytree(place / "earlier", tmp_path / "out")
    shutil.copy(tmp_path / "other" / name, tmp_path / "out")
    with pytest.raises(InputError, match=r"tokenizer\.json is not that of the run"):
        run(["--resume", "--out", str(tmp_path / "out")])


# ---- a full disk

def small_disk(place):
    """Mount a tmpfs that this process alone can see."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    new_mounts, new_users = 0x20000, 0x10000000
    if libc.unshare(new_mounts | new_users):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for name, text in ("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1"):
        Path("/proc/self", name).write_text(text)
    if libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, b"size=2m"):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def fill(place, spare):
    """A file that leaves so many bytes of the disk."""
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    with open(place / "filler", "wb") as file:
        file.write(bytes(free - spare))


def resume(out):  # -> exit code
    try:
        command_line("training", "--resume", "--out", str(out))
        return 0
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def stopped(place):
    """A run that stands at its first checkpoint, and what it comes to if nothing stops it."""
    steps = [*options(place, 8, 4), "--embd", 32]  # so the checkpoint takes more room than the picture
    code, errors = lessons(*steps, "--out", place / "whole", output=place / "whole")
    assert code == 0, errors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_job, "train", stops_after(4))
        code, _ = lessons(*steps, "--out", place / "stopped", output=place / "stopped")
    assert code == 130
    return place / "stopped"


def test_a_full_disk_leaves_the_last_checkpoint_and_one_line(stopped, tmp_path):
    """So many kB are free when the run goes on; which file no longer has room differs. Then room is made."""
    named = {}
    for spare in 0, 4, 80, 150, 600:
        disk, outside = tmp_path / f"disk {spare}", tmp_path / f"outside {spare}"
        disk.mkdir()
        outside.mkdir()

        def on_a_full_disk(spare=spare, disk=disk, outside=outside):
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            try:
                small_disk(disk)
                shutil.copytree(stopped, disk / "out")
                fill(disk, spare * 1024)
                how = "on a tmpfs"
            except OSError as problem:  # not allowed here: let write() fail at this size
                shutil.copytree(stopped, disk / "out")
                resource.setrlimit(resource.RLIMIT_FSIZE, (spare * 1024, hard))
                how = f"by a limit on the size of files, for a tmpfs could not be made ({problem})"
            code = resume(disk / "out")
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            shutil.copytree(disk / "out", outside / "failed")
            (disk / "filler").unlink(missing_ok=True)
            assert resume(disk / "out") == 0, "it cannot go on after room was made"
            shutil.copytree(disk / "out", outside / "out")
            (outside / "how").write_text(how)
            raise SystemExit(code)

        code = wait(fork(call=on_a_full_disk, output=tmp_path / "child"))
        errors = (tmp_path / "child.err").read_text()
        assert_same_bits(outside / "out", stopped.parent / "whole")
        if code == 0:
            named[spare] = "all written"
            continue
        assert code == 2 and errors.count("\n") == 1 and "could not be written" in errors, errors
        assert not [*(outside / "failed").glob("*.tmp")], "what was half written takes up room"
        named[spare] = Path(errors.split(" could not")[0]).name
        assert load_state(outside / "failed" / "training.safetensors")[1]["progress"]["step"] == 4
        load_model(outside / "failed")
    print(f"kB free, and what had no room, {(outside / 'how').read_text()}: {named}")
    assert {"log.csv", "model.safetensors", "training.safetensors", "all written"} <= {*named.values()}, named
