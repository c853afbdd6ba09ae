"""Secure aggregation once more, slowly: docs/wire.md as plain Python, one function a derivation, in the page's order.

Written from that page alone and never from `protocol/`, which it must not import: where the two disagree, one of them or
the page is wrong. (`evaluation` alone was written with the code in sight.) Numbers are Python's integers and fractions,
words are lists, AES runs one block at a time. Only AES, HPKE and Ed25519 are borrowed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PROTOCOL = "consilium-secagg/1"
LF = b"\n"
CHUNK = 1_048_576  # words
P61 = 2**61 - 1
SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)


def jcs(value: Any) -> bytes:
    """RFC 8785 for what this protocol has: no floats, member names in ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def by_name(silos: Mapping[str, Any] | Sequence[str]) -> list[str]:
    return sorted(silos, key=str.encode)


# Attempt


def context(study: str, manifest: str, round: int, attempt: int, model: str | None) -> bytes:
    fields = {"study": study, "manifest": manifest, "round": round, "attempt": attempt, "model": model}
    return hashlib.sha256(jcs({"protocol": PROTOCOL, **fields})).digest()


def threshold(n: int) -> int:
    return 2 * n // 3 + 1


def least(n: int, min_participants: int) -> int:
    return max(threshold(n), min_participants)


def derive(ctx: bytes, secret: bytes, label: str, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869); no salt is a salt of 32 zero bytes."""
    info = f"{PROTOCOL} {label}".encode() + LF + ctx
    prk = hmac.digest(bytes(32), secret, "sha256")
    out = block = b""
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes([len(out) // 32 + 1]), "sha256")
        out += block
    return out[:length]


def binding(ctx: bytes, what: str, secret: bytes, silo: str) -> str:
    return digest(jcs({"protocol": PROTOCOL, "what": what, "ctx": ctx.hex(), "silo": silo}) + LF + secret)


def set_digest(payloads: Mapping[str, bytes]) -> str:
    return digest(jcs([[silo, digest(payloads[silo])] for silo in by_name(payloads)]))


# Messages


def payload(stage: str, ctx: bytes, silo: str, roster: str | None, fields: Mapping[str, Any]) -> bytes:
    head = {"schema": f"consilium/round/{stage}/1", "ctx": ctx.hex(), "silo": silo, "roster": roster}
    return jcs({**head, **fields})


def envelope(stage: str, content: bytes, signing_key: bytes) -> dict[str, Any]:
    """DSSE with one signature; `signing_key` is the 32 bytes of an Ed25519 private key."""
    kind = f"application/vnd.consilium.round.{stage}+json"
    key = Ed25519PrivateKey.from_private_bytes(signing_key)
    signature = key.sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(content), content))
    keyid = hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()
    return {"payload": b64(content), "payloadType": kind, "signatures": [{"keyid": keyid, "sig": b64(signature)}]}


def list_digest(members: Sequence[str], ready_set: str, updates: str) -> str:
    return digest(jcs({"members": by_name(members), "ready_set": ready_set, "updates": updates}))


# Keys, bundles, ready


def hpke_key(mlkem_seed: bytes, x25519_key: bytes) -> Any:
    return hpke.MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(mlkem_seed), X25519PrivateKey.from_private_bytes(x25519_key)
    )


def hpke_public(mlkem_seed: bytes, x25519_key: bytes) -> bytes:
    """1,184 + 32 bytes."""
    mlkem = MLKEM768PrivateKey.from_seed_bytes(mlkem_seed).public_key().public_bytes_raw()
    return mlkem + X25519PrivateKey.from_private_bytes(x25519_key).public_key().public_bytes_raw()


def box_info(ctx: bytes, roster: str) -> bytes:
    return f"{PROTOCOL} bundle".encode() + LF + ctx + roster.encode()


def box_plaintext(i: int, j: int, self_share: bytes, list_share: bytes, r: bytes) -> bytes:
    """What index i tells index j; 98 bytes."""
    return bytes([i + 1, j + 1]) + self_share + list_share + r


def seal_box(key: Any, info: bytes, plaintext: bytes) -> bytes:
    return SUITE.encrypt(plaintext, key.public_key(), info)


def open_box(key: Any, info: bytes, box: bytes) -> bytes:
    return SUITE.decrypt(box, key, info)


def gf_multiply(a: int, b: int) -> int:
    """Schoolbook product of two polynomials over GF(2), modulo x^8 + x^4 + x^3 + x + 1."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0b1_0001_1011 << (bit - 8)
    return product


