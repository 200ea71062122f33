"""Every exercise check recognises typical wrong answers by name, accepts the right one, and survives broken code."""

import difflib
import itertools
import math

from course_lib.check import lesson_00, lesson_01, lesson_02, lesson_03, lesson_04, lesson_05, lesson_06, lesson_07
from course_lib.experiments import peft_taxonomy

import numpy as np
import pytest
import torch
from scipy.stats import norm


def ceil_div(a, b):
    return -(-a // b)


def momentum(w, g, v, rate, mu):
    v = mu * v + g
    return w - rate * v, v


def masked(states, mask):
    return states.masked_fill(mask.unsqueeze(-1) == 0, -math.inf).amax(1)


def fit(parameters, block, blocks, limit):
    return max(0, min(blocks, (limit - 4 * parameters) // (12 * block)))


def early(validation, patience):
    best = waited = 0
    for epoch in range(1, len(validation)):
        best, waited = (epoch, 0) if validation[epoch] > validation[best] else (best, waited + 1)
        if waited == patience:
            break
    return best


def impatient(validation, patience):
    best = waited = 0
    for epoch in range(1, len(validation)):
        best, waited = (epoch, waited) if validation[epoch] > validation[best] else (best, waited + 1)
        if waited == patience:
            break
    return best


def small_bitfit(name):
    return name.endswith((".query.bias", ".intermediate.dense.bias"))


def bottleneck(width, adapters, budget):
    return max(0, (budget // adapters - width) // (2 * width + 1))


def global_mask(changes, k):
    flat = torch.cat([change.abs().flatten() for change in changes.values()])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(k).indices] = True
    parts = mask.split([change.numel() for change in changes.values()])
    return {name: part.view_as(change) for (name, change), part in zip(changes.items(), parts, strict=True)}


def each_mask(changes, k):
    return {name: global_mask({name: c}, min(k, c.numel()))[name] for name, c in changes.items()}


def threshold(changes, k):
    limit = torch.cat([change.abs().flatten() for change in changes.values()]).topk(k).values[-1]
    return {name: change.abs() >= limit for name, change in changes.items()}


def energy_rank(matrix, share, power=2, more=1):
    held = torch.linalg.svdvals(matrix).pow(power).cumsum(0)
    return int((held / held[-1] < share).sum()) + more


def split_change(delta, r, power=0.5, other=0.5):
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return s[:r, None] ** power * v[:r], u[:, :r] * s[:r] ** other


def by_hand(parameters, weight_bytes, trained, trained_bytes, activations, extra_bytes=0):
    always = parameters * weight_bytes + extra_bytes + 2 * trained * trained_bytes
    return always + max(activations, trained * trained_bytes)


def bisected(cost, room, most):
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= room else (low, middle)
    return low


def forever(cost, room, most):
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= room else (low, middle - 1)
    return low


def extrapolated(cost, room, most):
    return max(0, min(most, (room - cost(0)) // (cost(1) - cost(0))))


def levels_of(bits):
    n = 2**bits
    last = (1 - 1 / (2 * n) + 1 - 1 / (2 * (n - 1))) / 2
    above, below = norm.ppf(np.linspace(last, 0.5, n // 2 + 1)[:-1]), norm.ppf(np.linspace(last, 0.5, n // 2)[:-1])
    levels = torch.tensor(np.sort(np.concatenate([-below, [0.0], above])))
    return levels / levels.max()


def equal_rank(m, blocks, d_kv, shapes):
    return int(2 * d_kv * m // sum(map(sum, shapes)))


def first_three(*tensors):
    """Attention whose share is always that of the first three keys."""
    q, k, _, pk, _ = tensors
    return look(*tensors)[0], (torch.cat([pk, k]) @ q / len(q) ** 0.5).softmax(0)[:3].sum()


def look(q, k, v, pk, pv):
    weights = (torch.cat([pk, k]) @ q / math.sqrt(len(q))).softmax(0)
    return weights @ torch.cat([pv, v]), weights[: len(pk)].sum()


def angles(p, e):
    return torch.nn.functional.normalize(p, dim=1) @ torch.nn.functional.normalize(e, dim=1).T


def told(turns, open_turn=False, between="", end="<end>", space=" "):
    said = between.join(f"<{role}>{space}{text}{end}" for role, text in turns)
    return said + ("<assistant>" if open_turn else "")


def turn_labels(turns, role, end=True, trained=("assistant",)):
    labels = []
    for who, ids in turns:
        learned = [ids[0] if role else -100, *ids[1:-1], ids[-1] if end else -100]
        labels += learned if who in trained else [-100] * len(ids)
    return labels


def common(a, b):
    if not a or not b:
        return 0
    return 1 + common(a[1:], b[1:]) if a[0] == b[0] else max(common(a[1:], b), common(a, b[1:]))


ROLES = ("user", "assistant")


def first_fits(a, b):
    """Words of a, each found behind the last one that was found in b."""
    found, rest = 0, iter(b)
    for word in a:
        ahead, rest = itertools.tee(rest)
        if word in ahead:
            found, rest = found + 1, ahead
    return found


def matching_blocks(a, b):
    return sum(block.size for block in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())


def rouge(said, wanted, share="f1", lower=True, length=common):
    a, b = (text.lower().split() if lower else text.split() for text in (said, wanted))
    found = length(a, b)
    return found / {"p": len(a) or 1, "r": len(b), "f1": (len(a) + len(b)) / 2 or 1}[share]


def run_of(a, b):
    runs = [{tuple(words[i:j]) for j in range(len(words) + 1) for i in range(j)} for words in (a, b)]
    return max(map(len, runs[0] & runs[1]), default=0)


def pack(lengths, room, spare=0, check=True):
    rows, left = [], -1
    for i, length in enumerate(lengths):
        if check and length > room:
            raise ValueError(i)
        if length + spare > left:
            rows.append([])
            left = room
        rows[-1].append(i)
        left -= length
    return rows


def first_fit(lengths, room):
    rows = []
    for i, length in enumerate(lengths):
        row = next((row for row in rows if sum(lengths[j] for j in row) + length <= room), None)
        if row is None:
            rows.append(row := [])
        row.append(i)
    return rows


def discounted(ranks, log=np.log2, last=10, divide=True):
    found = [1 / log(1 + rank) if rank <= last else 0.0 for rank in ranks]
    return sum(found) / (len(ranks) if divide else 1)


def entropy(scores, **options):
    return torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)), **options)


def left_out(scores, same, value=-math.inf):
    return scores.masked_fill(same & ~torch.eye(len(scores), dtype=torch.bool), value)


def shortened(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_module(modules, share, more=0, key=None):
    found = set()
    for module in sorted(set(modules), key=key):
        if len(found) >= share * len(modules) + more:
            break
        found |= {i for i, of in enumerate(modules) if of == module}
    return found


def dpo(c, r, cr, rr, b):
    return -torch.log(torch.sigmoid(b * ((c - cr) - (r - rr))))


RIGHT = [
    (lesson_00.optimizer_steps, lambda n, b, a, e: e * ceil_div(ceil_div(n, b), a)),
    (
        lesson_00.combined_loss,
        lambda losses, sizes: sum(x * n for x, n in zip(losses, sizes, strict=True)) / sum(sizes),
    ),
    (lesson_00.momentum_step, momentum),
    (lesson_00.cross_entropy, lambda z, y: torch.logsumexp(z, 0) - z[y]),
    (lesson_01.masked_max, masked),
    (lesson_01.block_parameters, lambda d, f: 4 * (d * d + d) + 2 * d * f + f + d + 4 * d),
    (lesson_01.layers_that_fit, fit),
    (lesson_01.kept_epoch, early),
    (lesson_02.prefix_parameters, lambda m, n, h, w: 2 * m * n * h * w),
    (lesson_02.trains, small_bitfit),
    (lesson_02.widest_bottleneck, bottleneck),
    (lesson_02.top_mask, global_mask),
    (lesson_02.front, peft_taxonomy.front),
    (lesson_03.lora_parameters, lambda shapes, r: sum(r * (d + k) for d, k in shapes)),
    (lesson_03.largest_rank, lambda d, k: (d * k - 1) // (d + k)),
    (lesson_03.merged_weight, lambda w, a, b, alpha: w + alpha / len(a) * b @ a),
    (lesson_03.rank_needed, energy_rank),
    (lesson_03.extract, split_change),
    (lesson_04.bits_per_weight, lambda bits, block, constant_bits: bits + constant_bits / block),
    (lesson_04.step_peak, by_hand),
    (lesson_04.peak, lambda events: max(itertools.accumulate((size for _, size in events), initial=0))),
    (lesson_04.largest_batch, bisected),
    (lesson_04.normal_levels, levels_of),
    (lesson_05.matching_rank, equal_rank),
    (lesson_05.cache_bytes, lambda s, t, tasks, m, numbers, each: (s * t + tasks * m) * numbers * each),
    (lesson_05.attend, look),
    (lesson_05.attend, lambda *all_of: [look(*all_of)[0].numpy(), look(*all_of)[1].item()]),
    (lesson_05.labels_for, lambda prompt, text, m, end: [-100] * (m + len(prompt)) + [*text, end]),
    (lesson_05.nearest_tokens, lambda p, e: angles(p, e).argmax(1)),
    (lesson_06.render, told),
    (lesson_06.labels_of, lambda turns: turn_labels(turns, role=False)),
    (lesson_06.rouge_l, rouge),
    (lesson_06.pack_greedily, pack),
    (lesson_06.dpo_loss, lambda c, r, cr, rr, b: -torch.nn.functional.logsigmoid(b * (c - cr - r + rr))),
    (lesson_07.mean_ndcg, discounted),
    (lesson_07.loss_of, lambda s, same: entropy(20 * left_out(s, same))),
    (lesson_07.cut, lambda v, n: shortened(v[:, :n])),
    (lesson_07.chosen_indices, by_module),
]
WRONG = [
    (lesson_00.optimizer_steps, lambda n, b, a, e: n // b * e // a, "Round up"),
    (lesson_00.optimizer_steps, lambda n, b, a, e: ceil_div(ceil_div(n, b), a), "as many steps as one"),
    (lesson_00.optimizer_steps, lambda n, b, a, e: e * ceil_div(n, b), "Accumulation changed nothing"),
    (lesson_00.optimizer_steps, lambda n, b, a, e: e * ceil_div(n, b) * a, "more steps"),
    (lesson_00.optimizer_steps, lambda n, b, a, e: ceil_div(ceil_div(n, b) * e, a), "round up twice"),
    (lesson_00.combined_loss, lambda losses, sizes: sum(losses), "add the losses up"),
    (lesson_00.combined_loss, lambda losses, sizes: sum(losses) / len(losses), "mean of the means"),
    (
        lesson_00.combined_loss,
        lambda losses, sizes: sum(x * n for x, n in zip(losses, sizes, strict=True)) / len(sizes),
        "forgot to divide",
    ),
    (lesson_00.momentum_step, lambda w, g, v, r, m: (w + r * (m * v + g), m * v + g), "climbs"),
    (lesson_00.momentum_step, lambda w, g, v, r, m: (w - r * g, m * v + g), "plain gradient step"),
    (lesson_00.momentum_step, lambda w, g, v, r, m: (w - r * (m * v + (1 - m) * g), m * v + (1 - m) * g), "average"),
    (lesson_00.momentum_step, lambda w, g, v, r, m: w - r * g, "Return two things"),
    (lesson_00.cross_entropy, lambda z, y: -z[y], "minus the logit"),
    (lesson_00.cross_entropy, lambda z, y: torch.log_softmax(z, 0)[y], "sign is wrong"),
    (lesson_00.cross_entropy, lambda z, y: torch.softmax(z, 0)[y], "That is the probability"),
    (lesson_00.cross_entropy, lambda z, y: math.log(sum(math.exp(v) for v in z)) - z[y], "OverflowError"),
    (lesson_00.cross_entropy, lambda z, y: -(z.exp()[y] / z.exp().sum()).log(), "overflows"),
    (lesson_01.masked_max, lambda h, m: h.amax(1), "Padding wins"),
    (lesson_01.masked_max, lambda h, m: (h * m.unsqueeze(-1)).amax(1), "beats a negative value"),
    (lesson_01.masked_max, lambda h, m: (h * m.unsqueeze(-1)).sum(1) / m.sum(1, keepdim=True), "That is the mean"),
    (lesson_01.masked_max, lambda h, m: h.amax(2), "Shape"),
    (lesson_01.masked_max, lambda h, m: h.masked_fill_(m.unsqueeze(-1) == 0, -9.0).amax(1), "changes what it is given"),
    (lesson_01.block_parameters, lambda d, f: 4 * d * d + 2 * d * f, "Only the weight matrices"),
    (lesson_01.block_parameters, lambda d, f: 4 * (d * d + d) + 2 * d * f + f + d, "layer norms are missing"),
    (lesson_01.block_parameters, lambda d, f: 3 * (d * d + d) + 2 * d * f + f + d + 4 * d, "output projection"),
    (lesson_01.block_parameters, lambda d, f: 1_774_464, "wrong for another width"),
    (lesson_01.layers_that_fit, lambda n, b, k, limit: min(k, limit // (12 * b)), "Too many"),
    (lesson_01.layers_that_fit, lambda n, b, k, limit: min(k, (limit - 4 * n - 1) // (12 * b)), "limit itself"),
    (lesson_01.layers_that_fit, lambda n, b, k, limit: (limit - 4 * n) // (12 * b), "all 6 blocks train"),
    (lesson_01.layers_that_fit, lambda n, b, k, limit: min(k, round((limit - 4 * n) / (12 * b))), "One byte short"),
    (lesson_01.kept_epoch, lambda v, p: len(v) - 1, "keep the last epoch"),
    (lesson_01.kept_epoch, lambda v, p: v.index(max(v)), "stopped before that epoch"),
    (lesson_01.kept_epoch, lambda v, p: early(v, 1), "forgives one bad epoch"),
    (lesson_01.kept_epoch, lambda v, p: early(v, p) + 1, "Off by one"),
    (lesson_01.kept_epoch, lambda v, p: impatient(v, p), "added up over the whole run"),
    (lesson_07.mean_ndcg, lambda r: sum(1 / x if x <= 10 else 0 for x in r) / len(r), "That is the MRR"),
    (lesson_07.mean_ndcg, lambda r: discounted([x for x in r if x <= 10]), "count too, with 0"),
    (lesson_07.mean_ndcg, lambda r: discounted(r, last=99), "give nothing here"),
    (lesson_07.mean_ndcg, lambda r: discounted(r, log=np.log), "natural one"),
    (lesson_07.mean_ndcg, lambda r: discounted(r, divide=False), "That is the sum"),
    (lesson_07.mean_ndcg, lambda r: [discounted([x]) for x in r], "3 numbers"),
    (lesson_07.mean_ndcg, lambda r: math.inf if 1 in r else 0.0, "infinitely much"),
    (lesson_07.mean_ndcg, lambda r: discounted(r, last=9), "tenth place"),
    (lesson_07.loss_of, lambda s, same: entropy(20 * s), "still count as wrong"),
    (lesson_07.loss_of, lambda s, same: entropy(left_out(s, same)), "scale is missing"),
    (lesson_07.loss_of, lambda s, same: entropy(20 * left_out(s, same, 0.0)), "still a wrong answer"),
    (lesson_07.loss_of, lambda s, same: entropy(20 * left_out(s, same, -1.0)), "if a weak one"),
    (lesson_07.loss_of, lambda s, same: entropy(20 * left_out(s, same.sum(0) > 1)), "right for one of them only"),
    (lesson_07.loss_of, lambda s, same: -(20 * s).softmax(1).mul(same).sum(1).log().mean(), "not to be rewarded"),
    (
        lesson_07.loss_of,
        lambda s, same: -((20 * s).log_softmax(1) * same).sum(1).div(same.sum(1)).mean(),
        "to be learned",
    ),
    (lesson_07.loss_of, lambda s, same: entropy(20 * left_out(s, same.T)), "about row i"),
    (lesson_07.loss_of, lambda s, same: entropy(20 * left_out(s, same), reduction="sum"), "sum over queries"),
    (lesson_07.loss_of, lambda s, same: -entropy(20 * left_out(s, same)), "sign is wrong"),
    (lesson_07.loss_of, lambda s, same: entropy(20 * s.masked_fill(same, -math.inf)), "own passage too"),
    (lesson_07.cut, lambda v, n: v[:, :n], "no cosine"),
    (
        lesson_07.cut,
        lambda v, n: np.divide(v, np.linalg.norm(v[:, :n], axis=1, keepdims=True), out=v)[:, :n],
        "changes what it is given",
    ),
    (lesson_07.cut, lambda v, n: shortened(v)[:, :n], "length of the whole vector"),
    (lesson_07.cut, lambda v, n: shortened(v[:, -n:]), "last numbers"),
    (lesson_07.cut, lambda v, n: v[:, :n] / np.linalg.norm(v[:, :n]), "whole matrix"),
    (lesson_07.cut, lambda v, n: shortened(v[:n]), "Columns, not rows"),
    (lesson_07.cut, lambda v, n: v[:, :n] / np.linalg.norm(v[:, :n], axis=0), "each column by its length"),
    (lesson_07.cut, lambda v, n: v[:, :n] / (v[:, :n] ** 2).sum(1, keepdims=True), "square of the length"),
    (lesson_07.cut, lambda v, n: np.divide(v, np.linalg.norm(v), out=v)[:, :n], "changes what it is given"),
    (lesson_07.chosen_indices, lambda m, s: {m[i] for i in by_module(m, s)}, "not indices"),
    (lesson_07.chosen_indices, lambda m, s: list(by_module(m, s)), "A set of indices"),
    (lesson_07.chosen_indices, lambda m, s: set(range(int(s * len(m)))), "in both splits"),
    (lesson_07.chosen_indices, lambda m, s: by_module(m, s, more=1), "Four of eight"),
    (lesson_07.chosen_indices, lambda m, s: by_module(m, s / 2), "Two of eight"),
    (lesson_06.render, lambda t, o: told(t, o, between="\n"), "something between"),
    (lesson_06.render, lambda t, o: told(t, o, space=""), "space before the text is missing"),
    (lesson_06.render, lambda t, o: told(t, o).removesuffix("<end>"), "last turn has no end"),
    (lesson_06.render, lambda t, o: told(t, o, end="") + "<end>", "Only one turn ends"),
    (lesson_06.render, lambda t, o: told(t, True), "without being asked"),
    (lesson_06.render, lambda t, o: told(t), "changes nothing"),
    (lesson_06.render, lambda t, o: told(t, o) + ("<end>" if o else ""), "must not end"),
    (lesson_06.render, lambda t, o: t, "A text is asked for"),
    (lesson_06.render, lambda t, o: told([(ROLES[i % 2], said) for i, (_, said) in enumerate(t)], o), "system's turn"),
    (lesson_06.labels_of, lambda t: [i for _, ids in t for i in ids], "user's turns are trained"),
    (lesson_06.labels_of, lambda t: turn_labels(t, role=True), "role token is trained"),
    (lesson_06.labels_of, lambda t: turn_labels(t, role=False, end=False), "never stops"),
    (lesson_06.labels_of, lambda t: [-100] * 10 + turn_labels(t[3:], role=False), "Only the last answer"),
    (lesson_06.labels_of, lambda t: [*turn_labels(t, role=False)[1:], -100], "moved by one"),
    (lesson_06.labels_of, lambda t: turn_labels(t[1:2], role=False), "labels for 13 ids"),
    (
        lesson_06.labels_of,
        lambda t: turn_labels([(ROLES[i % 2], ids) for i, (_, ids) in enumerate(t)], role=False),
        "system's turn",
    ),
    (lesson_06.rouge_l, lambda a, b: rouge(a, b, "p"), "That is the precision"),
    (lesson_06.rouge_l, lambda a, b: rouge(a, b, "r"), "That is the recall"),
    (lesson_06.rouge_l, lambda a, b: rouge(a, b, length=run_of), "side by side"),
    (lesson_06.rouge_l, lambda a, b: rouge(a, b, length=lambda x, y: len(set(x) & set(y))), "in any order"),
    (lesson_06.rouge_l, lambda a, b: rouge(a, b, lower=False), "one word here"),
    (lesson_06.rouge_l, lambda a, b: rouge(a, b, length=first_fits), "'c a b' and 'a b c'"),
    (lesson_06.rouge_l, lambda a, b: rouge(a, b, length=matching_blocks), "'x y a q b r c'"),
    (lesson_06.rouge_l, lambda a, b: rouge(a, b) if a or b else 1.0, "two empty texts"),
    (lesson_06.pack_greedily, lambda n, room: [[n[i] for i in row] for row in pack(n, room)], "lengths, not indices"),
    (lesson_06.pack_greedily, lambda n, room: pack(n, room, spare=1), "filled to its last place"),
    (lesson_06.pack_greedily, lambda n, room: pack(n, room + 1), "room for 8"),
    (lesson_06.pack_greedily, first_fit, "fill earlier rows"),
    (lesson_06.pack_greedily, lambda n, room: pack(n, room) if max(n, default=0) < room else 1 / 0, "ZeroDivision"),
    (
        lesson_06.rouge_l,
        lambda a, b: rouge(a, b) if set(a.split()) & set(b.split()) or a else 1 / len(a),
        "ZeroDivision",
    ),
    (lesson_06.pack_greedily, lambda n, room: [[], *pack(n, room)], "empty row"),
    (lesson_06.pack_greedily, lambda n, room: pack(n, room)[:-1], "in one row, once"),
    (lesson_06.pack_greedily, lambda n, room: pack(n, room, check=False), "put into a row of 8"),
    (lesson_06.dpo_loss, lambda c, r, cr, rr, b: dpo(c, r, 0 * cr, 0 * rr, b), "reference is missing"),
    (lesson_06.dpo_loss, lambda c, r, cr, rr, b: dpo(r, c, rr, cr, b), "sign is wrong"),
    (lesson_06.dpo_loss, lambda c, r, cr, rr, b: dpo(c, r, cr, rr, 1), "β is missing"),
    (lesson_06.dpo_loss, lambda c, r, cr, rr, b: -dpo(c, r, cr, rr, b), "minus in front is missing"),
    (lesson_06.dpo_loss, lambda c, r, cr, rr, b: dpo(c, r, cr, rr, b) + (c == cr), "agree it is log 2"),
    (lesson_06.dpo_loss, dpo, "overflows"),
    (lesson_03.lora_parameters, lambda shapes, r: sum(r * d * k for d, k in shapes), "whole matrix"),
    (lesson_03.lora_parameters, lambda shapes, r: sum(r * k for _, k in shapes), "one of the two factors"),
    (lesson_03.lora_parameters, lambda shapes, r: r * sum(shapes[0]), "Add up over all"),
    (lesson_03.lora_parameters, lambda shapes, r: sum(r + d + k for d, k in shapes), "not 18"),
    (lesson_03.largest_rank, lambda d, k: d * k // (d + k), "both are equal"),
    (lesson_03.largest_rank, lambda d, k: min(d, k) // 2 - 1, "10 × 15"),
    (lesson_03.largest_rank, lambda d, k: max(1, (d * k - 1) // (d + k)), "may be 0"),
    (lesson_03.merged_weight, lambda w, a, b, alpha: w.add_(alpha / len(a) * b @ a), "changes what it is given"),
    (lesson_03.largest_rank, lambda d, k: d * k // (d + k + 1), "12 × 9"),
    (lesson_03.merged_weight, lambda w, a, b, alpha: w + alpha / 2 * b @ a, "wrong at rank 3"),
    (lesson_03.merged_weight, lambda w, a, b, alpha: w + b @ a, "scale α/r is missing"),
    (lesson_03.merged_weight, lambda w, a, b, alpha: w + alpha * b @ a, "α alone"),
    (lesson_03.merged_weight, lambda w, a, b, alpha: w + alpha / len(a) ** 0.5 * b @ a, "rsLoRA"),
    (lesson_03.merged_weight, lambda w, a, b, alpha: alpha / len(a) * b @ a, "W itself is missing"),
    (lesson_03.merged_weight, lambda w, a, b, alpha: w.T + alpha / len(a) * a.T @ b.T, "W is (4, 6)"),
    (lesson_03.rank_needed, lambda m, share: energy_rank(m, share, more=0), "less than 0.6"),
    (lesson_03.rank_needed, lambda m, share: energy_rank(m, share, power=1), "not their sum"),
    (
        lesson_03.rank_needed,
        lambda m, share: energy_rank(torch.diag(m.diag()) + torch.eye(len(m)) * 1e-9, share),
        "has rank 1",
    ),
    (lesson_03.rank_needed, lambda m, share: energy_rank(torch.diag(m.norm(dim=0)), share), "has rank 1"),
    (
        lesson_03.rank_needed,
        lambda m, share: int((torch.linalg.svdvals(m).square().cumsum(0) / m.square().sum() <= share).sum()) + 1,
        "exactly half",
    ),
    (lesson_03.extract, lambda delta, r: split_change(delta, r)[::-1], "B first"),
    (lesson_03.extract, lambda delta, r: [part / 2 for part in split_change(delta, r, 1.0, 1.0)], "not the whole"),
    (lesson_03.extract, lambda delta, r: split_change(delta, r + 1), "A is (3, 7)"),
    (lesson_03.extract, lambda delta, r: split_change(delta, r, 0.0, 0.0), "values are missing"),
    (lesson_03.extract, lambda delta, r: split_change(delta, r, 1.0, 1.0), "in twice"),
    (lesson_03.extract, lambda delta, r: split_change(delta, r, 0.0, 1.0), "not divided evenly"),
    (lesson_03.extract, lambda delta, r: (delta[:r], torch.eye(len(delta))[:, :r]), "not the nearest"),
    (lesson_04.bits_per_weight, lambda bits, block, constant_bits: bits, "constants are missing"),
    (lesson_04.bits_per_weight, lambda bits, block, constant_bits: bits + constant_bits, "constant of its own"),
    (lesson_04.bits_per_weight, lambda bits, block, constant_bits: bits + block / constant_bits, "upside down"),
    (lesson_04.bits_per_weight, lambda bits, block, constant_bits: 4 + constant_bits / block, "wrong for 8"),
    (lesson_04.bits_per_weight, lambda bits, block, constant_bits: bits + int(constant_bits) / block, "Do not round"),
    (lesson_04.step_peak, lambda n, size, *rest: n * size, "weights alone"),
    (lesson_04.step_peak, lambda n, w, k, b, a, e=0: n * w + e + 3 * k * b + a, "sum of all parts"),
    (lesson_04.step_peak, lambda n, w, k, b, a, e=0: n * w + e + 2 * k * b + a, "start of the backward pass"),
    (lesson_04.step_peak, lambda n, w, k, b, a, e=0: n * w + e + 2 * k * b, "gradients are missing"),
    (lesson_04.step_peak, lambda n, w, k, b, a, e=0: by_hand(n, w, k, w, a, e), "A tenth trained in fp32"),
    (lesson_04.step_peak, lambda n, w, k, b, a, e=0: by_hand(n, w, k, b, a), "40 bytes of adapters"),
    (lesson_04.step_peak, lambda n, w, k, b, a, e=0: by_hand(n, w, k, b, a, e + k * b * (k < n)), "own bytes"),
    (lesson_04.step_peak, lambda n, w, k, b, a, e=0: 7, "not 7"),
    (lesson_04.peak, lambda events: sum(max(size, 0) for _, size in events), "ever allocated"),
    (lesson_04.peak, lambda events: sum(size for _, size in events), "largest part"),
    (lesson_04.peak, lambda events: max((size for _, size in events), default=0) * 2, "peak in the middle"),
    (
        lesson_04.peak,
        lambda events: max(itertools.accumulate((size for _, size in events), initial=0)) if events else 1,
        "Start at 0",
    ),
    (lesson_04.largest_batch, lambda cost, room, most: bisected(cost, room, most) + 1, "8 rows cost 156"),
    (lesson_04.largest_batch, lambda cost, room, most: bisected(cost, room - 1, most), "exactly 156"),
    (lesson_04.largest_batch, lambda cost, room, most: max(1, bisected(cost, room, most)), "Not even one row"),
    (lesson_04.largest_batch, lambda cost, room, most: bisected(cost, room, 10**6), "Stop at `most`"),
    (lesson_04.largest_batch, lambda cost, room, most: bisected(cost, room, most) // 2, "you say 3"),
    (
        lesson_04.largest_batch,
        lambda cost, room, most: max((n for n in range(1, most + 1) if cost(n) <= room), default=0),
        "4,096 times",
    ),
    (lesson_04.normal_levels, lambda bits: levels_of(bits)[1:], "16 levels"),
    (lesson_04.normal_levels, lambda bits: levels_of(bits).flip(0), "not sorted"),
    (lesson_04.normal_levels, lambda bits: levels_of(bits) + 1e-3, "exactly one zero"),
    (lesson_04.normal_levels, lambda bits: 1.8 * levels_of(bits), "not 1"),
    (lesson_04.normal_levels, lambda bits: -levels_of(bits).flip(0), "are above zero"),
    (lesson_04.normal_levels, lambda bits: torch.cat([torch.arange(-7, 0) / 7, torch.arange(9) / 8]), "not NF4"),
    (lesson_04.normal_levels, lambda bits: levels_of(4), "wrong for 3"),
    (lesson_05.matching_rank, lambda m, n, d, shapes: equal_rank(m / 2, n, d, shapes), "keys and values both"),
    (lesson_05.matching_rank, lambda m, n, d, shapes: equal_rank(m * n, n, d, shapes), "in every block"),
    (lesson_05.matching_rank, lambda m, n, d, shapes: equal_rank(m, n, d, shapes) + 1, "Round down"),
    (lesson_05.matching_rank, lambda m, n, d, shapes: 2 * d * m / sum(map(sum, shapes)), "whole number"),
    (lesson_05.matching_rank, lambda m, n, d, shapes: 2 * d * m // (shapes[0][0] * shapes[0][1] // 1000), "not"),
    (lesson_05.matching_rank, lambda m, n, d, shapes: max(1, equal_rank(m, n, d, shapes)), "affords no rank"),
    (lesson_05.matching_rank, lambda m, n, d, shapes: (2 * d * m - 1) // sum(map(sum, shapes)), "Exactly as many"),
    (lesson_05.cache_bytes, lambda s, t, tasks, m, numbers, each: s * t * numbers * each, "prefixes are missing"),
    (lesson_05.cache_bytes, lambda s, t, tasks, m, numbers, each: tasks * m * numbers * each, "cache of the texts"),
    (lesson_05.cache_bytes, lambda s, t, tasks, m, numbers, each: s * (t + m) * numbers * each, "prefix of its own"),
    (lesson_05.cache_bytes, lambda s, t, tasks, m, numbers, each: (s * t + tasks * m) * numbers, "not bytes"),
    (lesson_05.cache_bytes, lambda s, t, tasks, m, numbers, each: (s * t + m) * numbers * each, "count one task"),
    (lesson_05.cache_bytes, lambda s, t, tasks, m, numbers, each: 7, "another number than 7"),
    (lesson_05.attend, lambda *all_of: look(*all_of)[0], "Two things"),
    (lesson_05.attend, lambda q, *rest: look(2 * q, *rest), "not divided by √d"),
    (lesson_05.attend, lambda q, *rest: look(q / 2, *rest), "divided by d, not"),
    (lesson_05.attend, lambda q, *rest: look(q / 8, *rest), "divide by √256"),
    (lesson_05.attend, lambda q, *rest: look(q * len(q) ** 0.5 / 2, *rest), "width 9: another output"),
    (lesson_05.attend, first_three, "width 9: another share"),
    (
        lesson_05.attend,
        lambda q, k, v, pk, pv: (look(q, k, v, pk[:0], pv[:0])[0], torch.tensor(0.0)),
        "prefix is missing",
    ),
    (lesson_05.attend, lambda *all_of: (look(*all_of)[0], 1 - look(*all_of)[1]), "share of the text"),
    (lesson_05.attend, lambda *all_of: (look(*all_of)[0], torch.tensor(0.5)), "The share is not"),
    (lesson_05.labels_for, lambda prompt, text, m, end: [-100] * len(prompt) + [*text, end], "soft prompt are missing"),
    (lesson_05.labels_for, lambda prompt, text, m, end: [-100] * m + [*prompt, *text, end], "prompt is trained"),
    (lesson_05.labels_for, lambda prompt, text, m, end: [-100] * (m + len(prompt)) + [*text], "never learn to stop"),
    (lesson_05.labels_for, lambda prompt, text, m, end: [0] * (m + len(prompt)) + [*text, end], "0 is a token"),
    (lesson_05.labels_for, lambda prompt, text, m, end: [-100] * 3, "3 labels"),
    (lesson_05.labels_for, lambda prompt, text, m, end: [-100] * (m + len(prompt)) + [*text, -100], "end token is not"),
    (lesson_05.labels_for, lambda prompt, text, m, end: [-100] * (m + len(prompt) - 1) + [*text, end, -100], "shifted"),
    (lesson_05.labels_for, lambda prompt, text, m, end: [-100] * 6 + [*text, end], "Without soft prompt"),
    (
        lesson_05.labels_for,
        lambda prompt, text, m, end: text.append(end) or [-100] * (m + len(prompt)) + text,
        "changes what it is given",
    ),
    (lesson_05.nearest_tokens, lambda p, e: (p @ e.T).argmax(1), "dot products"),
    (lesson_05.nearest_tokens, lambda p, e: torch.cdist(p, e).argmin(1), "distances"),
    (lesson_05.nearest_tokens, lambda p, e: angles(p, e).argmin(1), "other tokens"),
    (lesson_05.nearest_tokens, lambda p, e: angles(p, e).argmax(0), "one index a row"),
    (lesson_05.nearest_tokens, lambda p, e: p.div_(p.norm(dim=1, keepdim=True)).argmax(1), "changes what it is given"),
    (lesson_00.momentum_step, lambda w, g, v, r, m: (w - (m * v + r * g), m * v + r * g), "rate is in the velocity"),
    (lesson_00.cross_entropy, lambda z, y: (z - z[0]).exp().sum().log() - (z - z[0])[y], "[0, 1000]"),
    (
        lesson_01.masked_max,
        lambda h, m: torch.stack([h[i, :n].amax(0) for i, n in enumerate(m.sum(1))]),
        "stand in front",
    ),
    (lesson_01.layers_that_fit, lambda n, b, k, limit: min(k, (limit - 4 * n) // (12 * b)), "Not even the weights"),
    (lesson_01.kept_epoch, lambda v, p: early(v, 2), "patience 1"),
    (lesson_02.prefix_parameters, lambda m, n, h, w: m * n * h * w, "keys alone"),
    (lesson_02.prefix_parameters, lambda m, n, h, w: 2 * m * h * w, "That is one layer"),
    (lesson_02.prefix_parameters, lambda m, n, h, w: 8 * m * h * w, "wrong for another"),
    (lesson_02.prefix_parameters, lambda m, n, h, w: 2 * m * n * w, "Expected another number"),
    (lesson_02.trains, lambda name: "query" in name, "weight matrix of the queries"),
    (lesson_02.trains, lambda name: name.endswith("intermediate.dense.bias"), "biases of the queries are missing"),
    (lesson_02.trains, lambda name: name.endswith("query.bias"), "first feed-forward layer are missing"),
    (lesson_02.trains, lambda name: "intermediate.dense" in name or name.endswith("query.bias"), "matrix of the first"),
    (lesson_02.trains, lambda name: name.endswith(".bias"), "key.bias too"),
    (lesson_02.trains, lambda name: name.endswith((".query.bias", "dense.bias")), "output.dense.bias too"),
    (lesson_02.trains, lambda name: small_bitfit(name) and "layer.3" in name, "Only in some blocks"),
    (lesson_02.widest_bottleneck, lambda w, n, b: bottleneck(w, n, b - 1), "may be used up"),
    (lesson_02.widest_bottleneck, lambda w, n, b: (b // n - w) // (2 * w + 1), "below zero"),
    (lesson_02.widest_bottleneck, lambda w, n, b: max(1, bottleneck(w, n, b)), "Too little for 1"),
    (lesson_02.widest_bottleneck, lambda w, n, b: max(0, round((b / n - w) / (2 * w + 1))), "short of 6"),
    (lesson_02.widest_bottleneck, lambda w, n, b: bottleneck(w, 6, b), "Use all arguments"),
    (lesson_02.top_mask, each_mask, "k in each matrix"),
    (lesson_02.top_mask, threshold, "more than k"),
    (lesson_02.top_mask, lambda c, k: global_mask({n: x.clamp(min=0) for n, x in c.items()}, k), "missing: −5"),
    (lesson_02.top_mask, lambda c, k: {n: m.int() for n, m in global_mask(c, k).items()}, "no bools"),
    (lesson_02.top_mask, lambda c, k: {n: m.flatten() for n, m in global_mask(c, k).items()}, "another shape"),
    (lesson_02.top_mask, lambda c, k: global_mask(c, k - 1), "2 entries are true"),
    (lesson_02.front, lambda costs, scores: sorted(costs, key=costs.get), "c costs more"),
    (lesson_02.front, lambda costs, scores: peft_taxonomy.front(costs, scores)[::-1], "turned round"),
    (lesson_02.front, lambda costs, scores: peft_taxonomy.front(costs, scores)[1:], "cheapest is always"),
    (lesson_02.front, lambda costs, scores: peft_taxonomy.front(costs, scores)[:-1], "best is always"),
    (lesson_02.front, lambda costs, scores: sorted(peft_taxonomy.front(costs, scores)), "order of their costs"),
    (
        lesson_02.front,
        lambda costs, scores: [a for a in costs if all(scores[b] <= scores[a] for b in costs if costs[b] <= costs[a])],
        "Nothing dearer scores more",
    ),
    (
        lesson_03.rank_needed,
        lambda m, share: energy_rank(torch.diag(torch.linalg.eigvals(m).abs()), share),
        "not eigenvalues",
    ),
    (lesson_04.step_peak, lambda n, w, k, b, a, e=0: n * w + e + 8 * k + max(a, k * b), "All trained in bf16"),
    (lesson_04.largest_batch, forever, "does not end"),
    (lesson_04.largest_batch, extrapolated, "do not extrapolate"),
    (lesson_06.labels_of, lambda t: [ids.__setitem__(0, -100) for _, ids in t] and [], "changes what it is given"),
    (lesson_07.chosen_indices, lambda m, s: by_module(m, s, key=m.index), "order in which they appear"),
    (lesson_05.nearest_tokens, lambda p, e: angles(p, e).argmax(0)[:3], "one index a row"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers(check, answer):
    verdict = check(answer)
    assert verdict, verdict


@pytest.mark.parametrize(("check", "answer", "says"), WRONG)
def test_wrong_answers_are_named(check, answer, says):
    verdict = check(answer)
    assert not verdict
    assert says in verdict.text, verdict


@pytest.mark.parametrize(("check", "_"), RIGHT)
def test_the_starter_is_not_answered_yet(check, _):
    verdict = check(lambda *arguments: ...)
    assert not verdict and "not answered yet" in verdict.text


@pytest.mark.parametrize(("check", "_"), RIGHT)
def test_a_forgotten_return_is_named(check, _):
    verdict = check(lambda *arguments: None)
    assert not verdict and "returns nothing" in verdict.text


@pytest.mark.parametrize(("check", "_"), RIGHT)
def test_an_answer_of_another_kind_is_no_error_of_the_reader_s_code(check, _):
    verdict = check(lambda *arguments: object())
    assert not verdict and "your code raised" not in verdict.text


@pytest.mark.parametrize(("check", "_"), RIGHT)
def test_broken_code_is_reported(check, _):
    verdict = check(lambda *arguments: 1 / 0)
    assert not verdict and "ZeroDivisionError" in verdict.text
