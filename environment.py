"""Makes .venv: a Python of this folder's own, with the packages of requirements.txt. `make` calls it.

    python3 environment.py          what the lessons and the tests need        (Windows: py environment.py)
    python3 environment.py bench    and what `make bench` compares with; cuda, ptx: the other extras below

.venv/ok, .venv/bench and so on say that everything is there. While packages are written, .venv/unfinished
exists: a set-up that was killed leaves it behind, and the next one starts anew. uv does the work where
there is one, pip elsewhere. Nothing here is newer than Python 3.6, so an old one can say that it is too old.
"""
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

VENV = ".venv"
PYTHON = os.path.join(VENV, *(["Scripts", "python.exe"] if os.name == "nt" else ["bin", "python"]))
OK, UNFINISHED, LOG = (os.path.join(VENV, name) for name in ("ok", "unfinished", "setup.log"))
TORCH = "torch==2.13.0"  # in no lock: requirements-bench.txt says why
EXTRAS = {  # in requirements-NAME.txt; what is said before it is installed
    "bench": "what make bench compares with, once: PyTorch, tokenizers, transformers, gensim.\n"
             "To download: about 2.8 GB on Linux, where PyTorch brings CUDA along; 0.3 GB with its build\n"
             "for CPUs, which does as well: see requirements-bench.txt.",
    "cuda": "what --device cuda needs, once: numba-cuda and NVIDIA's compiler.\n"
            "To download: about 220 MB; 560 MB on disk.",
    "ptx": "what make ptx compiles with, once: numba-cuda, NVIDIA's compiler and assembler.\n"
           "To download: about 210 MB; 540 MB on disk.",
}


def main(extras):
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    for extra in extras:
        refuse(extra)
    wait_for_others()
    uv = shutil.which("uv")
    if fresh(OK, "requirements.txt"):
        print(".venv is as requirements.txt wants it.", flush=True)
    else:
        if usable():
            print("Bringing .venv to the state of requirements.txt ...", flush=True)
        else:
            create(uv)
        remove(OK)
        install(uv, "--require-hashes", "-r", "requirements.txt")
        touch(OK)
    for extra in extras:
        mark, lock = os.path.join(VENV, extra), "requirements-" + extra + ".txt"
        if not fresh(mark, lock, OK):
            print("Installing " + EXTRAS[extra], flush=True)
            install(uv, "--require-hashes", "-r", "requirements.txt", "-r", lock)
            if extra == "bench":
                install(uv, TORCH)
            touch(mark)


def refuse(extra):
    """Ends with one line, before anything is installed, where the extra would be of no use."""
    if extra not in EXTRAS:
        sys.exit(f"There is no extra {extra!r}. There are: {', '.join(EXTRAS)}.")
    if extra == "ptx" and sys.platform == "darwin":
        sys.exit("NVIDIA's compiler exists for Linux and Windows, not for macOS: make ptx cannot run here.")
    if extra == "cuda":
        gpus, version = ask_the_driver()
        if not gpus:
            sys.exit("--device cuda needs an NVIDIA GPU with its driver, and this machine has none. Without "
                     "--device the CPU trains; make lesson 26 shows the GPU's kernels without a GPU.")
        if version < 13000:
            sys.exit("--device cuda needs an NVIDIA driver for CUDA 13.0, which is 580 or newer. This one is "
                     f"for CUDA {version // 1000}.{version % 1000 // 10}: update it.")


def ask_the_driver():  # -> how many GPUs it has; 13000 for CUDA 13.0
    gpus, version = ctypes.c_int(), ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0, 0
    if driver.cuInit(0) == 0:
        driver.cuDeviceGetCount(ctypes.byref(gpus))
        driver.cuDriverGetVersion(ctypes.byref(version))
    return gpus.value, version.value


