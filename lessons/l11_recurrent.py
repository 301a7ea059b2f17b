"""Lesson 11: recurrent. Can a network read a text of any length with the same few weights?

It can if it keeps a state, and makes the next one of the state and the next letter:

    RNN    h_t = tanh(x_t W_x + h_{t-1} W_h + b)                                        Elman 1990
    LSTM   c_t = f c_{t-1} + i g,   h_t = o tanh(c_t)                   Hochreiter & Schmidhuber 1997
           i, f, o = sigmoid(...),   g = tanh(...)       of an x_t W_x + h_{t-1} W_h + b each

To learn, go back through the loop (backpropagation through time: Werbos 1990). Each step back multiplies the
gradient by W_h^T and by tanh's slope: after 100 steps it is nearly 0, or it explodes (Pascanu, Mikolov &
Bengio 2013, section 2). An LSTM's c is only multiplied by f, which the network itself opens (the forget gate:
Gers, Schmidhuber & Cummins 2000). Against explosion the gradient is clipped (lesson 10). And since a text is
long, backward goes through a window of T letters: the state's value is carried into the next, no gradient.

T steps of time come first, B rows of text, I inputs, H hidden numbers, V letters.
`make lesson 11` draws the gradient's norm against the distance, then an LSTM learns to write.
"""
import numpy as np

from lessons.l08_losses import cross_entropy
from lessons.l09_backprop import sigmoid
from lessons.recurrent_parameters import kind_of, layer, load, parameters, start_state  # noqa: F401 (league)


def rnn_forward(ops, x, state, w_x, w_h, bias):  # (T, B, I), (B, H), (I, H), (H, H), (H,) -> (T, B, H)
    """h_t = tanh(x_t W_x + h_{t-1} W_h + bias) for t = 0 .. T - 1, where h_{-1} is the state that came in.
    Returns all h (T, B, H), the last of them as the new state, and the cache.

    Make x W_x for all times in one product of (T B, I) rows, before the loop: nothing in it waits for h.
    cache = (x, hs, w_x, w_h) with hs (T + 1, B, H): the old state, then h_0 .. h_{T-1}. In x's dtype; no
    argument is changed. ops is for the LSTM."""
    T, B, _ = x.shape
    hs = np.empty((T + 1, B, len(w_h)), x.dtype)
    z = (x.reshape(T * B, -1) @ w_x + bias).reshape(T, B, -1)
    hs[0] = state
    for t in range(T):
        hs[t + 1] = np.tanh(z[t] + hs[t] @ w_h)
    return hs[1:], hs[-1], (x, hs, w_x, w_h)


def rnn_backward(ops, dhs, cache, dw_x, dw_h, dbias):  # (T, B, H) -> (T, B, I), (B, H)
    """dhs[t] is what the layer above wants of h_t; what the next step wants of it is added. From the last
    step to the first, with dh = 0 behind the last:

        dz_t = (dhs[t] + dh) (1 - h_t^2),   dh = dz_t W_h^T          tanh's slope; dh goes to the step before

    The weights are the same at every step, so their gradients are sums over all steps and rows: one product
    each, after the loop. Write dw_x = sum of x_t^T dz_t, dw_h = sum of h_{t-1}^T dz_t, dbias = sum of dz_t.
    Return dx = dz W_x^T (T, B, I) and the last dh, the gradient of the state that came in."""
    x, hs, w_x, w_h = cache
    dz, dh = np.empty_like(dhs), np.zeros_like(hs[0])
    for t in reversed(range(len(x))):
        dz[t] = (dhs[t] + dh) * (1 - hs[t + 1] ** 2)
        dh = dz[t] @ w_h.T
    return through_weights(x, hs, dz, w_x, dw_x, dw_h, dbias), dh


def through_weights(x, hs, dz, w_x, dw_x, dw_h, dbias):
    """The products after the loop: write three gradients, return dx. hs[:-1] has the h_{t-1} of all t."""
    rows = dz.reshape(-1, dz.shape[-1])
    np.matmul(x.reshape(len(rows), -1).T, rows, out=dw_x)
    np.matmul(hs[:-1].reshape(len(rows), -1).T, rows, out=dw_h)
    rows.sum(axis=0, out=dbias)
    return (rows @ w_x.T).reshape(x.shape)


