"""The command line of lesson 18: what it writes, what it survives, what it answers to bad input."""
import contextlib
import csv
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from lessons import devices, training_run
from lessons.__main__ import run as lessons_run
from lessons.l05_tokenizer import train_bpe
from lessons.l16_gpt import gpt_forward
from lessons.l17_weights import load_model, save_state
from lessons.run_folder import COLUMNS, cut_log

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "data" / "grimm.txt").read_text()[:20000]
TINY = ["--tokenizer", "char", "--layers", "1", "--heads", "2", "--embd", "16",
        "--block", "16", "--batch", "4"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "tale.txt"
    path.write_text(TEXT)
    return str(path)


def train(*options):
    lessons_run("training", *map(str, options))


def process(*options, **how):
    return subprocess.Popen([sys.executable, "-m", "lessons", "training", *map(str, options)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            cwd=ROOT, text=True, **how)


def log(out):
    with open(out / "log.csv") as file:
        return list(csv.DictReader(file))


def what_was_learned(out):
    """All that an interrupted run must have bit for bit: parameters, moments, the log but for the clock."""
    rows = [[row[name] for name in COLUMNS if name not in ("tokens_per_second", "seconds")]
            for row in log(out)]
    return {name: array.tobytes() for name, array in load_file(out / "training.safetensors").items()}, rows


def test_a_run_writes_model_checkpoint_log_and_picture(text, tmp_path, capsys):
    out = tmp_path / "out"
    train("--data", text, *TINY, "--steps", 20, "--eval-every", 2, "--out", out)
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json",
                                                     "training.safetensors", "log.csv", "loss.png"}
    rows = log(out)
    assert list(rows[0]) == COLUMNS and [int(row["step"]) for row in rows] == list(range(2, 21, 2))
    assert int(rows[-1]["tokens"]) == 20 * 4 * 16
    printed = capsys.readouterr().out
    assert rows[-1]["bits_per_character"][:4] in printed and str(out) in printed


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_last_row_is_the_saved_models_loss_on_all_validation_text(tokenizer, text, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "INTERIM_TOKENS", 100)  # the other rows look at less
    how = ["--tokenizer", "char"] if tokenizer == "char" else ["--tokenizer", "bpe", "--vocab-size", 300]
    train("--data", text, *TINY[2:], *how, "--steps", 6, "--eval-every", 2, "--out", tmp_path / "out")
    p, bpe = load_model(tmp_path / "out")
    cut = len(TEXT) * 9 // 10
    if tokenizer == "bpe":
        assert bpe.parts.tolist() == train_bpe(TEXT[:cut], 300).parts.tolist(), "BPE saw the validation text"
    tokens, nats = bpe.encode(TEXT[cut:]), 0.0
    for start in range(0, len(tokens) - 1, 16):  # block by block, no token twice
        x, y = tokens[start:start + 16], tokens[start + 1:start + 17]
        logits = gpt_forward(devices.ops("numpy"), p, x[None, :len(y)])[0][0].astype(float)
        nats += (np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(y)), y]).sum()
    row = log(tmp_path / "out")[-1]
    assert float(row["val_loss"]) == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
    characters = len(TEXT[cut:]) - len(bpe.decode(tokens[:1]))
    assert float(row["bits_per_character"]) == pytest.approx(nats / characters / np.log(2), rel=1e-5)


def test_spread_takes_pieces_from_all_over_the_text():
    tokens = np.arange(1000)
    assert training_run.spread(tokens, 1000) is tokens
    some = training_run.spread(tokens, 200)
    assert len(some) == 200 and some[0] == 0 and some[-1] == 999
    assert np.abs(some - np.linspace(0, 999, 200)).max() < 60


