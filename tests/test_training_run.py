"""The command line of lesson 18: what it writes, what it survives, what it answers to bad input."""
import contextlib
import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from lessons import devices, training_job, training_run, training_text
from lessons.__main__ import run as lessons_run
from lessons.errors import InputError
from lessons.l05_tokenizer import train_bpe
from lessons.l16_gpt import gpt_forward
from lessons.l17_weights import load_model, load_state, save_state
from lessons.recipes import RECIPES
from lessons.run_folder import COLUMNS, cut_log, draw, read_log
from lessons.training_options import complete

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


@pytest.mark.parametrize("how", ["--tokenizer char", "--tokenizer bpe --vocab-size 300",
                                 "--tokenizer char --dropout 0.5"])
def test_the_last_row_is_the_saved_models_loss_on_all_validation_text(how, text, tmp_path, monkeypatch):
    monkeypatch.setattr(training_job, "INTERIM_TOKENS", 100)  # the other rows look at less
    train("--data", text, *TINY[2:], *how.split(), "--steps", 6, "--eval-every", 2, "--out", tmp_path / "out")
    p, bpe = load_model(tmp_path / "out")
    cut = len(TEXT) * 9 // 10
    if "bpe" in how:
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


@pytest.mark.parametrize("how", ["--tokenizer char", "--tokenizer bpe --vocab-size 600"])
def test_a_chinese_text_by_its_name(how, tmp_path, capsys):
    train("--data", "lunyu", *TINY[2:], *how.split(), "--steps", 20, "--out", tmp_path / "out")
    text = (ROOT / "data" / "lunyu.txt").read_text(encoding="utf-8")
    cut, (_, tokenizer) = len(text) * 9 // 10, load_model(tmp_path / "out")
    training, validation = tokenizer.encode(text[:cut]), tokenizer.encode(text[cut:])
    printed, row = capsys.readouterr().out, log(tmp_path / "out")[-1]
    assert f"lunyu: {len(text):,} characters" in printed
    assert f"{len(training) + len(validation):,} tokens of {tokenizer.vocab_size:,} kinds" in printed
    each = float(row["bits_per_character"]) / float(row["val_loss"]) * np.log(2)
    assert each == pytest.approx(len(validation) / (len(text) - cut), rel=1e-3), "tokens a character"
    assert tokenizer.vocab_size == (len(set(text)) if "char" in how else 600)
    if "char" in how:
        assert each == pytest.approx(1) and "\ufffd" not in printed, "a character is a token: none is halved"


@pytest.mark.parametrize("last", [1, 2])  # of the three bytes of a character in UTF-8
def test_the_sample_does_not_end_in_half_a_character(last, text, tmp_path, monkeypatch, capsys):
    tokens = train_bpe("", 256).encode("学而时习之乎")[:last - 3]  # 256 tokens are the 256 bytes
    monkeypatch.setattr(training_run, "generate", lambda *_, **__: iter(tokens))
    train("--data", text, *TINY[2:], "--vocab-size", 256, "--steps", 1, "--out", tmp_path / "out")
    assert "It writes:\n\n学而时习之\n\nIn " in capsys.readouterr().out