def lstm_step_forward(gates, product, bias, c_before, c, h):  # (B, 4H), (B, 4H), (4H,), (B, H) three times
    """One step of time, between the products. gates has x_t W_x, product has h_{t-1} W_h. Columns: four
    blocks of H, in PyTorch's order i, f, g, o. In place, z = gates + product + bias becomes

        i, f, o = sigmoid(z) of their block,   g = tanh(z) of its own
        c = f * c_before + i * g               what is kept, and what is new: written into c
        h = o * tanh(c)                        what is shown: written into h
    """
    H = c.shape[1]
    gates += product + bias
    i, f, g, o = gates[:, :H], gates[:, H:2 * H], gates[:, 2 * H:3 * H], gates[:, 3 * H:]  # views
    i[:], f[:], g[:], o[:] = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c[:] = f * c_before + i * g
    h[:] = o * np.tanh(c)


def lstm_step_backward(dh, dc, gates, c_before, c):  # (B, H), (B, H), (B, 4H), (B, H), (B, H)
    """The step in reverse: gates holds the i, f, g, o of forward, dc what the next step wants of c. Two ways
    lead to c, and with t = tanh(c)

        dc <- dc + dh * o * (1 - t^2)
        di = dc * g,   df = dc * c_before,   dg = dc * i,   do = dh * t

    Then over gates, in place, each times its slope: a sigmoid's s (1 - s), or 1 - g^2. And over dc what the
    step before gets: dc * f. The other arguments are only read.
    """
    H = c.shape[1]
    i, f, g, o = gates[:, :H], gates[:, H:2 * H], gates[:, 2 * H:3 * H], gates[:, 3 * H:]  # views
    t = np.tanh(c)
    dc += dh * o * (1 - t * t)
    o[:] = dh * t * o * (1 - o)
    i[:], g[:] = dc * g * i * (1 - i), dc * i * (1 - g * g)  # the right side is worked out first
    f[:], dc[:] = dc * c_before * f * (1 - f), dc * f


def lstm_forward(ops, x, state, w_x, w_h, bias):  # (T, B, I), (2, B, H), (I, 4H), (H, 4H), (4H,) -> (T, B, H)
    """As rnn_forward, with ops.lstm_step_forward in the loop. A state is (2, B, H): h, then c. Returns all h
    (T, B, H), the new state, and cache = (x, hs, cs, gates, w_x, w_h), where hs and cs (T + 1, B, H) begin
    with the old state, and gates (T, B, 4H) is what the steps made of x W_x."""
    T, B, _ = x.shape
    hs, cs = np.empty((2, T + 1, B, len(w_h)), x.dtype)
    gates = (x.reshape(T * B, -1) @ w_x).reshape(T, B, -1)
    hs[0], cs[0] = state
    for t in range(T):
        ops.lstm_step_forward(gates[t], hs[t] @ w_h, bias, cs[t], cs[t + 1], hs[t + 1])
    return hs[1:], np.stack([hs[-1], cs[-1]]), (x, hs, cs, gates, w_x, w_h)


def lstm_backward(ops, dhs, cache, dw_x, dw_h, dbias):  # (T, B, H) -> (T, B, I), (2, B, H)
    """As rnn_backward, with ops.lstm_step_backward in the loop; dh and dc are 0 behind the last step. The
    cache's gates are used up: they become dz. Returns dx and the gradient of the old state, dh, then dc."""
    x, hs, cs, gates, w_x, w_h = cache
    dh, dc = np.zeros((2, *hs[0].shape), hs.dtype)
    for t in reversed(range(len(x))):
        ops.lstm_step_backward(dhs[t] + dh, dc, gates[t], cs[t], cs[t + 1])
        dh = gates[t] @ w_h.T
    return through_weights(x, hs, gates, w_x, dw_x, dw_h, dbias), np.stack([dh, dc])


