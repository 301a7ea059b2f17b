"""For NVIDIA GPUs: written with numba.cuda, one file a subject, the names of kernels/cpu.

Without a GPU the same kernels run, thread by thread, in the tests' simulator (tests/cudasim).
"""
import os

# Folders in LESSONS_PATH come first, as in PYTHONPATH: with MINE=1, what a learner wrote is found there.
__path__[:0] = [os.path.join(folder, *__name__.split("."))
                for folder in os.environ.get("LESSONS_PATH", "").split(os.pathsep) if folder]
