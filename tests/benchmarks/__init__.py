"""Side-by-side measurements: `make bench`, or python -m tests.benchmarks [SUBJECT ...].

What is compared runs in processes of its own that take turns, round by round, on the same machine in the same
minutes. A ratio is taken in each round; the table shows the median of the ratios and their range. Before
anything is timed, its losses and gradients must agree with PyTorch's in float64.

    training.py   tokens a second: ours, PyTorch eager, PyTorch compiled
    limit.py      the share of a training step that its weight matrices' products alone would take
    generation.py tokens a second of one text with a KV cache, and of a prompt: ours, PyTorch, the memory
    mlm.py        a training step of lesson 14's encoder: ours, PyTorch eager, PyTorch compiled
    recurrent.py  an LSTM forward and backward: ours, torch.nn.LSTM
    tokenizer.py  byte-pair encoding: ours, the tokenizers library, tiktoken
    word_vectors.py words a second and neighbours: ours, gensim's Word2Vec
    startup.py    python -m lessons N, the first and the second time
    memory.py     peak memory of the main job
    gradients.py  every gradient of a small GPT, in both rooms

    configs.py, race.py, report.py    the models that are measured, the taking of turns, tables and JSON
    ours.py, pytorch.py, matmuls.py, decode_*.py, mlm_*.py, recurrent_*.py, bandwidth.py    the workers
"""
