"""Write recurrent.npz: PyTorch's float64 numbers for a tiny RNN and LSTM, for tests/test_recurrent_golden.py.

    python tests/goldens/make_recurrent_golden.py      (needs torch; the tests do not)

torch.nn.RNN and torch.nn.LSTM, one layer each, two on top of each other. Nothing of the lessons is used.
Weights are (in, out), and a layer's bias is the sum of PyTorch's two. The loss is the sum of dhs * h, with
the upper layer's h. For kind in rnn, lstm and layer n in 0, 1 the file holds, in the order of computation:

    x, dhs                                         (T, B, I), (T, B, H)
    start/KIND.n.w_x, .w_h, .bias, .state          state is (B, H), or for an LSTM (2, B, H): h and c
    activation/KIND.n.hs, .state                   all h, and the state after the last step
    gradient/KIND.n.w_x, .w_h, .bias, .state       the upper layer's first; then
    gradient/KIND.x
"""
from pathlib import Path

import numpy as np
import torch

T, B, I, H = 5, 3, 4, 6


def packed(parts):  # [(1, B, H), ...] -> (B, H), or (2, B, H)
    return parts[0][0] if len(parts) == 1 else torch.cat(list(parts))


def main():
    torch.manual_seed(11)
    torch.set_default_dtype(torch.float64)
    draw = lambda *shape: torch.randn(shape).float().double()  # numbers that float32 has
    x, dhs = draw(T, B, I), draw(T, B, H)
    arrays = {"x": x, "dhs": dhs}
    for kind, cell in ("rnn", torch.nn.RNN), ("lstm", torch.nn.LSTM):
        inputs = out = x.clone().requires_grad_()
        layers, states = [cell(I, H), cell(H, H)], []
        for n, layer in enumerate(layers):
            with torch.no_grad():
                for weight in layer.parameters():
                    weight.copy_(draw(*weight.shape) * 0.5)
                layer.bias_hh_l0[:] = 0
            h, c = (draw(1, B, H).requires_grad_() for _ in range(2))
            states.append([h] if kind == "rnn" else [h, c])
            arrays |= {f"start/{kind}.{n}.w_x": layer.weight_ih_l0.T,
                       f"start/{kind}.{n}.w_h": layer.weight_hh_l0.T,
                       f"start/{kind}.{n}.bias": layer.bias_ih_l0,
                       f"start/{kind}.{n}.state": packed(states[n])}
            out, after = layer(out, h if kind == "rnn" else (h, c))
            arrays |= {f"activation/{kind}.{n}.hs": out,
                       f"activation/{kind}.{n}.state": packed([after] if kind == "rnn" else after)}
        (out * dhs).sum().backward()
        for n in 1, 0:
            layer = layers[n]
            arrays |= {f"gradient/{kind}.{n}.w_x": layer.weight_ih_l0.grad.T,
                       f"gradient/{kind}.{n}.w_h": layer.weight_hh_l0.grad.T,
                       f"gradient/{kind}.{n}.bias": layer.bias_ih_l0.grad,
                       f"gradient/{kind}.{n}.state": packed([part.grad for part in states[n]])}
        arrays[f"gradient/{kind}.x"] = inputs.grad
    np.savez_compressed(Path(__file__).parent / "recurrent.npz",
                        **{name: a.detach().numpy() for name, a in arrays.items()})


if __name__ == "__main__":
    main()