def test_the_log_has_means_since_its_last_row_and_the_rate_of_its_step(text, tmp_path):
    for every in 1, 5:
        train("--data", text, *TINY, "--steps", 20, "--lr", 0.1, "--eval-every", every,
              "--out", tmp_path / f"{every}")
    each, fifth = log(tmp_path / "1"), log(tmp_path / "5")
    losses = np.array([float(row["train_loss"]) for row in each])
    means = [float(row["train_loss"]) for row in fifth]
    assert means == pytest.approx(losses.reshape(4, 5).mean(1), rel=1e-5)
    rates = [float(row["learning_rate"]) for row in each]  # 4 steps of warm-up; a 21st step would have 0
    want = [0.1 * step / 4 if step < 4 else 0.1 * (21 - step) / 17 for step in range(1, 21)]
    assert rates == pytest.approx(want, rel=1e-5)
    for rows in each, fifth:
        seconds = np.array([float(row["seconds"]) for row in rows])
        tokens = np.array([float(row["tokens"]) for row in rows])
        assert (np.diff(seconds) > 0).all()
        speed = np.array([float(row["tokens_per_second"]) for row in rows])
        assert (speed[1:] * 1.001 >= np.diff(tokens) / np.diff(seconds)).all(), "only the steps' time counts"


def test_a_run_killed_again_and_again_ends_in_the_same_bits(text, tmp_path):
    options = ["--data", text, *TINY, "--steps", 1500, "--eval-every", 100, "--save-every", 30]
    train(*options, "--out", tmp_path / "whole")
    out, kills, rng = tmp_path / "killed", 0, np.random.default_rng(0)
    state = out / "training.safetensors"

    def saved():
        return state.stat().st_mtime_ns if state.exists() else 0

    running = process(*options, "--out", out)
    while kills < 4:
        before = saved()
        while saved() == before and running.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)  # somewhere between this checkpoint and a later one
        assert running.poll() is None, "the run was over before it could be killed: give it more steps"
        running.kill()
        running.communicate()
        kills += 1
        running = process("--resume", "--out", out)
    _, errors = running.communicate(timeout=100)
    assert running.returncode == 0, errors
    (got, got_log), (want, want_log) = what_was_learned(out), what_was_learned(tmp_path / "whole")
    assert got_log == want_log, f"log.csv after {kills} kills differs from that of a run without"
    assert got == want, f"other bits in {[name for name in want if got[name] != want[name]]}"


def test_a_second_ctrl_c_stops_at_once_and_says_what_was_saved(text, tmp_path, monkeypatch, capsys):
    def hang(trainer, tokens):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(training_run.Trainer, "evaluate", hang)
    with pytest.raises(SystemExit) as stop:
        train("--data", text, *TINY, "--steps", 3, "--out", tmp_path / "a folder")
    printed, errors = capsys.readouterr()
    assert stop.value.code == 130 and "Ctrl-C again stops at once" in printed
    assert "no checkpoint was made yet" in errors and f"--out '{tmp_path}/a folder'" in errors, errors


def test_a_text_without_newline_is_written_on_too(tmp_path, capsys):
    (tmp_path / "line.txt").write_text(TEXT.replace("\n", " "))
    train("--data", tmp_path / "line.txt", *TINY, "--steps", 2, "--out", tmp_path / "out")
    assert "More of its text" in capsys.readouterr().out


def interrupt(monkeypatch, step):
    """Ctrl-C while that step is computed."""
    def train_and_interrupt(trainer, *args):
        for number, result in enumerate(original(trainer, *args), 1):
            if number == step:
                os.kill(os.getpid(), signal.SIGINT)
            yield result

    original = training_run.train
    monkeypatch.setattr(training_run, "train", train_and_interrupt)


@pytest.mark.parametrize("settings", ["--threads 1", "--threads 2", "--threads 3 --batch 5 --optimizer adamw",
                                      "--threads 4 --optimizer sgd", "--device numpy"])
