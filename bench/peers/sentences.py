# SPDX-License-Identifier: MIT
"""Sentence embeddings by all-MiniLM-L6-v2, by heed_embed and by its peers: run.sh runs this.

  sentences.py --heed heed_embed PEER...

The texts are sentences of examples/data/alice.txt. The peers get the token ids and the weights that
heed_embed reads, and batches of 32 texts of like length, padded. heed_embed's time is that of a run
with all texts less that of a run with one; it includes the tokenizer. Each program runs in turn,
several times; what is printed is the fastest turn, and how far a peer's vectors are from heed's.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time

import numpy as np

BATCH = 32


def default_folder():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(os.environ.get("HEED_MINILM") or cache + "/heed/minilm")


def texts_of(count):
    book = (pathlib.Path(__file__).parents[2] / "examples/data/alice.txt").read_text()
    sentences = re.findall(r"[A-Z][^.!?\n]{20,}[.!?]", book)
    return sentences[:count]


class Weights(dict):
    """The tensors of a safetensors file: a JSON header, then what it points to."""

    def __init__(self, folder):
        data = (folder / "model.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:8 + size]).items():
            if name != "__metadata__" and entry["dtype"] == "F32":
                begin, end = (8 + size + o for o in entry["data_offsets"])
                self[name] = np.frombuffer(data[begin:end], np.float32).reshape(entry["shape"])
        self.config = json.loads((folder / "config.json").read_text())


def batches_of(ids):
    """Positions of the texts, ids padded with 0, lengths."""
    order = sorted(range(len(ids)), key=lambda t: len(ids[t]))
    for first in range(0, len(order), BATCH):
        places = order[first:first + BATCH]
        lengths = np.array([len(ids[t]) for t in places], np.int32)
        padded = np.zeros((len(places), lengths.max()), np.int64)
        for row, t in zip(padded, places):
            row[:len(ids[t])] = ids[t]
        yield places, padded, lengths


def torch(weights, threads):
    import torch
    import torch.nn.functional as f
    w = {n: torch.from_numpy(x.copy()) for n, x in weights.items()}
    c = weights.config
    heads, eps = c["num_attention_heads"], c["layer_norm_eps"]

    def linear(x, name):
        return f.linear(x, w[name + ".weight"], w[name + ".bias"])

    def norm(x, name):
        return f.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], eps)

    def encode(ids, lengths):
        torch.set_num_threads(threads)
        with torch.inference_mode():
            ids, lengths = torch.from_numpy(ids), torch.from_numpy(lengths)
            real = torch.arange(ids.shape[1])[None] < lengths[:, None]
            x = w["embeddings.word_embeddings.weight"][ids]
            x = x + w["embeddings.position_embeddings.weight"][:ids.shape[1]]
            x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
            for layer in range(c["num_hidden_layers"]):
                at = f"encoder.layer.{layer}."
                q, k, v = (linear(x, at + "attention.self." + n).unflatten(-1, (heads, -1)).transpose(1, 2)
                           for n in ("query", "key", "value"))
                mixed = f.scaled_dot_product_attention(q, k, v, real[:, None, None])
                mixed = linear(mixed.transpose(1, 2).flatten(2), at + "attention.output.dense")
                x = norm(x + mixed, at + "attention.output.LayerNorm")
                inner = f.gelu(linear(x, at + "intermediate.dense"))
                x = norm(x + linear(inner, at + "output.dense"), at + "output.LayerNorm")
            return f.normalize((x * real[..., None]).sum(1), dim=-1).numpy()
    return encode


def onnxruntime(weights, threads):
    """The graph that ONNX Runtime's own optimiser makes of BERT: its fused operators."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
    c = weights.config
    nodes, constants = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind, inputs, outputs, domain="", **attributes):
        nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def product(x, name, out):
        return node("MatMul", [x, constant(name + ".weight", weights[name + ".weight"].T)], [out])

    def bias(name):
        return constant(name + ".bias", weights[name + ".bias"])

    def residual_norm(x, skip, name, added, out):
        return node("SkipLayerNormalization",
                    [x, skip, constant(name + ".weight", weights[name + ".weight"]), bias(name), bias(added)],
                    [out], "com.microsoft", epsilon=c["layer_norm_eps"])

    words = constant("words", weights["embeddings.word_embeddings.weight"]
                     + weights["embeddings.token_type_embeddings.weight"][0])
    places = constant("places", weights["embeddings.position_embeddings.weight"])
    x = node("Add", [node("Gather", [words, "ids"], ["word"]), node("Gather", [places, "at"], ["place"])], ["sum"])
    first = "embeddings.LayerNorm"
    x = node("LayerNormalization", [x, constant(first + ".weight", weights[first + ".weight"]), bias(first)],
             ["x"], epsilon=c["layer_norm_eps"], axis=-1)
    for layer in range(c["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        projections = [at + "attention.self." + n for n in ("query", "key", "value")]
        q, k, v = (product(x, name, name) for name in projections)
        biases = constant(at + "biases", np.concatenate([weights[p + ".bias"] for p in projections]))
        mixed = node("MultiHeadAttention", [q, k, v, biases, "lengths"], [at + "mixed"], "com.microsoft",
                     num_heads=c["num_attention_heads"])
        dense = at + "attention.output.dense"
        x = residual_norm(product(mixed, dense, dense), x, at + "attention.output.LayerNorm", dense, at + "y")
        up, down = at + "intermediate.dense", at + "output.dense"
        inner = node("BiasGelu", [product(x, up, up), bias(up)], [at + "gelu"], "com.microsoft")
        x = residual_norm(product(inner, down, down), x, at + "output.LayerNorm", down, at + "z")
    graph = helper.make_graph(
        nodes, "bert",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "n"]),
         helper.make_tensor_value_info("at", TensorProto.INT64, ["n"]),
         helper.make_tensor_value_info("lengths", TensorProto.INT32, ["b"])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["b", "n", c["hidden_size"]])], constants)
    model = helper.make_model(graph, ir_version=9, opset_imports=[
        helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def encode(ids, lengths):
        n = ids.shape[1]
        (hidden,) = session.run(None, {"ids": ids, "at": np.arange(n), "lengths": lengths})
        total = (hidden * (np.arange(n)[None] < lengths[:, None])[..., None]).sum(1)
        return total / np.linalg.norm(total, axis=-1, keepdims=True)
    return encode


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--heed", required=True)
    parser.add_argument("--model", type=pathlib.Path, default=default_folder())
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("peers", nargs="*")
    given = parser.parse_args()
    texts = texts_of(given.texts)

    def run_heed(texts, *options):
        start = time.perf_counter()
        said = subprocess.run([given.heed, "--model", given.model, *options], check=True, text=True,
                              input="".join(t + "\n" for t in texts), capture_output=True).stdout
        return time.perf_counter() - start, said

    ids = [[int(i) for i in line.split()] for line in run_heed(texts, "--ids")[1].splitlines()]
    weights = Weights(given.model)
    kinds = {"torch": torch, "onnxruntime": onnxruntime}
    tokens = sum(map(len, ids))
    print(f"\n{len(texts)} sentences, {tokens / len(texts):.1f} tokens each: sentences/s\n")
    print("| | heed_embed | " + " | ".join(given.peers) + " |")
    print("|---" * (len(given.peers) + 2) + "|")
    farthest = {}
    for threads in (1, 2):
        peers = {p: kinds[p](weights, threads) for p in given.peers}
        seconds = {p: [] for p in ["heed", *peers]}
        for _ in range(given.turns):
            with tempfile.TemporaryDirectory() as folder:
                options = ("--threads", str(threads), "--npy", folder + "/vectors.npy")
                alone, _ = run_heed(texts[:1], *options)
                seconds["heed"].append(run_heed(texts, *options)[0] - alone)
                wanted = np.load(folder + "/vectors.npy")
            for name, encode in peers.items():
                vectors = np.empty_like(wanted)
                batches = list(batches_of(ids))
                encode(*batches[0][1:])
                start = time.perf_counter()
                for places, padded, lengths in batches:
                    vectors[places] = encode(padded, lengths)
                seconds[name].append(time.perf_counter() - start)
                farthest[name] = max(farthest.get(name, 0), np.abs(vectors - wanted).max())
        texts_timed = {"heed": len(texts) - 1}
        rates = " | ".join(f"{texts_timed.get(n, len(texts)) / min(s):.1f}"
                           for n, s in seconds.items())
        print(f"| {threads} thread{'s' * (threads > 1)} | {rates} |", flush=True)
    print("\nFarthest from heed's vectors: " + ", ".join(f"{n} {e:.1e}" for n, e in farthest.items()))
    assert all(e < 2e-5 for e in farthest.values())


if __name__ == "__main__":
    main()