def gf_inverse(a: int) -> int:
    return next(b for b in range(1, 256) if gf_multiply(a, b) == 1)


def share(polynomial: Sequence[bytes], x: int) -> bytes:
    """`polynomial`: t rows of 32 bytes, the secret first, then the coefficients of x, x², and so on."""
    values = []
    for coefficients in zip(*polynomial, strict=True):
        value, power = 0, 1
        for coefficient in coefficients:
            value ^= gf_multiply(coefficient, power)
            power = gf_multiply(power, x)
        values.append(value)
    return bytes(values)


def interpolate(shares: Mapping[int, bytes]) -> bytes:
    """The value at 0 of the polynomial through t points {x: share}."""
    secret = bytes(32)
    for x, value in shares.items():
        weight = 1
        for other in shares:
            if other != x:
                weight = gf_multiply(weight, gf_multiply(other, gf_inverse(other ^ x)))
        secret = bytes(s ^ gf_multiply(weight, v) for s, v in zip(secret, value, strict=True))
    return secret


def pair_seed(ctx: bytes, r_ij: bytes, r_ji: bytes) -> bytes:
    """Of i < j: r_ij is what i sent to j."""
    return derive(ctx, r_ij + r_ji, "pair seed", 32)


def seal_list(ctx: bytes, list_key: bytes, silo: str, roster: str, seeds: Sequence[bytes]) -> bytes:
    """`seeds`: 32 bytes for each index of the roster."""
    about = f"{PROTOCOL} list".encode() + LF + silo.encode() + LF + roster.encode() + LF + ctx
    return AESGCM(derive(ctx, list_key, "list", 16)).encrypt(bytes(12), b"".join(seeds), about)


# Words and masks


def material(ctx: bytes, seed: bytes, label: str) -> bytes:
    return derive(ctx, seed, f"prg {label}", 32)


