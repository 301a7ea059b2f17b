"""A graph without a GPU: what kernels/cuda/compiled.py's record() asks of the driver.

`with graphs():` between the beginning and the end of a recording launches are noted, not made, as on a GPU;
copies from or to the host are an error, as there.
"""
import contextlib
import sys
import types
from unittest import mock

from tests.cudasim.arrays import Fault
from tests.cudasim.module import DeviceArray
from tests.cudasim.run import Launcher

OK = "CUDA_SUCCESS"


class Driver(types.ModuleType):
    CUresult = types.SimpleNamespace(CUDA_SUCCESS=OK)
    CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2)

    def __init__(self):
        super().__init__("driver")
        self.noted, self.played = None, 0
        self.launch = Launcher.launch

    def cuStreamBeginCapture(self, stream, mode):
        self.noted = []
        return (OK,)

    def cuStreamEndCapture(self, stream):
        noted, self.noted = self.noted, None
        return OK, noted

    def cuGraphInstantiate(self, graph, flags):
        return OK, graph

    def cuGraphLaunch(self, graph, stream):
        self.played += 1
        for arguments in graph:
            self.launch(*arguments)
        return (OK,)


@contextlib.contextmanager
def graphs():
    """Yields the driver: its `played` counts the graphs that were launched."""
    driver = Driver()

    def launch(*arguments):
        if driver.noted is None:
            return driver.launch(*arguments)
        driver.noted.append(arguments)

    def copy(name):
        real = getattr(DeviceArray, name)

        def checked(*arguments, **options):
            if driver.noted is not None:
                raise Fault(f"{name} while a graph is recorded: a graph holds launches alone")
            return real(*arguments, **options)
        return mock.patch.object(DeviceArray, name, checked)

    modules = {"cuda": types.ModuleType("cuda"), "cuda.bindings": types.ModuleType("cuda.bindings")}
    modules["cuda.bindings"].driver = driver
    with mock.patch.dict(sys.modules, modules), mock.patch.object(Launcher, "launch", launch), \
            copy("copy_to_host"), copy("copy_to_device"):
        yield driver