def wait_for_others():
    """Two set-ups at once would delete each other's work. The lock ends with the process, however it ends."""
    if fcntl is None:
        return
    folder = os.open(".", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another set-up is at work in this folder; waiting for it.", flush=True)
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        pass  # a disk that knows no locks


def fresh(mark, *others):
    """Is what the mark stands for there, and not older than the others? make asks the same."""
    return (usable() and os.path.exists(mark)
            and all(os.path.getmtime(mark) >= os.path.getmtime(other) for other in others))


def usable():
    """Is there a .venv to go on with: not left halfway, and its Python new enough?"""
    return (os.path.exists(PYTHON) and not os.path.exists(UNFINISHED)
            and run(PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))")[0] == 0)


def create(uv):
    """A .venv without packages. What stood there before goes: it was left halfway, or its Python is gone."""
    if not uv and not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        sys.exit(f"{sys.executable} cannot make a .venv: it lacks the venv module. "
                 "Debian, Ubuntu: apt install python3-venv. Then again.")
    python = getattr(sys, "_base_executable", sys.executable)  # sys.executable may lie in the .venv that goes
    if os.path.lexists(VENV):
        (remove if os.path.islink(VENV) else shutil.rmtree)(VENV)
    os.mkdir(VENV)
    touch(UNFINISHED)
    print(f"Setting up .venv with {'uv' if uv else 'pip'}, once: the packages of requirements.txt, "
          "about 120 MB to download and up to 470 MB on disk.", flush=True)
    code, said = (run(uv, "venv", "--allow-existing", "--python", python, VENV) if uv
                  else run(python, "-m", "venv", VENV))
    if code:
        sys.exit(f"No .venv could be made: {last_line(said)}")


def install(uv, *what):
    touch(UNFINISHED)
    if not uv and run(PYTHON, "-m", "pip", "--version")[0]:
        run(PYTHON, "-m", "ensurepip")  # uv made this .venv, without pip, and is gone
    code, said = (run(uv, "pip", "install", "--python", PYTHON, *what) if uv
                  else run(PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *what))
    if code >= 0:  # not killed: even where it failed, it has left nothing half written
        remove(UNFINISHED)
    if code:
        with open(LOG, "w", encoding="utf-8") as log:
            log.write(said)
        if any(sign in said for sign in ("connection broken", "error sending request", "dns error")):
            sys.exit("No network: the packages could not be fetched. Try again with one; behind a proxy, set "
                     f"HTTPS_PROXY, and PIP_CERT if it has a certificate of its own. (Details: {LOG})")
        sys.exit(f"The packages could not be installed: {last_line(said)} (details: {LOG})")


def run(*command):
    """The exit code, and all that the command printed. A terminal shows its latest line meanwhile."""
    said, terminal = [], sys.stdout.isatty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env=dict(os.environ, PYTHONUNBUFFERED="1")) as process:
        for line in process.stdout:
            said.append(line.decode("utf-8", "replace"))
            if terminal:
                show(said[-1])
    if terminal and said:
        show("")
    return process.returncode, "".join(said)


def show(line):
    """In place of the line before, and in ASCII: what any terminal can print."""
    print("\r" + line.strip()[:70].ljust(70).encode("ascii", "replace").decode(), end="\r", flush=True)


def last_line(said):
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    return ([line for line in lines if "error" in line.lower()] or lines)[-1]


def touch(path):
    open(path, "w").close()


def remove(path):
    if os.path.lexists(path):
        os.remove(path)


if __name__ == "__main__":
    if sys.version_info < (3, 11):
        sys.exit(f"Python 3.11 or newer is needed, and this is {sys.version_info[0]}.{sys.version_info[1]}. "
                 "If there is a newer one: make PYTHON=python3.12")
    try:
        main(extras=sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\nStopped. The next call starts anew.")
    except OSError as error:
        sys.exit(f"Cannot write .venv in {os.getcwd()}: {error}. "
                 "Copy the folder to a place where you can write, and start there.")
