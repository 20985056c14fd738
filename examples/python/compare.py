# SPDX-License-Identifier: MIT
"""Compares the module heed with the same formulas in NumPy, in double.

  PYTHONPATH=FOLDER python3 compare.py        FOLDER has the module
"""

import numpy as np

import heed

rng = np.random.default_rng(1)
B, H, KV, N, M, D = 2, 4, 2, 37, 50, 16


def draw(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


def per_query_head(x):
    return np.repeat(x, H // KV, axis=1).astype(np.float64)


def softmax_attention(q, k, v, visible):
    s = np.where(visible, q.astype(np.float64) @ per_query_head(k).swapaxes(2, 3) / np.sqrt(D), -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ per_query_head(v)


def check(what, got, want):
    # Sums of at most M numbers of size about 1, each rounded to float.
    error = np.abs(got - want).max() / np.abs(want).max()
    print(f"{what:28} {error:.1e}")
    assert got.dtype == np.float32 and got.shape == want.shape
    assert error < M * np.finfo(np.float32).eps


def check_refused(call, error, *words):
    try:
        call()
    except error as e:
        said = str(e)
        assert all(w in said for w in words), said
        print("refused:", said.splitlines()[0])
    else:
        raise AssertionError("not refused")


q, k, v = draw(B, H, N, D), draw(B, KV, M, D), draw(B, KV, M, D)
i, j = np.arange(N)[:, None] + M - N, np.arange(M)[None]
everything = np.full((N, M), True)
whole = softmax_attention(q, k, v, everything)

check("attention", heed.attention(q, k, v), whole)
check("causal, window", heed.attention(q, k, v, causal=True, window=9, offset=M - N),
      softmax_attention(q, k, v, (j <= i) & (j >= i - 9)))
check("scale", heed.attention(q, k, v, scale=2 / np.sqrt(D)), softmax_attention(2 * q, k, v, everything))

# Memory by tokens, and axes backwards, are strides and not copies. Inputs may be read-only.
by_tokens = np.ascontiguousarray(q.swapaxes(1, 2)).swapaxes(1, 2)
assert not by_tokens.flags.c_contiguous
by_tokens.flags.writeable = False
check("strides", heed.attention(by_tokens, k, v), whole)
check("backwards", heed.attention(q[..., ::-1], k[..., ::-1], v), whole)
check("every second channel", heed.attention(np.repeat(q, 2, -1)[..., ::2], k, v), whole)
check("one head for all", heed.attention(q, np.broadcast_to(k[:, :1], k.shape), v),
      softmax_attention(q, np.repeat(k[:, :1], KV, 1), v, everything))

cache = heed.Cache(batch=B, kv_heads=KV, capacity=N, head_dim=D)
steps = [slice(0, 30), slice(30, 31), slice(31, N)]
parts = [cache.decode(q[:, :, s], k[:, :, s], v[:, :, s]) for s in steps]
assert len(cache) == N == cache.capacity
check("cache", np.concatenate(parts, axis=2),
      softmax_attention(q, k[:, :, :N], v[:, :, :N], np.tri(N, dtype=bool)))
check_refused(lambda: cache.decode(q[:, :, :1], k[:, :, :1], v[:, :, :1]), Exception, str(N))


def elu_plus_1(x):
    x = x.astype(np.float64)
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


weights = elu_plus_1(q) @ elu_plus_1(per_query_head(k)).swapaxes(2, 3)
check("linear attention", heed.linear_attention(q, k, v),
      weights @ per_query_head(v) / weights.sum(-1, keepdims=True))
past = np.tril(weights[..., :N])
check("linear attention, causal", heed.linear_attention(q, k[:, :, :N], v[:, :, :N], causal=True),
      past @ per_query_head(v[:, :, :N]) / past.sum(-1, keepdims=True))

keys, values = draw(B, H, N, D), draw(B, H, N, D)
keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
decay, beta = -np.abs(draw(B, H, N)), rng.random((B, H, N), dtype=np.float32)
state, want = np.zeros((B, H, D, D)), np.zeros((B, H, N, D))
for t in range(N):
    state *= np.exp(decay[:, :, t, None, None].astype(np.float64))
    read = np.einsum("bhkv,bhk->bhv", state, keys[:, :, t])
    state += np.einsum("bh,bhk,bhv->bhkv", beta[:, :, t], keys[:, :, t], values[:, :, t] - read)
    want[:, :, t] = np.einsum("bhkv,bhk->bhv", state, q[:, :, t]) / np.sqrt(D)
check("gated delta rule", heed.gated_delta_attention(q, keys, values, decay, beta), want)

all_threads = heed.attention(q, k, v)
heed.set_threads(1)
assert np.array_equal(heed.attention(q, k, v), all_threads)

bytes_off = np.frombuffer(bytes(1 + 4 * q.size), np.uint8)[1:].view(np.float32).reshape(q.shape)
check_refused(lambda: heed.attention(q.astype(np.float64), k, v), TypeError, "q", "float64")
check_refused(lambda: heed.attention(q.astype(">f4"), k, v), TypeError, "q", "float32")
check_refused(lambda: heed.attention(q, k[0], v), ValueError, "k", "3", "4")
check_refused(lambda: heed.attention(q, k[..., 1:], v), ValueError, "k", str(D - 1), str(D))
check_refused(lambda: heed.attention(bytes_off, k, v), ValueError, "q", "aligned")
check_refused(lambda: heed.attention(q.tolist(), k, v), TypeError)
check_refused(lambda: heed.set_threads(0), ValueError, "0")
print("all as NumPy has them")