@pytest.mark.parametrize("losses, overfits", [((3, 2, 3), True), ((3, 2, 1), False), ((3, 2, 2.01), False)])
def test_a_run_that_was_better_before_says_when(losses, overfits, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training_job, "evaluate", lambda trainer, _: losses[trainer.steps // 2 - 1])
    train("--data", text, *TINY, "--steps", 6, "--eval-every", 2, "--out", tmp_path / "out")
    says = f"At step 4 it was better: {2 / np.log(2):.4f}. "
    printed = capsys.readouterr().out
    assert (says in printed) == ("Try --steps 4," in printed) == overfits, printed


def test_spread_takes_pieces_from_all_over_the_text():
    tokens = np.arange(1000)
    assert training_text.spread(tokens, 1000) is tokens
    some = training_text.spread(tokens, 200)
    assert len(some) == 200 and some[0] == 0 and some[-1] == 999
    assert np.abs(some - np.linspace(0, 999, 200)).max() < 60


def test_the_log_has_means_since_its_last_row_and_the_rate_of_its_step(text, tmp_path):
    for every in 1, 5:
        train("--data", text, *TINY, "--steps", 20, "--lr", 0.1, "--eval-every", every,
              "--out", tmp_path / f"{every}")
    each, fifth = log(tmp_path / "1"), log(tmp_path / "5")
    for name in "train_loss", "grad_norm":
        values = np.array([float(row[name]) for row in each])
        means = [float(row[name]) for row in fifth]
        assert means == pytest.approx(values.reshape(4, 5).mean(1), rel=1e-5), name
    rates = [float(row["learning_rate"]) for row in each]  # 4 steps of warm-up; a 21st step would have 0
    want = [0.1 * step / 4 if step < 4 else 0.1 * (21 - step) / 17 for step in range(1, 21)]
    assert rates == pytest.approx(want, rel=1e-5)
    for rows in each, fifth:
        seconds = np.array([float(row["seconds"]) for row in rows])
        tokens = np.array([float(row["tokens"]) for row in rows])
        assert (np.diff(seconds) > 0).all()
        speed = np.array([float(row["tokens_per_second"]) for row in rows])
        assert (speed[1:] * 1.001 >= np.diff(tokens) / np.diff(seconds)).all(), "only the steps' time counts"


def test_the_log_has_ten_rows_for_one_evaluation(text, tmp_path):
    train("--data", text, *TINY, "--steps", 300, "--out", tmp_path / "out")
    rows = log(tmp_path / "out")
    assert [int(row["step"]) for row in rows] == list(range(10, 301, 10))
    evaluated = [int(row["step"]) for row in rows if row["val_loss"] and row["bits_per_character"]]
    assert evaluated == [100, 200, 300], "every evaluation takes time; the rest of a row does not"
    others = set(COLUMNS) - {"val_loss", "bits_per_character"}
    assert all(row[name] for row in rows for name in others)
    read = read_log(tmp_path / "out")
    assert [row["step"] for row in read if "val_loss" in row] == evaluated and read[0]["step"] == 10


def test_draw_shows_loss_rate_and_norm_over_the_same_steps(tmp_path, monkeypatch):
    rows = [f"{step},{step * 8},{4 - step / 10},{'' if step % 2 else 3},{'' if step % 2 else 2},"
            f"{step / 1000},{1 + step / 100},5,6" for step in range(1, 7)]
    (tmp_path / "log.csv").write_text("\n".join([",".join(COLUMNS), *rows]))
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    draw(tmp_path)
    loss, rate, norm = figures[0].axes
    assert loss.get_xlim() == rate.get_xlim() == norm.get_xlim() and norm.get_xlabel().startswith("step (8 ")
    steps = list(range(1, 7))
    for line, x, y in [(loss.lines[0], steps, [4 - step / 10 for step in steps]),
                       (loss.lines[1], [2, 4, 6], [3, 3, 3]),
                       (rate.lines[0], steps, [step / 1000 for step in steps]),
                       (norm.lines[0], steps, [1 + step / 100 for step in steps])]:
        assert list(line.get_xdata()) == x and line.get_ydata() == pytest.approx(y)
    assert "2.000 bits a character" in loss.get_legend().get_texts()[1].get_text()


@pytest.fixture
def signals():
    """Signals do here what they must do again after the run: Ctrl-C interrupts, the others fail the test."""
    def missed(number, frame):
        raise AssertionError(f"the training did not handle signal {number}")

    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: missed, signal.SIGHUP: missed}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield missed
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert after == handlers, "a signal still does what it did in the stopped run"


@pytest.mark.parametrize("first, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_second_signal_stops_at_once_and_says_what_was_saved(first, code, text, tmp_path, monkeypatch,
                                                               capsys, signals):
    """SIGHUP comes twice, and the second says nothing new."""
    def hang(trainer, tokens):
        os.kill(os.getpid(), getattr(signal, first))
        if first == "SIGHUP":
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGTERM) is signals, "a second SIGTERM has to do what it did before"
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(training_job, "evaluate", hang)
    with pytest.raises(SystemExit) as stop:
        train("--data", text, *TINY, "--steps", 3, "--out", tmp_path / "a folder")
    printed, errors = capsys.readouterr()
    assert stop.value.code == code and "A second Ctrl-C or SIGTERM stops at once" in printed, printed
    assert "no checkpoint was made yet" in errors and f"--out '{tmp_path}/a folder'" in errors, errors


def test_a_text_without_newline_is_written_on_too(tmp_path, capsys):
    (tmp_path / "line.txt").write_text(TEXT.replace("\n", " "))
    train("--data", tmp_path / "line.txt", *TINY, "--steps", 2, "--out", tmp_path / "out")
    assert "More of its text" in capsys.readouterr().out


def interrupt(monkeypatch, step, number=signal.SIGINT):
    """Ctrl-C, or another signal, while that step is computed."""
    def train_and_interrupt(trainer, *args):
        for done, result in enumerate(original(trainer, *args), 1):
            if done == step:
                os.kill(os.getpid(), number)
            yield result

    original = training_job.train
    monkeypatch.setattr(training_job, "train", train_and_interrupt)


@pytest.mark.parametrize("settings", ["--threads 1", "--threads 2", "--threads 3 --batch 5 --optimizer adamw",
                                      "--threads 4 --optimizer sgd", "--device numpy",
                                      "--threads 2 --batch 5 --accumulate 2 --dropout 0.2"])
