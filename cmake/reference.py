#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes docs/reference/ from the comments of the headers that the front headers publish.

  python3 cmake/reference.py            writes the pages
  python3 cmake/reference.py --check    fails where a page is out of date, a public name has no
                                        text, or the page of tasks names what does not exist

A page stands for a front header, a section for each header it includes: the top comment, then
every public name with its declaration and comment; of a function that is an object, the calls that
its comment names. A name has a text where a `///` comment stands
before it (or before an overload of it), or where the header's top comment speaks of it.
"""

import pathlib
import re
import sys

root = pathlib.Path(__file__).resolve().parent.parent
include = root / "include"
pages = root / "docs" / "reference"

# What one has, what one calls, and the page that says the rest.
tasks = [
    ("Exact attention", [
        ("queries, keys and values of one head, several heads, or batches", "attention", "attention"),
        ("the log-sum-exp too, for merges or a backward pass", "attention_with_lse", "attention"),
        ("an output tensor of my own; no allocation", "attention_into", "attention"),
        ("a picture of what a call attends to", "map_weights", "draw"),
        ("to see every score, or a reference to test against", "naive_attention_stages", "attention"),
        ("gradients, for training", "attention_backward", "attention"),
        ("gradients of a bias, slopes or sinks too", "with_gradient", "score"),
        ("padded sentences of different lengths in one batch", "lengths", "score"),
        ("sentences packed one after another, without padding", "ragged_attention", "attention"),
        ("several documents in one sequence, which must not see each other", "documents", "score"),
        ("a decoder: each token sees the earlier ones", "causal", "score"),
        ("a sliding window", "window", "score"),
        ("a boolean mask tensor", "keep", "score"),
        ("an additive mask or a bias tensor", "bias", "score"),
        ("scores bounded by a softcap", "softcap", "score"),
        ("linear biases by distance (ALiBi)", "alibi", "score"),
        ("a learned attention sink", "sink", "score"),
        ("dropout that a backward pass can repeat", "dropout", "score"),
        ("queries that begin in the middle of the keys", "offsets", "api"),
        ("a score or mask of my own: batch, head, query and key of a pair", "position", "core"),
        ("scores that forget by gates", "forgetting_attention", "attention"),
        ("latent attention, absorbed or expanded", "latent_decode_into", "attention"),
        ("results over parts of the keys, to be merged", "merge_partials", "attention"),
        ("long sequences and a learned projection of the keys", "linformer_attention", "attention"),
    ]),
    ("Caches and decoding", [
        ("a KV cache of fixed capacity", "contiguous_cache", "cache"),
        ("sequences of different lengths, each with a slot of its own", "slot_cache", "cache"),
        ("pages, forks of a sequence and shared prefixes", "paged_cache", "cache"),
        ("a cache of 8 or 4 bits", "int8_cache", "cache"),
        ("a window of the newest tokens, in constant memory", "rolling_cache", "cache"),
        ("prompts that share prefixes, as a tree", "prefix_tree", "cache"),
        ("to decode token by token, or prefill in chunks", "decode", "attention"),
        ("sequences with different counts of new tokens in one step", "ragged_decode_into", "attention"),
        ("sequences that share a long prefix, read once for all", "cascade_decode_into", "attention"),
        ("to verify a tree of guessed tokens in one call", "tree_mask", "score"),
        ("of such a tree, to keep one path", "accept_path", "cache"),
        ("to know how much attention each page of a cache gets", "attention_mass", "attention"),
        ("a cache of which a step reads only chosen blocks", "selected_decode", "sparse"),
        ("to choose pages of a cache by their bounds (Quest)", "select_pages", "sparse"),
    ]),
    ("Sparse attention", [
        ("blocks or keys that I chose for each row", "selected_attention", "sparse"),
        ("to choose the keys of largest score", "top_k_keys", "sparse"),
        ("to choose blocks by their means (MoBA)", "mixture_of_blocks", "sparse"),
        ("a pattern of blocks, of lists or of a mask", "block_pattern", "sparse"),
        ("partial blocks of a pattern, with their mask: `blocks(pattern, mask)`", "blocks", "sparse"),
        ("that pattern as a mask of attention", "blocks", "sparse"),
        ("BigBird's pattern", "big_bird", "sparse"),
        ("Longformer's pattern", "longformer", "sparse"),
        ("hashed tokens (Reformer)", "lsh_attention", "sparse"),
        ("the hashes themselves", "lsh_buckets", "sparse"),
        ("clustered tokens (Routing Transformer)", "routing_attention", "sparse"),
        ("native sparse attention", "native_sparse_attention", "sparse"),
        ("to know how much attention a selection keeps", "attention_recall", "sparse"),
    ]),
    ("Linear attention and recurrences", [
        ("linear attention with a feature map", "linear_attention", "linear"),
        ("an unbiased estimate of softmax (Performer)", "performer_attention", "linear"),
        ("cosFormer", "cosformer_attention", "linear"),
        ("a fixed decay of each head (RetNet)", "retention", "linear"),
        ("lightning attention", "lightning_attention", "linear"),
        ("a gate of each channel (GLA)", "gated_attention", "linear"),
        ("a gate of each token", "scalar_gated_attention", "linear"),
        ("Mamba-2", "ssd", "linear"),
        ("the delta rule", "delta_attention", "linear"),
        ("the delta rule with gates", "gated_delta_attention", "linear"),
        ("gradients of a recurrence with gates or a delta rule", "naive_matrix_state_backward", "linear"),
        ("Kimi's delta attention: gates of channels", "channel_gated_delta_attention", "linear"),
        ("RWKV-4", "rwkv4", "linear"),
        ("RWKV-6", "rwkv6", "linear"),
        ("RWKV-7", "rwkv7", "linear"),
        ("Mamba (S6)", "selective_scan", "linear"),
        ("HGRN", "hgrn", "linear"),
        ("the short convolution before a recurrence", "causal_convolution", "linear"),
    ]),
    ("Positions", [
        ("rotary embeddings of queries and keys", "apply_rotary", "rotary"),
        ("the frequencies of my model", "rotary_embedding", "rotary"),
        ("the layout of my model: interleaved or half_split", "rotary_layout", "rotary"),
        ("a longer context than the model was trained for", "yarn_scaling", "rotary"),
    ]),
    ("Tensors, threads and memory", [
        ("a pointer, extents and strides", "make_view", "tensor"),
        ("tokens x heads x channels: my keys lie interleaved", "heads_first", "tensor"),
        ("heads fused into the channels of a projection", "split_heads", "tensor"),
        ("a tensor type of my own", "tensor_traits", "tensor"),
        ("a tensor that owns its memory", "tensor", "tensor"),
        ("threads of heed's own", "thread_pool", "parallel"),
        ("my own pool of threads", "executor", "parallel"),
        ("one thread, or OpenMP's", "serial_executor", "parallel"),
        ("scratch of my own: calls that allocate nothing", "workspace", "core"),
        ("errors without exceptions", "fail", "core"),
        ("a handler of errors where exceptions are off", "set_error_handler", "core"),
        ("tile and block sizes of my own", "tuning", "core"),
        ("one binary for many processors", "select", "dispatch"),
    ]),
    ("Cost before running", [
        ("FLOPs, bytes and memory of a call", "attention_shape", "cost"),
        ("FLOPs, bytes and memory of a model", "model", "cost"),
        ("the time that a machine allows", "roofline", "cost"),
    ]),
]

folders = ["core", "tensor", "parallel", "score", "rotary", "cost", "cache", "api", "attention",
           "linear", "sparse", "dispatch", "draw"]


def published(folder):
    """Headers of the folder's front header, in its order; of api/, which has none, those that
    users read."""
    if folder == "api":
        return ["heed/api/attention_options.hpp", "heed/api/attention_arguments.hpp",
                "heed/api/linear_overloads.hpp"]
    front = (include / "heed" / (folder + ".hpp")).read_text()
    return re.findall(r'#include "(heed/%s/[^"]+)"' % folder, front)


def uncomment(line):
    return re.sub(r"^\s*///? ?", "", line)


def skip_balanced(text, at, opening, closing):
    """The place behind the bracket that closes the one at `at`; strings and comments skipped."""
    depth = 0
    while at < len(text):
        if text.startswith("//", at):
            at = text.find("\n", at)
            if at < 0:
                return len(text)
        elif text[at] in "\"'" and not (text[at] == "'" and text[at - 1].isdigit()):
            quote = text[at]
            at += 1
            while text[at] != quote:
                at += 2 if text[at] == "\\" else 1
        elif text[at] == opening:
            depth += 1
        elif text[at] == closing:
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return at


def declarations(text):
    """(comment, declaration without body, body) of each declaration of a namespace's or a class's
    text."""
    comment, at = [], 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        line = text[at:end]
        if not line.strip() or line.lstrip().startswith("#"):
            if not line.strip():
                comment = []
            at = end + 1
            continue
        if line.lstrip().startswith("//"):
            comment.append(line)
            at = end + 1
            continue
        # A declaration: up to ';' or a body, templates and parentheses skipped.
        begin, head_end, body = at, None, ""
        initialiser = False
        while at < len(text):
            if text.startswith("//", at):
                stop = text.find("\n", at)
                at = len(text) if stop < 0 else stop
                continue
            c = text[at]
            if c == "(":
                at = skip_balanced(text, at, "(", ")")
                continue
            if c == "[":
                at = skip_balanced(text, at, "[", "]")
                continue
            if c == "=" and text[at + 1] != "=" and "operator" not in text[begin:at][-12:]:
                initialiser = True
            if c == "{":
                head_end = at if head_end is None else head_end
                after = skip_balanced(text, at, "{", "}")
                if not body:
                    body = text[at + 1:after - 1]
                at = after
                rest = re.match(r"\s*([;,(=])", text[at:])
                if not rest:
                    break
                continue
            if c == ";":
                head_end = at if head_end is None or initialiser else head_end
                at += 1
                break
            at += 1
        head = text[begin:head_end if head_end is not None else at]
        trailing = re.match(r"[ \t]*//(/<)?[ ]?(.*)", text[at:])
        if trailing:
            comment.append("/// " + trailing.group(2))
            at += trailing.end()
            # Continued on lines that hold a comment alone, indented as far.
            while (more := re.match(r"\n {8,}//(?:/<)? ?(.*)", text[at:])):
                comment[-1] += " " + more.group(1)
                at += more.end()
        yield comment, head, body
        comment = []


def public_text(text):
    """What namespace heed holds, without detail, api and kernel."""
    out = []
    for match in re.finditer(r"^namespace (heed[^{]*)\{", text, re.M):
        name = match.group(1).strip()
        after = skip_balanced(text, match.end() - 1, "{", "}")
        if re.search(r"::(detail|api|kernel)\b", name):
            continue
        body = text[match.end():after - 1]
        prefix = name.rsplit("::", 1)[1] + "::" if re.search(r"HEED_TARGET::\w+", name) else ""
        while (inner := re.search(r"^namespace (\w+) \{", body, re.M)):
            end = skip_balanced(body, inner.end() - 1, "{", "}")
            if inner.group(1) not in ("detail", "api", "kernel"):
                out.append((inner.group(1) + "::", body[inner.end():end - 1]))
            body = body[:inner.start()] + "\n" + body[end:]
        out.append((prefix, body))
    return out


def flat(head):
    return re.sub(r"\s+", " ", head).strip()


def name_of(head):
    """The declared name, or "" where nothing new is declared (specialisations, friends,
    assertions)."""
    text = flat(head)
    if re.match(r"(static_assert|friend|using namespace|extern|template <>|HEED_)", text):
        return ""
    text = re.sub(r"\[\[[^\]]*\]\]", "", text)
    while (match := re.match(r"\s*template ?<", text)):
        depth, at = 0, match.end() - 1
        while True:
            depth += {"<": 1, ">": -1}.get(text[at], 0)
            at += 1
            if depth == 0:
                break
        text = text[at:].lstrip()
    text = re.sub(r"^requires ?(\((?:[^()]|\([^()]*\))*\)|[\w:]+(<[^<>]*(<[^<>]*>)?[^<>]*>)?"
                  r"( && [\w:]+<[^<>]*>)*)", "", text).strip()
    text = re.sub(r"\bdecltype\((?:[^()]|\([^()]*\))*\)", "auto", text)
    if (m := re.match(r"(?:struct|class|enum class|enum|concept|using) (?:alignas\([^)]*\) )?(\w+)(<)?",
                      text)):
        return "" if m.group(2) else m.group(1)
    if (m := re.search(r"\b(operator ?(?:\(\)|\[\]|[^\s\w(]+|[\w:]+(?:<\w+>)?))\s*\(", text)):
        return m.group(1).replace(" ", "", 1) if not m.group(1)[-1].isalnum() else ""
    if (m := re.search(r"(~?\w+)\s*\(", text)) and "= " not in text[:m.start()]:
        return m.group(1)
    text = re.split(r" = |\{", text)[0]
    m = re.search(r"(\w+)\s*$", text)
    return m.group(1) if m else ""


class Entry:
    def __init__(self, name):
        self.name, self.heads, self.comment, self.body, self.kind = name, [], [], "", ""


def entries(text):
    found = {}
    for prefix, body in public_text(text):
        for comment, head, inner in declarations(body):
            name = name_of(head)
            if not name or name.startswith("operator") or name.startswith("~"):
                continue
            if not name[0].isalpha() or name.endswith("_method"):  # what functions are made of
                continue
            entry = found.setdefault(prefix + name, Entry(prefix + name))
            declared = flat(re.sub(r"\[\[nodiscard\]\] ?", "", head))
            entry.heads.append(declared)
            doc = [uncomment(l) for l in comment if l.strip().startswith("//")]
            entry.comment += ([""] if entry.comment and doc else []) + doc
            bare = re.sub(r"^template ?<.*?> ?(?=(struct|class|enum))", "", declared)
            if re.match(r"(struct|class|enum)", bare):
                entry.body, entry.kind = inner, re.match(r"\w+", bare).group(0)
    return found


def members(entry):
    """Rows of a class's public members, or of an enumeration's values."""
    if entry.kind == "enum":
        return [(name, text or "") for name, text in
                re.findall(r"^\s*(\w+),?(?:\s*///< ?(.*))?$", entry.body, re.M)]
    body = re.split(r"^ *(?:private|protected):", entry.body, flags=re.M)[0]
    if entry.kind == "class":
        parts = re.split(r"^ *public:", body, flags=re.M)
        body = parts[1] if len(parts) > 1 else ""
    body = re.sub(r"^ *public:", "", body, flags=re.M)
    rows = []
    for comment, head, _ in declarations(body):
        declared = flat(re.sub(r"\[\[nodiscard\]\] ?", "", head))
        if re.match(r"(static_assert|friend|using|static constexpr stage)", declared):
            continue
        doc = " ".join(uncomment(l).strip() for l in comment)
        rows.append((declared, re.sub(r"^< ?", "", doc)))
    return rows


def cell(text):
    return text.replace("|", "\\|")


def as_markdown(comment):
    """Comment lines as Markdown: tables stay, indented lines are code."""
    out, code = [], False
    for line in comment:
        indented = line.startswith("  ") and line.strip() != ""
        if indented and not code:
            if out and out[-1] != "":
                out.append("")
            out.append("```cpp")
            code = True
        elif code and not indented:
            if line.strip() == "":
                code = False
                out.append("```")
            else:
                code = False
                out += ["```", ""]
        if line.startswith("|") and out and out[-1] != "" and not out[-1].startswith("|"):
            out.append("")
        out.append(line[2:] if code else line)
    if code:
        out.append("```")
    return out


def anchor(name):
    return name.replace("::", "-")


def signatures(entry, bare):
    """(calls, text) of a public function that is an object: the calls that its comment begins with
    or names at the start of a line, and the comment where it says more than those."""
    if not re.match(r"inline constexpr (api|detail|linear_function)", entry.heads[0]):
        return [], entry.comment
    text, calls, rest, at = "\n".join(entry.comment), [], "", 0
    for match in re.finditer(r"^%s\(" % re.escape(bare), text, re.M):
        end = skip_balanced(text, match.end() - 1, "(", ")")
        result = re.compile(r"\s+->\s+(?:(?!\n\n|\n\w+\(\[)[^:.])*").match(text, end)
        rest += text[at:match.start()]
        at = result.end() if result else end
        calls.append(flat(text[match.start():at]))
    rest += text[at:]
    return calls, (entry.comment if rest.strip(" \n:.") else [])


def has_text(entry, bare, header, spoken):
    """A comment of its own, or the header's top comment speaks of it, of what its options or its
    writing form belong to, or is about it: the file has its name."""
    of = re.sub(r"(_attention)?(_options|_extents|_shape|_into)$", "", bare)
    if entry.comment or re.search(r"\b%s(_attention)?\b" % re.escape(of), spoken):
        return True
    return pathlib.Path(header).stem.rstrip("s") in bare


def page(folder, problems, names):
    out = ["<!-- Written by cmake/reference.py from the headers: change those. -->",
           f"# `heed/{folder}.hpp`" if folder != "api" else "# Options and forms of every call", ""]
    for header in published(folder):
        text = (include / header).read_text()
        top = []
        for line in text.splitlines()[1:]:
            if not line.startswith("//"):
                break
            top.append(uncomment(line))
        out += [f"## `{header}`", ""] + as_markdown(top) + [""]
        spoken = " ".join(top)
        for name, entry in entries(text).items():
            bare = name.split("::")[-1]
            names.add((folder, name))
            if not has_text(entry, bare, header, spoken):
                problems.append(f"{header}: {name} has no comment")
            out += [f'### <a id="{anchor(name)}"></a>`{name}`', "", "```cpp"]
            calls, comment = signatures(entry, bare)
            if not calls and re.match(r"inline constexpr api::", entry.heads[0]):
                problems.append(f"{header}: no comment of {name} says how it is called")
            out += calls or list(dict.fromkeys(h + ";" for h in entry.heads))
            out += ["```", ""] + as_markdown(comment) + ([""] if comment else [])
            rows = members(entry) if entry.kind else []
            if rows:
                out += ["| member | |", "|---|---|"]
                out += [f"| `{cell(a)}` | {cell(b)} |" for a, b in rows] + [""]
    return "\n".join(out).rstrip() + "\n"


def task_page(problems, names):
    out = ["<!-- Written by cmake/reference.py: change that. -->", "# Reference", "",
           "Every public name, from the headers' own comments. By task first; the pages are listed "
           "at the end.", ""]
    for title, rows in tasks:
        out += [f"## {title}", "", "| I have, or want | call |", "|---|---|"]
        for want, name, folder in rows:
            if (folder, name) not in names and (folder, "cost::" + name) not in names:
                problems.append(f"page of tasks: {folder}.hpp has no {name}")
            at = name if (folder, name) in names else "cost::" + name
            out.append(f"| {want} | [`{at}`]({folder}.md#{anchor(at)}) |")
        out.append("")
    out += ["## Pages", "", "| page | names |", "|---|---|"]
    for folder in folders:
        of = sum(1 for f, _ in names if f == folder)
        out.append(f"| [{folder}]({folder}.md) | {of} |")
    return "\n".join(out) + "\n"


def main():
    problems, names = [], set()
    texts = {folder + ".md": page(folder, problems, names) for folder in folders}
    texts["README.md"] = task_page(problems, names)
    check = "--check" in sys.argv[1:]
    pages.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        file = pages / name
        if check:
            if not file.exists() or file.read_text() != text:
                problems.append(f"docs/reference/{name} is out of date: run cmake/reference.py")
        else:
            file.write_text(text)
    for problem in problems:
        print(problem)
    if problems:
        return 1
    print(f"reference: {len(names)} public names on {len(folders)} pages")
    return 0


sys.exit(main())
