"""Makes bpe_merges.json: what the tokenizers library learns from data/grimm.txt. Run it from the root of the
repository, with tokenizers installed (the tests need only its result):

    python tests/goldens/make_bpe_merges.py

min_frequency=2, because the library would else go on to merge pairs that occur once. The library, too, takes
the pair with the smaller ids of several that are equally frequent, and gives ids to the bytes in the order of
their symbols, which is GPT-2's order. So the merges must be the same to the last one.
"""
import json
from pathlib import Path

from tokenizers import Tokenizer, __version__, models, pre_tokenizers, trainers

here = Path(__file__).parent
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
trainer = trainers.BpeTrainer(vocab_size=1024, min_frequency=2, show_progress=False,
                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
tokenizer.train_from_iterator([(here / "../../data/grimm.txt").read_text("utf-8")], trainer)
pairs = json.loads(tokenizer.to_str())["model"]["merges"]
merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
result = {"made by": f"tokenizers {__version__}", "text": "grimm.txt", "vocab_size": 1024, "merges": merges}
(here / "bpe_merges.json").write_text(json.dumps(result, ensure_ascii=False, indent=0) + "\n", "utf-8")
