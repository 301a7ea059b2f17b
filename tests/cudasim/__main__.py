"""python -m tests.cudasim TEST ...: pytest in a process where the simulator stands for numba.cuda."""
import sys

import pytest

from tests import cudasim

cudasim.install()
sys.exit(pytest.main(sys.argv[1:]))
