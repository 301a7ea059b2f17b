"""One BLAS thread, as in training: several threads would wait for each other in a test's small products."""
import numpy  # noqa: F401  (its BLAS must be loaded before it can be limited)
from threadpoolctl import threadpool_limits

threadpool_limits(1, "blas")