KINDS = {"rnn": (rnn_forward, rnn_backward), "lstm": (lstm_forward, lstm_backward)}


def model_forward(ops, p, codes, states):  # (T, B) int, a state a layer -> logits (T, B, V), states, caches
    """A letter is a row of V numbers, all 0 but a 1 at its code, in w_h's dtype. Layer 0 reads these rows,
    each other the h of the one below, from its own state on. logits = top h @ out.weight + out.bias. Returns
    them, the new states, [each layer's cache ..., top h]. kind_of(p)[0] is the kind, layer(p, n) weights."""
    forward, new, caches = KINDS[kind_of(p)[0]][0], [], []
    x = np.eye(len(p["out.bias"]), dtype=p["0.w_h"].dtype)[codes]
    for n, state in enumerate(states):
        x, state, cache = forward(ops, x, state, *layer(p, n))
        new.append(state)
        caches.append(cache)
    return x @ p["out.weight"] + p["out.bias"], new, [*caches, x]


def model_backward(ops, dlogits, caches, p, g):  # (T, B, V)
    """Writes the gradient of every parameter into g, whose names and shapes are those of p: first out.weight
    and out.bias (sums over all T and B), then the layers from the top down, dx of one being dhs of the next.
    What lies before the window gets no gradient: dstate is dropped."""
    *caches, h = caches
    backward, rows = KINDS[kind_of(p)[0]][1], dlogits.reshape(-1, dlogits.shape[-1])
    np.matmul(h.reshape(len(rows), -1).T, rows, out=g["out.weight"])
    rows.sum(axis=0, out=g["out.bias"])
    dx = (rows @ p["out.weight"].T).reshape(h.shape)
    for n in reversed(range(len(caches))):
        dx, _ = backward(ops, dx, caches[n], *layer(g, n))


def window_gradient(ops, p, window, states, total, g):  # (T + 1, B) int -> float, states
    """Each letter of the window is to predict the one below it: sum of -ln p / total, and the new states.
    Writes the gradient into g."""
    logits, states, caches = model_forward(ops, p, window[:-1], states)
    loss, dlogits = cross_entropy(logits, window[1:], total)
    model_backward(ops, dlogits, caches, p, g)
    return loss, states


def stretches(codes, rows):  # (n,) -> (n // rows, rows)
    """The text as columns: column b is its b-th stretch, from top to bottom. So rows of a batch read on, and
    their states can be carried. What is left over at the end is dropped.

    >>> stretches(np.arange(7), 2)
    array([[0, 3],
           [1, 4],
           [2, 5]])
    """
    n = len(codes) // rows
    return np.ascontiguousarray(codes[:n * rows].reshape(rows, n).T)


def nats(ops, model, before, codes, rows=64, warm=256, T=128):  # (n,) int, (m,) int -> (m,) float64
    """-ln p of each of codes, predicted from what precedes it. They are cut into `rows` stretches, side by
    side. Each begins with zeros, reads the `warm` letters before its own, then those: windows of T letters.
    before has a letter at least."""
    text = np.concatenate([before[-warm:], codes])
    warm, m = len(text) - len(codes), len(codes)
    n = -(-m // rows)  # of each stretch, the last one shorter
    places = np.minimum(np.arange(warm + n)[:, None] + n * np.arange(rows), len(text) - 1)
    columns, states, found = text[places], start_state(model, rows), []
    for t in range(0, warm + n - 1, T):
        window = columns[t:t + T + 1]
        logits, states, _ = model_forward(ops, model, window[:-1], states)
        logits -= logits.max(axis=-1, keepdims=True)
        right = np.take_along_axis(logits, window[1:, :, None], axis=-1)[..., 0]
        found.append(np.log(np.exp(logits).sum(axis=-1, dtype=np.float64)) - right)
    return np.concatenate(found)[warm - 1:].T.reshape(-1)[:m]


def main(*argv):
    from lessons import recurrent_gradients, recurrent_run
    if argv:
        return recurrent_run.main(argv)
    recurrent_gradients.main()
    recurrent_run.demonstrate()
