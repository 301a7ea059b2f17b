"""Worker: an operation of kernels/cuda, or training with it.    python -m tests.benchmarks.gpu_ours matmul"""
import sys

import numpy as np

from kernels.cuda import attention, block, first_steps, layernorm, losses, matmul, optimizers
from kernels.cuda.compiled import blocks_for, stream
from kernels.cuda.memory import empty, on_gpu
from lessons import devices
from lessons.gpu_trainer import GPUTrainer
from lessons.l18_training import Trainer
from lessons.recipes import RECIPES
from tests.benchmarks import configs, gpu
from tests.benchmarks.race import serve


def operation(name, *sizes):  # -> run() -> [Array]
    """Inputs lie on the GPU. What an operation overwrites it meets again: the same work on other numbers."""
    subject, _, version = name.partition(", ")
    arrays = [on_gpu(x, x.dtype) for x in gpu.inputs(subject, *sizes)]
    if subject == "matmul":
        out = empty(sizes[:2])
        return lambda: after(matmul.matmul(*arrays, out), out)
    if subject == "attention":
        return attentions(*arrays, *sizes, "materialised" if version else "flash")
    if subject == "layer norm":
        return lambda: [layernorm.layernorm_forward(*arrays[:3])[0]]
    if subject == "layer norm backward":
        *x_weight_bias, dout = arrays
        _, cache = layernorm.layernorm_forward(*x_weight_bias)
        dweight, dbias = empty(sizes[1]), empty(sizes[1])
        return lambda: [layernorm.layernorm_backward(dout, cache, dweight, dbias), dweight, dbias]
    if subject == "gelu":
        (y, bias), out = arrays, empty(sizes)
        launch = block.bias_gelu[blocks_for(out.size, block.THREADS), block.THREADS]
        return lambda: after(launch(y, bias, out), out, y)
    if subject == "cross-entropy":
        return lambda: list(losses.cross_entropy(*arrays, sizes[0]))
    if subject == "AdamW":
        (p, g), m, v = arrays, on_gpu(np.zeros(sizes)), on_gpu(np.zeros(sizes))
        given = configs.LR, *configs.BETAS, configs.EPS, configs.WEIGHT_DECAY, 1
        numbers, scale = on_gpu(np.array(optimizers.adamw_numbers(*given))), on_gpu(np.ones(1))
        return lambda: after(optimizers.adamw_step(p, g, m, v, numbers, scale), p, m, v)
    (x,), out = arrays, empty(sizes)
    return lambda: after(first_steps.copy[blocks_for(x.size, 1024), 256](x, out), out)


def after(launched, *written):
    """What a launch, which returns nothing, has written."""
    return list(written)


def attentions(qkv, dout, B, H, T, D, version):
    keys, dqkv = attention.everything(B), empty(qkv.shape)
    forward, backward = (getattr(attention, f"{version}_{way}") for way in ("forward", "backward"))

    def both():
        out, cache = forward(qkv, qkv, H * D, H, True, keys)
        backward(dout, cache, dqkv, dqkv)
        return [out, dqkv]
    return both


def trainer(make, config, rows, **options):
    recipe = RECIPES["adamw"]._replace(lr=configs.LR, weight_decay=configs.WEIGHT_DECAY, batch=rows,
                                       steps=10**9, warmup=1)  # a constant rate
    return make(config=config, optimizer="adamw", recipe=recipe, **options)


def gpu_trainer(config, rows):
    made = trainer(GPUTrainer, config, rows, ops=devices.ops("cuda"))
    made.p.flat.set(configs.start_parameters(config).flat)
    return made


def step_on(made, X, Y):  # -> loss
    made.X.set(X)
    made.Y.set(Y)
    return float(made.step(made.X, made.Y)[0])


def serve_training(key):
    made, (X, Y, text) = gpu_trainer(*gpu.CONFIGS[key]), gpu.batches(key)

    def step(i):
        for _ in range(gpu.REPEAT[key]):
            loss, _ = made.step(*made.rows(text, 0))
        float(loss)

    def check(path):
        """As in ours.py."""
        first = [step_on(made, X[0], Y[0])]
        np.savez(path, **{name: view.numpy() for name, view in made.grads[0].views.items()})
        return first + [step_on(made, x, y) for x, y in zip(X[1:], Y[1:])]

    serve(step, check)


def both_losses(config, rows, steps):  # -> losses on the GPU, on the CPU
    on_cpu = trainer(Trainer, config, rows, ops=devices.ops("cpu"), threads=configs.THREADS)
    on_cpu.p.flat[:] = configs.start_parameters(config).flat
    on_device, (X, Y) = gpu_trainer(config, rows), configs.batches(config, rows, steps)
    return ([step_on(on_device, x, y) for x, y in zip(X, Y)],
            [float(on_cpu.step(x, y)[0]) for x, y in zip(X, Y)])


def serve_operation(name):
    run = operation(name, *gpu.SIZES[name.partition(", ")[0]])

    def step(i):
        for _ in range(gpu.REPEAT.get(name.partition(", ")[0], 10)):
            run()
        stream().synchronize()

    serve(step, lambda path: np.savez(path, **gpu.sample([x.numpy() for x in run()])))


def main(name):
    if name == "losses":
        serve(None, lambda path: both_losses(*gpu.CONFIGS["S"], gpu.STEPS))
    elif name in gpu.CONFIGS:
        serve_training(name)
    else:
        serve_operation(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