def test_resume_as_ctrl_c_says_ends_in_the_same_bits(settings, text, tmp_path, monkeypatch, capsys):
    """The printed command names no threads and no device: they are remembered."""
    options = ["--data", text, *TINY, *settings.split(), "--steps", 20]
    train(*options, "--out", tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        interrupt(patch, 7)
        train(*options, "--out", out)
    assert stop.value.code == 130
    command = capsys.readouterr().err.split('ARGS="')[1].split('"')[0]
    train(*command.split())
    assert what_was_learned(out) == what_was_learned(tmp_path / "whole")


def test_resume_says_that_other_threads_give_other_bits(text, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt(patch, 3)
        train("--data", text, *TINY, "--steps", 8, "--threads", 1, "--out", tmp_path / "out")
    train("--resume", "--threads", 2, "--out", tmp_path / "out")
    assert "--threads 2 (there: 1)" in capsys.readouterr().out
    assert int(log(tmp_path / "out")[-1]["step"]) == 8


class Crash(BaseException):
    pass


@pytest.mark.parametrize("write", range(1, 10))
def test_a_crash_at_any_write_is_mended_by_resume(write, text, tmp_path, monkeypatch):
    """The write-th file to be finished is not: the process ends there. A run of two saves has 9 writes."""
    options = ["--data", text, *TINY, "--steps", 4, "--save-every", 2, "--eval-every", 1]
    train(*options, "--out", tmp_path / "whole")
    out, count = tmp_path / "out", 0

    def crash(*paths):
        nonlocal count
        count += 1
        if count == write:
            raise Crash
        return original(*paths)

    original = os.replace
    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr(os, "replace", crash)
        train(*options, "--out", out)
    assert count == write, f"the run has {count} writes only"
    if (out / "training.safetensors").exists():
        train("--resume", "--out", out)
    else:
        train(*options, "--out", out)
    assert what_was_learned(out) == what_was_learned(tmp_path / "whole")
    for name in "model.safetensors", "config.json", "tokenizer.json":
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (out / name).read_bytes() == whole, f"{name} is of an earlier step"
    assert (out / "loss.png").exists()


def test_a_kill_while_the_log_is_cut_loses_no_row(tmp_path, monkeypatch):
    log_file = tmp_path / "log.csv"
    rows = [",".join(COLUMNS), *(f"{step},1,1,1,1,1,1,1,1" for step in (10, 20, 30)), "40,1,1"]
    log_file.write_text("\n".join(rows))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cut_log(log_file, 20)
    assert log_file.read_text() == "\n".join(rows)
    monkeypatch.undo()
    cut_log(log_file, 20)
    assert log_file.read_text().split() == rows[:3]


def test_ctrl_c_saves_and_says_how_to_go_on(text, tmp_path):
    out = tmp_path / "out"
    options = ["--data", text, *TINY, "--steps", 100000, "--eval-every", 10, "--save-every", 10]
    running = process(*options, "--out", out)
    while not (out / "model.safetensors").exists() and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors and f"--resume --out {out}" in errors
    step = int(errors.split("checkpoint of step ")[1].split()[0])
    arrays = load_file(out / "training.safetensors")
    assert step > 0 and set(arrays) == {"parameters", "momentum", "variance"}


def test_resume_of_a_complete_run_says_so_and_changes_nothing(text, tmp_path, capsys):
    out = tmp_path / "out"
    train("--data", text, *TINY, "--steps", 4, "--out", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    train("--resume", "--out", out)
    assert "complete" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_earlier_run_is_set_aside(text, tmp_path, capsys):
    for seed in 1, 2:
        train("--data", text, *TINY, "--steps", 2, "--seed", seed, "--out", tmp_path / "out")
    assert "is kept as" in capsys.readouterr().out
    assert what_was_learned(tmp_path / "out.1") != what_was_learned(tmp_path / "out")


def test_numpy_and_cpu_learn_the_same(text, tmp_path):
    losses = {}
    for device in "numpy", "cpu":
        train("--data", text, *TINY, "--steps", 20, "--device", device, "--out", tmp_path / device)
        losses[device] = [float(row["val_loss"]) for row in log(tmp_path / device)]
    assert losses["cpu"] == pytest.approx(losses["numpy"], abs=1e-4)


def test_a_full_disk_leaves_the_last_checkpoint(text, tmp_path):
    """A process that may write no file above 10 kB meets what a full disk is: write() fails halfway."""
    out = tmp_path / "out"
    train("--data", text, *TINY, "--steps", 20, "--out", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    out.rename(tmp_path / "kept")
    options = ["--data", text, *TINY, "--steps", 20, "--seed", "1", "--out", tmp_path / "kept2"]
    running = process(*options, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000)))
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 2 and errors.count("\n") == 1 and "could not be written" in errors, errors
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == before
    assert not (tmp_path / "kept2" / "training.safetensors").exists()


@pytest.mark.parametrize("steps", [1, 50])
def test_a_loss_of_nan_stops_the_run_with_a_remedy_and_is_not_saved(steps, text, tmp_path, capsys):
    """The update that blows up comes after a loss that was fine: before a save it is looked at again."""
    with pytest.raises(SystemExit) as stop:
        train("--data", text, *TINY, "--optimizer", "sgd", "--lr", 9e29, "--steps", steps, "--save-every", 1,
              "--out", tmp_path / "out")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "--lr" in error and "step" in error, error
    assert not (tmp_path / "out" / "training.safetensors").exists(), "it kept a model that answers NaN"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Ctrl-C is still the stopped run's"


def test_a_checkpoint_from_before_the_loss_was_nan_stays(text, tmp_path, capsys, monkeypatch):
    def blow_up(trainer, *args):
        for loss in original(trainer, *args):
            if trainer.steps == 5:
                trainer.p.flat[:] = np.nan
            yield loss

    original, out = training_run.train, tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(training_run, "train", blow_up)
        train("--data", text, *TINY, "--steps", 8, "--save-every", 2, "--eval-every", 8, "--out", out)
    assert f"the checkpoint of step 4 is in {out}" in capsys.readouterr().err
    train("--resume", "--out", out)
    assert np.isfinite(float(log(out)[-1]["val_loss"]))


def test_a_second_training_in_the_same_folder_is_refused(text, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--data", text, *TINY, "--steps", 100000, "--save-every", 10, "--out", out]
    running = process(*options)
    while not (out / "training.safetensors").exists() and running.poll() is None:
        time.sleep(0.02)
    try:
        for second in options, ["--resume", "--out", out]:
            with pytest.raises(SystemExit) as stop:
                train(*second)
            error = capsys.readouterr().err
            assert stop.value.code == 2 and error.count("\n") == 1 and "another training" in error, error
    finally:
        running.kill()
        running.communicate()
    assert not (tmp_path / "out.1").exists()


@pytest.fixture
def made(tmp_path):
    """Files and folders that a user could name by mistake."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("To be")
    (tmp_path / "binary.txt").write_bytes(b"abc\0def")
    (tmp_path / "latin1.txt").write_bytes("Grüße".encode("latin1"))
    (tmp_path / "tale.txt").write_text(TEXT)
    (tmp_path / "spaces.txt").write_text(5000 * " ")
    (tmp_path / "chinese.txt").write_text("学而时习之不亦说乎。", "utf-8")
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    return tmp_path


BAD = [  # options ({} is the folder of `made`), what the line must say
    ("--data {}/nowhere.txt", "nowhere.txt"),
    ("--data macbeth", "grimm"),
    ("--data {}/empty.txt", "empty"),
    ("--data {}/binary.txt", "offset 3"),
    ("--data {}/latin1.txt", "offset 2"),
    ("--data {}/a_folder", "folder"),
    ("--data {}/short.txt", "short"),
    ("--data {}/tale.txt --out {}/tale.txt", "file is in the way"),
    ("--data {}/tale.txt --out {}/tale.txt/deeper", "file is in the way"),
    ("--data {}/tale.txt --out {}/mine", "choose another folder"),
    ("--data {}/tale.txt --out /proc/nowhere", "/proc/nowhere"),
    ("--data " + 300 * "x", "xxx"),
    ("--data {}/chinese.txt --block 4", "short"),
    ("--heads 3 --embd 16", "multiple"),
    ("--steps 0", "whole number"),
    ("--steps -5", "whole number"),
    ("--steps many", "many"),
    ("--steps 1.5", "1.5"),
    ("--batch 0", "whole number"),
    ("--lr nan", "nan"),
    ("--lr 0", "above 0"),
    ("--lr -1", "above 0"),
    ("--lr inf", "inf"),
    ("--lr 1e300", "1e300"),
    ("--data {}/spaces.txt --tokenizer char", "1 kinds"),
    ("--embd 9999998 --heads 1", "memory"),
    ("--lr fast", "fast"),
    ("--seed -1", "whole number"),
    ("--block 0", "whole number"),
    ("--block 100000 --data {}/tale.txt", "too short"),
    ("--threads 0", "whole number"),
    ("--vocab-size 10", "10"),
    ("--tokenizer char --vocab-size 300", "--vocab-size"),
    ("--tokenizer words", "words"),
    ("--optimizer lion", "lion"),
    ("--device tpu", "tpu"),
    ("--device cuda", "cuda"),
    ("--stepz 3", "--stepz"),
    ("shakespeare", "shakespeare"),
    ("--resume --out {}/nowhere", "nowhere"),
    ("--resume --out {}/a_folder", "a_folder"),
]


@pytest.mark.parametrize("options, says", BAD, ids=[options for options, _ in BAD])
def test_bad_input_gets_one_line_and_exit_code_2(options, says, made, capsys, monkeypatch):
    monkeypatch.chdir(made)
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        train(*options.format(made, made).split())
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and says in error, f"expected one line with {says!r}, got: {error}"
    after = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert after == before, "it wrote something"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path):
    path.write_bytes((path.parent / "model.safetensors").read_bytes())


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_something_else(path):
    save_state(path, {"parameters": np.zeros(3, np.float32)}, {"lesson": 24})


@pytest.mark.parametrize("damage", [truncate, foreign, flip, of_something_else])
def test_resume_refuses_a_damaged_checkpoint_and_leaves_it(damage, text, tmp_path, capsys):
    out = tmp_path / "out"
    train("--data", text, *TINY, "--steps", 4, "--out", out)
    damage(out / "training.safetensors")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SystemExit) as stop:
        train("--resume", "--out", out)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "training.safetensors" in error, error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("options, says", [
    ("--embd 32", "--embd 32 (there: 16)"),
    ("--lr 0.5 --seed 3", "--seed 3"),
    ("--optimizer sgd", "--optimizer sgd"),
])
def test_resume_names_the_settings_that_differ(options, says, text, tmp_path, capsys):
    out = tmp_path / "out"
    train("--data", text, *TINY, "--steps", 4, "--out", out)
    with pytest.raises(SystemExit) as stop:
        train("--resume", "--out", out, *options.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and says in error, error


def test_resume_notices_that_the_text_has_changed(text, tmp_path, capsys):
    train("--data", text, *TINY, "--steps", 4, "--out", tmp_path / "out")
    pathlib.Path(text).write_text(TEXT + "The end.")
    with pytest.raises(SystemExit):
        train("--resume", "--out", tmp_path / "out")
    assert "no longer the text" in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_to_is_named(text, tmp_path, capsys, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))  # root, which CI is, would be let in

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(SystemExit) as stop:
        train("--data", text, *TINY, "--steps", 2, "--out", tmp_path / "locked" / "out")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "Permission denied" in error, error


def test_out_may_be_the_folder_where_we_are(text, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train("--data", text, *TINY, "--steps", 2, "--out", ".")
    assert (tmp_path / "here" / "log.csv").exists()
