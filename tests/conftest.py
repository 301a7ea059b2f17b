"""One BLAS thread, as in training: a test's small products are slower on several threads that wait for each other."""
import numpy  # noqa: F401  (its BLAS must be loaded before it can be limited)
from threadpoolctl import threadpool_limits

threadpool_limits(1, "blas")