def stream(key_and_counter: bytes, start: int, length: int) -> bytes:
    """Bytes start .. start + length of the AES-128-CTR key stream."""
    aes = Cipher(algorithms.AES(key_and_counter[:16]), modes.ECB()).encryptor()  # ECB: the bare permutation
    first = int.from_bytes(key_and_counter[16:], "big")
    blocks = range(start // 16, (start + length + 15) // 16)
    out = b"".join(aes.update(((first + k) % 2**128).to_bytes(16, "big")) for k in blocks)
    return out[start % 16 :][:length]


def lanes(key_and_counter: bytes, size: int, start: int, count: int) -> list[int]:
    """Lanes start .. start + count of a stream, `size` bytes each, little-endian."""
    cut = stream(key_and_counter, start * size, count * size)
    return [int.from_bytes(cut[k : k + size], "little") for k in range(0, len(cut), size)]


LANE = {32: 4, 24: 4, 16: 2, 12: 2, 64: 8}  # word bits: bytes of a lane; 64 is the tail


def mask(ctx: bytes, seed: bytes, label: str, bits: int, start: int, count: int) -> list[int]:
    return [lane % 2**bits for lane in lanes(material(ctx, seed, label), LANE[bits], start, count)]


def masked(
    ctx: bytes, words: Sequence[int], bits: int, b: bytes, pairs: Mapping[int, bytes], i: int, tail: bool
) -> list[int]:
    """y_i of all words of the body or of the tail. `pairs`: {index j of R: pair seed}."""
    n = len(words)
    y = [x + m for x, m in zip(words, mask(ctx, b, "tail" if tail else "self", bits, 0, n), strict=True)]
    for j, seed in pairs.items():
        sign = 1 if j > i else -1
        y = [a + sign * m for a, m in zip(y, mask(ctx, seed, "tail" if tail else "pair", bits, 0, n), strict=True)]
    return [a % 2**bits for a in y]


def pack(words: Sequence[int], bits: int) -> bytes:
    """The words of one chunk as they go over the wire; a negative word is its two's complement."""
    words = [word % 2**bits for word in words]
    if bits != 12:
        return b"".join(word.to_bytes(bits // 8, "little") for word in words)
    rows = []
    for k in range(0, len(words) - 1, 2):
        rows.append((words[k] | words[k + 1] << 12).to_bytes(3, "little"))
    if len(words) % 2:
        rows.append(words[-1].to_bytes(2, "little"))
    return b"".join(rows)


def chunks(body: Sequence[int], bits: int, tail: Sequence[int]) -> list[bytes]:
    cut = [pack(body[k : k + CHUNK], bits) for k in range(0, len(body), CHUNK)]
    return [*cut, pack(tail, 64)] if tail else cut


def signed(word: int, bits: int) -> int:
    return (word + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


# Tail


def evaluation(loss: float | None, auc: float | None, counts: Sequence[Sequence[int]]) -> list[int]:
    """`counts`: of class 0 and of class 1. No AUC: one class is missing; no loss: nothing was scored.

    Three random words follow."""
    row = [*counts[0], *counts[1]]
    if loss is None:
        return [0] * (5 + len(row))
    whole = sum(row)
    scaled = [count * 2**20 // whole for count in row]
    by_remainder = sorted(range(len(row)), key=lambda k: (-(row[k] * 2**20 % whole), k))
    for k in by_remainder[: 2**20 - sum(scaled)]:
        scaled[k] += 1
    front = [1, round(Fraction(min(loss, 1024.0)) * 2**20), 0, 0, 0]
    if auc is not None:
        a = round(Fraction(auc) * 2**30)
        front[2:] = [1, a, a * a // 2**30]
    return front + scaled


# Lists, sketch, rule


def sketch_seed(ctx: bytes, first_list: str, nonces: Mapping[str, bytes]) -> bytes:
    opened = {silo: b64(nonce) for silo, nonce in nonces.items()}
    return derive(ctx, hashlib.sha256(jcs({"list": first_list, "nonces": opened})).digest(), "sketch", 32)


def fractions_of(segments: Sequence[Sequence[int]]) -> list[int]:
    """[[words, fraction bits], ..] as one number of fraction bits a word."""
    return [bits for count, bits in segments for _ in range(count)]


def sketch(seed: bytes, words: Sequence[int], fraction_bits: Sequence[int]) -> list[int]:
    """256 sums of the body's signed words."""
    most = max(fraction_bits)
    sums = [0] * 256
    for cell, word, bits in zip(lanes(seed, 2, 0, len(words)), words, fraction_bits, strict=True):
        sums[cell % 256] += (-1) ** (cell >> 8 & 1) * word * 2 ** (most - bits)
    return sums


def rule(
    sums: Mapping[str, Sequence[int]], weights: Mapping[str, int], clip_norm: float, fraction_bits: Sequence[int]
) -> dict[str, str]:
    """{silo left out: why}: "clip", "large" or "small", the first that holds."""
    most = max(fraction_bits)
    rounding = sum(Fraction(4) ** (most - bits) for bits in fraction_bits) / 4
    q = {silo: Fraction(sum(s * s for s in sums[silo]), weights[silo] ** 2) for silo in sums}
    row, half = sorted(q.values()), len(q) // 2
    median = row[half] if len(row) % 2 else (row[half - 1] + row[half]) / 2
    out = {}
    for silo in by_name(q):
        if q[silo] > Fraction("1.69") * (Fraction(clip_norm) ** 2 * 4**most + rounding / weights[silo] ** 2):
            out[silo] = "clip"
        elif q[silo] > Fraction(25) * median:
            out[silo] = "large"
        elif q[silo] < Fraction("0.0001") * median:
            out[silo] = "small"
    return out


# Unmasking


def unmasked(
    ctx: bytes,
    sent: Mapping[int, Sequence[int]],
    bits: int,
    b: Mapping[int, bytes],
    outside: Mapping[int, Mapping[int, bytes]],
    tail: bool,
) -> list[int]:
    """The sum's words. `sent`: {member: y}; `b`: {member: secret}; `outside`: {index of R outside: {member: pair seed}}."""
    n = len(next(iter(sent.values())))
    total = [sum(column) for column in zip(*sent.values(), strict=True)]

    def add(sign: int, seed: bytes, label: str) -> None:
        for k, word in enumerate(mask(ctx, seed, "tail" if tail else label, bits, 0, n)):
            total[k] += sign * word

    for i in sent:
        add(-1, b[i], "self")
        for j, seeds in outside.items():
            add(-1 if i < j else 1, seeds[i], "pair")
    return [word % 2**bits for word in total]


# Check words


def check_seed(ctx: bytes, sum_digest: str, nonces: Mapping[str, bytes]) -> bytes:
    opened = [[silo, b64(nonces[silo])] for silo in by_name(nonces)]
    return hashlib.sha256(jcs({"ctx": ctx.hex(), "sum": sum_digest, "nonces": opened})).digest()


def coefficients(ctx: bytes, seed: bytes, start: int, count: int) -> list[int]:
    return [word % 2**61 for word in lanes(material(ctx, seed, "check"), 8, start, count)]


def check_word(ctx: bytes, seed: bytes, body: Sequence[int], tail: Sequence[int]) -> int:
    """`body` signed, `tail` unsigned; 0 .. 2^61 − 2."""
    x = [*body, *tail]
    return sum(a * word for a, word in zip(coefficients(ctx, seed, 0, len(x)), x, strict=True)) % P61


# State


def state(table: Sequence[Mapping[str, Any]], weights: Sequence[float], scales: Sequence[int] | None = None) -> bytes:
    following = {} if scales is None else {"scales": "".join(f"{e + 128:02x}" for e in scales)}
    header = jcs({"table": table, **following})
    return b"consilium-state/1\n" + struct.pack(">I", len(header)) + header + struct.pack(f"<{len(weights)}f", *weights)


def float32(number: float) -> float:
    """The nearest single, ties to even. A sum or product of two singles, made in double and rounded so, rounds once in effect."""
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


def next_weights(
    weights: Sequence[float], words: Sequence[int], fraction_bits: Sequence[int], server_lr: float, total_weight: int
) -> list[float]:
    """`words`: the sum's body as signed numbers, one a weight."""
    out = []
    for w, word, bits in zip(weights, words, fraction_bits, strict=True):
        step = float32(server_lr / (total_weight * 2**bits))
        out.append(float32(w + float32(float32(word) * step)))
    return out


# Scales


def ceil_log2(value: Fraction) -> int:
    k = -64
    while Fraction(2) ** k < value:
        k += 1
    return k


def levels(bits: int, n: int, heaviest: int) -> int:
    room = Fraction(2 ** (bits - 1) - 1, n) - 1
    k = -64
    while heaviest * Fraction(2) ** (k + 1) <= room:
        k += 1
    return k


def top(clip_norm: float) -> int:
    return min(max(ceil_log2(Fraction(clip_norm)), -32), 20)


def first_scale(clip_norm: float, d: int) -> int:
    e = -32
    while Fraction(4) ** e * d < (8 * Fraction(clip_norm)) ** 2:
        e += 1
    return min(e, top(clip_norm))


def fraction_bits(scales: Sequence[int], sizes: Sequence[int], bits: int, n: int, heaviest: int) -> list[int]:
    whole = [levels(bits, n, heaviest) - e for e in scales]
    apart = max(0, 64 - bits - len(f"{sum(sizes):b}"))
    return [min(f, min(whole) + apart) for f in whole]


def next_scales(
    scales: Sequence[int],
    sizes: Sequence[int],
    maxima: Sequence[int],
    fractions: Sequence[int],
    total: int,
    clip: float,
) -> list[int]:
    after = []
    for e, size, m, f in zip(scales, sizes, maxima, fractions, strict=True):
        if m:
            wanted = ceil_log2(Fraction((16 if size <= 256 else 4) * m, total * 2**f))
            e = min(max(wanted, e - 1, -32), top(clip))
        after.append(e)
    return after


def largest_sum(e: int | None, f: int, weights: Sequence[int], clip_norm: float) -> int:
    bound = Fraction(clip_norm) if e is None else min(Fraction(2) ** e, Fraction(clip_norm))
    return sum(math.floor(bound * weight * 2**f) + 1 for weight in weights)


# First model


def first_values(name: str, shape: Sequence[int], seed: int) -> list[float]:
    count = math.prod(shape)
    if len(shape) < 2:
        return [0.0 if name.endswith(("bias", "running_mean", "num_batches_tracked")) else 1.0] * count
    key = hashlib.sha256(b"consilium-initial/1" + LF + seed.to_bytes(8, "big") + name.encode()).digest()[:16]
    raw = stream(key + bytes(16), 0, 4 * count)
    bound = float32(math.sqrt(1 / math.prod(shape[1:])))
    drawn = [int.from_bytes(raw[4 * k : 4 * k + 4], "little") >> 8 for k in range(count)]
    return [float32((2 * u + 1 - 2**24) / 2**24 * bound) for u in drawn]


# Who takes part


def draw(silos: Sequence[str], count: int, model: str, round: int) -> list[str]:
    def rank(silo: str) -> bytes:
        facts = {"draw": "consilium/draw/1", "model": model, "round": round, "silo": silo}
        return hashlib.sha256(jcs(facts)).digest()

    return by_name(sorted(silos, key=rank)[:count])
