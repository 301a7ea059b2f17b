"""The command line of lesson 18: what it writes, what it survives, what it answers to bad input."""
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

from lessons.__main__ import run as lessons_run
from lessons.training_run import COLUMNS, cut_log

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
    train("--data", text, *TINY, "--steps", 20, "--out", out)
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json",
                                                     "training.safetensors", "log.csv", "loss.png"}
    rows = log(out)
    assert list(rows[0]) == COLUMNS and [int(row["step"]) for row in rows] == list(range(2, 21, 2))
    assert int(rows[-1]["tokens"]) == 20 * 4 * 16
    printed = capsys.readouterr().out
    assert rows[-1]["bits_per_character"][:4] in printed and str(out) in printed


def test_the_last_row_is_the_loss_of_the_saved_model_on_the_whole_validation_text(text, tmp_path):
    from lessons import devices
    from lessons.l16_gpt import gpt_forward
    from lessons.l17_weights import load_model

    train("--data", text, *TINY, "--steps", 5, "--out", tmp_path / "out")
    p, tokenizer = load_model(tmp_path / "out")
    tokens, nats = tokenizer.encode(TEXT[len(TEXT) * 9 // 10:]), 0.0
    for start in range(0, len(tokens) - 1, 16):  # block by block, no token twice
        x, y = tokens[start:start + 16], tokens[start + 1:start + 17]
        logits = gpt_forward(devices.ops("numpy"), p, x[None, :len(y)])[0][0].astype(float)
        nats += (np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(y)), y]).sum()
    row = log(tmp_path / "out")[-1]
    assert float(row["val_loss"]) == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
    # a token is a character here, so a nat a token is 1 / ln 2 bits a character
    assert float(row["bits_per_character"]) == pytest.approx(nats / (len(tokens) - 1) / np.log(2), rel=1e-5)


def test_a_run_killed_again_and_again_ends_in_the_same_bits(text, tmp_path):
    options = ["--data", text, *TINY, "--steps", 1500, "--eval-every", 100, "--save-every", 30, "--threads", 2]
    train(*options, "--out", tmp_path / "whole")
    out, kills, rng = tmp_path / "killed", 0, np.random.default_rng(0)
    running = process(*options, "--out", out)
    while running.poll() is None:
        while not (out / "training.safetensors").exists() and running.poll() is None:
            time.sleep(0.02)  # before its first checkpoint there is nothing to go on from
        try:
            running.communicate(timeout=1 + rng.random() if kills < 4 else 100)
        except subprocess.TimeoutExpired:
            running.kill()
            running.communicate()
            kills += 1
            running = process("--resume", "--out", out, "--threads", 2)
    assert running.returncode == 0, "the resumed run failed"
    assert kills > 0, "the run was over before it could be killed: give it more steps"
    (got, got_log), (want, want_log) = what_was_learned(out), what_was_learned(tmp_path / "whole")
    assert got_log == want_log, f"log.csv after {kills} kills differs from that of a run without"
    assert got == want, f"after {kills} kills {[name for name in want if got[name] != want[name]]} have other bits"


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
    step = int(errors.split("step ")[1].split()[0])
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
    assert running.returncode == 2 and errors.count("\n") == 1 and "training.safetensors" in errors, errors
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == before
    assert not (tmp_path / "kept2" / "training.safetensors").exists()


def test_a_loss_of_nan_stops_the_run_with_a_remedy(text, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train("--data", text, *TINY, "--optimizer", "sgd", "--lr", 1e30, "--steps", 50, "--save-every", 1,
              "--out", tmp_path / "o")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "--lr" in error and "step" in error, error
    assert np.isfinite(load_file(tmp_path / "o" / "training.safetensors")["parameters"]).all()


@pytest.fixture
def made(tmp_path):
    """Files and folders that a user could name by mistake."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("To be")
    (tmp_path / "binary.txt").write_bytes(b"abc\0def")
    (tmp_path / "latin1.txt").write_bytes("Grüße".encode("latin1"))
    (tmp_path / "tale.txt").write_text(TEXT)
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


@pytest.mark.parametrize("damage", [truncate, foreign, flip])
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
    assert stop.value.code == 2 and error.count("\n") == 1 and "may not be written" in error, error
