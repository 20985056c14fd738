# SPDX-License-Identifier: MIT
"""Forward attention, one batch of eight heads, by heed and by its peers: run.sh runs this.

  attention.py --heed heed_bench PEER...

Rates are GFLOP/s of 4 n^2 d operations a head, of the visible half where causal. Each program runs in
turn, several times; what is printed is the fastest call, which the machine's other work slows least.
Inputs are batch x heads x tokens x channels; ONNX Runtime's operator takes and gives tokens x
(heads x channels), in float alone.
"""

import os

# NumPy's product is compared on one thread; read when it is loaded.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import itertools
import re
import subprocess
import time

import numpy as np

HEADS, TOKENS = 8, 2048


def flops(d, causal):
    pairs = TOKENS * (TOKENS + 1) / 2 if causal else TOKENS**2
    return 4 * HEADS * pairs * d


def fastest_seconds(call):
    """Calls for about a second, at least three as heed_bench does, unless they are very slow."""
    call()
    seconds = []
    begin = time.perf_counter()
    while not seconds or time.perf_counter() - begin < (1 if len(seconds) > 2 else 20):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def heed(program):
    def prepare(d, causal, scalar, threads):
        shape = f"h{HEADS},n{TOKENS},d{d},{scalar},t{threads}" + (",causal" if causal else "")

        def rate():
            said = subprocess.run([program, "--shape", shape], check=True, capture_output=True, text=True)
            milliseconds = float(re.search(r"fastest ([0-9.]+)", said.stdout).group(1))
            return flops(d, causal) / milliseconds * 1e-6
        return rate
    return prepare


def torch(d, causal, scalar, threads):
    import torch
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[scalar]
    q, k, v = (torch.randn(1, HEADS, TOKENS, d).to(kind) for _ in range(3))

    def rate():
        torch.set_num_threads(threads)
        with torch.inference_mode():
            seconds = fastest_seconds(
                lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal))
        return flops(d, causal) / seconds * 1e-9
    return rate


def onnxruntime(d, causal, scalar, threads):
    if scalar != "f32":
        return None
    import onnxruntime
    from onnx import TensorProto, helper
    names = ["query", "key", "value"]
    tensor = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, TOKENS, HEADS * d])
    node = helper.make_node("MultiHeadAttention", names, ["out"], domain="com.microsoft",
                            num_heads=HEADS, unidirectional=int(causal))
    model = helper.make_model(helper.make_graph([node], "attention", [tensor(n) for n in names], [tensor("out")]),
                              opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
                              ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(1).standard_normal
    inputs = {n: draw((1, TOKENS, HEADS * d), dtype=np.float32) for n in names}
    return lambda: flops(d, causal) / fastest_seconds(lambda: session.run(None, inputs)) * 1e-9


def products(program, with_torch):
    """What matrix products reach here: Eigen's of the sizes of a head's scores, and the largest."""
    def eigen(m, n, k, scalar):
        if scalar != "f32":
            return None
        said = subprocess.run([program, "--shape", f"n{m},m{n},d{k}", "--method", "product"],
                              check=True, capture_output=True, text=True)
        return 2 * m * n * k / float(re.search(r"fastest ([0-9.]+)", said.stdout).group(1)) * 1e-6

    def numpy(m, n, k, scalar):
        if scalar != "f32":
            return None
        draw = np.random.default_rng(1).standard_normal
        a, b = draw((m, k), dtype=np.float32), draw((k, n), dtype=np.float32)
        out = np.empty((m, n), np.float32)
        return 2 * m * n * k / fastest_seconds(lambda: np.matmul(a, b, out=out)) * 1e-9

    def pytorch(m, n, k, scalar):
        import torch
        torch.set_num_threads(1)
        kind = {"f32": torch.float32, "bf16": torch.bfloat16}[scalar]
        a, b = torch.randn(m, k).to(kind), torch.randn(k, n).to(kind)
        out = torch.empty(m, n, dtype=kind)
        return 2 * m * n * k / fastest_seconds(lambda: torch.mm(a, b, out=out)) * 1e-9

    columns = {"Eigen": eigen, "NumPy": numpy} | ({"PyTorch": pytorch} if with_torch else {})
    print("\nMatrix products, one thread: GFLOP/s\n")
    print("| | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for scalar, k in itertools.product(("f32", "bf16"), (64, 128, TOKENS)):
        rates = [call(TOKENS, TOKENS, k, scalar) for call in columns.values()]
        print(f"| {scalar}, {TOKENS} x {k} by {k} x {TOKENS} | " +
              " | ".join(f"{r:.1f}" if r else "" for r in rates) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--heed", required=True)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("peers", nargs="*")
    given = parser.parse_args()
    programs = {"heed": heed(given.heed)}
    programs.update({p: {"torch": torch, "onnxruntime": onnxruntime}[p] for p in given.peers})

    print(f"\n{HEADS} heads, n {TOKENS}: GFLOP/s\n")
    print("| | " + " | ".join(programs) + " |")
    print("|---" * (len(programs) + 1) + "|")
    for threads, scalar, d, causal in itertools.product((1, 2), ("f32", "bf16"), (64, 128), (False, True)):
        rates = {name: prepare(d, causal, scalar, threads) for name, prepare in programs.items()}
        turns = [{n: r() for n, r in rates.items() if r} for _ in range(given.turns)]
        cells = [f"{max(t[n] for t in turns):.1f}" if rates[n] else "" for n in programs]
        name = f"{scalar}, d {d}{', causal' if causal else ''}, {threads} thread{'s' * (threads > 1)}"
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    products(given.heed, "torch" in given.peers)


if __name__ == "__main__":
    main()