def test_resume_as_a_stopped_run_says_ends_in_the_same_bits(settings, text, tmp_path, monkeypatch, capsys,
                                                            signals):
    """The printed command names no threads and no device: they are remembered."""
    number = signal.SIGTERM if "--threads 2" in settings else signal.SIGINT  # some of both
    options = ["--data", text, *TINY, *settings.split(), "--steps", 20]
    train(*options, "--out", tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        interrupt(patch, 7, number)
        train(*options, "--out", out)
    assert stop.value.code == 128 + number
    command = capsys.readouterr().err.split('ARGS="')[1].split('"')[0]
    train(*command.split())
    assert what_was_learned(out) == what_was_learned(tmp_path / "whole")


@pytest.mark.parametrize("option, dropout", [("--threads", 0), ("--accumulate", 0.1)])
def test_resume_says_that_other_threads_or_parts_give_other_bits(option, dropout, text, tmp_path, monkeypatch,
                                                                 capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt(patch, 3)
        train("--data", text, *TINY, "--steps", 8, option, 1, "--dropout", dropout, "--out", tmp_path / "out")
    train("--resume", option, 2, "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    assert f"{option} 2 (there: 1)" in printed and ("dropout" in printed) == (dropout > 0), printed
    assert int(log(tmp_path / "out")[-1]["step"]) == 8
    saved = load_state(tmp_path / "out" / "training.safetensors")[1]["settings"]
    assert saved["dropout"] == dropout and saved[option[2:]] == 2


def test_prepare_hands_the_options_to_the_trainer(text, tmp_path):
    given = {"data": text, "tokenizer": "char", "optimizer": "adamw", "layers": 1, "heads": 2, "embd": 6,
             "block": 5, "batch": 3, "steps": 40, "lr": 0.03, "dropout": 0.25, "accumulate": 2, "seed": 8,
             "threads": 9}
    trainer = training_run.prepare(complete(given), None, tmp_path).trainer
    assert trainer.p.config == (59, 5, 1, 2, 6) and trainer.optimizer == "adamw"
    assert trainer.recipe == RECIPES["adamw"]._replace(batch=3, steps=40, lr=0.03, warmup=8)
    assert (trainer.dropout, trainer.accumulate, trainer.seed) == (0.25, 2, 8)
    assert trainer.threads == 3, "a thread without a row would have nothing to do"


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


def test_cut_log_keeps_rows_without_evaluation_and_drops_half_a_row(tmp_path):
    rows = [",".join(COLUMNS), "10,1,1,,,1,1,1,1", "20,1,1,1,1,1,1,1,1", "30,1,1,,,1,1,1,1"]
    for end, kept in ("\n", rows), ("", rows), ("\n40,1,", rows), ("0", rows), ("\0\0", rows[:-1]):
        (tmp_path / "log.csv").write_text("\n".join(rows) + end)
        cut_log(tmp_path / "log.csv", 30)
        assert len((tmp_path / "log.csv").read_text().splitlines()) == len(kept), repr(end)


@pytest.mark.parametrize("damage", [b"", b"20,1,1,1,1,1,1,1", b"20,1,1,1,1,1,1,1,1,1",
                                    b"20,1,nan,1,1,1,1,1,1", b"20,1,x,1,1,1,1,1,1", b"2e1,1,1,1,1,1,1,1,1",
                                    b"20,1,,1,1,1,1,1,1",
                                    5000 * b"2" + b",1,1,1,1,1,1,1,1", b"\xff,1,1,1,1,1,1,1,1"])
def test_cut_log_refuses_what_no_training_wrote(damage, tmp_path):
    rows = ",".join(COLUMNS).encode(), b"10,1,1,,,1,1,1,1", damage, b"30,1,1,,,1,1,1,1\n"
    (tmp_path / "log.csv").write_bytes(b"\n".join(rows))
    with pytest.raises(InputError, match=r"log\.csv is damaged"):
        cut_log(tmp_path / "log.csv", 30)
    assert (tmp_path / "log.csv").read_bytes() == b"\n".join(rows), "it has changed what it refused"


def test_ctrl_c_saves_and_says_how_to_go_on(text, tmp_path):
    out = tmp_path / "out"
    options = ["--data", text, *TINY, "--steps", 100000, "--eval-every", 10, "--save-every", 10]
    running = process(*options, "--out", out, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
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
        losses[device] = [float(row["train_loss"]) for row in log(tmp_path / device)]
    assert losses["cpu"] == pytest.approx(losses["numpy"], abs=1e-4)


@pytest.mark.parametrize("steps", [1, 50])
def test_a_loss_of_nan_stops_the_run_with_a_remedy_and_is_not_saved(steps, text, tmp_path, capsys, signals):
    """The update that blows up comes after a loss that was fine: before a save it is looked at again."""
    with pytest.raises(SystemExit) as stop:
        train("--data", text, *TINY, "--optimizer", "sgd", "--lr", 9e29, "--steps", steps, "--save-every", 1,
              "--out", tmp_path / "out")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "--lr" in error and "step" in error, error
    assert not (tmp_path / "out" / "training.safetensors").exists(), "it kept a model that answers NaN"


def test_a_checkpoint_from_before_the_loss_was_nan_stays(text, tmp_path, capsys, monkeypatch):
    def blow_up(trainer, *args):
        for loss in original(trainer, *args):
            if trainer.steps == 5:
                trainer.p.flat[:] = np.nan
            yield loss

    original, out = training_job.train, tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(training_job, "train", blow_up)
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
    ("--dropout 1", "below 1"),
    ("--dropout=-0.1", "from 0"),
    ("--dropout nan", "nan"),
    ("--accumulate 0", "whole number"),
    ("--accumulate 1.5", "1.5"),
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
    ("--dropout 0.1", "--dropout 0.1 (there: 0.0)"),
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
